"""Files of outputs that some framework gave: checked as a whole before anything runs, then read record by record."""

from array import array
from collections.abc import Iterator
from pathlib import Path

from jax_probe_mtp.files.formats.given import GivenOutput, Item, category_of, whole_numbers
from jax_probe_mtp.files.formats.items import is_array, items
from jax_probe_mtp.files.formats.join import Join
from jax_probe_mtp.files.formats.known import AUTO, FORMATS, OURS, Format, check_is, recognised, unknown
from jax_probe_mtp.files.ids import KeySet, id_key, sample_key, sample_name
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.records.record import parsed_records


class OutputFile:
    """A file of outputs: JSON objects, one a line or all in one array. Building it checks each of them.

    An array is read whole, lines are not: of a file of any length 8 bytes an output stay in memory, and with prompts what
    `Join` keeps.

    Args:
      path: the file.
      form: its format, one of `formats.known.NAMES`; "auto" takes the one that the first line is in.
      prompts: where the outputs hold none.

    Attributes:
      form: its format.
      says: what people should know of how it was read, a line each.

    Raises:
      ValueError: names the file, the line and what is wrong with it.
      OSError: if the file cannot be read.
    """

    def __init__(self, path: Path, form: str = AUTO, prompts: PromptFile | None = None) -> None:
        self._path = path
        self.says: list[str] = []
        self._first, self.form = self._recognise(form)
        self._join: Join | None = None
        self._is_plain = self.form.name == OURS and prompts is None and not is_array(path)
        if self._is_plain:
            self._check_ours()
            return
        join = None if prompts is None else Join(prompts, has_servers_ids=self.form.has_servers_ids)
        self._check(join)
        if join is not None:
            join.settle()
            self.says += join.says
            self._join = join

    def __iter__(self) -> Iterator[GivenOutput]:
        """Gives the outputs, line by line."""
        if self._is_plain:
            for record, fields, _, where in parsed_records(self._path, are_answers=True):
                token_ids = whole_numbers(where, "token_ids", fields.get("token_ids"))
                yield GivenOutput(
                    record=record,
                    is_named="id" in fields,
                    token_ids=token_ids,
                    category=category_of(where, fields),
                )
        elif self._join is not None:
            yield from self._join.joined((place, outputs) for place, (_, outputs) in enumerate(self._lines()))
        else:
            for _, outputs in self._lines():
                yield from outputs

    def _recognise(self, form: str) -> tuple[Item | None, Format]:
        """Gives the first line, None where there is none, and the format."""
        first = next(items(self._path), None)
        if first is None:
            return None, FORMATS[OURS if form == AUTO else form]
        if form != AUTO:
            check_is(FORMATS[form], first)
            return first, FORMATS[form]
        found = recognised(first.value)
        if found is None:
            raise ValueError(unknown(first.where, first.value))
        if found.name != OURS:
            self.says.append(f"{self._path.name} is read as {found.name} ({found.says}); --format names another")
        return first, found

    def _check_ours(self) -> None:
        """Checks lines that hold all that a prompt file's hold."""
        try:
            PromptFile(self._path, are_answers=True)
            for _ in self:
                pass
        except ValueError as error:
            self._check_one_format(str(error))
            raise

    def _check_one_format(self, error: str) -> None:
        """Raises ValueError where the line that an error names is in another format, which is why."""
        for item in items(self._path):  # whose own error, where a line is no JSON, is the one that is named
            is_it = error.startswith((f"{item.where}:", f"{item.where} "))
            if is_it and recognised(item.value) is not None:
                check_is(self.form, item)

    def _check(self, join: Join | None) -> None:
        keys, num_cut = array("Q"), 0
        for item, outputs in self._lines():
            for output in outputs:
                if join is None and not output.has_prompt and output.error is None:
                    raise ValueError(
                        f"{item.where} holds no prompt; give the file of the prompts with --input, to be joined by id "
                        "or, where there are no ids, by place."
                    )
                keys.append(sample_key(id_key(output.record.id), output.record.sample))
                num_cut += output.includes_prompt
            if join is not None:
                join.show(item, outputs[0])
        if not keys:
            raise ValueError(f"{self._path} holds no records; give one JSON object a line.")
        if num_cut:
            self.says.append(f"{num_cut} of {len(keys)} outputs are to begin with their prompts, which are cut off")
        for key in KeySet(keys).repeated():
            self._check_ids_differ(key)

    def _lines(self) -> Iterator[tuple[Item, list[GivenOutput]]]:
        """Gives each line and its outputs, at least one, without lines that hold those of another once more."""
        copies_by = self.form.copies_by
        for item in items(self._path):
            check_is(self.form, item)
            assert self._first is not None
            if copies_by is None or item.value.get(copies_by) == self._first.value.get(copies_by):
                yield item, list(self.form.read(item))

    def _check_ids_differ(self, key: int) -> None:
        """Reads the file once more for the ids of one key: two different ones may share it by chance."""
        where_is: dict[tuple[str, int], str] = {}
        for item, outputs in self._lines():
            for output in outputs:
                record = output.record
                if sample_key(id_key(record.id), record.sample) != key:
                    continue
                name = str(record.id), record.sample
                if name in where_is:
                    shown = sample_name(record.id, record.sample or None)
                    raise ValueError(f"{item.where} has the id {shown} of {where_is[name]}; ids must differ.")
                where_is[name] = item.where


def categories(path: Path) -> dict[str | int, str | None]:
    """Gives the category of each record of a prompt file, None where it has none.

    Raises:
      ValueError: names the file, the line and what is wrong with it.
    """
    return {record.id: category_of(where, fields) for record, fields, _, where in parsed_records(path)}
