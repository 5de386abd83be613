"""What the decode loop asks of a draft source, whichever it is: a start, candidates for the next tree, a look at each call.

A source keeps what it needs between calls in a state of its own: masks and their proposals (probe), a table (recycle),
nothing (n-gram lookup, which reads the text).
"""

import jax
import jax.numpy as jnp

from jax_probe_mtp.drafting import ngram, probe, recycle
from jax_probe_mtp.drafting.candidates import NO_TOKEN, Candidates
from jax_probe_mtp.drafting.draft_config import DraftConfig, NgramConfig, ProbeConfig, RecycleConfig
from jax_probe_mtp.drafting.tree import Tree
from jax_probe_mtp.model import sampling, transformer
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params
from jax_probe_mtp.model.sampling import Sampling

SourceState = probe.ProbeState | recycle.Table | None
HARVEST_ROWS = 64  # prompt rows whose logits, [B, 64, V], are in memory at a time


def start(
    params: Params,
    cfg: ModelConfig,
    prompt_BT: jax.Array,
    prompt_length_B: jax.Array,
    seed_B: jax.Array,
    draft_cfg: DraftConfig,
    table: recycle.Table | None,
) -> SourceState:
    """The state before the prompt has been through the model.

    Args:
      params: the model's parameters.
      cfg: the model; static.
      prompt_BT: int32 [B, T], padded on the right.
      prompt_length_B: int32 [B].
      seed_B: uint32 [B], the rows' seeds.
      draft_cfg: which source; static.
      table: what a warm `RecycleConfig` goes on with; an empty one when None. No other source takes one.
    """
    if table is not None and not draft_cfg.keeps_table:
        raise ValueError(f"only RecycleConfig(is_warm=True) goes on with a table, got one with {draft_cfg}.")
    if isinstance(draft_cfg, ProbeConfig):
        embed_VD, prompt_BTD = transformer.embedding_table(params, cfg), transformer.embed(params, cfg, prompt_BT)
        return probe.start(probe.init_masks(embed_VD, prompt_BTD, prompt_length_B, seed_B, draft_cfg), draft_cfg)
    if isinstance(draft_cfg, RecycleConfig):
        return recycle.empty_table(prompt_BT.shape[0], cfg.vocab_size, draft_cfg) if table is None else table
    return None


def read_prompt(
    state: SourceState,
    params: Params,
    cfg: ModelConfig,
    draft_cfg: DraftConfig,
    token_BT: jax.Array,
    is_used_BT: jax.Array,
    hidden_BTD: jax.Array,
    draw: Sampling | None,
) -> SourceState:
    """Looks at a chunk of the prompt that went through the model: its tokens and its hidden states [B, T, D]."""
    if not isinstance(draft_cfg, RecycleConfig):
        return state
    T = token_BT.shape[1]
    rows = min(T, HARVEST_ROWS)

    def read(i: jax.Array, table: recycle.Table) -> recycle.Table:
        first = jnp.minimum(i * rows, T - rows)  # the last rows may overlap the ones before and be read again

        def cut(values: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(values, first, rows, axis=1)

        logits_BRV = transformer.logits(params, cfg, cut(hidden_BTD))
        return recycle.harvest(table, cut(token_BT), cut(is_used_BT), _over_temperature(logits_BRV, draw))

    num_used = jnp.max(jnp.sum(is_used_BT, axis=1))  # the used ones come first
    assert isinstance(state, recycle.Table)
    return jax.lax.fori_loop(0, (num_used + rows - 1) // rows, read, state)


def masks(state: SourceState, batch_size: int, cfg: ModelConfig) -> jax.Array:
    """Mask tokens that every node of the next tree owns, float32 [B, M, D]; M is 0 where the source uses none."""
    return state.masks_BMD if isinstance(state, probe.ProbeState) else jnp.zeros((batch_size, 0, cfg.width))


def propose(state: SourceState, token_BT: jax.Array, root_position_B: jax.Array, draft_cfg: DraftConfig) -> Candidates:
    """Candidates for the tree under the newest token of each row's text."""
    if isinstance(draft_cfg, NgramConfig):
        return ngram.propose(token_BT, root_position_B, draft_cfg)
    root_B = jnp.take_along_axis(token_BT, root_position_B[:, None], axis=1)[:, 0]
    if isinstance(draft_cfg, RecycleConfig):
        assert isinstance(state, recycle.Table)
        return recycle.propose(state, root_B, draft_cfg)
    assert isinstance(state, probe.ProbeState)
    return probe.propose(root_B, state, draft_cfg)


def learn(
    state: SourceState,
    params: Params,
    cfg: ModelConfig,
    draft_cfg: DraftConfig,
    draw: Sampling | None,
    mask_ema: jax.Array,
    *,
    tree: Tree,
    logits_BRV: jax.Array,
    last_node_B: jax.Array,
    committed_BP: jax.Array,
    num_new_B: jax.Array,
    root_position_B: jax.Array,
) -> SourceState:
    """Looks at a call that is over.

    Args:
      state: the state before the call.
      params: the model's parameters.
      cfg: the model; static.
      draft_cfg: which source; static.
      draw: how the rows are sampled; None in a greedy program.
      mask_ema: lambda of ESP's Eq. (5).
      tree: what was in the call.
      logits_BRV: float32 [B, R, V], of its rows: the nodes, then the masks owner by owner.
      last_node_B: int32 [B], the last accepted node.
      committed_BP: int32 [B, P], the call's new tokens, of which the first `num_new_B` count.
      num_new_B: int32 [B], 0 for a row that was done before the call.
      root_position_B: int32 [B], position of the next root.
    """
    if isinstance(draft_cfg, ProbeConfig) and draft_cfg.masks_per_node:
        assert isinstance(state, probe.ProbeState)
        committed_BPD = transformer.embed(params, cfg, committed_BP)
        state = state.replace(masks_BMD=probe.update_masks(state.masks_BMD, committed_BPD, num_new_B, mask_ema))
        M = draft_cfg.masks_per_node
        row_BM = draft_cfg.num_nodes + last_node_B[:, None] * M + jnp.arange(M)
        logits_BMV = jnp.take_along_axis(logits_BRV, row_BM[..., None], axis=1)
        return probe.read_masks(logits_BMV, state, root_position_B, draw, draft_cfg)
    if isinstance(draft_cfg, RecycleConfig):
        assert isinstance(state, recycle.Table)
        is_used_BN = (tree.token_BN != NO_TOKEN) & (num_new_B > 0)[:, None]
        return recycle.harvest(state, tree.token_BN, is_used_BN, _over_temperature(logits_BRV, draw))
    return state


def table_to_keep(state: SourceState, draft_cfg: DraftConfig) -> recycle.Table | None:
    """What the next batch goes on with: the shared table of a warm `RecycleConfig`."""
    return state if isinstance(state, recycle.Table) and draft_cfg.keeps_table else None


def _over_temperature(logits_BRV: jax.Array, draw: Sampling | None) -> jax.Array:
    if draw is None:
        return logits_BRV
    return jax.vmap(sampling.scale, in_axes=(1, None), out_axes=1)(logits_BRV, draw.temperature_B)
