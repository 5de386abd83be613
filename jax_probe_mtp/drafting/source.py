"""Where drafts come from: the one interface between the decode loop and whatever proposes the next tree.

    check            whether model and prompt fit                  before anything runs
    init_shared      what all rows share                           once, where the caller brings nothing
    complete_shared  the rest of that                              once, where the caller brings a part
    start            the state of new rows                         for each batch, and each prompt that enters one
    read             a piece of the prompt went through the model  during the prefill
    try_masks        all of the prompt went through the model      at the end of the prefill
    masks            the mask tokens of the next call              before a call, where the source uses any
    propose          candidates for the next tree                  before a call
    owners           which nodes own mask tokens                   before a call, where not all do
    learn            what the call gave                            after a call

`propose` and the number of its candidates are all that a source must write. Any proposal is safe: verification decides
what is emitted, so a bad source can only be slow. docs/extending.md shows a source in a dozen lines.
"""

import abc
from typing import TYPE_CHECKING, Any

import flax.struct
import jax

from jax_probe_mtp.drafting.candidates import Candidates, Children, Paths
from jax_probe_mtp.drafting.shown import FinishedCall, Model, PromptChunk, Prompts, ReadPrompts, Text
from jax_probe_mtp.drafting.tree import Tree
from jax_probe_mtp.model.config import ModelConfig

MAX_NODES = 256  # of a tree, where a source lets its user choose


class SourceState(flax.struct.PyTreeNode, kw_only=True):
    """What a source keeps between calls.

    Attributes:
      rows: trees of arrays with B in front: a row that gets a new prompt gets a new entry, and a mesh splits them. No
        other axis may depend on the batch or on how far prompts are padded.
      shared: trees of arrays of all rows, such as tuned masks or a table; they go on to the next batch.
    """

    rows: Any = ()
    shared: Any = ()


class DraftSource(abc.ABC):
    """Where drafts come from. A subclass is a frozen dataclass, hence hashable and a static argument of `jax.jit`.

    Its fields are numbers, texts and tuples: what shapes a program. Arrays that a source brings, such as tuned masks,
    enter through `shared`: another file is then no other program. What follows may be fields, which then need defaults,
    or properties.

    Attributes:
      num_candidates: P, candidates that `propose` lists.
      max_depth: edges from the root to the deepest of them; `num_candidates` unless said otherwise, as of a chain.
      num_nodes: N, nodes of the tree, root included; with fewer than 1 + P the tree keeps the best by score.
      num_masks: k, mask tokens of each node that owns some.
      num_owners: O, nodes that own masks; None, the paper's way, for all of them.
      kinds: what each number in `Candidates.kind_BP` stands for; a bench counts accepted drafts by them.
      learns_shared: True where `read` or `learn` change `shared`. Its arrays then have 1 in front: where rows are split over
        groups of devices, each group has a part of its own.
      sizes: the same source in several sizes, among which is chosen between chunks of calls, from none drafted to the most; all
        read and leave the same state. Empty where there is nothing to choose.
      shared_format: raised where what is learned means something else in the same arrays: what was kept is then dropped.
      needs_shared: what the caller has to bring as `shared`, such as "tuned masks"; None where the source begins by itself.
    """

    if TYPE_CHECKING:  # read-only for the type checker, whether a subclass has a field or a property of the name

        @property
        def num_candidates(self) -> int: ...
        @property
        def num_masks(self) -> int: ...
        @property
        def num_owners(self) -> int | None: ...
        @property
        def learns_shared(self) -> bool: ...
        @property
        def sizes(self) -> "tuple[DraftSource, ...]": ...
        @property
        def shared_format(self) -> int: ...
        @property
        def needs_shared(self) -> str | None: ...

    else:
        num_masks = 0
        num_owners = None
        learns_shared = False
        sizes = ()
        shared_format = 1
        needs_shared = None

    @property
    def max_depth(self) -> int:
        return self.num_candidates

    @property
    def num_nodes(self) -> int:
        return 1 + self.num_candidates

    @property
    def kinds(self) -> tuple[str, ...]:
        return (type(self).__name__.lower(),)

    @property
    def num_rows(self) -> int:
        """Counts the rows of one call, R = N + O k, the block complexity of Eq. (7)."""
        owners = self.num_nodes if self.num_owners is None else self.num_owners
        return self.num_nodes + owners * self.num_masks

    def check(self, cfg: ModelConfig, prompt_length: int | None = None) -> None:
        """Checks the source against a model and, where given, a prompt of so many tokens.

        Raises:
          ValueError: one line with the values and a way out.
        """
        return

    def init_shared(self, cfg: ModelConfig) -> Any:
        """Makes what all rows share before anything was read; where the caller brings that, arrays of the same shapes."""
        return ()

    def complete_shared(self, cfg: ModelConfig, brought: Any) -> Any:
        """Gives all of what rows share where the caller brings a part of it, such as tuned masks alone."""
        return brought

    def start(self, model: Model, prompts: Prompts, shared: Any) -> SourceState:
        """Makes the state before the prompts go through the model; it drafts what is known then.

        Args:
          model: the model.
          prompts: B prompts.
          shared: of `init_shared`, of an earlier batch, or what the caller brought.
        """
        return SourceState(shared=shared)

    def read(self, state: SourceState, chunk: PromptChunk) -> SourceState:
        """Looks at a piece of the prompts that went through the model."""
        return state

    def try_masks(self, state: SourceState, prompts: ReadPrompts) -> SourceState:
        """Looks at the prompts when all of them went through the model; it may run mask tokens beside their places."""
        return state

    def masks(self, state: SourceState) -> jax.Array:
        """Gives the mask tokens of the next call, float32 [B, k, D]; asked only where `num_masks` is above 0."""
        raise ValueError(f"{self} has {self.num_masks} masks; define masks(state), which gives them.")

    def owners(self, state: SourceState, tree: Tree) -> jax.Array:
        """Chooses the nodes that own masks in a call, int32 [B, O]; asked only where `num_owners` is not None."""
        raise ValueError(
            f"{self} has {self.num_owners} owners of masks; define owners(state, tree), which chooses them."
        )

    @abc.abstractmethod
    def propose(self, state: SourceState, text: Text) -> Candidates:
        """Lists P candidates for the tree under each row's root."""

    def children(self, state: SourceState, text: Text, paths: Paths) -> Children | None:
        """Answers what may follow each of W nodes of one level; None where the source knows nothing at this depth.

        For a source that merges others: it asks all of them, level by level, so that its paths mix sources and one
        candidate's features come from several.
        """
        return None

    def learn(self, state: SourceState, call: FinishedCall) -> SourceState:
        """Looks at a call that is over."""
        return state


