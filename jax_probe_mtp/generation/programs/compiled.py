"""Compiled programs of one checkpoint and one way of drafting: each is compiled once, ahead of its first call.

Where the checkpoint's parameters lie on a mesh, a program is one `jax.shard_map` over it.
"""

import concurrent.futures
import dataclasses
import functools
import logging
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_probe_mtp.decoding.request import Request
from jax_probe_mtp.decoding.state import DecodeState
from jax_probe_mtp.drafting.merged.choice import Choice
from jax_probe_mtp.drafting.merged.costs import Costs
from jax_probe_mtp.drafting.source import DraftSource, SourceState, begin_shared
from jax_probe_mtp.drafting.spec import PLAIN, draft_name, parse_draft
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.generation.programs.clock import CompileClock
from jax_probe_mtp.generation.programs.kept import kept_or_compiled
from jax_probe_mtp.generation.programs.key import has_own_settings
from jax_probe_mtp.generation.programs.on_mesh import EVERYWHERE, REQUEST, ROWS, STATE, Function, Program, on_mesh
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import DATA
from jax_probe_mtp.model.mesh import local_config, mesh_of
from jax_probe_mtp.model.params import partition_specs, weights_of

_logger = logging.getLogger("jax_probe_mtp")


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
        self._begun: dict[Any, concurrent.futures.Future[None]] = {}
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

    def get(self, function: Function, *args: Any, **how: Any) -> Program:
        """Gives the program of `function(params, *args)` for arguments of these shapes; several threads may ask at a time.

        Args:
          function: what to compile; its `cfg` and `source` are the checkpoint's and the drafts'.
          args: arrays, trees of them, or their shapes; the parameters come before them.
          how: the fields of `_Asked`, and its other static arguments, or others than these programs' own.
        """
        asked = _asked(function, *args, **how)
        if asked.key not in self._compiled:
            start = time.perf_counter()
            self._make(asked)
            self.clock.note(start)
        return self._compiled[asked.key]

    def is_there(self, function: Function, *args: Any, **how: Any) -> bool:
        """Says whether `get` would give this program at once; if not, has it compiled in the background.

        One that cannot be compiled is never there, which is said once. In a `with` block that changes JAX's settings, which
        the background's thread does not see, `get` is to compile it.

        Args: those of `get`.
        """
        asked = _asked(function, *args, **how)
        begun = self._begun.get(asked.key)
        if asked.key not in self._compiled and (begun is None or begun.cancelled()):
            if has_own_settings():
                return True
            shapes = jax.tree.map(_shape, asked.args)  # the arrays may be gone when their turn comes
            later = dataclasses.replace(asked, args=shapes)
            self._begun[asked.key] = self.clock.later(functools.partial(self._try, later))
        return asked.key in self._compiled

    def _try(self, asked: "_Asked") -> None:
        try:
            self._make(asked)
        except Exception as error:  # out of memory, as a rule: what is there goes on
            source = {**self._static, **asked.static}["source"]
            _logger.warning("%s cannot be compiled, and is left out: %s", draft_name(source), one_line(error))

    def _make(self, asked: "_Asked") -> None:
        compile_it = functools.partial(self._compile, asked)
        if self.mesh is None:
            static, args = {**self._static, **asked.static}, (self._params, *asked.args)
            program = kept_or_compiled(compile_it, asked.function, static, *args, donate=asked.donate)
        else:
            program = compile_it(asked.function.__name__)
        self._compiled[asked.key] = program

    def _compile(self, asked: "_Asked", name: str) -> Program:
        bound: Any = self._bound(asked)
        bound.__name__ = name
        # Unused parameters are kept: it is they that say on which device it runs.
        jitted = jax.jit(bound, donate_argnums=asked.donate, keep_unused=True)
        return jitted.lower(self._params, *asked.args).compile()

    def bind(self, function: Function, *args: Any, **how: Any) -> Function:
        """Gives `function(params, *args)` with its static arguments, to be compiled; the arguments are those of `get`."""
        return self._bound(_asked(function, *args, **how))

    def _bound(self, asked: "_Asked") -> Function:
        bound = functools.partial(asked.function, **{**self._static, **asked.static})
        if self.mesh is None:
            return bound
        takes = asked.takes or map(self._spec, asked.args)
        specs = partition_specs(self._whole_config, weights_of(self._params)), *takes
        return on_mesh(bound, self.mesh, specs, asked.gives)

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is to be compiled.

    Attributes:
      function: its parameters come first.
      args: its other arrays, trees of them, or their shapes.
      takes: how `args` lie on a mesh, a prefix of each one's tree; when None, rows are split.
      gives: how its results lie on a mesh, a prefix of their tree; not read on one device.
      donate: numbers of the arguments whose memory it may take, the parameters being 0.
      static: its static arguments that are not those of all programs.
    """

    function: Function
    args: tuple[Any, ...]
    takes: tuple[Any, ...] | None
    gives: Any
    donate: tuple[int, ...]
    static: dict[str, Any]

    @functools.cached_property
    def key(self) -> Any:
        """Tells it from all else that the same `Programs` are asked for."""
        leaves, tree = jax.tree.flatten(self.args)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        return self.function, tree, shapes, tuple(self.static.items())


def _asked(
    function: Function,
    *args: Any,
    takes: tuple[Any, ...] | None = None,
    gives: Any = None,
    donate: tuple[int, ...] = (),
    **static: Any,
) -> _Asked:
    return _Asked(function=function, args=args, takes=takes, gives=gives, donate=donate, static=static)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    if not isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding, weak_type=leaf.weak_type)
