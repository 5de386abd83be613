"""How near a mask's hidden state comes to that of the token that truly came at its place, layer by layer.

A call with its root at position L accepts a drafts; its bonus is at L' = L + a + 1. The masks that count are those of
its last accepted node: mask i sits at L' - 1 + i and proposes depth i of the next call's tree. They run once more, as
the vectors they were in the call, beside the finished text, whose rows they are compared with.

Letters: Q calls that another followed, T tokens of the text, J kinds of rows, E = L + 1 states of the residual stream.

Source: ESP (arXiv:2603.17942), Figure 2; the controls are ours.
"""

import dataclasses
import functools
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp import decode_loop, layers, model, sources
from jax_probe_mtp.cache import allocate
from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.config import DecodeConfig, ModelConfig
from jax_probe_mtp.draft_config import ProbeConfig
from jax_probe_mtp.generation import Decoder, Prompt, Settings, record_seed
from jax_probe_mtp.params import Params
from jax_probe_mtp.request import Request, bucket

CLASSES = {"accepted": "-", "rejected": "--"}  # and their lines in the figure
KINDS = {"true": "#0072B2", "before": "#E69F00", "after": "#009E73", "random": "0.6"}  # and their colours
ABSENT = -1
_STATIC = ("cfg", "draft_cfg", "decode_cfg")
_prefill = jax.jit(decode_loop.prefill, static_argnames=_STATIC)
_step = jax.jit(decode_loop.step, static_argnames=_STATIC, donate_argnames="state")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
    """Mean cosines of masks with text rows, over all drafts of all prompts."""

    model: str  # the checkpoint's name
    prompts: list[str | int]  # their ids
    probe: ProbeConfig
    settings: Settings  # of one prompt at a time, whatever batch size was asked for
    counts: dict[
        str, dict[str, list[int]]
    ]  # [class][kind][i - 1]: drafts of mask i with such a row; all have a "true" one
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
    probe: ProbeConfig,
    settings: Settings,
    progress: Callable[[Sequence[Prompt]], Iterable[Prompt]] = iter,
) -> Alignment:
    """Decodes each prompt and compares the masks behind every draft with four rows of the finished text.

    "true" is the row at the mask's place, "before" and "after" are its neighbours, "random" is at least 2 places away:
    beside it a model whose rows are all alike does not look aligned. The draft of mask i is accepted when the next call
    accepts at least i drafts. Masks whose place is behind the text's end are left out.

    Args:
      checkpoint: the model.
      prompts: what to decode; their seeds also draw the random rows.
      probe: tree and masks, at least one.
      settings: as for `Decoder`; the batch size is not used.
      progress: passes the prompts on, each when it is wanted, as `tqdm` does.

    Raises:
      ValueError: nothing to measure, or a prompt that `make_request` refuses.
    """
    M, E = probe.masks_per_node, checkpoint.config.num_layers + 1
    if not prompts or not M:
        raise ValueError(f"alignment needs prompts and masks, got {len(prompts)} and {M}; give both, such as tree 14.")
    requests = [Decoder(checkpoint, probe).request([prompt], settings) for prompt in prompts]
    total = np.zeros((len(CLASSES), len(KINDS), M, E))
    count = np.zeros((len(CLASSES), len(KINDS), M), np.int64)
    for prompt, request in zip(progress(prompts), requests, strict=True):
        calls = decode_calls(checkpoint, probe, *request)
        row_QMJ = compared_rows(calls, record_seed(settings.seed, prompt))
        cosine_EQMJ = text_cosines(checkpoint, calls, row_QMJ)
        is_accepted_QM1 = calls.num_accepted_Q[:, None, None] > np.arange(M)[:, None]
        for c, is_class_QM1 in enumerate([is_accepted_QM1, ~is_accepted_QM1]):
            is_used_QMJ = is_class_QM1 & (row_QMJ != ABSENT)
            total[c] += np.sum(cosine_EQMJ, axis=1, where=is_used_QMJ, dtype=np.float64).T
            count[c] += np.sum(is_used_QMJ, axis=0).T
    with np.errstate(invalid="ignore"):
        mean = total / count[..., None]
    table = mean.astype(object)
    table[~np.isfinite(mean)] = None  # JSON knows no NaN
    return Alignment(
        model=Path(checkpoint.name).name,
        prompts=[prompt.id for prompt in prompts],
        probe=probe,
        settings=dataclasses.replace(settings, batch_size=1),
        counts={name: dict(zip(KINDS, count[c].tolist(), strict=True)) for c, name in enumerate(CLASSES)},
        cosines={name: dict(zip(KINDS, table[c].tolist(), strict=True)) for c, name in enumerate(CLASSES)},
    )


