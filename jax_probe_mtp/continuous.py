"""Continuous batching on the host: a stream of prompts in, generations out as they end, with all rows kept busy."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jax_probe_mtp import recycle, row_batch, sources
from jax_probe_mtp import tokenizer as text
from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.config import DecodeConfig, ModelConfig
from jax_probe_mtp.decode_loop import DecodeState
from jax_probe_mtp.draft_config import DraftConfig, draft_name
from jax_probe_mtp.messages import one_line
from jax_probe_mtp.programs import EVERYWHERE, REQUEST, STATE, Program, Programs
from jax_probe_mtp.prompts import Generation, Prompt, Settings, Stats, record_seed
from jax_probe_mtp.request import Request, check_settings, idle_request, join_requests, make_request
from jax_probe_mtp.row_batch import Report
from jax_probe_mtp.text_stream import TextStream

Item = Prompt | Generation  # a generation: a record that ended by an error before it began; it is passed on
MOST_REFUSALS = 1000  # that are kept before they are handed on
Numbered = tuple[int, Generation]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """What a chunk of calls gave.

    Attributes:
      finished: (number, generation) of the records that ended, in the order in which they did.
      new_text: (number, text to show) of the records whose text grew; only where texts are streamed.
    """

    finished: list[Numbered]
    new_text: list[tuple[int, str]]


@dataclasses.dataclass(kw_only=True)
class _Newcomer:
    """A prompt that waits for a row."""

    index: int
    prompt: Prompt
    prompt_1T: jax.Array
    request: Request


@dataclasses.dataclass(kw_only=True)
class _Row:
    """What the host knows of a row in use."""

    index: int
    prompt: Prompt
    stream: TextStream | None
    length: int
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    calls: int = 0
    accepted_by_depth: list[int]


def make_newcomer(
    checkpoint: Checkpoint, draft_cfg: DraftConfig, prompt: Prompt, settings: Settings, capacity: int | None
) -> tuple[jax.Array, Request, DecodeConfig]:
    """A batch of one prompt with its own settings; see `make_request`, which also checks it."""
    return make_request(
        checkpoint.config,
        draft_cfg,
        [prompt.token_ids],
        names=[str(prompt.id)],
        max_new_tokens=prompt.of("max_new_tokens", settings),
        eos_token_ids=checkpoint.eos_token_ids,
        temperature=prompt.of("temperature", settings),
        top_k=prompt.of("top_k", settings),
        top_p=prompt.of("top_p", settings),
        seeds=[record_seed(settings.seed, prompt)],
        mask_ema=settings.mask_ema,
        capacity=capacity,
        prompt_slots=settings.prompt_slots,
    )


def check_sizes(
    cfg: ModelConfig, draft_cfg: DraftConfig, settings: Settings, *, capacity: int, num_shards: int = 1
) -> None:
    """Checks what no record can make right, before anything is loaded.

    Raises:
      ValueError: one line with the values and a way out.
    """
    B, K = settings.batch_size, settings.calls_per_chunk
    if B < 1 or K < 1:
        raise ValueError(f"batch_size and calls_per_chunk must be at least 1, got {B} and {K}.")
    if B % num_shards:
        raise ValueError(f"batch_size {B} cannot be split over data={num_shards}; use a multiple of it.")
    check_settings(
        cfg,
        draft_cfg,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        mask_ema=settings.mask_ema,
        capacity=capacity,
        prompt_slots=settings.prompt_slots,
    )


def make_generation(
    checkpoint: Checkpoint, prompt: Prompt, token_ids: list[int], *, calls: int, **more: Any
) -> Generation:
    """What came of a prompt, with its text and why it ended; `more` are fields of `Generation`."""
    return Generation(
        id=prompt.id,
        prompt_ids=prompt.token_ids,
        token_ids=token_ids,
        text=text.decode(checkpoint.tokenizer, token_ids),
        finish_reason="stop" if token_ids[-1] in checkpoint.eos_token_ids else "length",
        calls=calls,
        committed=len(token_ids) - 1,
        **more,
    )


class ContinuousDecoder:
    """A batch of B rows on the device, and a stream of prompts that passes through it.

    The device makes K calls at a time. While it does, the host hands out what ended before and prepares what comes next;
    between two chunks it only reads a small report and puts prompts into the rows that are free.

    Attributes:
      stats: sums over what was run.
      table: the shared table of a warm `RecycleConfig` after a run; None for every other draft.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        draft_cfg: DraftConfig,
        settings: Settings,
        *,
        capacity: int,
        is_sampled: bool,
        streams_text: bool = False,
        programs: Programs | None = None,
        stats: Stats | None = None,
        table: recycle.Table | None = None,
    ) -> None:
        """A decoder for one stream.

        Args:
          checkpoint: the model, on one device or on a mesh.
          draft_cfg: where drafts come from.
          settings: sizes, and what records have no own value for.
          capacity: cache slots of a row.
          is_sampled: True when some record has a temperature above 0.
          streams_text: True to be told the text of rows as it grows.
          programs: of the same checkpoint and drafts, to share what is compiled.
          stats: where to count; new ones when left out.
          table: what a warm `RecycleConfig` goes on with.

        Raises:
          ValueError: one line with the values and a way out.
        """
        self._programs = Programs(checkpoint, draft_cfg) if programs is None else programs
        self._num_shards = self._programs.num_shards
        check_sizes(checkpoint.config, draft_cfg, settings, capacity=capacity, num_shards=self._num_shards)
        self._checkpoint = checkpoint
        self._draft_cfg = draft_cfg
        self._settings = settings
        self._streams_text = streams_text
        self._decode_cfg = DecodeConfig(capacity=capacity, is_sampled=is_sampled, has_logprobs=settings.logprobs)
        self._draft_name = draft_name(draft_cfg, settings.mask_ema)
        self.stats = Stats() if stats is None else stats
        self.table = table
        self._rows: list[_Row | None] = [None] * settings.batch_size
        self._is_stopped_B = np.zeros(settings.batch_size, np.bool_)
        self._waiting: collections.deque[_Newcomer] = collections.deque()
        self._finished: list[tuple[int, Generation]] = []
        self._new_text: list[tuple[int, str]] = []

    def run(
        self, items: Iterable[tuple[int, Item]], should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Update]:
        """Decodes all prompts; gives an update after every chunk, while the device is busy with the next.

        Args:
          items: (number, prompt), taken as rows become free; of a generation that is passed on as well. A prompt that
            cannot run comes back with an error.
          should_stop: asked after each chunk; when True, the rows in use are given up, and the iterator ends.
        """
        items = iter(items)
        while self._prepare(items) and not self._waiting:
            yield self._update()
        if not self._waiting:
            yield self._update()
            return
        request, state = self._empty_batch()
        done, compiled = time.perf_counter(), self._programs.compile_seconds
        while True:
            request, state = self._admit(request, state)
            if not any(self._rows):
                if not self._prepare(items):
                    break
                yield self._update()
                continue
            stopped_B = self._programs.place(self._is_stopped_B)
            state, report = self._call(
                row_batch.run_calls,
                request,
                state,
                stopped_B,
                gives=(STATE, EVERYWHERE),
                donate=(2,),
                num_calls=self._settings.calls_per_chunk,
            )
            compile_seconds = self._programs.compile_seconds - compiled
            compiled += compile_seconds
            self.stats.compile_seconds += compile_seconds
            self.stats.host_seconds += time.perf_counter() - done - compile_seconds
            yield self._update()
            self._prepare(items)
            report = jax.device_get(report)
            before, done = done, time.perf_counter()
            self.stats.seconds += done - before - compile_seconds
            self._read(report)
            if should_stop():
                break
        self.table = sources.table_to_keep(state.source, self._draft_cfg)
        yield self._update()

    def refusal(self, prompt: Prompt, error: ValueError) -> Generation:
        """What comes of a prompt that cannot run."""
        return Generation(
            id=prompt.id,
            prompt_ids=prompt.token_ids,
            token_ids=[],
            text="",
            finish_reason="error",
            draft=self._draft_name,
            calls=0,
            committed=0,
            accepted_by_depth=[0] * self._draft_cfg.max_depth,
            error=one_line(error),
        )

    def _call(self, function: Program, *args: Any, **how: Any) -> Any:
        program = self._programs.get(function, *args, decode_cfg=self._decode_cfg, **how)
        return program(self._checkpoint.params, *args)

    def _prepare(self, items: Iterator[tuple[int, Item]]) -> bool:
        """Takes prompts from the stream until one waits for each row; False at the stream's end, with none waiting."""
        while len(self._waiting) < len(self._rows) and len(self._finished) < MOST_REFUSALS + len(self._rows):
            try:
                index, item = next(items)
            except StopIteration:
                return bool(self._waiting)
            if isinstance(item, Generation):
                self._finish(index, item)
                continue
            try:
                prompt_1T, request, _ = make_newcomer(
                    self._checkpoint, self._draft_cfg, item, self._settings, self._decode_cfg.capacity
                )
            except ValueError as error:
                self._finish(index, self.refusal(item, error))
                continue
            self._waiting.append(_Newcomer(index=index, prompt=item, prompt_1T=prompt_1T, request=request))
        return True

    def _empty_batch(self) -> tuple[Request, DecodeState]:
        request = self._programs.place(self._idle(len(self._rows)))
        table = None if self.table is None else self._programs.place(self.table)
        return request, self._call(row_batch.empty, request, table, gives=STATE)

    def _idle(self, rows: int) -> Request:
        return idle_request(rows, self._checkpoint.eos_token_ids, self._settings.mask_ema)

    def _admit(self, request: Request, state: DecodeState) -> tuple[Request, DecodeState]:
        """Puts those who wait into the free rows. One call takes one newcomer a shard, all padded to the same length."""
        D, B = self._num_shards, len(self._rows)
        per_shard = B // D
        free = sorted((r for r in range(B) if self._rows[r] is None), key=lambda r: r % per_shard)
        groups: list[dict[int, tuple[int, _Newcomer]]] = []
        for r in free[: len(self._waiting)]:
            newcomer, shard = self._waiting.popleft(), r // per_shard
            self._rows[r] = self._row(newcomer)
            self._is_stopped_B[r] = False
            T = newcomer.prompt_1T.shape[1]
            fits = (g for g in groups if shard not in g and next(iter(g.values()))[1].prompt_1T.shape[1] == T)
            group = next(fits, None)
            if group is None:
                groups.append(group := {})
            group[shard] = r % per_shard, newcomer
        for group in groups:
            nobody = 0, np.zeros_like(next(iter(group.values()))[1].prompt_1T), self._idle(1)
            seats = [
                (group[d][0], group[d][1].prompt_1T, group[d][1].request) if d in group else nobody for d in range(D)
            ]
            row_D, prompt_DT = (
                np.asarray([seat[0] for seat in seats], np.int32),
                np.concatenate([seat[1] for seat in seats]),
            )
            args = map(self._programs.place, (prompt_DT, join_requests([seat[2] for seat in seats]), row_D))
            request, state = self._call(row_batch.admit, *args, request, state, gives=(REQUEST, STATE), donate=(4, 5))
        return request, state

    def _row(self, newcomer: _Newcomer) -> _Row:
        prompt = newcomer.prompt
        stop = prompt.of("stop", self._settings)
        return _Row(
            index=newcomer.index,
            prompt=prompt,
            stream=TextStream(self._checkpoint.tokenizer, stop) if stop or self._streams_text else None,
            length=len(prompt.token_ids) - 1,
            accepted_by_depth=[0] * self._draft_cfg.max_depth,
        )

    def _read(self, report: Report) -> None:
        """Takes what the calls gave each row, and ends the rows that are done."""
        num_calls = int(np.max(np.sum(report.length_BK >= 0, axis=1)))
        self.stats.row_calls += num_calls * len(self._rows)
        for r, row in enumerate(self._rows):
            if row is None:
                continue
            lengths = [row.length, *report.length_BK[r, :num_calls].tolist()]
            self.stats.busy_row_calls += sum(after > before for before, after in itertools.pairwise(lengths))
            num_new = lengths[-1] - row.length
            token_ids = report.token_BL[r, :num_new].tolist()
            row.token_ids += token_ids
            if report.logprob_BL is not None:
                row.logprobs += report.logprob_BL[r, :num_new].tolist()
            place = self._read_text(row, token_ids)
            if place is not None:
                self._cut(row, place, lengths)
                self._is_stopped_B[r] = True
            else:
                row.calls = int(report.calls_B[r])
                row.accepted_by_depth = report.accepted_by_depth_BD[r].tolist()
                row.length = lengths[-1]
            if place is not None or report.is_done_B[r]:
                self._finish(row.index, self._generation(row))
                self._rows[r] = None

    def _read_text(self, row: _Row, token_ids: list[int]) -> int | None:
        """Gives new tokens to the row's text; how many of its tokens it takes to complete a stop string, if they do."""
        if row.stream is None:
            return None
        first = len(row.token_ids) - len(token_ids)
        place = next((i for i, token in enumerate(token_ids, first + 1) if row.stream.add(token)), None)
        if self._streams_text and (new := row.stream.show()):
            self._new_text.append((row.index, new))
        return place

    def _cut(self, row: _Row, place: int, lengths: list[int]) -> None:
        """Ends a row after its first `place` tokens, and counts as if no call had been made after the one that gave the last.

        Its last call counts as it would have with more tokens to come, so that nothing depends on where a chunk ended.
        """
        del row.token_ids[place:], row.logprobs[place:]
        first_length = len(row.prompt.token_ids) - 1
        for before, after in itertools.pairwise(lengths):
            if before - first_length >= place or after == before:
                break
            if before > first_length:  # not the prefill's call
                row.calls += 1
                for depth in range(after - before - 1):
                    row.accepted_by_depth[depth] += 1

    def _generation(self, row: _Row) -> Generation:
        generation = make_generation(
            self._checkpoint,
            row.prompt,
            row.token_ids,
            draft=self._draft_name,
            calls=row.calls,
            accepted_by_depth=row.accepted_by_depth,
            logprobs=row.logprobs if self._settings.logprobs else None,
        )
        if row.stream is None:
            return generation
        rest = row.stream.finish(generation.text)
        if self._streams_text and rest:
            self._new_text.append((row.index, rest))
        reason = "stop" if row.stream.is_stopped else generation.finish_reason
        return dataclasses.replace(generation, text=row.stream.text, finish_reason=reason)

    def _finish(self, index: int, generation: Generation) -> None:
        self.stats.count(generation)
        self._finished.append((index, generation))

    def _update(self) -> Update:
        update = Update(finished=self._finished, new_text=self._new_text)
        self._finished, self._new_text = [], []
        return update


class InOrder:
    """Gives generations on in the order in which their prompts were taken; those that end early wait."""

    def __init__(self) -> None:
        self._taken: collections.deque[int] = collections.deque()
        self._early: dict[int, Generation] = {}

    def watch(self, items: Iterable[tuple[int, Item]]) -> Iterator[tuple[int, Item]]:
        """The items as they are; notes their order."""
        for number, item in items:
            self._taken.append(number)
            yield number, item

    def add(self, finished: Iterable[Numbered]) -> list[Numbered]:
        """Takes generations in any order, and gives those whose turn it is."""
        self._early.update(finished)
        ready = []
        while self._taken and self._taken[0] in self._early:
            number = self._taken.popleft()
            ready.append((number, self._early.pop(number)))
        return ready
