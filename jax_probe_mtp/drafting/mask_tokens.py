"""Mask tokens, vectors of the embedding space that stand for no word: their first value and how they follow the text."""

import jax
import jax.numpy as jnp

from jax_probe_mtp.model.sampling import prng_key

INITS = ("mean", "last_k", "sample", "offset")
MAX_MASKS = 3
MAX_OFFSET = 1e6  # deviations; an infinite mask would put NaN into the attention of every row
DEFAULT_EMA = 0.1  # lambda of ESP's Eq. (5)


def init_masks(
    embed_VD: jax.Array,
    prompt_BTD: jax.Array,
    prompt_length_B: jax.Array,
    seed_B: jax.Array,
    *,
    num_masks: int,
    init: str,
    offset: float,
) -> jax.Array:
    """Makes the first value of the k mask tokens of each row, Eq. (4) and the inits that the paper compares it with.

    Args:
      embed_VD: the embedding table ("sample" and "offset" take its mean and deviation per dimension).
      prompt_BTD: embeddings of the prompts, padded on the right.
      prompt_length_B: int32 [B], tokens of each prompt; "last_k" needs at least k.
      seed_B: uint32 [B], the rows' seeds, for "sample".
      num_masks: k; static.
      init: one of `INITS`; static.
      offset: c of "offset", mean + c * deviation; static.

    Returns:
      float32 [B, k, D]. They stay in float32 and are cast where they enter the model: in bfloat16 an update by a tenth
      of a small difference would be lost.
    """
    (B, T, D), k = prompt_BTD.shape, num_masks
    if init == "mean":
        is_prompt_BT1 = (jnp.arange(T)[None] < prompt_length_B[:, None])[..., None]
        total_BD = jnp.sum(prompt_BTD.astype(jnp.float32), axis=1, where=is_prompt_BT1)
        mean_BD = total_BD / prompt_length_B[:, None].astype(jnp.float32)
        return jnp.broadcast_to(mean_BD[:, None], (B, k, D))
    if init == "last_k":
        last_Bk = prompt_length_B[:, None] - k + jnp.arange(k)[None]
        return jnp.take_along_axis(prompt_BTD, last_Bk[..., None], axis=1, mode="clip").astype(jnp.float32)
    table_VD = embed_VD.astype(jnp.float32)
    mean_D, deviation_D = jnp.mean(table_VD, axis=0), jnp.std(table_VD, axis=0)
    if init == "offset":
        return jnp.broadcast_to(mean_D + offset * deviation_D, (B, k, D))
    with jax.threefry_partitionable(True):  # a flag that also changes the bits
        noise_BkD = jax.vmap(lambda seed: jax.random.normal(prng_key(seed), (k, D), jnp.float32))(seed_B)
    return mean_D[None, None] + deviation_D[None, None] * noise_BkD


def update_masks(masks_BMD: jax.Array, committed_BPD: jax.Array, num_committed_B: jax.Array, ema: float) -> jax.Array:
    """Moves every mask toward each newly committed token in turn, Eq. (5): m <- m + ema * (e - m).

    Args:
      masks_BMD: float32 [B, M, D].
      committed_BPD: embeddings of the call's tokens; those from `num_committed_B` on are ignored.
      num_committed_B: int32 [B], tokens that count.
      ema: lambda; 0 freezes the masks; static.

    Returns:
      float32 [B, M, D].
    """
    for i in range(committed_BPD.shape[1]):
        moved = masks_BMD + ema * (committed_BPD[:, i, None].astype(jnp.float32) - masks_BMD)
        masks_BMD = jnp.where((i < num_committed_B)[:, None, None], moved, masks_BMD)
    return masks_BMD