def begin_shared(source: DraftSource, cfg: ModelConfig, shared: Any = None) -> Any:
    """Gives what the rows begin to share: what the caller brought, if it has the arrays of the source's own.

    Raises:
      ValueError: if it has others, or the source needs some and the caller brought none.
    """
    own = jax.eval_shape(lambda: source.init_shared(cfg))
    if shared is None:
        if source.needs_shared:
            raise ValueError(
                f"{source} needs {source.needs_shared} of {_shapes(own)}, which all rows share; give shared, or on the command "
                f"line --masks FILE."
            )
        return source.init_shared(cfg)
    shared = source.complete_shared(cfg, shared)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (shared, own)]
    if structures[0] != structures[1] or _shapes(shared) != _shapes(own):
        raise ValueError(
            f"{source} begins with shared arrays of {_shapes(own)}, got {_shapes(shared)}; leave shared out, or give what "
            f"the same source made for this model (of tuned masks: their .shared, with mask_init=tuned in the draft)."
        )
    return shared


def _shapes(tree: Any) -> str:
    leaves = [f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__ for x in jax.tree.leaves(tree)]
    return ", ".join(leaves) or "no kind"


def check_is_source(source: object) -> None:
    """Raises ValueError where `source` is no `DraftSource`, such as the name of one, or its class is no frozen dataclass."""
    if not issubclass(type(source), DraftSource):
        raise ValueError(f"source must be a DraftSource such as Probe(widths=(14,)), got {source!r:.80}.")
    check_is_frozen(type(source))


def check_is_frozen(source_class: type) -> None:
    """Raises ValueError where a source's class is no frozen dataclass: equal sources would be different programs."""
    params = getattr(source_class, "__dataclass_params__", None)
    if params is None or not params.frozen:
        name = f"{source_class.__module__}:{source_class.__qualname__}"
        raise ValueError(f"{name} is no frozen dataclass; put @dataclasses.dataclass(frozen=True) above it.")


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raises ValueError where a field is no whole number from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}.")
