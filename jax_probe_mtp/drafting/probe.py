"""The draft source of the method: mask tokens, vectors of the embedding space that stand for no word.

Their first value, their update, and how what their logits propose becomes candidates for the tree.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.candidates import NO_TOKEN, Candidates, fixed_candidates
from jax_probe_mtp.drafting.draft_config import ProbeConfig
from jax_probe_mtp.drafting.top_k import top_k
from jax_probe_mtp.drafting.tree import NO_PARENT
from jax_probe_mtp.model.sampling import Sampling, gumbel_noise, prng_key, scale


class ProbeState(flax.struct.PyTreeNode, kw_only=True):
    """The masks of each row and what those of its last accepted node proposed, best first.

    Attributes:
      masks_BMD: float32 [B, M, D]; cast where they enter the model.
      id_BMC: int32 [B, M, C], for each depth under the next root; `NO_TOKEN` before the first call.
      score_BMC: float32 [B, M, C], log-probabilities; read by dynamic trees alone.
    """

    masks_BMD: jax.Array
    id_BMC: jax.Array
    score_BMC: jax.Array


def start(masks_BMD: jax.Array, cfg: ProbeConfig) -> ProbeState:
    """The state before any mask has been read: its tree drafts nothing."""
    shape = (masks_BMD.shape[0], cfg.masks_per_node, cfg.num_candidates)
    return ProbeState(
        masks_BMD=masks_BMD, id_BMC=jnp.full(shape, NO_TOKEN, jnp.int32), score_BMC=jnp.zeros(shape, jnp.float32)
    )


def init_masks(
    embed_VD: jax.Array, prompt_BTD: jax.Array, prompt_length_B: jax.Array, seed_B: jax.Array, cfg: ProbeConfig
) -> jax.Array:
    """First value of the k mask tokens of each row, Eq. (4) and the inits that the paper compares it with.

    Args:
      embed_VD: the embedding table ("sample" and "offset" take its mean and deviation per dimension).
      prompt_BTD: embeddings of the prompts, padded on the right.
      prompt_length_B: int32 [B], tokens of each prompt; "last_k" needs at least k.
      seed_B: uint32 [B], the rows' seeds, for "sample".
      cfg: which init; static.

    Returns:
      float32 [B, k, D]. They stay in float32 and are cast where they enter the model: in bfloat16 an update by a tenth
      of a small difference would be lost.
    """
    B, T, D = prompt_BTD.shape
    k = cfg.masks_per_node
    if cfg.mask_init == "mean":
        is_prompt_BT1 = (jnp.arange(T) < prompt_length_B[:, None])[..., None]
        total_BD = jnp.sum(prompt_BTD.astype(jnp.float32), axis=1, where=is_prompt_BT1)
        mean_BD = total_BD / prompt_length_B[:, None]
        return jnp.broadcast_to(mean_BD[:, None], (B, k, D))
    if cfg.mask_init == "last_k":
        last_Bk = prompt_length_B[:, None] - k + jnp.arange(k)
        return jnp.take_along_axis(prompt_BTD, last_Bk[..., None], axis=1, mode="clip").astype(jnp.float32)
    table_VD = embed_VD.astype(jnp.float32)
    mean_D, deviation_D = jnp.mean(table_VD, axis=0), jnp.std(table_VD, axis=0)
    if cfg.mask_init == "offset":
        return jnp.broadcast_to(mean_D + cfg.mask_offset * deviation_D, (B, k, D))
    with jax.threefry_partitionable(True):  # a flag that also changes the bits
        noise_BkD = jax.vmap(lambda seed: jax.random.normal(prng_key(seed), (k, D), jnp.float32))(seed_B)
    return mean_D + deviation_D * noise_BkD


def update_masks(
    masks_BMD: jax.Array, committed_BPD: jax.Array, num_committed_B: jax.Array, ema: jax.Array
) -> jax.Array:
    """Moves every mask toward each newly committed token in turn, Eq. (5): m <- m + ema * (e - m).

    Args:
      masks_BMD: float32 [B, M, D].
      committed_BPD: embeddings of the call's tokens; those from `num_committed_B` on are ignored.
      num_committed_B: int32 [B], tokens that count.
      ema: float32 scalar, lambda; 0 freezes the masks.

    Returns:
      float32 [B, M, D].
    """
    for i in range(committed_BPD.shape[1]):
        moved = masks_BMD + ema * (committed_BPD[:, i, None].astype(jnp.float32) - masks_BMD)
        masks_BMD = jnp.where((i < num_committed_B)[:, None, None], moved, masks_BMD)
    return masks_BMD


def read_masks(
    logits_BMV: jax.Array, state: ProbeState, root_position_B: jax.Array, sampling: Sampling | None, cfg: ProbeConfig
) -> ProbeState:
    """Takes the C best tokens of each mask and, where the tree's shape depends on them, their log-probabilities.

    Args:
      logits_BMV: float32 [B, M, V], of the masks of the last accepted node.
      state: the masks; what they proposed before is replaced.
      root_position_B: int32 [B], position of the next root; mask i proposes the token i places after it.
      sampling: None in a greedy program. Drafts of sampled rows are ranked by logits / T, by default plus the noise that
        the position will draw with.
      cfg: the tree; static.
    """
    if sampling is not None:
        logits_BMV = jnp.stack(
            [_rank(logits_BMV[:, i], root_position_B + 1 + i, sampling, cfg) for i in range(cfg.masks_per_node)], axis=1
        )
    best_BMC, id_BMC = top_k(logits_BMV, cfg.num_candidates)
    if cfg.is_dynamic:  # rounding may leave the logarithm of a probability above 0, and a child above its parent
        best_BMC = jnp.minimum(best_BMC - jax.nn.logsumexp(logits_BMV, axis=-1, keepdims=True), 0)
    return state.replace(id_BMC=id_BMC.astype(jnp.int32), score_BMC=best_BMC)


def _rank(logits_BV: jax.Array, position_B: jax.Array, sampling: Sampling, cfg: ProbeConfig) -> jax.Array:
    score_BV = scale(logits_BV, sampling.temperature_B)
    if cfg.rank_with_noise:
        noise_BV = gumbel_noise(sampling.seed_B, position_B, score_BV.shape[1])
        score_BV += jnp.where(sampling.temperature_B > 0, 1, 0)[:, None] * noise_BV
    return score_BV


def propose(root_B: jax.Array, state: ProbeState, cfg: ProbeConfig) -> Candidates:
    """Hangs the candidates of each depth under the top-1 node of the depth above.

    A static tree's pools are its K_1..K_k best, depth by depth. A dynamic one's are larger than the tree, and a path's
    score is the product of the probabilities along it.

    Args:
      root_B: int32 [B], the newest committed token.
      state: for each depth at least as many candidates as its pool, one more when pruning.
      cfg: pools, pruning, static or dynamic; static.

    Source: ESP (arXiv:2603.17942), Sections 3.4 and 3.5, Algorithm 1, Appendix D.
    """
    B, sizes = root_B.shape[0], cfg.pool_sizes
    parent_token_B, path_score_B1 = root_B, jnp.zeros((B, 1), jnp.float32)
    token_pools, score_pools = [jnp.zeros((B, 0), jnp.int32)], [jnp.zeros((B, 0), jnp.float32)]
    for i, size in enumerate(sizes):
        id_BC, score_BC = state.id_BMC[:, i], state.score_BMC[:, i]
        if cfg.prune:
            id_BC, score_BC = _drop(parent_token_B, id_BC, score_BC)
        token_pools.append(id_BC[:, :size])
        score_pools.append(path_score_B1 + score_BC[:, :size])
        parent_token_B, path_score_B1 = id_BC[:, 0], score_pools[-1][:, :1]

    pool_start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)  # the top-1 candidate of each depth
    depth_P = np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes)
    parent_P = np.concatenate([[NO_PARENT], pool_start])[depth_P - 1].astype(np.int32)
    token_BP = jnp.concatenate(token_pools, axis=1)
    candidates = fixed_candidates(token_BP, parent_P, depth_P)
    return candidates.replace(score_BP=jnp.concatenate(score_pools, axis=1)) if cfg.is_dynamic else candidates


def _drop(token_B: jax.Array, id_BC: jax.Array, score_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Takes `token_B` out of the candidates; those behind it move up. The last place then repeats and is not used."""
    is_behind_BC = jnp.cumsum(id_BC == token_B[:, None], axis=1) > 0
    source_BC = jnp.minimum(jnp.arange(id_BC.shape[1]) + is_behind_BC, id_BC.shape[1] - 1)
    return jnp.take_along_axis(id_BC, source_BC, axis=1), jnp.take_along_axis(score_BC, source_BC, axis=1)
