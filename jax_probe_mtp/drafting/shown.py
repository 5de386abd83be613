"""What a draft source is shown: the model, the prompts, the text so far, and what went through the model."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.drafting.tree import Tree
from jax_probe_mtp.model import side_rows, transformer
from jax_probe_mtp.model.cache import KVCache
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.logits import Logits
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


class Prompts(flax.struct.PyTreeNode, kw_only=True):
    """The prompts of a new batch, before they go through the model.

    Attributes:
      token_BT: int32 [B, T], padded on the right.
      length_B: int32 [B].
      seed_B: uint32 [B], the rows' seeds.
      capacity: tokens that a row's text has room for, the root not counted; static.
    """

    token_BT: jax.Array
    length_B: jax.Array
    seed_B: jax.Array
    capacity: int = flax.struct.field(pytree_node=False)


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
      before_BU: int32 [B, U], the tokens before them; `NO_TOKEN` for a prompt's first.
      is_used_BU: bool [B, U], False for padding and for the last prompt token, which is the first call's root.
      hidden_BUD: [B, U, D], hidden states after the final norm.
      sampling: how the rows are sampled; None in a greedy program.
    """

    model: Model
    token_BU: jax.Array
    before_BU: jax.Array
    is_used_BU: jax.Array
    hidden_BUD: jax.Array
    sampling: Sampling | None

    def logits(self, first: jax.Array, num_tokens: int) -> Logits:
        """Computes the logits after `num_tokens` tokens from place `first` on, [B, num_tokens, V]."""
        hidden = jax.lax.dynamic_slice_in_dim(self.hidden_BUD, first, num_tokens, axis=1)
        return transformer.split_logits(self.model.params, self.model.cfg, hidden)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadPrompts:
    """The prompts of a new batch, after all their tokens but the last went through the model.

    Attributes:
      model: the model.
      token_BT: int32 [B, T], padded on the right.
      length_B: int32 [B].
      cache: their keys and values.
    """

    model: Model
    token_BT: jax.Array
    length_B: jax.Array
    cache: KVCache

    def side_hidden(self, x_BQMD: jax.Array, place_BQ: jax.Array) -> jax.Array:
        """Runs M rows beside each of Q places of the prompts, as `side_rows.side_hidden` does; the prompts stay as they are."""
        return side_rows.side_hidden(self.model.params, self.model.cfg, self.cache, x_BQMD, place_BQ)

    def logits(self, hidden_BRD: jax.Array) -> Logits:
        """Computes logits [B, R, V] of hidden states."""
        return transformer.split_logits(self.model.params, self.model.cfg, hidden_BRD)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedCall:
    """A call that is over. A row that was done before it has `num_new_B` 0: nothing of it may enter `shared`.

    Attributes:
      model: the model.
      tree: the tree that was verified.
      logits: [B, R, V], of all rows: the nodes, then the masks owner by owner. `logits.whole()` is an array.
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
    logits: Logits
    num_masks: int
    owner_BO: jax.Array | None
    node_BP: jax.Array
    num_accepted_B: jax.Array
    new_token_BP: jax.Array
    num_new_B: jax.Array
    root_position_B: jax.Array
    sampling: Sampling | None

    @property
    def node_logits(self) -> Logits:
        """Gives the nodes' logits [B, N, V]."""
        return self.logits.first(self.tree.token_BN.shape[1])

    @property
    def has_masks_B(self) -> jax.Array:
        """Says whether the last accepted node owned masks, bool [B]."""
        if self.owner_BO is None:
            return jnp.full(self.node_BP.shape[0], self.num_masks > 0)
        return jnp.any(self.owner_BO == self.node_BP[:, -1:], axis=1)

    @property
    def mask_logits(self) -> Logits:
        """Gives the logits [B, k, V] of the last accepted node's masks; those of some other node where it owned none."""
        last_B1 = self.node_BP[:, -1:]
        place_B1 = last_B1
        if self.owner_BO is not None:
            place_B1 = jnp.argmax(self.owner_BO == last_B1, axis=1, keepdims=True).astype(jnp.int32)
        row_BM = self.tree.token_BN.shape[1] + place_B1 * self.num_masks + jnp.arange(self.num_masks)[None]
        return self.logits.rows(row_BM)
