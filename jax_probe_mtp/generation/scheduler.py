"""Continuous batching on the host: a stream of prompts in, generations out as they end, with all rows kept busy."""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np

from jax_probe_mtp.decoding.batch import make_batch
from jax_probe_mtp.decoding.request import idle_request
from jax_probe_mtp.decoding.rows import Report
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.decoding.state import TopTokens
from jax_probe_mtp.drafting.merged.choice import Choice, Turn
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import draft_name
from jax_probe_mtp.generation import exact_check, one_text
from jax_probe_mtp.generation.answers import Generation, Item, Numbered, Stats, Update, make_refusal
from jax_probe_mtp.generation.chunks import Chunks
from jax_probe_mtp.generation.programs import Programs
from jax_probe_mtp.generation.row import (
    Arrival,
    RowText,
    WaitingPrompt,
    decode_config,
    join_arrivals,
    num_together,
    pairs,
)
from jax_probe_mtp.model.checkpoint import Checkpoint

MOST_REFUSALS = 1000  # that are kept before they are handed on


class ContinuousDecoder:
    """A batch of B rows on the device, and a stream of prompts that passes through it.

    The device makes K calls at a time. While it does, the host hands out what ended before and prepares what comes next;
    between two chunks it only reads a small report and puts prompts into the rows that are free.

    Attributes:
      stats: sums over what was run.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        source: DraftSource,
        settings: Settings,
        *,
        capacity: int,
        is_sampled: bool,
        is_penalized: bool = False,
        streams_text: bool = False,
        programs: Programs | None = None,
        stats: Stats | None = None,
        shared: Any = None,
        waiting: collections.deque[WaitingPrompt] | None = None,
    ) -> None:
        """Prepares a decoder for one stream.

        Args:
          checkpoint: the model, on one device or on a mesh.
          source: where drafts come from.
          settings: sizes, and what records have no own value for.
          capacity: cache slots of a row.
          is_sampled: True when some record has a temperature above 0.
          is_penalized: True when some record has penalties (`Settings.is_penalized`).
          streams_text: True to be told the text of rows as it grows.
          programs: of the same checkpoint and drafts, to share what is compiled.
          stats: where to count; new ones when left out.
          shared: what the rows share, of an earlier run; what the source begins with when None.
          waiting: prompts that wait for a row, where decoders share them; its own when left out.

        Raises:
          ValueError: one line with the values and a way out.
        """
        self._programs = Programs(checkpoint, source) if programs is None else programs
        self._settings = dataclasses.replace(settings, capacity=capacity)
        self._settings.check(checkpoint.config, source, num_shards=self._programs.num_shards)
        if settings.is_exact:
            one_text.check(checkpoint, source)
        self._checkpoint, self._source = checkpoint, source
        self._is_sampled, self._is_penalized = is_sampled, is_penalized
        self._streams_text = streams_text
        self._decode_cfg = decode_config(checkpoint, settings, capacity)
        self._draft_name = draft_name(source)
        self.stats = Stats() if stats is None else stats
        self._shared = self._programs.begin_shared(shared)
        self._chunks = Chunks(self._programs, checkpoint.params, self._settings, self._decode_cfg)
        self._idle = idle_request(
            1,
            checkpoint.eos_token_ids,
            is_sampled=is_sampled,
            penalized=checkpoint.config.vocab_size if is_penalized else None,
            max_accept=settings.max_accept,
        )
        self._together = num_together(checkpoint, settings.batch_size // self._programs.num_shards)
        self._choice: Choice | None = None
        if source.sizes:
            self._choice = self._programs.choice(settings.batch_size, capacity, settings.calls_per_chunk)
        self._rows: list[RowText | None] = [None] * settings.batch_size
        self._is_stopped_B = np.zeros(settings.batch_size, np.bool_)
        self._waiting = collections.deque[WaitingPrompt]() if waiting is None else waiting
        self._ended: list[RowText] = []
        self._finished: list[Numbered] = []
        self._new_text: list[tuple[int, str]] = []

    def run(
        self, items: Iterable[tuple[int, Item]], should_stop: Callable[[], bool] = lambda: False
    ) -> Generator[Update]:
        """Decodes all prompts; gives an update after every chunk, while the device is busy with the next.

        Args:
          items: (number, prompt), taken as rows become free; of a generation that is passed on as well. A prompt that
            cannot run comes back with an error.
          should_stop: asked before the first chunk, after each, and where no prompt can run; when True, the rows in use are
            given up, and the iterator ends.
        """
        items = iter(items)
        is_stopped = False
        while self._prepare(items) and not self._waiting and not is_stopped:
            is_stopped = should_stop()
            yield self._update()
        # Several processes must ask equally often, also where the items of one of them end early.
        if is_stopped or should_stop() or not self._waiting:
            yield self._update()
            return
        self._check_exact()
        chunks = self._chunks
        with chunks.running(self._idle, self._shared):
            while True:
                arriving = self._arriving()
                if not any(self._rows):
                    has_more = self._prepare(items)
                    if should_stop() or not has_more:
                        break
                    yield self._update()
                    continue
                turn = self._choice.turn(chunks.has) if self._choice else None
                chunks.start(arriving, self._is_stopped_B, self.stats, turn)
                yield self._update()
                self._prepare(items)
                report, prompts = chunks.wait(self.stats)
                self._read_prompts(arriving, prompts)
                self._read(report, turn)
                if should_stop():
                    break
            self._shared = chunks.shared
        yield self._update()

    @property
    def shared(self) -> Any:
        """What the draft source's rows share: of a chunk under way, once it has ended, or as the last run left it."""
        return self._chunks.shared if self._chunks.are_running else self._shared

    @shared.setter
    def shared(self, shared: Any) -> None:
        self._shared = shared

    @property
    def num_rows(self) -> int:
        """Counts the rows of the batch."""
        return len(self._rows)

    @property
    def chunk(self) -> concurrent.futures.Future[Any] | None:
        """Gives what the device is doing, to be waited for; None where it does nothing."""
        return self._chunks.under_way

    def is_ready(self) -> bool:
        """Says whether `run` would go on without waiting for the device."""
        return self.chunk is None or self.chunk.done()

    def under_way(self) -> list[tuple[int, int]]:
        """Gives, of each record that is being decoded, its new tokens so far and the most that it may get."""
        rows = [row for row in self._rows if row is not None]
        return [(row.num_new, row.prompt.of("max_new_tokens", self._settings)) for row in rows]

    def refusal(self, prompt: Prompt, error: ValueError) -> Generation:
        """Says what comes of a prompt that cannot run."""
        return make_refusal(prompt, error, draft=self._draft_name, max_depth=self._source.max_depth)

    def _prepare(self, items: Iterator[tuple[int, Item]]) -> bool:
        """Takes prompts from the stream until one waits for each row; False at the stream's end, with none waiting."""
        while len(self._waiting) < len(self._rows) and len(self._finished) < MOST_REFUSALS + len(self._rows):
            try:
                number, item = next(items)
            except StopIteration:
                return bool(self._waiting)
            if isinstance(item, Generation):
                self._finish(number, item)
                continue
            try:
                batch = make_batch(
                    self._checkpoint.config,
                    self._source,
                    [item],
                    self._settings,
                    eos_token_ids=self._checkpoint.eos_token_ids,
                    is_sampled=self._is_sampled,
                    is_penalized=self._is_penalized,
                )
            except ValueError as error:
                self._finish(number, self.refusal(item, error))
                continue
            self._waiting.append(WaitingPrompt(number=number, prompt=item, batch=batch))
        return True

    def _check_exact(self) -> None:
        if self._settings.is_exact:
            exact_check.check(self._programs, self._checkpoint, self._source, self._decode_cfg, len(self._rows))

    def _arriving(self) -> list[Arrival]:
        """Gives the free rows to those who wait, in turn on each shard."""
        D, B = self._programs.num_shards, len(self._rows)
        per_shard = B // D
        free = sorted((r for r in range(B) if self._rows[r] is None), key=lambda r: r % per_shard)
        newcomers = [(*divmod(r, per_shard), self._waiting.popleft()) for r in free[: len(self._waiting)]]
        for shard, row, waiting in newcomers:
            r = shard * per_shard + row
            self._rows[r], self._is_stopped_B[r] = self._row_text(waiting), False
        return join_arrivals(
            newcomers,
            num_shards=D,
            together=self._together,
            idle=self._idle,
            shares_prefix=D == 1 and not self._settings.is_exact,
        )

    def _row_text(self, waiting: WaitingPrompt) -> RowText:
        stop = waiting.prompt.of("stop", self._settings)
        return RowText(self._checkpoint, waiting.number, waiting.prompt, stop, shows_text=self._streams_text)

    def _read_prompts(self, arrived: list[Arrival], prompts: list[tuple[np.ndarray, TopTokens | None]]) -> None:
        """Takes the log-probabilities of the prompts that were put into their rows, where they were asked for."""
        if not self._settings.prompt_logprobs:
            return
        D = self._programs.num_shards
        for arrival, (logprob_AT, top_ATC) in zip(arrived, prompts, strict=True):
            for a in np.flatnonzero(np.asarray(arrival.request.max_new_tokens_B)).tolist():  # the others are idle
                shard = a * D // len(arrival.row_A)
                row = self._rows[shard * len(self._rows) // D + arrival.row_A[a]]
                assert row is not None
                row.take_prompt(logprob_AT[a].tolist(), pairs(top_ATC, a, logprob_AT.shape[1]))

    def _read(self, report: Report, turn: Turn | None) -> None:
        """Takes what the calls gave each row, and ends the rows that are done."""
        num_calls_B = np.sum(report.length_BQ >= 0, axis=1)  # shards of a batch make their own numbers of calls
        self.stats.row_calls += int(np.sum(num_calls_B))
        before, num_tokens = self.stats.busy_row_calls, 0
        for r, row in enumerate(self._rows):
            if row is None:
                continue
            lengths = [row.length, *report.length_BQ[r, : num_calls_B[r]].tolist()]
            self.stats.busy_row_calls += sum(after > before for before, after in itertools.pairwise(lengths))
            num_new = lengths[-1] - row.length
            num_tokens += num_new
            is_stopped = row.take(
                report.token_BU[r, :num_new].tolist(),
                [] if report.logprob_BU is None else report.logprob_BU[r, :num_new].tolist(),
                pairs(report.top_BUC, r, num_new),
                lengths,
                calls=int(report.calls_B[r]),
                accepted_by_depth=report.accepted_by_depth_BX[r].tolist(),
                draft=None if turn is None else turn.name,
            )
            self._show(row.number, row.show())
            if is_stopped or report.is_done_B[r]:
                self._ended.append(row)
                self._rows[r] = None
                self._is_stopped_B[r] = is_stopped
        if self._choice is not None and turn is not None:
            seconds, busy = self._chunks.call_seconds, self.stats.busy_row_calls - before
            counts = {"calls": int(num_calls_B.max()), "row_calls": busy, "tokens": num_tokens}
            self._choice.note(turn, seconds=seconds if self._chunks.is_quiet else None, **counts)
            self.stats.count_draft(turn.name, seconds)

    def _show(self, number: int, new_text: str) -> None:
        if self._streams_text and new_text:
            self._new_text.append((number, new_text))

    def _finish(self, number: int, generation: Generation) -> None:
        self.stats.count(generation)
        self._finished.append((number, generation))

    def _update(self) -> Update:
        for row in self._ended:  # not before the device is busy again: the text is made of the tokens here
            generation, rest = row.finish(self._draft_name, self._settings)
            self._show(row.number, rest)
            self._finish(row.number, generation)
        update = Update(finished=self._finished, new_text=self._new_text)
        self._ended, self._finished, self._new_text = [], [], []
        return update
