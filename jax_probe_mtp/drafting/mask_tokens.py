"""Mask tokens, vectors of the embedding space that stand for no word: their first value and how they follow the text."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.shown import ReadPrompts
from jax_probe_mtp.model.layers import product
from jax_probe_mtp.model.sampling import prng_key

AUTO, TUNED = "auto", "tuned"
PAPER_INITS = ("mean", "last_k", "sample", "offset")
INITS = (*PAPER_INITS, "vocabulary", "zero", TUNED, AUTO)
MAX_MASKS = 3
MAX_OFFSET = 1e6  # deviations; an infinite mask would put NaN into the attention of every row
DEFAULT_EMA = 0.1  # lambda of ESP's Eq. (5)
Tried = tuple[tuple[str, float], ...]  # an init and a lambda each
EARLIER_INIT = "mean"  # the default before there was "auto", in files that earlier versions wrote
TRIED: Tried = (("mean", 0.1), ("mean", 0.3), ("vocabulary", 0.0), ("zero", 0.0))  # by "auto"; the first is the paper's
TRIAL_PLACES = 30  # of a prompt, its last
FEWEST_PLACES = 15  # of a prompt that can tell
SOFT_HIT = 40  # the rank that is half a hit
SURE = 1.3  # standard errors by which another candidate must be better than the first
TAPS = 32  # tokens that move a mask before it is tried; at lambda 0.1 those before them weigh 3%


def usual_ema(init: str) -> float:
    """Gives the lambda that goes with an init: the paper's own for its inits, 0 for vectors that know nothing of the prompt."""
    return DEFAULT_EMA if init in PAPER_INITS else 0.0


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
      embed_VD: the embedding table ("sample" and "offset" take its mean and deviation per dimension, "vocabulary" its mean).
      prompt_BTD: embeddings of the prompts, padded on the right.
      prompt_length_B: int32 [B], tokens of each prompt; "last_k" needs at least k.
      seed_B: uint32 [B], the rows' seeds, for "sample".
      num_masks: k; static.
      init: one of `PAPER_INITS`, "vocabulary" or "zero"; static.
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
    if init == "zero":
        return jnp.zeros((B, k, D), jnp.float32)
    table_VD = embed_VD.astype(jnp.float32)
    if init == "vocabulary":
        return jnp.broadcast_to(jnp.mean(table_VD, axis=0), (B, k, D))
    mean_D, deviation_D = jnp.mean(table_VD, axis=0), jnp.std(table_VD, axis=0)
    if init == "offset":
        return jnp.broadcast_to(mean_D + offset * deviation_D, (B, k, D))
    with jax.threefry_partitionable(True):  # a flag that also changes the bits
        noise_BkD = jax.vmap(lambda seed: jax.random.normal(prng_key(seed), (k, D), jnp.float32))(seed_B)
    return mean_D[None, None] + deviation_D[None, None] * noise_BkD


def update_masks(
    masks_BMD: jax.Array, committed_BPD: jax.Array, num_committed_B: jax.Array, ema: float | jax.Array
) -> jax.Array:
    """Moves every mask toward each newly committed token in turn, Eq. (5): m <- m + ema * (e - m).

    Args:
      masks_BMD: float32 [B, M, D].
      committed_BPD: embeddings of the call's tokens; those from `num_committed_B` on are ignored.
      num_committed_B: int32 [B], tokens that count.
      ema: lambda, of all rows or float32 [B]; 0 freezes the masks.

    Returns:
      float32 [B, M, D].
    """
    ema = jnp.reshape(ema, (-1, 1, 1))
    for i in range(committed_BPD.shape[1]):
        moved = masks_BMD + ema * (committed_BPD[:, i, None].astype(jnp.float32) - masks_BMD)
        masks_BMD = jnp.where((i < num_committed_B)[:, None, None], moved, masks_BMD)
    return masks_BMD


