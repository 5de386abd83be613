"""The device's side of a running batch: chunks of calls, each run by a thread of its own while the host does other things."""

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jax_probe_mtp.decoding.batch import SMALLEST_BUCKET, bucket
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import Prefix, read_prefix
from jax_probe_mtp.decoding.request import Request, join_requests
from jax_probe_mtp.decoding.rows import Report, admit, admit_after, empty, prompt_logprobs, run_calls, run_some_calls
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.decoding.state import DecodeState
from jax_probe_mtp.drafting.merged.choice import Turn
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.generation.answers import Stats
from jax_probe_mtp.generation.programs import EVERYWHERE, PREFIX, REQUEST, ROWS, Function, Program, Programs, results_of
from jax_probe_mtp.generation.row import Arrival
from jax_probe_mtp.model.params import Params
from jax_probe_mtp.model.sampling import Sampling

MOST_PREFIXES = 4  # that are kept on the device


Put = Callable[[Request, DecodeState], tuple[Request, DecodeState]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ended:
    """What there is after a chunk.

    Attributes:
      request, state: of all rows.
      report: what the host is told, on the host.
      prompts: of each group of prompts that came, what `prompt_logprobs` gives, on the host; empty where it is not asked for.
      at: the moment at which the device had ended, of `time.perf_counter`.
      call_seconds: time of the calls alone; 0 where nobody chooses a size by it.
    """

    request: Request
    state: DecodeState
    report: Report | None
    prompts: list[Any]
    at: float
    call_seconds: float = 0.0


class Chunks:
    """Runs chunks of K calls on a batch of B rows, one after the other.

    Calling a program may take as long as running it: on a GPU, a loop of unknown length comes back only when it ends. So a
    thread of its own calls it, and the host goes on meanwhile, with other devices too.

    Attributes:
      under_way: the chunk that the device is at; None where it is at none.
      call_seconds: time of the newest chunk's calls, which `wait` gave; 0 where nobody chose their size.
      is_quiet: whether nothing was compiled beside the newest chunk, so that its time says something.
    """

    def __init__(self, programs: Programs, params: Params, settings: Settings, decode_cfg: DecodeConfig) -> None:
        """Args: what to run, on which parameters, with which sizes, and how."""
        self._programs, self._params, self._settings, self._decode_cfg = programs, params, settings, decode_cfg
        self._compiled: dict[Any, Program] = {}
        self._there = set[DraftSource]()  # sizes of the source whose calls are compiled
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self.under_way: concurrent.futures.Future[_Ended] | None = None
        self._last: _Ended | None = None
        self._prefixes: dict[tuple[int, ...], Prefix] = {}  # the newest last
        self._compile_seconds = 0.0  # before the chunk under way
        self.call_seconds, self.is_quiet = 0.0, True
        self._began = 0.0  # the chunk under way

    @contextlib.contextmanager
    def running(self, idle: Request, shared: Any) -> Iterator[None]:
        """Begins with a batch without texts; waits at the end for what is under way.

        Args:
          idle: a request of one row that asks for nothing.
          shared: what the draft source's rows share.
        """
        request = self._programs.place(join_requests([idle] * self._settings.batch_size))
        shared = self._programs.place(shared, self._programs.shared)
        # Nothing is drawn before there are prompts: a greedy batch's program, which the exact mode's test has compiled.
        greedy = request.replace(sampling=Sampling(seed_B=request.sampling.seed_B), penalties=None)
        start = time.perf_counter()
        takes, gives = (REQUEST, self._programs.shared), self._programs.state
        state = self._program(empty, greedy, shared, takes=takes, gives=gives)(self._params, greedy, shared)
        self._last = _Ended(request=request, state=state, report=None, prompts=[], at=start)
        with concurrent.futures.ThreadPoolExecutor(1) as self._thread:
            try:
                yield
            finally:
                self._thread = self._last = self.under_way = None  # the cache is no longer held
                self._programs.clock.give_up_later()
        self._prefixes.clear()

    @property
    def are_running(self) -> bool:
        """Says whether a run is under way, so that `shared` is what its last chunk left."""
        return self._thread is not None

    @property
    def shared(self) -> Any:
        """What the rows share after the newest chunk; waits for its end."""
        ended = self._last if self.under_way is None else self.under_way.result()
        assert ended is not None
        return ended.state.source.shared

    def start(
        self,
        arriving: list[Arrival],
        is_stopped_B: np.ndarray,
        stats: Stats,
        turn: Turn | None = None,
    ) -> None:
        """Lets the device put in who arrives, then make K calls; compiles what is new before.

        Args:
          arriving: who gets which row.
          is_stopped_B: bool [B], rows that end here though the device does not know why.
          stats: gets the time in which the device had nothing to do.
          turn: which size of the draft source makes how many calls, which are then timed; the source itself when None.
        """
        last, thread = self._last, self._thread
        assert last is not None
        assert thread is not None
        request, state, params, place = last.request, last.state, self._params, self._programs.place
        puts = [self._put(arrival, request, state, stats) for arrival in arriving]
        looks = [self._look(arrival, state) for arrival in arriving if self._decode_cfg.has_prompt_logprobs]
        rest: list[Any] = [place(is_stopped_B)]
        if turn is None:
            calls = self._program(run_calls, request, state, *rest, **self._of_calls())
        else:
            rest.append(place(np.int32(turn.calls), EVERYWHERE))
            calls = self._program(run_some_calls, request, state, *rest, **self._of_calls(turn.source))

        def run() -> _Ended:
            rows, after = request, state
            for put in puts:
                rows, after = put(rows, after)
            prompts = [look(after) for look in looks]
            if turn is not None:
                jax.block_until_ready(after)
            start = time.perf_counter()
            after, report = calls(params, rows, after, *rest)
            report, prompts = jax.device_get((report, prompts))
            end = time.perf_counter()
            return _Ended(request=rows, state=after, report=report, prompts=prompts, at=end, call_seconds=end - start)

        # What was compiled while the device had nothing to do: for other groups, too.
        self._compile_seconds = self._programs.clock.since(last.at)
        stats.compile_seconds += self._compile_seconds
        stats.host_seconds += time.perf_counter() - last.at - self._compile_seconds
        self._began = time.perf_counter()
        self.under_way = thread.submit(run)

    def has(self, source: DraftSource) -> bool:
        """Says whether calls with a size of the draft source can be made at once; if not, begins to compile them.

        Args:
          source: the size. The one without drafts is compiled when it is needed, so that there is always one.
        """
        last = self._last
        assert last is not None
        if source.max_depth and source not in self._there:  # which is asked before every chunk: it should take no time
            rest = np.zeros(self._settings.batch_size, np.bool_), np.int32(0)
            args = last.request, last.state, *map(self._programs.place, rest, (ROWS, EVERYWHERE))
            if not self._programs.is_there(
                run_some_calls, *args, decode_cfg=self._decode_cfg, **self._of_calls(source)
            ):
                return False
            self._there.add(source)
        return True

    def _of_calls(self, source: DraftSource | None = None) -> dict[str, Any]:
        """Says how the calls of a chunk are compiled, those of a size of the source or of the source itself."""
        gives = self._programs.state, EVERYWHERE
        how: dict[str, Any] = {"gives": gives, "donate": (2,), "num_calls": self._settings.calls_per_chunk}
        if source is None:
            return how
        return {**how, "takes": (REQUEST, self._programs.state, ROWS, EVERYWHERE), "source": source}

    def _put(self, arrival: Arrival, request: Request, state: DecodeState, stats: Stats) -> Put:
        """Gives what puts who arrives into the rows, and counts what it copies; compiles what is new."""
        place, params, prefix = self._programs.place, self._params, arrival.prefix
        args = place(arrival.prompt_AT), place(arrival.request), place(arrival.row_A)
        gives = REQUEST, self._programs.state
        num_left = int(arrival.request.prompt_length_B[0]) - 1 - len(prefix)
        most = min(self._decode_cfg.prefill_chunk, DecodeConfig.prefill_chunk)  # of a rest: it is shorter than a prompt
        rest_chunk = min(SMALLEST_BUCKET if num_left <= SMALLEST_BUCKET else most, most)
        if not prefix or rest_chunk >= arrival.prompt_AT.shape[1]:  # then the rest's one piece is the whole prompt
            program = self._program(admit, *args, request, state, gives=gives, donate=(4, 5))
            return lambda rows, after: program(params, *args, rows, after)
        token_1T = np.zeros((1, bucket(len(prefix))), np.int32)
        token_1T[0, : len(prefix)] = prefix
        of_prefix = place(token_1T), place(np.asarray([len(prefix)], np.int32))
        read = self._program(read_prefix, *of_prefix, gives=PREFIX)
        program = self._program(
            admit_after,
            *args,
            results_of(read),
            request,
            state,
            takes=(ROWS, REQUEST, ROWS, PREFIX, REQUEST, self._programs.state),
            gives=gives,
            donate=(5, 6),
            rest_chunk=rest_chunk,
        )

        def put(rows: Request, after: DecodeState) -> tuple[Request, DecodeState]:
            kept = self._prefixes.pop(prefix, None)
            if kept is None:
                while len(self._prefixes) >= MOST_PREFIXES:
                    del self._prefixes[next(iter(self._prefixes))]
                kept = read(params, *of_prefix)
            else:
                stats.prefix_tokens += len(prefix)
            self._prefixes[prefix] = kept
            given: tuple[Request, DecodeState] = program(params, *args, kept, rows, after)
            return given

        return put

    def _look(self, arrival: Arrival, state: DecodeState) -> Callable[[DecodeState], Any]:
        """Gives what looks up the log-probabilities of prompts that have been put into their rows."""
        row_A = self._programs.place(arrival.row_A)
        gives, num_slots = (EVERYWHERE, EVERYWHERE), arrival.prompt_AT.shape[1]
        program = self._program(prompt_logprobs, row_A, state, gives=gives, num_slots=num_slots)
        return lambda after: program(self._params, row_A, after)

    def wait(self, stats: Stats) -> tuple[Report, list[Any]]:
        """Gives what the chunk under way tells the host, of the prompts that arrived too, and counts its time.

        The host's time before it is included. Of each group that arrived it gives what `prompt_logprobs` does; nothing where
        that is not asked for. `call_seconds` then says what the calls alone took.
        """
        assert self.under_way is not None
        assert self._last is not None
        before, self._last = self._last, self.under_way.result()
        self.under_way, self.call_seconds = None, self._last.call_seconds
        self.is_quiet = self._programs.clock.was_quiet_since(self._began)
        stats.seconds += self._last.at - before.at - self._compile_seconds
        assert self._last.report is not None
        return self._last.report, self._last.prompts

    def _program(self, function: Function, *args: Any, **options: Any) -> Program:
        # A prompt's padded length, and that of what is read before it; all else stays the same.
        prefix = next((arg.hidden_1TD.shape for arg in args if isinstance(arg, Prefix)), None)
        others = (options.get(name) for name in ("rest_chunk", "num_slots", "source"))
        key = function, getattr(args[0], "shape", None), prefix, *others
        if key not in self._compiled:
            self._compiled[key] = self._programs.get(function, *args, decode_cfg=self._decode_cfg, **options)
        return self._compiled[key]
