"""Compiled programs of one checkpoint and one way of drafting: each is compiled once, ahead of its first call.

Where the checkpoint's parameters lie on a mesh, a program is one `jax.shard_map` over it.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_probe_mtp.decoding.loop import Prefix
from jax_probe_mtp.decoding.request import Request
from jax_probe_mtp.decoding.state import DecodeState
from jax_probe_mtp.drafting.merged.choice import Choice
from jax_probe_mtp.drafting.merged.costs import Costs
from jax_probe_mtp.drafting.source import DraftSource, SourceState, begin_shared
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import DATA, TENSOR
from jax_probe_mtp.model.mesh import local_config, mesh_of
from jax_probe_mtp.model.params import partition_specs, weights_of

Function = Callable[..., Any]
Program = jax.stages.Compiled

# How what a program takes and gives lies on a mesh: rows over `DATA`, kv heads over `TENSOR`.
ROWS, EVERYWHERE = P(DATA), P()
REQUEST: Any = Request(
    **dict[str, Any](
        prompt_length_B=ROWS,
        max_new_tokens_B=ROWS,
        eos_E=EVERYWHERE,
        sampling=ROWS,
        max_accept=EVERYWHERE,
        penalties=ROWS,
    )
)
STATE: Any = DecodeState(
    **dict[str, Any](
        token_BT=ROWS,
        length_B=ROWS,
        is_done_B=ROWS,
        cache=P(DATA, TENSOR),
        source=SourceState(rows=ROWS, shared=EVERYWHERE),
        calls_B=ROWS,
        accepted_by_depth_BX=ROWS,
        accepted_by_kind_BZ=ROWS,
        logprob_BT=ROWS,
        top_BTC=ROWS,
    )
)


PREFIX: Any = Prefix(**dict[str, Any](k=P(DATA, TENSOR), v=P(DATA, TENSOR), hidden_1TD=ROWS, length=ROWS))


class CompileClock:
    """When programs were compiled; several `Programs` of one host may share it."""

    def __init__(self) -> None:
        """Begins with nothing compiled."""
        self._spans: list[tuple[float, float]] = []

    def note(self, start: float) -> None:
        """Notes that something was compiled from `start`, of `time.perf_counter`, until now."""
        self._spans.append((start, time.perf_counter()))

    @property
    def seconds(self) -> float:
        """Gives the seconds of all compilation so far."""
        return self.since(0.0)

    def since(self, moment: float) -> float:
        """Gives the seconds of compilation after a moment."""
        return sum(max(0.0, end - max(start, moment)) for start, end in self._spans)


class Programs:
    """Compiles functions of `decoding/loop.py` and `decoding/rows.py`, whose first argument is the parameters.

    Attributes:
      mesh: where the parameters lie; None on one device.
      clock: when they were compiled.
      tested: shapes at which `exact_check` has found the exact mode exact.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        source: DraftSource,
        clock: CompileClock | None = None,
        costs: Costs | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          checkpoint: the model.
          source: where drafts come from.
          clock: that of other programs of the same host.
          costs: what calls cost, where the source has several sizes; measured when left out.
        """
        self._costs = costs
        self.clock = CompileClock() if clock is None else clock
        self._params, self._source = checkpoint.params, source
        self.mesh = mesh_of(checkpoint.params)
        self._static = {
            "cfg": checkpoint.config if self.mesh is None else local_config(checkpoint.config, self.mesh),
            "source": source,
        }
        self._whole_config = checkpoint.config
        self.tested: set[Any] = set()
        self._compiled: dict[Any, Program] = {}
        self._of_plain: Programs | None = None
        self._choices: dict[tuple[str, int], Choice] = {}

    @property
    def compile_seconds(self) -> float:
        """Says what compiling has taken so far, of these programs and all others with their clock."""
        return self.clock.seconds

    @property
    def num_shards(self) -> int:
        """Counts the devices (or groups of them) that batch rows are split over."""
        return 1 if self.mesh is None else self.mesh.shape[DATA]

    @property
    def shared(self) -> P:
        """Says how what rows share lies on a mesh: where a source learns it, each group of devices has its own."""
        return ROWS if self._source.learns_shared else EVERYWHERE

    @property
    def state(self) -> Any:
        """Says how a decode state lies on a mesh."""
        return STATE.replace(source=SourceState(rows=ROWS, shared=self.shared))

    def begin_shared(self, shared: Any = None, groups: int | None = None) -> Any:
        """Gives what the rows begin to share, the groups' one behind the other where each has its own.

        Args:
          shared: what the caller brings, for all groups; or what a run before gave, which has a part for each group.
          groups: how many there are; those of these programs when left out.

        Raises:
          ValueError: if it has other arrays than the source's.
        """
        source, groups = self._source, groups or self.num_shards
        if not source.learns_shared or groups == 1:
            return begin_shared(source, self._whole_config, shared)
        if shared is not None and all(leaf.shape[0] == groups for leaf in jax.tree.leaves(shared)):
            begin_shared(source, self._whole_config, jax.tree.map(lambda leaf: leaf[:1], shared))
            return shared
        own = begin_shared(source, self._whole_config, shared)
        return jax.tree.map(lambda leaf: np.concatenate([np.asarray(leaf)] * groups), own)

    def of_plain(self, checkpoint: Checkpoint) -> "Programs":
        """Gives programs of plain decoding of the same checkpoint, which are kept as these are."""
        if self._of_plain is None:
            self._of_plain = Programs(checkpoint, parse_draft(PLAIN), self.clock)
        return self._of_plain

    def choice(self, num_rows: int, capacity: int, calls_per_chunk: int) -> Choice:
        """Gives what chooses the source's size in such batches; what it has seen is kept as the programs are.

        Raises:
          ValueError: where several processes would choose differently, each by its own clock.
        """
        if jax.process_count() > 1:
            raise ValueError(
                "several processes would each choose another size of the draft; name one, such as merged:64."
            )
        batch = f"{num_rows} rows of {capacity} slots"
        key = batch, calls_per_chunk
        if key not in self._choices:
            self._choices[key] = Choice(self._source.sizes, calls_per_chunk, batch, self._costs)
        return self._choices[key]

    def __len__(self) -> int:
        return len(self._compiled)

    def get(
        self,
        function: Function,
        *args: Any,
        takes: tuple[Any, ...] | None = None,
        gives: Any = None,
        donate: tuple[int, ...] = (),
        **static: Any,
    ) -> Program:
        """Gives the program of `function(params, *args)` for arguments of these shapes; several threads may ask at a time.

        Args:
          function: what to compile; its `cfg` and `source` are the checkpoint's and the drafts'.
          args: arrays, trees of them, or their shapes; the parameters come before them.
          takes: how `args` lie on a mesh, a prefix of each one's tree; when left out, rows are split.
          gives: how its results lie on a mesh, a prefix of their tree; not read on one device.
          donate: numbers of the arguments whose memory it may take, the parameters being 0.
          static: its other static arguments, or others than these programs' own.
        """
        leaves, tree = jax.tree.flatten(args)
        key = (function, tree, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves), tuple(static.items()))
        if key not in self._compiled:
            start = time.perf_counter()
            bound = self.bind(function, *args, takes=takes, gives=gives, **static)
            # Unused parameters are kept: it is they that say on which device it runs.
            jitted = jax.jit(bound, donate_argnums=donate, keep_unused=True)
            self._compiled[key] = jitted.lower(self._params, *args).compile()
            self.clock.note(start)
        return self._compiled[key]

    def bind(
        self, function: Function, *args: Any, takes: tuple[Any, ...] | None = None, gives: Any = None, **static: Any
    ) -> Function:
        """Gives `function(params, *args)` with its static arguments, to be compiled; the arguments are those of `get`."""
        bound = functools.partial(function, **{**self._static, **static})
        if self.mesh is None:
            return bound
        specs = partition_specs(self._whole_config, weights_of(self._params)), *(takes or map(self._spec, args))
        return _on_mesh(bound, self.mesh, specs, gives)

    def place(self, arg: Any, spec: Any = None) -> Any:
        """Lays an argument from the host out as the programs take it; every process gives all of it."""
        if self.mesh is None:
            return arg
        mesh, spec = self.mesh, self._spec(arg) if spec is None else spec

        def put(part: P, subtree: Any) -> Any:
            def leaf(array: Any) -> jax.Array:
                if isinstance(array, jax.Array) and array.sharding == NamedSharding(mesh, part):
                    return array  # of a run before; another process may have parts of it
                host = np.asarray(array)
                return jax.make_array_from_callback(host.shape, NamedSharding(mesh, part), lambda index: host[index])

            return jax.tree.map(leaf, subtree)

        return jax.tree.map(put, spec, arg, is_leaf=lambda x: isinstance(x, P))

    def _spec(self, arg: Any) -> Any:
        """Says how an argument lies on a mesh, as a prefix of its tree."""
        if isinstance(arg, Request):
            return REQUEST
        return self.state if isinstance(arg, DecodeState) else ROWS


def results_of(program: Program) -> Any:
    """Gives the shapes of what a program gives, and how it lies on a mesh, for programs that take it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        program.out_info,
        program.output_shardings,
    )


