"""Measures how near a mask's hidden state comes to that of the token that truly came at its place, layer by layer.

A call with its root at position L accepts a drafts; its bonus is at L' = L + a + 1. The masks that count are those of
its last accepted node: mask i sits at L' - 1 + i and proposes depth i of the next call's tree. They run once more, as
the vectors they were in the call, beside the finished text, whose rows they are compared with.

Letters: Q calls that another followed, T tokens of the text, J kinds of rows, E = L + 1 states of the residual stream.

Source: ESP (arXiv:2603.17942), Figure 2; the controls are ours.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.decoding.batch import Batch, bucket, make_batch
from jax_probe_mtp.decoding.settings import Prompt, Settings, sample_seed
from jax_probe_mtp.decoding.trace import trace
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import draft_name
from jax_probe_mtp.model import layers, transformer
from jax_probe_mtp.model.cache import Stream, allocate
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params

CLASSES = ("accepted", "rejected")  # of drafts
KINDS = ("true", "before", "after", "random")  # of text rows, as `measure` says
ABSENT = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
    """Mean cosines of masks with text rows, over all drafts of all prompts; tables of a class, then of a kind."""

    model: str  # the checkpoint's name
    prompts: list[str | int]  # their ids
    source: DraftSource
    settings: Settings  # of one prompt at a time, whatever batch size was asked for
    counts: dict[str, dict[str, list[int]]]  # [class][kind][i - 1]: drafts of mask i with such a row; all have "true"
    cosines: dict[str, dict[str, list[list[float | None]]]]  # [class][kind][i - 1][layer]; None: nothing to average


class Calls(NamedTuple):
    """One decoded text, and each of its calls that another followed; the prefill's is the first."""

    token_T: np.ndarray  # int32, prompt and emitted tokens
    masks_QMD: np.ndarray  # float32, as they went into the call
    end_Q: np.ndarray  # int32, L'
    num_accepted_Q: np.ndarray  # int32, drafts that the next call accepted


def measure(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    source: DraftSource,
    settings: Settings,
    progress: Callable[[Sequence[Prompt]], Iterable[Prompt]] = iter,
    shared: Any = None,
) -> Alignment:
    """Decodes each prompt and compares the masks behind every draft with four rows of the finished text.

    "true" is the row at the mask's place, "before" and "after" are its neighbours, "random" is at least 2 places away:
    beside it a model whose rows are all alike does not look aligned. The draft of mask i is accepted when the next call
    accepts at least i drafts. Masks whose place is behind the text's end are left out.

    Args:
      checkpoint: the model.
      prompts: what to decode; their seeds also draw the random rows.
      source: a draft source with at least one mask, all of whose nodes own masks.
      settings: as for `Decoder`; the batch size is not used.
      progress: passes the prompts on, each when it is wanted, as `tqdm` does.
      shared: what the draft source's rows share, such as tuned masks.

    Raises:
      ValueError: nothing to measure, or a prompt that `make_batch` refuses.
    """
    M, E = source.num_masks, checkpoint.config.num_layers + 1
    if not prompts or not M:
        raise ValueError(f"alignment needs prompts and masks, got {len(prompts)} and {M}; give both, such as tree 14.")
    if source.num_owners is not None:
        raise ValueError(
            f"alignment needs masks of every node, but {draft_name(source)} gives them to {source.num_owners}."
        )
    eos = checkpoint.eos_token_ids
    batches = [make_batch(checkpoint.config, source, [prompt], settings, eos_token_ids=eos) for prompt in prompts]
    total = np.zeros((len(CLASSES), len(KINDS), M, E))
    count = np.zeros((len(CLASSES), len(KINDS), M), np.int64)
    for prompt, batch in zip(progress(prompts), batches, strict=True):
        calls = decode_calls(checkpoint, source, batch, shared)
        row_QMJ = compared_rows(calls, sample_seed(settings.seed, prompt))
        cosine_EQMJ = text_cosines(checkpoint, calls, row_QMJ)
        is_accepted_QM1 = calls.num_accepted_Q[:, None, None] > np.arange(M)[:, None]
        for c, is_class_QM1 in enumerate([is_accepted_QM1, ~is_accepted_QM1]):
            is_used_QMJ = is_class_QM1 & (row_QMJ != ABSENT)
            total[c] += np.sum(cosine_EQMJ, axis=1, where=is_used_QMJ, dtype=np.float64).T
            count[c] += np.sum(is_used_QMJ, axis=0).T
    with np.errstate(invalid="ignore"):
        mean = total / count[..., None]  # NaN where there was no draft
    table = mean.astype(object)
    table[~np.isfinite(mean)] = None  # JSON knows no NaN
    return Alignment(
        model=Path(checkpoint.name).name,
        prompts=[prompt.id for prompt in prompts],
        source=source,
        settings=dataclasses.replace(settings, batch_size=1),
        counts=_named(count),
        cosines=_named(table),
    )


def _named(values: np.ndarray) -> dict[str, dict[str, Any]]:
    """Names the classes and kinds of values [class][kind]."""
    by_class = zip(CLASSES, values.tolist(), strict=True)
    return {name: dict(zip(KINDS, by_kind, strict=True)) for name, by_kind in by_class}


