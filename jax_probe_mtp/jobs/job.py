"""A file of prompts in, a file of answers out: what is left of a run that was cut off, as it comes, and nothing twice."""

import logging
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import renewed_name
from jax_probe_mtp.files.answer_file import AnswerFile
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.generation.answers import Generation, Item, Stats
from jax_probe_mtp.generation.in_order import InOrder
from jax_probe_mtp.generation.scheduler import ContinuousDecoder
from jax_probe_mtp.jobs import processes
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.jobs.progress import Progress
from jax_probe_mtp.jobs.signals import Signals
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
        is_ordered: bool,
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
          is_ordered: True for answers in the order of the prompts, which then wait for each other.

        Raises:
          ValueError: one line with the values and a way out.
        """
        self.stats = Stats()
        self._prompts, self._output, self._run = prompts, processes.own_path(output), run
        self._checkpoint, self._settings = checkpoint, settings
        self._encode, self._is_ordered = encode, is_ordered
        assert settings.capacity is not None
        temperatures = (settings.temperature, prompts.max_temperature or 0.0)
        self._decoder = ContinuousDecoder(
            checkpoint,
            source,
            settings,
            capacity=settings.capacity,
            is_sampled=max(temperatures) > 0,
            stats=self.stats,
        )

    def run(self) -> int:
        """Answers what has no answer yet. Returns 0, `EXIT_ERRORS`, or 128 + the number of the signal that stopped it."""
        with AnswerFile(self._output, self._run, renewed_run) as answers, Signals() as signals:
            is_kept = (record.id in answers.done for record in self._prompts)
            is_done = processes.union(np.fromiter(is_kept, np.bool_, count=self._prompts.num_records))
            total, num_done = len(is_done), int(is_done.sum())
            if num_done:
                _logger.info("%s holds %d of %d records: going on", self._output, num_done, total)
            stopped_by = self._decode(answers, signals, is_done)
        if stopped_by:
            name = "another process" if stopped_by == processes.ERROR else signal.Signals(stopped_by).name
            kept = f"{self._output} holds {answers.num_written} of {total} records"
            _logger.warning("stopped by %s: %s; give the same command to go on", name, kept)
            return 128 + stopped_by
        if answers.num_errors:
            way_out = "delete those lines to try them again"
            _logger.warning(
                '%d records could not run; their "error" in %s says why: %s', answers.num_errors, self._output, way_out
            )
            return EXIT_ERRORS
        return 0

    def _decode(self, answers: AnswerFile, signals: Signals, is_done: np.ndarray) -> int:
        """Decodes and writes; gives the number of the signal that stopped it, or 0."""
        failure: OSError | None = None
        stop = 0

        def should_stop() -> bool:
            nonlocal stop
            stop = processes.largest(processes.ERROR if failure else signals.received)
            return stop != 0

        in_order = InOrder()
        items = self._items(is_done)
        with Progress(len(is_done), int(is_done.sum()), self.stats) as progress:
            for update in self._decoder.run(in_order.watch(items) if self._is_ordered else items, should_stop):
                finished = in_order.add(update.finished) if self._is_ordered else update.finished
                mine = [as_json(answer) for number, answer in finished if processes.is_mine(number)]
                try:
                    if mine and failure is None:
                        answers.write(mine)
                except OSError as error:
                    failure = error
                progress.show()
        if failure:
            raise failure
        return stop

    def _items(self, is_done: np.ndarray) -> Iterator[tuple[int, Item]]:
        """Gives each record that is left to decode, with its place in the file."""
        for record in self._prompts:
            if is_done[record.index]:
                continue
            try:
                item: Item = self._encode(record)
            except ValueError as error:
                item = self._decoder.refusal(Prompt(id=record.id, token_ids=[]), error)
            yield record.index, item


def renewed_run(run: dict[str, Any]) -> dict[str, Any]:
    """Gives what made a file of answers with today's names of draft sources, where an earlier version wrote it."""
    renewed = dict(run)
    for part in ("settings", "program"):
        values = renewed.get(part)
        if isinstance(values, dict) and isinstance(values.get("draft"), str):
            renewed[part] = values | {"draft": renewed_name(values["draft"])}
    return renewed


def as_json(generation: Generation) -> dict[str, Any]:
    """Gives an answer as a line of the output holds it, without the fields that have no value."""
    return {name: value for name, value in vars(generation).items() if value is not None}
