"""A file of prompts in, a file of answers out: what is left of a run that was cut off, as it comes, and nothing twice."""

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from tqdm import tqdm

from jax_probe_mtp.decoding.batch import bucket
from jax_probe_mtp.drafting.draft_config import DraftConfig
from jax_probe_mtp.files.answer_file import AnswerFile
from jax_probe_mtp.files.prompt_file import PromptFile, Record
from jax_probe_mtp.generation import tokenizer
from jax_probe_mtp.generation.prompts import Generation, Prompt, Settings, Stats
from jax_probe_mtp.generation.scheduler import ContinuousDecoder, InOrder, Item
from jax_probe_mtp.jobs import processes
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import ModelConfig

log = logging.getLogger("jax_probe_mtp")
SECONDS_A_LINE = 30.0  # between two lines of progress where no terminal shows a bar
EXIT_ERRORS = 3  # some records could not run


def encode(record: Record, tokens: Any, *, use_chat_template: bool) -> Prompt:
    """A record in tokens.

    Raises:
      ValueError: if the tokenizer or its chat template cannot take it.
    """
    if record.prompt_ids is not None:
        token_ids = record.prompt_ids
    elif record.messages is not None:
        if not use_chat_template:
            raise ValueError("messages need the chat template; leave --no-chat-template out, or give a prompt.")
        token_ids = tokenizer.encode_messages(tokens, record.messages)
    else:
        token_ids = tokenizer.encode(tokens, record.prompt or "", use_chat_template=use_chat_template)
    return Prompt(
        id=record.id,
        token_ids=token_ids,
        **{name: getattr(record, name) for name in ("seed", "max_new_tokens", "temperature", "top_k", "top_p", "stop")},
    )


def capacity_of(
    records: Iterable[Record], cfg: ModelConfig, tokens: Any, settings: Settings, *, use_chat_template: bool
) -> int:
    """Cache slots a row for the longest record that the model can take: one bucket for all, so that none recompiles."""
    needed = 1
    for record in records:
        with contextlib.suppress(ValueError):  # it gets its own error when it is its turn
            prompt = encode(record, tokens, use_chat_template=use_chat_template)
            size = len(prompt.token_ids) + prompt.of("max_new_tokens", settings)
            if size <= cfg.context_length:
                needed = max(needed, size - 1)
    return min(bucket(needed), cfg.context_length)


class Signals:
    """SIGINT and SIGTERM as a wish to stop, asked for between two chunks; the second one stops at once.

    Attributes:
      received: the signal's number; 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "Signals":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
        log.info("%s: finishing the calls under way", signal.Signals(number).name)


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
        draft_cfg: DraftConfig,
        settings: Settings,
        *,
        use_chat_template: bool,
        is_ordered: bool,
    ) -> None:
        """Nothing is read or written yet.

        Args:
          prompts: what to answer.
          output: where the answers go; with several processes, each writes to its own file beside it.
          run: what decides the answers; a file made by another run is refused.
          checkpoint: the model.
          draft_cfg: where drafts come from.
          settings: what records have no own value for, and the sizes, the capacity among them.
          use_chat_template: True puts prompts into the checkpoint's template.
          is_ordered: True for answers in the order of the prompts, which then wait for each other.

        Raises:
          ValueError: one line with the values and a way out.
        """
        self.stats = Stats()
        self._prompts, self._output, self._run = prompts, processes.own_path(output), run
        self._checkpoint, self._draft_cfg, self._settings = checkpoint, draft_cfg, settings
        self._use_chat_template, self._is_ordered = use_chat_template, is_ordered
        assert settings.capacity is not None
        temperatures = (settings.temperature, prompts.max_temperature or 0.0)
        self._decoder = ContinuousDecoder(
            checkpoint,
            draft_cfg,
            settings,
            capacity=settings.capacity,
            is_sampled=max(temperatures) > 0,
            stats=self.stats,
        )

    def run(self) -> int:
        """Answers what has no answer yet. Returns 0, `EXIT_ERRORS`, or 128 + the number of the signal that stopped it."""
        with AnswerFile(self._output, self._run) as answers, Signals() as signals:
            is_kept = (record.id in answers.done for record in self._prompts)
            is_done = processes.union(np.fromiter(is_kept, np.bool_, count=self._prompts.num_records))
            total, num_done = len(is_done), int(is_done.sum())
            if num_done:
                log.info("%s holds %d of %d records: going on", self._output, num_done, total)
            stopped_by = self._decode(answers, signals, is_done)
        if stopped_by:
            name = "another process" if stopped_by == processes.ERROR else signal.Signals(stopped_by).name
            kept = f"{self._output} holds {answers.num_written} of {total} records"
            log.warning("stopped by %s: %s; give the same command to go on", name, kept)
            return 128 + stopped_by
        if answers.num_errors:
            way_out = "delete those lines to try them again"
            log.warning(
                '%d records could not run; their "error" in %s says why: %s', answers.num_errors, self._output, way_out
            )
            return EXIT_ERRORS
        return 0

    def _decode(self, answers: AnswerFile, signals: Signals, is_done: np.ndarray) -> int:
        """Decodes and writes; the number of the signal that stopped it, or 0."""
        failure: OSError | None = None
        stop = 0

        def should_stop() -> bool:
            nonlocal stop
            stop = processes.largest(processes.ERROR if failure else signals.received)
            return stop != 0

        in_order = InOrder()
        items = self._items(is_done)
        with _Progress(len(is_done), int(is_done.sum()), self.stats) as progress:
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
        """What is left to decode, with its place in the file."""
        for record in self._prompts:
            if is_done[record.index]:
                continue
            try:
                item: Item = encode(record, self._checkpoint.tokenizer, use_chat_template=self._use_chat_template)
            except ValueError as error:
                item = self._decoder.refusal(Prompt(id=record.id, token_ids=[]), error)
            yield record.index, item


def as_json(generation: Generation) -> dict[str, Any]:
    """An answer as a line of the output holds it; what it has no value for is left out."""
    return {name: value for name, value in vars(generation).items() if value is not None}


class _Progress:
    """A bar on a terminal's stderr; elsewhere a line now and then. Of several processes the first one shows it."""

    def __init__(self, total: int, num_done: int, stats: Stats) -> None:
        self._bar = tqdm(
            total=total,
            initial=num_done,
            unit="record",
            file=sys.stderr,
            disable=None if processes.is_first() else True,
        )
        self._total, self._num_done, self._stats = total, num_done, stats
        self._start = self._last = time.monotonic()
        self._shown = 0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self) -> None:
        """Brings it up to date."""
        stats, now = self._stats, time.monotonic()
        speed = f"{stats.new_tokens / stats.seconds if stats.seconds else 0:.1f} tokens/s, tau {stats.tau:.3f}"
        if not self._bar.disable:
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(stats.records - self._shown)
            self._shown = stats.records
        elif processes.is_first() and now - self._last >= SECONDS_A_LINE and stats.records:
            done = self._num_done + stats.records
            left = (now - self._start) / stats.records * (self._total - done)
            log.info("%d of %d records, %s, about %s left", done, self._total, speed, tqdm.format_interval(left))
            self._last = now