def _on_mesh(function: functools.partial[Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Function:
    """Gives `jax.shard_map` of a function, whose border no array without elements crosses.

    XLA (jaxlib 0.11.2) makes constants of them, and its pass "shardy-xla" crashes at a constant without elements:
    docs/upstream/empty_constant.md. Plain decoding has such an array, its accepted drafts by depth. Nor may a function make
    such constants itself.
    """

    def run(*args: Any) -> Any:
        of_args, of_results = _shapes(args), list[tuple[int, ...]]()

        def inside(*args: Any) -> Any:
            results = function(*_emptied(args, of_args))
            of_results[:] = _shapes(results)
            return _filled(results)

        on_mesh = jax.shard_map(inside, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        return _emptied(on_mesh(*_filled(args)), of_results)

    run.__name__ = function.func.__name__
    return run


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


def _filled(tree: Any) -> Any:
    """Gives arrays without elements one along each empty axis."""
    return jax.tree.map(lambda x: x if x.size else jnp.zeros([size or 1 for size in x.shape], x.dtype), tree)


def _emptied(tree: Any, shapes: list[tuple[int, ...]]) -> Any:
    """Takes those elements away again; `shapes` are of before, of all or of a device's part."""

    def leaf(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return x if all(shape) else x[tuple(slice(None) if size else slice(0) for size in shape)]

    leaves, tree_def = jax.tree.flatten(tree)
    return jax.tree.unflatten(tree_def, map(leaf, leaves, shapes))