def decode_calls(checkpoint: Checkpoint, source: DraftSource, batch: Batch, shared: Any = None) -> Calls:
    """Decodes one prompt call by call, and notes what each call's masks were and how many drafts it accepted."""
    masks, ends, accepted = [], [], []
    for traced in trace(checkpoint.params, batch, checkpoint.config, source, shared):
        masks.append(np.asarray(source.masks(traced.before.source)[0]))
        ends.append(int(traced.after.length_B[0]))
        accepted.append(int(traced.after.accepted_by_depth_BX.sum()))  # so far
        last = traced.after
    token_T = np.array(last.token_BT)[0, : ends[-1] + 1]
    return Calls(token_T, np.stack(masks)[:-1], np.array(ends[:-1], np.int32), np.diff(accepted))


def compared_rows(calls: Calls, seed: int) -> np.ndarray:
    """Picks the text row of each kind that each mask is compared with, int32 [Q, M, J], `ABSENT` where there is none."""
    T, M = calls.token_T.size, calls.masks_QMD.shape[1]
    generator = np.random.Generator(np.random.PCG64(seed))
    place_QM = calls.end_Q[:, None] + np.arange(M)
    row_QMJ = np.stack([place_QM, place_QM - 1, place_QM + 1, np.full_like(place_QM, ABSENT)], axis=-1)
    for (q, m), place in np.ndenumerate(place_QM):
        far = np.flatnonzero(np.abs(np.arange(T) - place) >= 2)
        if far.size:
            row_QMJ[q, m, -1] = generator.choice(far)
    is_in_text_QMJ = (row_QMJ < T) & (place_QM[..., None] < T)
    return np.where(is_in_text_QMJ, row_QMJ, ABSENT).astype(np.int32)


def text_cosines(checkpoint: Checkpoint, calls: Calls, row_QMJ: np.ndarray) -> np.ndarray:
    """Gives the `cosines` of one text, padded to buckets so that few programs are compiled; a padding call sees no text."""

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, bucket(len(values)) - len(values)), *[(0, 0)] * (values.ndim - 1)])

    arrays = [padded(values) for values in (calls.token_T, calls.masks_QMD, calls.end_Q, np.maximum(row_QMJ, 0))]
    return np.asarray(cosines(checkpoint.params, checkpoint.config, *arrays))[:, : len(row_QMJ)]


@functools.partial(jax.jit, static_argnames="cfg")
def cosines(
    params: Params, cfg: ModelConfig, token_T: jax.Array, masks_QMD: jax.Array, end_Q: jax.Array, row_QMJ: jax.Array
) -> jax.Array:
    """Compares each mask with the text rows `row_QMJ` in every state of the residual stream: cosines, float32 [E, Q, M, J]."""
    (T,), (Q, M, _) = token_T.shape, masks_QMD.shape
    cosine_E = []
    for x_RD in residuals(params, cfg, token_T, masks_QMD, end_Q):
        x_RD = x_RD.astype(jnp.float32)
        length_R1 = jnp.linalg.norm(x_RD, axis=1, keepdims=True)
        unit_RD = x_RD / jnp.maximum(length_R1, jnp.finfo(jnp.float32).tiny)
        mask_QM1D = unit_RD[T:].reshape(Q, M, 1, -1)
        cosine_E.append(jnp.sum(mask_QM1D * unit_RD[row_QMJ], axis=-1))
    return jnp.stack(cosine_E)


def residuals(
    params: Params, cfg: ModelConfig, token_T: jax.Array, masks_QMD: jax.Array, end_Q: jax.Array
) -> Iterator[jax.Array]:
    """Yields the input embeddings, then the residual stream after each layer: E arrays [R, D], R = T + Q M, text rows first.

    What a row reads:
                                  text           masks of call 1   of call 2
        text row t              0 .. t       |                 |
        mask i of call 1        0 .. L' - 1  |  1 .. i         |
        mask i of call 2        0 .. L' - 1  |                 |  1 .. i
    """
    (T,), (Q, M, D) = token_T.shape, masks_QMD.shape
    place_QM = end_Q[:, None] + jnp.arange(M)[None]
    position_R = jnp.concatenate([jnp.arange(T), place_QM.reshape(-1)])
    num_read_R = jnp.concatenate([jnp.arange(T) + 1, jnp.repeat(end_Q, M)])
    can_attend_RT = jnp.arange(T)[None] < num_read_R[:, None]
    own_masks = np.kron(np.eye(Q), np.tril(np.ones((M, M)))) > 0  # [Q M, Q M]
    can_attend_RR = jnp.concatenate([can_attend_RT, np.pad(own_masks, ((T, 0), (0, 0)))], axis=1)
    cache = allocate(cfg, batch_size=1, capacity=0, scratch=T + Q * M, dtype=params["embed"].dtype)
    ropes = layers.rope_tables(cfg, position_R[None])
    text_TD = transformer.embed(params, cfg, token_T)
    x_BRD = jnp.concatenate([text_TD, masks_QMD.reshape(-1, D).astype(text_TD.dtype)])[None]
    yield x_BRD[0]
    normed_BRD = layers.rms_norm(x_BRD, params["layers"][0]["attn_norm"], cfg.norm_eps)
    run_layer = transformer.text_layer(cfg, 0, can_attend_RR[None])
    for (layer, next_norm_D), rope, k_BKSh, v_BKSh in zip(
        transformer.layers_and_norms(params), ropes, cache.k, cache.v, strict=True
    ):
        x_BRD, normed_BRD, *_ = run_layer(layer, next_norm_D, rope, Stream(x_BRD, normed_BRD, k_BKSh, v_BKSh))
        yield x_BRD[0]