def decode_calls(
    checkpoint: Checkpoint, probe: ProbeConfig, prompt_BT: jax.Array, request: Request, decode_cfg: DecodeConfig
) -> Calls:
    """Decodes one prompt call by call, and notes what each call's masks were and how many drafts it accepted."""
    static: dict[str, Any] = {"cfg": checkpoint.config, "draft_cfg": probe, "decode_cfg": decode_cfg}
    state = _prefill(checkpoint.params, prompt_BT, request, **static)
    masks, ends, accepted = [], [], []
    while not state.is_done_B[0]:
        masks.append(np.array(sources.masks(state.source, 1, checkpoint.config)[0]))  # before the call moves them
        state = _step(checkpoint.params, request, state, **static)
        ends.append(int(state.length_B[0]))
        accepted.append(int(state.accepted_by_depth_BD.sum()))  # so far
    token_T = np.array(state.token_BT)[0, : ends[-1] + 1]
    return Calls(token_T, np.stack(masks)[:-1], np.array(ends[:-1], np.int32), np.diff(accepted))


def compared_rows(calls: Calls, seed: int) -> np.ndarray:
    """The text row of each kind that each mask is compared with, int32 [Q, M, J], `ABSENT` where there is none."""
    T, M = calls.token_T.size, calls.masks_QMD.shape[1]
    generator = np.random.Generator(np.random.PCG64(seed))
    place_QM = calls.end_Q[:, None] + np.arange(M)
    row_QMJ = np.stack([place_QM, place_QM - 1, place_QM + 1, np.full_like(place_QM, ABSENT)], axis=-1)
    for index, place in np.ndenumerate(place_QM):
        if (far := np.flatnonzero(np.abs(np.arange(T) - place) >= 2)).size:
            row_QMJ[index][-1] = generator.choice(far)
    return np.where((row_QMJ < T) & (place_QM[..., None] < T), row_QMJ, ABSENT).astype(np.int32)


def text_cosines(checkpoint: Checkpoint, calls: Calls, row_QMJ: np.ndarray) -> np.ndarray:
    """`cosines` of one text, padded to buckets so that few programs are compiled; a padding call sees no text."""

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, bucket(len(values)) - len(values)), *[(0, 0)] * (values.ndim - 1)])

    arrays = [padded(values) for values in (calls.token_T, calls.masks_QMD, calls.end_Q, np.maximum(row_QMJ, 0))]
    return np.asarray(cosines(checkpoint.params, checkpoint.config, *arrays))[:, : len(row_QMJ)]


@functools.partial(jax.jit, static_argnames="cfg")
def cosines(
    params: Params, cfg: ModelConfig, token_T: jax.Array, masks_QMD: jax.Array, end_Q: jax.Array, row_QMJ: jax.Array
) -> jax.Array:
    """Cosine of each mask with the text rows `row_QMJ` in every state of the residual stream, float32 [E, Q, M, J]."""
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
    """The input embeddings, then the residual stream after each layer: E arrays [R, D], R = T + Q M, text rows first.

    What a row reads:
                                  text           masks of call 1   of call 2
        text row t              0 .. t       |                 |
        mask i of call 1        0 .. L' - 1  |  1 .. i         |
        mask i of call 2        0 .. L' - 1  |                 |  1 .. i
    """
    (T,), (Q, M, D) = token_T.shape, masks_QMD.shape
    place_QM = end_Q[:, None] + jnp.arange(M)
    position_R = jnp.concatenate([jnp.arange(T), place_QM.reshape(-1)])
    num_read_R = jnp.concatenate([jnp.arange(T) + 1, jnp.repeat(end_Q, M)])
    can_attend_RT = jnp.arange(T) < num_read_R[:, None]
    own_masks = np.kron(np.eye(Q), np.tril(np.ones((M, M)))) > 0  # [Q M, Q M]
    can_attend_RR = jnp.concatenate([can_attend_RT, np.pad(own_masks, ((T, 0), (0, 0)))], axis=1)
    cache = allocate(cfg, batch_size=1, capacity=0, scratch=T + Q * M, dtype=params["embed"].dtype)
    rope = layers.rope_table(cfg, position_R[None])
    text_TD = model.embed(params, token_T)
    x_BRD = jnp.concatenate([text_TD, masks_QMD.reshape(-1, D).astype(text_TD.dtype)])[None]
    yield x_BRD[0]
    for layer, k_BKSh, v_BKSh in zip(params["layers"], cache.k, cache.v, strict=True):
        x_BRD, _, _ = model.decoder_layer(layer, cfg, x_BRD, rope, k_BKSh, v_BKSh, 0, can_attend_RR[None])
        yield x_BRD[0]


