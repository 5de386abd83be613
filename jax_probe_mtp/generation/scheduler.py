"""Continuous batching on the host: a stream of prompts in, generations out as they end, with all rows kept busy."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jax_probe_mtp.decoding import rows as row_batch
from jax_probe_mtp.decoding.batch import Request, idle_request, join_requests
from jax_probe_mtp.decoding.rows import Report
from jax_probe_mtp.decoding.step import DecodeState
from jax_probe_mtp.drafting import recycle
from jax_probe_mtp.drafting import source as sources
from jax_probe_mtp.drafting.draft_config import DraftConfig, draft_name
from jax_probe_mtp.generation import exact_check
from jax_probe_mtp.generation.programs import EVERYWHERE, REQUEST, STATE, Function, Program, Programs
from jax_probe_mtp.generation.prompts import Generation, Prompt, Settings, Stats
from jax_probe_mtp.generation.row import RowText, make_refusal
from jax_probe_mtp.generation.waiting import Newcomer, check_sizes, make_newcomer
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import DecodeConfig

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
        self._settings = dataclasses.replace(settings, capacity=capacity)
        self._streams_text = streams_text
        self._decode_cfg = DecodeConfig(
            capacity=capacity, is_sampled=is_sampled, attention=settings.attention, has_logprobs=settings.logprobs
        )
        self._draft_name = draft_name(draft_cfg, settings.mask_ema)
        self.stats = Stats() if stats is None else stats
        self.table = table
        self._compiled: dict[Any, Program] = {}
        self._nobody = idle_request(1, checkpoint.eos_token_ids, settings.mask_ema, settings.max_accept)
        self._rows: list[RowText | None] = [None] * settings.batch_size
        self._is_stopped_B = np.zeros(settings.batch_size, np.bool_)
        self._waiting: collections.deque[Newcomer] = collections.deque()
        self._finished: list[tuple[int, Generation]] = []
        self._new_text: list[tuple[int, str]] = []

    def run(
        self, items: Iterable[tuple[int, Item]], should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Update]:
        """Decodes all prompts; gives an update after every chunk, while the device is busy with the next.

        Args:
          items: (number, prompt), taken as rows become free; of a generation that is passed on as well. A prompt that
            cannot run comes back with an error.
          should_stop: asked after each chunk, and where no prompt can run; when True, the rows in use are given up, and
            the iterator ends.
        """
        items = iter(items)
        while self._prepare(items) and not self._waiting and not should_stop():
            yield self._update()
        if not self._waiting:
            yield self._update()
            return
        self._check_exact()
        done, compiled = time.perf_counter(), self._programs.compile_seconds
        request, state = self._empty_batch()
        while True:
            request, state = self._admit(request, state)
            if not any(self._rows):
                if not self._prepare(items) or should_stop():
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
        return make_refusal(prompt, error, draft=self._draft_name, max_depth=self._draft_cfg.max_depth)

    def _call(self, function: Function, *args: Any, **how: Any) -> Any:
        key = function, getattr(args[0], "shape", None)  # the padded length of a newcomer; all else stays the same
        if key not in self._compiled:
            self._compiled[key] = self._programs.get(function, *args, decode_cfg=self._decode_cfg, **how)
        return self._compiled[key](self._checkpoint.params, *args)

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
                prompt_1T, request, _ = make_newcomer(self._checkpoint, self._draft_cfg, item, self._settings)
            except ValueError as error:
                self._finish(number, self.refusal(item, error))
                continue
            self._waiting.append(Newcomer(number=number, prompt=item, prompt_1T=prompt_1T, request=request))
        return True

    def _check_exact(self) -> None:
        if self._settings.is_exact:
            exact_check.check(self._programs, self._checkpoint, self._draft_cfg, self._decode_cfg, len(self._rows))

    def _empty_batch(self) -> tuple[Request, DecodeState]:
        request = self._programs.place(join_requests([self._nobody] * len(self._rows)))
        table = None if self.table is None else self._programs.place(self.table)
        return request, self._call(row_batch.empty, request, table, gives=STATE)

    def _admit(self, request: Request, state: DecodeState) -> tuple[Request, DecodeState]:
        """Puts those who wait into the free rows. One call takes one newcomer a shard, all padded to the same length."""
        D, B = self._num_shards, len(self._rows)
        per_shard = B // D
        free = sorted((r for r in range(B) if self._rows[r] is None), key=lambda r: r % per_shard)
        groups: list[dict[int, tuple[int, Newcomer]]] = []  # shard -> its row and who goes there
        for r in free[: len(self._waiting)]:
            newcomer, shard = self._waiting.popleft(), r // per_shard
            self._rows[r] = self._row_text(newcomer)
            self._is_stopped_B[r] = False
            fits = (g for g in groups if shard not in g and _padded_length(g) == newcomer.prompt_1T.shape[1])
            group = next(fits, None)
            if group is None:
                groups.append(group := {})
            group[shard] = r % per_shard, newcomer
        for group in groups:
            nobody = 0, np.zeros((1, _padded_length(group)), np.int32), self._nobody
            seats = [
                (group[d][0], group[d][1].prompt_1T, group[d][1].request) if d in group else nobody for d in range(D)
            ]
            row_D = np.asarray([row for row, _, _ in seats], np.int32)
            prompt_DT = np.concatenate([prompt_1T for _, prompt_1T, _ in seats])
            newcomers = join_requests([request for _, _, request in seats])
            args = map(self._programs.place, (prompt_DT, newcomers, row_D))
            request, state = self._call(row_batch.admit, *args, request, state, gives=(REQUEST, STATE), donate=(4, 5))
        return request, state

    def _row_text(self, newcomer: Newcomer) -> RowText:
        stop = newcomer.prompt.of("stop", self._settings)
        return RowText(self._checkpoint, newcomer.number, newcomer.prompt, stop, shows_text=self._streams_text)

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
            is_stopped = row.take(
                report.token_BL[r, :num_new].tolist(),
                [] if report.logprob_BL is None else report.logprob_BL[r, :num_new].tolist(),
                lengths,
                calls=int(report.calls_B[r]),
                accepted_by_depth=report.accepted_by_depth_BD[r].tolist(),
            )
            self._show(row.number, row.show())
            if is_stopped or report.is_done_B[r]:
                generation, rest = row.finish(self._draft_name, has_logprobs=self._settings.logprobs)
                self._show(row.number, rest)
                self._finish(row.number, generation)
                self._rows[r] = None
                self._is_stopped_B[r] = is_stopped

    def _show(self, number: int, new_text: str) -> None:
        if self._streams_text and new_text:
            self._new_text.append((number, new_text))

    def _finish(self, number: int, generation: Generation) -> None:
        self.stats.count(generation)
        self._finished.append((number, generation))

    def _update(self) -> Update:
        update = Update(finished=self._finished, new_text=self._new_text)
        self._finished, self._new_text = [], []
        return update


def _padded_length(group: dict[int, tuple[int, Newcomer]]) -> int:
    return next(iter(group.values()))[1].prompt_1T.shape[1]


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
