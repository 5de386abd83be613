"""A file of prompts in, a file of answers out: what is left of a run that was cut off, as it comes, and nothing twice."""

import contextlib
import dataclasses
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_probe_mtp.decoding.settings import Prompt, Settings, record_seed
from jax_probe_mtp.drafting.merged.costs import Costs
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.files.answer_file import AnswerFile
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.files.remote.working_copy import WorkingCopy
from jax_probe_mtp.files.run_file import COSTS, read_run, run_path, write_run
from jax_probe_mtp.generation.answers import Generation, Item, Stats, Update
from jax_probe_mtp.generation.groups import Groups
from jax_probe_mtp.generation.in_order import InOrder
from jax_probe_mtp.jobs import processes
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.jobs.kept import Kept
from jax_probe_mtp.jobs.made_by import renewed_run
from jax_probe_mtp.jobs.progress import Progress
from jax_probe_mtp.jobs.signals import Signals
from jax_probe_mtp.jobs.survey import Survey
from jax_probe_mtp.jobs.warm import WarmState, warm_path
from jax_probe_mtp.model.checkpoint import Checkpoint

_logger = logging.getLogger("jax_probe_mtp")
EXIT_ERRORS = 3  # some records could not run


class Job:
    """One run over a file of prompts.

    Attributes:
      stats: sums over what this run decoded.
    """

    def __init__(
        self,
        prompts: PromptFile,
        output: Path,
        run: Mapping[str, Any],
        checkpoint: Checkpoint,
        source: DraftSource,
        settings: Settings,
        *,
        encode: Encoder,
        survey: Survey | None = None,
        is_ordered: bool,
        redoes_changed: bool = False,
        retries_errors: bool = False,
        limit: int | None = None,
        shared: Any = None,
        says: Mapping[str, Any] | None = None,
        watch: Callable[[], None] = lambda: None,
        copy: WorkingCopy | None = None,
        costs: Costs | None = None,
    ) -> None:
        """Prepares the run; reads and writes nothing yet.

        Args:
          prompts: what to answer.
          output: where the answers go; with several processes, each writes to its own file beside it.
          run: what decides the answers; a file made by another run is refused.
          checkpoint: the model.
          source: where drafts come from.
          settings: what records have no own value for, and the sizes, the capacity among them.
          encode: turns records into tokens.
          survey: of the prompts; when None nothing is shared, and all have the settings' capacity.
          is_ordered: True for answers in the order of the prompts, which then wait for each other.
          redoes_changed: True to answer records anew that are not what they were when they were answered.
          retries_errors: True to answer records anew whose answer is an error.
          limit: lines of the file that are looked at, from the first one on; all when None.
          shared: what the draft source's rows share, such as tuned masks; what it begins with when None.
          says: more fields of each answer.
          watch: called after every chunk of calls.
          copy: puts `files_of` the output where they belong; None where they lie there.
          costs: what calls cost, where the source has several sizes; kept in the run file.

        Raises:
          ValueError: one line with the values and a way out.
        """
        self.stats = Stats()
        self._prompts, self._output, self._run = prompts, processes.own_path(output), run
        self._checkpoint, self._settings = checkpoint, settings
        self._encode, self._survey, self._is_ordered = encode, survey, is_ordered
        self._redoes_changed, self._retries_errors = redoes_changed, retries_errors
        self._num_wanted = prompts.num_records_of(limit or prompts.num_lines)
        self._limit, self._says, self._watch = limit, dict(says or {}), watch
        self._copy = copy or WorkingCopy()
        self._in_use: dict[int, dict[str, Any] | None] = {}  # what answers say of records under way; None of another's
        assert settings.capacity is not None
        temperatures = (settings.temperature, prompts.max_temperature or 0.0)
        self._warm = WarmState(self._output, run, source, checkpoint.params)
        self._costs = costs
        groups = Groups(checkpoint, source, costs)
        # Answers in the order of the prompts would all wait for the long ones.
        capacities = [settings.capacity] if survey is None or is_ordered else survey.capacities
        D = groups.num_shards  # a few long records need no more rows than they are
        rows = [settings.batch_size]
        if survey is not None and len(capacities) > 1:
            rows = [-(-survey.num_at(place) // D) * D for place in range(len(capacities))]
        self._decoders = [
            groups.stream(
                dataclasses.replace(settings, batch_size=min(settings.batch_size, num_rows)),
                stats=self.stats,
                shared=groups.begin_shared(shared),
                capacity=capacity,
                is_sampled=max(temperatures) > 0,
                is_penalized=settings.is_penalized or prompts.is_penalized,
            )
            for capacity, num_rows in zip(capacities, rows, strict=True)
        ]
        self._decoder = self._decoders[0]  # the one that is running

    def run(self) -> int:
        """Answers what has no answer yet.

        Returns:
          0, `EXIT_ERRORS`, or 128 + the number of the signal that stopped it.

        Raises:
          ValueError: if the output is another run's, answers records that have changed, or the prompts change meanwhile.
          OSError: if a file cannot be read or written.
        """
        kept = Kept(self._prompts)
        with contextlib.ExitStack() as opened:
            with processes.in_step():
                answers = opened.enter_context(AnswerFile(self._output, self._run, renewed_run, kept.see))
                kept.compare_prompts(self._encode)
                if not self._redoes_changed:
                    kept.refuse_changed(self._output)
                elif num_changed := len(kept.changed) + len(kept.stale):
                    _logger.info("%s: %d records have changed: answered anew", self._output, num_changed)
                anew = list(kept.changed)
                if self._retries_errors and kept.failed:
                    _logger.info("%s: %d records could not run: tried again", self._output, len(kept.failed))
                    anew += kept.failed
                if anew or kept.stale:
                    answers.remove(kept.let_go(anew) | kept.stale.keys())
                if self._costs is not None:
                    self._keep(self._costs)
                    self._costs.keepers.append(self._keep)
            signals = opened.enter_context(Signals())
            opened.enter_context(self._copy)  # which so puts all there while signals are still heard
            is_done = processes.union(kept.is_kept)
            if is_done.any():
                _logger.info("%s holds %d of %d records: going on", self._output, is_done.sum(), len(is_done))
                self._decoder.shared = self._warm.load(self._decoder.shared)
            stopped_by = self._decode(answers, signals, is_done)
        return self._status(answers, kept, stopped_by)

    def _keep(self, costs: Costs) -> None:
        """Writes what calls cost beside the answers."""
        if costs.seconds and read_run(self._output).get(COSTS) != costs.as_json():
            with contextlib.suppress(OSError):  # no reason to end a run
                write_run(self._output, {**self._run, COSTS: costs.as_json()})

    def _status(self, answers: AnswerFile, kept: Kept, stopped_by: int) -> int:
        """Says what was written, and gives the exit status."""
        num_others, num_errors = kept.num_others, answers.num_errors - kept.num_other_errors
        num, total = answers.num_written - num_others, self._prompts.num_records
        only = f" (--limit {self._limit})" if self._num_wanted < total else ""
        others = only + (
            f", beside {num_others} answers that {self._prompts.path} does not ask for" if num_others else ""
        )
        if stopped_by:
            name = "another process" if stopped_by == processes.ERROR else signal.Signals(stopped_by).name
            holds = f"{self._output} holds {num} of {total} records{others}"
            again = "give the same command to go on" if self._copy.can_go_on else "the same command begins anew"
            _logger.warning("stopped by %s: %s; %s", name, holds, again)
            return 128 + stopped_by
        if self._prompts.has_changed():
            says = f"{self._prompts.path} has changed since this run began, which wrote {num} of {total} records"
            raise ValueError(f"{says}; give the same command to go on.")
        _logger.info("%d of %d records in %s%s", num, total, self._output, others)
        if num_errors:
            again = "give --retry-errors to try them again" if self._copy.can_go_on else "begin anew"
            _logger.warning(
                '%d records could not run; their "error" in %s says why: mend that and %s',
                num_errors,
                self._output,
                again,
            )
            return EXIT_ERRORS
        return 0

    def _decode(self, answers: AnswerFile, signals: Signals, is_done: np.ndarray) -> int:
        """Decodes and writes; gives the number of the signal that stopped it, or 0."""
        failure: OSError | ValueError | None = None
        stop = 0

        def should_stop() -> bool:
            nonlocal stop
            stop = processes.largest(processes.ERROR if failure else signals.received)
            return stop != 0

        def read_items(place: int) -> Iterator[tuple[int, Item]]:
            nonlocal failure
            try:
                yield from self._items(is_done, place)
            except (ValueError, OSError) as error:  # the file has changed: all processes stop at the next look
                failure = error

        def updates() -> Iterator[Update]:
            for place, decoder in enumerate(self._decoders):
                if place > 0:
                    decoder.shared = self._decoder.shared
                self._decoder, items = decoder, read_items(place)
                yield from decoder.run(in_order.watch(items) if self._is_ordered else items, should_stop)
                if stop:
                    break

        in_order = InOrder()
        num_done = int(is_done[: self._num_wanted].sum())
        with Progress(self._num_wanted, num_done, self.stats, lambda: self._decoder.under_way()) as progress:
            for update in updates():
                finished = in_order.add(update.finished) if self._is_ordered else update.finished
                own = [(answer, self._in_use.pop(number)) for number, answer in finished]
                mine = [as_json(answer) | said for answer, said in own if said is not None]
                try:
                    if mine and failure is None:
                        answers.write(mine)
                except OSError as error:
                    failure = error
                self._warm.save_sometimes(lambda: self._decoder.shared)
                progress.show()
                signals.chunk_ended()
                self._watch()
                self._copy.chunk_ended()
        if self.stats.row_calls:
            self._warm.save(self._decoder.shared)
        if failure:
            raise failure
        return stop

    def _items(self, is_done: np.ndarray, place: int) -> Iterator[tuple[int, Item]]:
        """Gives each record that is left to decode by the decoder of this place, with its own in the file."""

        def is_wanted(index: int) -> bool:
            is_here = len(self._decoders) == 1 or self._survey is None or self._survey.place_of(index) == place
            return is_here and index < self._num_wanted and not is_done[index]

        for record in self._prompts.records(is_wanted):
            try:
                num_shared = self._survey.prefixes.of(record.index) if self._survey else 0
                prompt = dataclasses.replace(self._encode(record), num_shared=num_shared)
                item: Item = prompt
            except ValueError as error:
                prompt = Prompt(id=record.id, token_ids=[])
                item = self._decoder.refusal(prompt, error)
            self._in_use[record.index] = self._said_of(record, prompt) if processes.is_mine(record.index) else None
            yield record.index, item

    def _said_of(self, record: Record, prompt: Prompt) -> dict[str, Any]:
        """Gives what the answer says of its record; the seed too where that does not follow from the id."""
        said = record.as_answered() | self._says
        if record.occurrence is not None and prompt.of("temperature", self._settings) > 0:
            said["seed"] = record_seed(self._settings.seed, prompt)
        return said


def files_of(output: Path) -> list[Path]:
    """Gives the files of a job by its output: what says what made the answers, the answers, what its rows have learned."""
    return [run_path(output), output, warm_path(output)]


def as_json(generation: Generation) -> dict[str, Any]:
    """Gives an answer as a line of the output holds it, without the fields that have no value."""
    return {name: value for name, value in vars(generation).items() if value is not None}
