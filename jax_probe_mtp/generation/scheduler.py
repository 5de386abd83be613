"""Continuous batching on the host: a stream of prompts in, generations out as they end, with all rows kept busy."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jax_probe_mtp.decoding.batch import make_batch
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.request import Request, idle_request, join_requests
from jax_probe_mtp.decoding.rows import Report, admit, empty, run_calls
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.decoding.state import DecodeState
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import draft_name
from jax_probe_mtp.generation import exact_check
from jax_probe_mtp.generation.answers import Generation, Item, Numbered, Stats, make_refusal
from jax_probe_mtp.generation.programs import EVERYWHERE, REQUEST, Function, Program, Programs
from jax_probe_mtp.generation.row import RowText
from jax_probe_mtp.generation.waiting import WaitingPrompt
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.sampling import Sampling

MOST_REFUSALS = 1000  # that are kept before they are handed on


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
      shared: what the draft source's rows share, after a run as the run left it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        source: DraftSource,
        settings: Settings,
        *,
        capacity: int,
        is_sampled: bool,
        streams_text: bool = False,
        programs: Programs | None = None,
        stats: Stats | None = None,
        shared: Any = None,
    ) -> None:
        """Prepares a decoder for one stream.

        Args:
          checkpoint: the model, on one device or on a mesh.
          source: where drafts come from.
          settings: sizes, and what records have no own value for.
          capacity: cache slots of a row.
          is_sampled: True when some record has a temperature above 0.
          streams_text: True to be told the text of rows as it grows.
          programs: of the same checkpoint and drafts, to share what is compiled.
          stats: where to count; new ones when left out.
          shared: what the rows share, of an earlier run; what the source begins with when None.

        Raises:
          ValueError: one line with the values and a way out.
        """
        self._programs = Programs(checkpoint, source) if programs is None else programs
        self._num_shards = self._programs.num_shards
        self._settings = dataclasses.replace(settings, capacity=capacity)
        self._settings.check(checkpoint.config, source, num_shards=self._num_shards)
        self._checkpoint, self._source, self._is_sampled = checkpoint, source, is_sampled
        self._streams_text = streams_text
        self._decode_cfg = DecodeConfig(capacity=capacity, is_exact=settings.is_exact, has_logprobs=settings.logprobs)
        self._draft_name = draft_name(source)
        self.stats = Stats() if stats is None else stats
        self.shared = self._programs.begin_shared(shared)
        self._compiled: dict[Any, Program] = {}
        self._idle = idle_request(1, checkpoint.eos_token_ids, is_sampled=is_sampled, max_accept=settings.max_accept)
        self._rows: list[RowText | None] = [None] * settings.batch_size
        self._is_stopped_B = np.zeros(settings.batch_size, np.bool_)
        self._waiting: collections.deque[WaitingPrompt] = collections.deque()
        self._finished: list[Numbered] = []
        self._new_text: list[tuple[int, str]] = []

    def run(
        self, items: Iterable[tuple[int, Item]], should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Update]:
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
        done, compiled = time.perf_counter(), self._programs.compile_seconds
        request, state = self._empty_batch()
        while True:
            request, state = self._admit(request, state)
            if not any(self._rows):
                has_more = self._prepare(items)
                if should_stop() or not has_more:
                    break
                yield self._update()
                continue
            stopped_B = self._programs.place(self._is_stopped_B)
            state, report = self._call(
                run_calls,
                request,
                state,
                stopped_B,
                gives=(self._programs.state, EVERYWHERE),
                donate=(2,),
                num_calls=self._settings.calls_per_chunk,
            )
            compile_seconds = self._programs.compile_seconds - compiled
            compiled += compile_seconds
            self.stats.compile_seconds += compile_seconds
            self.stats.host_seconds += time.perf_counter() - done - compile_seconds
            self.shared = state.source.shared  # whoever looks does so before the next call, which takes its memory
            yield self._update()
            self._prepare(items)
            report = jax.device_get(report)
            before, done = done, time.perf_counter()
            self.stats.seconds += done - before - compile_seconds
            self._read(report)
            if should_stop():
                break
        self.shared = state.source.shared
        yield self._update()

    def under_way(self) -> list[tuple[int, int]]:
        """Gives, of each record that is being decoded, its new tokens so far and the most that it may get."""
        rows = [row for row in self._rows if row is not None]
        return [(row.num_new, row.prompt.of("max_new_tokens", self._settings)) for row in rows]

    def refusal(self, prompt: Prompt, error: ValueError) -> Generation:
        """Says what comes of a prompt that cannot run."""
        return make_refusal(prompt, error, draft=self._draft_name, max_depth=self._source.max_depth)

    def _call(self, function: Function, *args: Any, **options: Any) -> Any:
        key = function, getattr(args[0], "shape", None)  # a prompt's padded length; all else stays the same
        if key not in self._compiled:
            self._compiled[key] = self._programs.get(function, *args, decode_cfg=self._decode_cfg, **options)
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
                batch = make_batch(
                    self._checkpoint.config,
                    self._source,
                    [item],
                    self._settings,
                    eos_token_ids=self._checkpoint.eos_token_ids,
                    is_sampled=self._is_sampled,
                )
            except ValueError as error:
                self._finish(number, self.refusal(item, error))
                continue
            self._waiting.append(WaitingPrompt(number=number, prompt=item, batch=batch))
        return True

    def _check_exact(self) -> None:
        if self._settings.is_exact:
            exact_check.check(self._programs, self._checkpoint, self._source, self._decode_cfg, len(self._rows))

    def _empty_batch(self) -> tuple[Request, DecodeState]:
        request = self._programs.place(join_requests([self._idle] * len(self._rows)))
        shared = self._programs.place(self.shared, self._programs.shared)
        # Nothing is drawn before there are prompts: a greedy batch's program, which the exact mode's test has compiled.
        greedy = request.replace(sampling=Sampling(seed_B=request.sampling.seed_B))
        return request, self._call(
            empty, greedy, shared, takes=(REQUEST, self._programs.shared), gives=self._programs.state
        )

    def _admit(self, request: Request, state: DecodeState) -> tuple[Request, DecodeState]:
        """Puts those who wait into the free rows. One call takes one prompt a shard, all padded to the same length."""
        D, B = self._num_shards, len(self._rows)
        per_shard = B // D
        free = sorted((r for r in range(B) if self._rows[r] is None), key=lambda r: r % per_shard)
        groups: list[dict[int, tuple[int, WaitingPrompt]]] = []  # shard -> its row and who goes there
        for r in free[: len(self._waiting)]:
            waiting, shard = self._waiting.popleft(), r // per_shard
            self._rows[r] = self._row_text(waiting)
            self._is_stopped_B[r] = False
            fits = (g for g in groups if shard not in g and _padded_length(g) == waiting.padded_length)
            group = next(fits, None)
            if group is None:
                groups.append(group := {})
            group[shard] = r % per_shard, waiting
        for group in groups:
            idle = 0, np.zeros((1, _padded_length(group)), np.int32), self._idle
            places = [
                (group[d][0], group[d][1].batch.prompt_BT, group[d][1].batch.request) if d in group else idle
                for d in range(D)
            ]
            row_D = np.asarray([row for row, _, _ in places], np.int32)
            prompt_DT = np.concatenate([prompt_1T for _, prompt_1T, _ in places])
            arriving = join_requests([request for _, _, request in places])
            args = map(self._programs.place, (prompt_DT, arriving, row_D))
            gives = REQUEST, self._programs.state
            request, state = self._call(admit, *args, request, state, gives=gives, donate=(4, 5))
        return request, state

    def _row_text(self, waiting: WaitingPrompt) -> RowText:
        stop = waiting.prompt.of("stop", self._settings)
        return RowText(self._checkpoint, waiting.number, waiting.prompt, stop, shows_text=self._streams_text)

    def _read(self, report: Report) -> None:
        """Takes what the calls gave each row, and ends the rows that are done."""
        num_calls = int(np.max(np.sum(report.length_BQ >= 0, axis=1)))
        self.stats.row_calls += num_calls * len(self._rows)
        for r, row in enumerate(self._rows):
            if row is None:
                continue
            lengths = [row.length, *report.length_BQ[r, :num_calls].tolist()]
            self.stats.busy_row_calls += sum(after > before for before, after in itertools.pairwise(lengths))
            num_new = lengths[-1] - row.length
            is_stopped = row.take(
                report.token_BU[r, :num_new].tolist(),
                [] if report.logprob_BU is None else report.logprob_BU[r, :num_new].tolist(),
                lengths,
                calls=int(report.calls_B[r]),
                accepted_by_depth=report.accepted_by_depth_BX[r].tolist(),
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


def _padded_length(group: dict[int, tuple[int, WaitingPrompt]]) -> int:
    return next(iter(group.values()))[1].padded_length