def write_alignment(alignment: Alignment, environment: dict[str, Any], folder: Path) -> list[Path]:
    """Writes `alignment.json`, `.svg` and `.md` when all are made; see `check_output`. Equal values, equal bytes."""
    check_output(folder)
    record = {"format": 1, "environment": environment, **dataclasses.asdict(alignment)}
    contents = {
        "alignment.json": (json.dumps(record, allow_nan=False) + "\n").encode(),
        "alignment.svg": _figure(alignment),
        "alignment.md": _tables(alignment, environment).encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def check_output(folder: Path) -> None:
    """Finds out before anything runs whether the files can be made; raises a ValueError where not."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and an alignment is three files; name a folder.")
    if find_spec("matplotlib") is None:
        raise ValueError("figures need matplotlib: pip install 'jax-probe-mtp[report]'.")


def _tables(alignment: Alignment, environment: dict[str, Any]) -> str:
    settings, columns = alignment.settings, list(itertools.product(CLASSES, KINDS))
    run = [alignment.model, f"tree {alignment.probe.tree}", f"{len(alignment.prompts)} prompts"]
    run += [f"at most {settings.max_new_tokens} new tokens", f"temperature {settings.temperature}"]
    run += [f"{key} {value}" for key, value in environment.items() if isinstance(value, str)]  # the rest: in the JSON
    lines = ["# Mean cosine of masks with text rows", "", ", ".join(run) + ". Layer 0 is the input embeddings."]
    for i in range(alignment.probe.masks_per_node):
        lines += ["", f"## {_title(alignment, i)}", ""]
        lines += [_line(["layer", *(f"{name}: {kind}" for name, kind in columns)]), "|---" * (len(columns) + 1) + "|"]
        means = [alignment.cosines[name][kind][i] for name, kind in columns]
        for layer, row in enumerate(zip(*means, strict=True)):
            lines.append(_line([layer, *("n/a" if value is None else f"{value:.4f}" for value in row)]))
        lines.append(_line(["drafts", *(alignment.counts[name][kind][i] for name, kind in columns)]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _title(alignment: Alignment, i: int) -> str:
    return f"Mask {i + 1}: " + ", ".join(f"{alignment.counts[name]['true'][i]} {name}" for name in CLASSES)


def _figure(alignment: Alignment) -> bytes:
    """A panel a mask: cosine by layer, a colour a kind of row, accepted drafts solid and rejected ones dashed."""
    import matplotlib.figure

    M, file = alignment.probe.masks_per_node, io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's are
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "alignment", "font.size": 9})
        figure = matplotlib.figure.Figure((2 + 3.8 * M, 4), layout="constrained")
        panels = figure.subplots(1, M, sharey=True, squeeze=False)[0]
        for i, axes in enumerate(panels):
            for (name, line), (kind, colour) in itertools.product(CLASSES.items(), KINDS.items()):
                values = np.array(alignment.cosines[name][kind][i], np.float64)  # None becomes NaN, which is not drawn
                width = 2.2 if kind == "true" else 1.1
                axes.plot(values, line, color=colour, linewidth=width, label=f"{kind}, {name}")
            axes.set(title=_title(alignment, i), xlabel="layer (0: input embeddings)")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(color="0.93")
        panels[0].set_ylabel("mean cosine")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
