"""Verifies a file of outputs: what `verify --outputs` does, as one function of Python and as the steps that it has."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft
from jax_probe_mtp.files.formats.known import AUTO, NAMES, OURS
from jax_probe_mtp.files.output_file import OutputFile
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.sameness.file_report import FileReport
from jax_probe_mtp.sameness.output import Output
from jax_probe_mtp.sameness.outputs_in_tokens import outputs_of
from jax_probe_mtp.sameness.token_table import TokenTable, check_table
from jax_probe_mtp.sameness.verdicts import Verdict, summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifiedFile:
    """What was found of a file of outputs.

    Attributes:
      verdicts: one for each output, in the file's order.
      counts: of the verdicts by kind, in whole and by category; `summary` of the command's `--json`.
      match_rate: the share of greedy tokens, and of draws with known seeds, that are the model's own; NaN of none.
      p_values: of the tests that could be made, by name: "draws", "greedy_against_baseline", "drawn_against_baseline". Below
        0.01 one speaks against the file.
      causes: what explains the differences, a line each; empty where nothing does.
      report: all statistics; `file` of the command's `--json`.
      lines: the same for people.
      conclusion: whether the model made the file, in one line; `conclusion` of the command's `--json`.
      says: how the file was read, a line each.
      status: the command's exit status: 1 where an output diverged or is incomplete, or a p-value speaks against the file, 2
        where an output could not be checked, else 0.
    """

    verdicts: list[Verdict]
    counts: dict[str, Any]
    match_rate: float
    p_values: dict[str, float]
    causes: list[str]
    report: dict[str, Any]
    lines: list[str]
    conclusion: str
    says: list[str]
    status: int


def verify_file(
    checkpoint: Checkpoint,
    path: Path | str,
    *,
    settings: Settings | None = None,
    max_new_tokens: int | None = None,
    input: Path | str | None = None,
    format: str = AUTO,
    baseline: Path | str | None = None,
    unknown_seeds: bool = False,
    use_chat_template: bool = True,
    against: Checkpoint | None = None,
    tokens: Path | str | None = None,
) -> VerifiedFile:
    """Judges outputs of any framework, as `verify --outputs` does: did this model make them?

    Args:
      checkpoint: from `checkpoints_convert.load_checkpoint`; it needs its tokenizer.
      path: the file, in one of the formats of `verify`.
      settings: sampling and ends of outputs that state none of their own, and the batch size. How to decode is not read.
      max_new_tokens: what outputs that do not state it were asked for; None if nobody knows. That of `settings` is not read.
      input: a file of the prompts, where the outputs hold none.
      format: the file's, such as "vllm"; "auto" takes the one that the first line is in.
      baseline: a file of outputs that are known to be good.
      unknown_seeds: True where nobody knows the seeds of draws in our own format; those of other tools are never known.
      use_chat_template: False takes prompts as plain text.
      against: another model with the same tokenizer; the report then says which of the two explains the outputs.
      tokens: a file that gets a row a token, JSON lines or, by its name, Parquet.

    Raises:
      ValueError: one line with the values and a way out.
      OSError: if a file cannot be read or written.
    """
    if format not in NAMES:
        raise ValueError(f"format must be one of {', '.join(NAMES)}, got {format!r:.40}.")
    if checkpoint.tokenizer is None:
        raise ValueError(
            f"the checkpoint {checkpoint.name} has no tokenizer, which reading a file takes; give one, "
            "Checkpoint(tokenizer=...), or use load_checkpoint."
        )
    settings = dataclasses.replace(settings or Settings(), capacity=None, prompt_slots=None)  # of decoding
    files = FilesToVerify(
        Path(path),
        format=format,
        input=None if input is None else Path(input),
        baseline=None if baseline is None else Path(baseline),
        max_new_tokens=max_new_tokens,
        unknown_seeds=unknown_seeds,
    )
    files.check(checkpoint.config, settings)
    encode = Encoder(checkpoint.tokenizer, use_chat_template=use_chat_template)
    if against is not None:
        check_tokenizer(checkpoint, against, f"against, {against.name},")
    report = files.report(checkpoint, encode, settings, other=None if against is None else (against.name, against))
    with contextlib.ExitStack() as stack:
        if tokens is not None:
            check_table(Path(tokens))
            report.of_each = stack.enter_context(TokenTable(Path(tokens))).add
        verdicts = list(report.verdicts(files.outputs(checkpoint, encode, settings)))
    counts = summary(verdicts)
    return VerifiedFile(
        verdicts=verdicts,
        counts=counts,
        match_rate=report.match_rate,
        p_values=report.p_values,
        causes=report.causes,
        report=report.as_json(),
        lines=report.lines(checkpoint.name),
        conclusion=report.conclusion(counts),
        says=files.says,
        status=report.status(counts),
    )


def check_tokenizer(checkpoint: Any, other: Any, name: str) -> None:
    """Raises ValueError where another model, called `name` in the message, has other tokens; both may yet have no weights."""
    mine, theirs = (each.tokenizer.get_vocab() for each in (checkpoint, other))
    if mine != theirs:
        differing = next(iter(sorted(mine.items() ^ theirs.items())), None)
        raise ValueError(
            f"{name} has another tokenizer ({differing} is in one of them alone), so ids mean other texts there; name a model "
            "with the same tokenizer."
        )


class FilesToVerify:
    """A file of outputs, and one of good outputs to compare it with. Building it checks both, before a model is needed.

    Args:
      path: the file.
      format: its format, one of `formats.known.NAMES`.
      input: a file of the prompts, where the outputs hold none.
      baseline: outputs that are known to be good; None where there are none.
      max_new_tokens: what outputs that do not state it were asked for; None if nobody says.
      unknown_seeds: True where the seeds of draws in our own format are not known either.

    Attributes:
      format: the file's format.
      knows_seeds: whether the seeds of its draws are known.
      says: what people should know of how the files were read, a line each.

    Raises:
      ValueError: names the file, the line and what is wrong with it.
      OSError: if a file cannot be read.
    """

    def __init__(
        self,
        path: Path,
        *,
        format: str,
        input: Path | None,
        baseline: Path | None,
        max_new_tokens: int | None,
        unknown_seeds: bool,
    ) -> None:
        prompts = PromptFile(input) if input else None
        self._file = OutputFile(path, format, prompts)
        self._baseline = OutputFile(baseline, AUTO, prompts) if baseline else None
        self._max_new_tokens, self._unknown_seeds = max_new_tokens, unknown_seeds
        self.format, self.knows_seeds = self._file.form.name, self._knows_seeds(self._file)
        self.says = [*self._file.says, *(self._baseline.says if self._baseline else [])]

    def check(self, cfg: ModelConfig, settings: Settings) -> None:
        """Raises ValueError where settings, or the limit, are none that a model can have."""
        limit = self._max_new_tokens
        if limit is None:  # a record states its own
            limit = max(settings.max_new_tokens, settings.min_tokens)
        dataclasses.replace(settings, capacity=1, max_new_tokens=limit).check(cfg, parse_draft(PLAIN))

    def outputs(self, checkpoint: Checkpoint, encode: Encoder, settings: Settings) -> Iterator[Output]:
        """Gives the outputs in tokens.

        Args:
          checkpoint: the model.
          encode: turns records into tokens.
          settings: those of outputs that have none of their own.
        """
        return outputs_of(self._file, encode, checkpoint, settings, self._max_new_tokens)

    def report(
        self,
        checkpoint: Checkpoint,
        encode: Encoder,
        settings: Settings,
        *,
        other: tuple[str, Checkpoint] | None = None,
    ) -> FileReport:
        """Makes the report that the outputs go into, after examining the baseline; arguments as for `outputs`, `FileReport`."""
        report = FileReport(checkpoint, settings, knows_seeds=self.knows_seeds, other=other)
        if self._baseline is not None:
            good = FileReport(checkpoint, settings, knows_seeds=self._knows_seeds(self._baseline))
            outputs = outputs_of(self._baseline, encode, checkpoint, settings, self._max_new_tokens)
            good.totals = summary(good.verdicts(outputs))
            report.compare_with(good)
        return report

    def _knows_seeds(self, file: OutputFile) -> bool:  # the noise of other tools is not ours
        return file.form.name == OURS and not self._unknown_seeds
