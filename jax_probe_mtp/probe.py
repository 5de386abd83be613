"""Mask tokens: vectors of the embedding space that stand for no word; their first value and their update."""

import jax
import jax.numpy as jnp

from jax_probe_mtp.config import ProbeConfig
from jax_probe_mtp.sampling import prng_key


def init_masks(
    embed_VD: jax.Array, prompt_BTD: jax.Array, prompt_length_B: jax.Array, seed_B: jax.Array, probe: ProbeConfig
) -> jax.Array:
    """First value of the k mask tokens of each row, Eq. (4) and the inits that the paper compares it with.

    Args:
      embed_VD: the embedding table ("sample" and "offset" take its mean and deviation per dimension).
      prompt_BTD: embeddings of the prompts, padded on the right.
      prompt_length_B: int32 [B], tokens of each prompt; "last_k" needs at least k.
      seed_B: uint32 [B], the rows' seeds, for "sample".
      probe: which init; static.

    Returns:
      float32 [B, k, D]. They stay in float32 and are cast where they enter the model: in bfloat16 an update by a tenth
      of a small difference would be lost.
    """
    B, T, D = prompt_BTD.shape
    k = probe.depth
    if probe.mask_init == "mean":
        is_prompt_BT1 = (jnp.arange(T) < prompt_length_B[:, None])[..., None]
        total_BD = jnp.sum(prompt_BTD.astype(jnp.float32), axis=1, where=is_prompt_BT1)
        mean_BD = total_BD / prompt_length_B[:, None]
        return jnp.broadcast_to(mean_BD[:, None], (B, k, D))
    if probe.mask_init == "last_k":
        last_Bk = prompt_length_B[:, None] - k + jnp.arange(k)
        return jnp.take_along_axis(prompt_BTD, last_Bk[..., None], axis=1, mode="clip").astype(jnp.float32)
    table_VD = embed_VD.astype(jnp.float32)
    mean_D, deviation_D = jnp.mean(table_VD, axis=0), jnp.std(table_VD, axis=0)
    if probe.mask_init == "offset":
        return jnp.broadcast_to(mean_D + probe.mask_offset * deviation_D, (B, k, D))
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
