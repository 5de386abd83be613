"""Where drafts come from: the one interface between the decode loop and whatever proposes the next tree.

    check        whether model and prompt fit                  before anything runs
    init_shared  what all rows share                           once, where the caller brings nothing
    start        the state of new rows                         for each batch, and each prompt that enters one
    read         a piece of the prompt went through the model  during the prefill
    masks        the mask tokens of the next call              before a call, where the source uses any
    propose      candidates for the next tree                  before a call
    owners       which nodes own mask tokens                   before a call, where not all do
    learn        what the call gave                            after a call

`propose` and the number of its candidates are all that a source must write. Any proposal is safe: verification decides
what is emitted, so a bad source can only be slow. docs/extending.md shows a source in a dozen lines.
"""

import abc
import dataclasses
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.drafting.candidates import Candidates, Children, Paths
from jax_probe_mtp.drafting.tree import Tree
from jax_probe_mtp.model import transformer
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params
from jax_probe_mtp.model.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Model:
    """The frozen model, as a source may use it inside a jitted program.

    Attributes:
      params: the tree of `abstract_params(cfg)`.
      cfg: the model; static.
    """

    params: Params
    cfg: ModelConfig

    def embed(self, token_ids: jax.Array) -> jax.Array:
        """Looks up the input embeddings [..., D] of token ids [...], in the model's dtype."""
        return transformer.embed(self.params, self.cfg, token_ids)

    def embedding_table(self) -> jax.Array:
        """Gives the whole embedding table [V, D]."""
        return transformer.embedding_table(self.params, self.cfg)


class SourceState(flax.struct.PyTreeNode, kw_only=True):
    """What a source keeps between calls.

    Attributes:
      rows: trees of arrays with B in front: a row that gets a new prompt gets a new entry, and a mesh splits them. No
        other axis may depend on the batch or on how far prompts are padded.
      shared: trees of arrays of all rows, such as tuned masks or a table; they go on to the next batch.
    """

    rows: Any = ()
    shared: Any = ()


class Prompts(flax.struct.PyTreeNode, kw_only=True):
    """The prompts of a new batch, before they go through the model.

    Attributes:
      token_BT: int32 [B, T], padded on the right.
      length_B: int32 [B].
      seed_B: uint32 [B], the rows' seeds.
    """

    token_BT: jax.Array
    length_B: jax.Array
    seed_B: jax.Array


class Text(flax.struct.PyTreeNode, kw_only=True):
    """The text of each row when a tree is to be drafted.

    Attributes:
      token_BT: int32 [B, T], prompt and emitted tokens; what is behind the root means nothing.
      root_position_B: int32 [B], index of the root, the newest token.
    """

    token_BT: jax.Array
    root_position_B: jax.Array

    @property
    def root_B(self) -> jax.Array:
        """Gives the root's token, int32 [B]."""
        return jnp.take_along_axis(self.token_BT, self.root_position_B[:, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptChunk:
    """A piece of the prompts that went through the model.

    Attributes:
      model: the model.
      token_BU: int32 [B, U], its tokens. A token may come again in the next piece.
      is_used_BU: bool [B, U], False for padding and for the last prompt token, which is the first call's root.
      hidden_BUD: [B, U, D], hidden states after the final norm.
      sampling: how the rows are sampled; None in a greedy program.
    """

    model: Model
    token_BU: jax.Array
    is_used_BU: jax.Array
    hidden_BUD: jax.Array
    sampling: Sampling | None

    def logits(self, first: jax.Array, num_tokens: int) -> jax.Array:
        """Computes the logits after `num_tokens` tokens from place `first` on, float32 [B, num_tokens, V]."""
        hidden = jax.lax.dynamic_slice_in_dim(self.hidden_BUD, first, num_tokens, axis=1)
        return transformer.logits(self.model.params, self.model.cfg, hidden)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedCall:
    """A call that is over. A row that was done before it has `num_new_B` 0: nothing of it may enter `shared`.

    Attributes:
      model: the model.
      tree: the tree that was verified.
      logits_BRV: float32 [B, R, V], of all rows: the nodes, then the masks owner by owner.
      num_masks: k, masks of each owner; static.
      owner_BO: int32 [B, O], nodes that own masks; None where every node does.
      node_BP: int32 [B, P], the root, then the accepted nodes; the last of them repeats to the end.
      num_accepted_B: int32 [B], drafts accepted.
      new_token_BP: int32 [B, P], the call's new tokens, of which the first `num_new_B` count.
      num_new_B: int32 [B].
      root_position_B: int32 [B], position of the next root.
      sampling: how the rows are sampled; None in a greedy program.
    """

    model: Model
    tree: Tree
    logits_BRV: jax.Array
    num_masks: int
    owner_BO: jax.Array | None
    node_BP: jax.Array
    num_accepted_B: jax.Array
    new_token_BP: jax.Array
    num_new_B: jax.Array
    root_position_B: jax.Array
    sampling: Sampling | None

    @property
    def logits_BNV(self) -> jax.Array:
        """Gives the nodes' logits."""
        return self.logits_BRV[:, : self.tree.token_BN.shape[1]]

    @property
    def has_masks_B(self) -> jax.Array:
        """Says whether the last accepted node owned masks, bool [B]."""
        if self.owner_BO is None:
            return jnp.full(self.node_BP.shape[0], self.num_masks > 0)
        return jnp.any(self.owner_BO == self.node_BP[:, -1:], axis=1)

    @property
    def mask_logits_BMV(self) -> jax.Array:
        """Gives the logits of the last accepted node's k masks; those of some other node where it owned none."""
        last_B1 = self.node_BP[:, -1:]
        place_B1 = last_B1
        if self.owner_BO is not None:
            place_B1 = jnp.argmax(self.owner_BO == last_B1, axis=1, keepdims=True).astype(jnp.int32)
        row_BM = self.tree.token_BN.shape[1] + place_B1 * self.num_masks + jnp.arange(self.num_masks)[None]
        return jnp.take_along_axis(self.logits_BRV, row_BM[..., None], axis=1)


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
      learns_shared: True where `read` or `learn` change `shared`; rows cannot then be split over devices.
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

    else:
        num_masks = 0
        num_owners = None
        learns_shared = False

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
        """Makes what all rows share before anything was read."""
        return ()

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