def choose_masks(prompts: ReadPrompts, tried: Tried) -> tuple[jax.Array, jax.Array]:
    """Chooses each row's mask and lambda: what guesses best in the row's own prompt, where the token two ahead is known.

    Every candidate runs as a mask beside the last `TRIAL_PLACES` places of the prompt that are followed by two tokens, as the
    vector that it would be there after `TAPS` tokens of decoding: 120 rows of the model for four candidates. A place counts
    as 40 / (40 + rank of the true token), a smooth form of a hit. Another candidate takes the place of the first only if it
    is better by `SURE` standard errors of the difference: where the first is right, the best of several noisy means would
    often be another. A prompt with fewer than `FEWEST_PLACES` such places
    cannot tell, and takes the first. docs/masks.md has what this rule was chosen by.

    Args:
      prompts: after they went through the model.
      tried: the candidates; an init is one of `init_masks` that needs no seed; static.

    Returns:
      float32 [B, D], the masks' first value, and float32 [B], lambda.
    """
    model, length_B = prompts.model, prompts.length_B
    inits = list(dict.fromkeys(init for init, _ in tried))
    embedded_BTD, no_seed_B = model.embed(prompts.token_BT), jnp.zeros(length_B.shape, jnp.uint32)
    table_VD = model.embedding_table() if "vocabulary" in inits else embedded_BTD[0]
    first = {
        init: init_masks(table_VD, embedded_BTD, length_B, no_seed_B, num_masks=1, init=init, offset=0.0)
        for init in inits
    }
    first_BCD = jnp.concatenate([first[init] for init, _ in tried], axis=1)
    ema_C = jnp.asarray([ema for _, ema in tried], jnp.float32)
    if prompts.token_BT.shape[1] < FEWEST_PLACES + 2:
        return first_BCD[:, 0], jnp.broadcast_to(ema_C[0], length_B.shape)

    (B, C, D), Q = first_BCD.shape, TRIAL_PLACES
    place_BQ = length_B[:, None] - 2 - Q + jnp.arange(Q)[None]
    masks_BQCD = _moved(first_BCD, embedded_BTD, place_BQ, [ema for _, ema in tried])
    row_place_BQ = jnp.repeat(jnp.maximum(place_BQ, 0), C, axis=1)
    hidden_BQCD = prompts.side_hidden(masks_BQCD.reshape(B, Q * C, 1, D), row_place_BQ).reshape(B, Q, C, D)
    target_BQ = jnp.take_along_axis(prompts.token_BT, jnp.maximum(place_BQ + 2, 0), axis=1)

    def hits(row: tuple[jax.Array, jax.Array]) -> jax.Array:  # one row's logits at a time are in memory
        hidden_QCD, target_Q = row
        logits = prompts.logits(hidden_QCD)
        true_QC1 = logits.at(jnp.broadcast_to(target_Q[:, None, None], (Q, C, 1)))
        rank_QC = logits.num_above(true_QC1)  # NaN is no guess
        return SOFT_HIT / (SOFT_HIT + rank_QC.astype(jnp.float32))

    hit_BQC = jax.lax.map(hits, (hidden_BQCD, target_BQ))
    is_place_BQ1 = (place_BQ >= 0)[..., None]
    num_B1 = jnp.sum(is_place_BQ1, axis=1, dtype=jnp.float32)
    more_BQC = jnp.where(is_place_BQ1, hit_BQC - hit_BQC[..., :1], 0)
    mean_BC = jnp.sum(more_BQC, axis=1) / jnp.maximum(num_B1, 1)
    square_BC = jnp.sum(jnp.where(is_place_BQ1, jnp.square(more_BQC - mean_BC[:, None]), 0), axis=1)
    sure_BC = mean_BC - SURE * jnp.sqrt(square_BC) / jnp.maximum(num_B1, 1)  # the first's is 0
    choice_B = jnp.where(num_B1[:, 0] >= FEWEST_PLACES, jnp.argmax(sure_BC, axis=1), 0)
    return jnp.take_along_axis(first_BCD, choice_B[:, None, None], axis=1)[:, 0], ema_C[choice_B]


def _moved(first_BCD: jax.Array, embedded_BTD: jax.Array, place_BQ: jax.Array, emas: Sequence[float]) -> jax.Array:
    """Moves masks by the tokens up to each place, float32 [B, Q, C, D]: Eq. (5), written out for the last `TAPS` tokens."""
    Q, J = place_BQ.shape[1], TAPS
    age_QS = np.arange(Q)[:, None] + J - 1 - np.arange(Q + J - 1)[None]  # tokens that came after token s, at place q
    is_tap_QS = (age_QS >= 0) & (age_QS < J)
    weight_CQS = np.asarray([np.where(is_tap_QS, ema * (1 - ema) ** np.clip(age_QS, 0, J), 0) for ema in emas])
    token_place_BS = place_BQ[:, :1] - (J - 1) + jnp.arange(Q + J - 1)[None]
    index_BS1 = jnp.maximum(token_place_BS, 0)[..., None]
    token_BSD = jnp.take_along_axis(embedded_BTD, index_BS1, axis=1).astype(jnp.float32)
    weight_BCQS = jnp.where((token_place_BS >= 0)[:, None, None], jnp.asarray(weight_CQS, jnp.float32), 0)
    of_first_BQC1 = (1 - jnp.sum(weight_BCQS, axis=-1)).swapaxes(1, 2)[..., None]
    return of_first_BQC1 * first_BCD[:, None] + product("bcqs,bsd->bqcd", weight_BCQS, token_BSD)
