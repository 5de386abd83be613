"""The attention kernel, run as JAX operations on the CPU, against NumPy in float64 and against `layers.attention`."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.kernels import lowered_for_cuda

from jax_probe_mtp.decoding.block import absolute_tail, block_can_attend, block_positions, block_visible
from jax_probe_mtp.drafting.tree import NO_PARENT, ancestors_or_self
from jax_probe_mtp.kernels import attention_program
from jax_probe_mtp.kernels.attention import anchored_attention, block_attention
from jax_probe_mtp.kernels.tiles import Tiles, is_supported
from jax_probe_mtp.model import layers

SMALL = Tiles(row=16, slot=16, splits=3, num_warps=4, num_stages=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Shapes of a call, and how it is cut."""

    lengths: list[int]
    T: int
    K: int = 1
    G: int = 1
    h: int = 64
    capacity: int
    padding: int = 0
    tiles: Tiles | None = SMALL


def arrays(case, dtype):
    """Random arguments of `block_attention`; slots that nobody may read hold NaN."""
    rng = np.random.default_rng(0)
    B, T, K, S = len(case.lengths), case.T, case.K, case.capacity + case.T + case.padding
    q_BTKGh = rng.normal(size=(B, T, K, case.G, case.h))
    k_BKSh, v_BKSh = rng.normal(size=(2, B, K, S, case.h))
    is_visible_BTT = (rng.random((B, T, T)) < 0.1) | np.eye(T, dtype=bool)  # whole tiles are hidden from a row
    place_S = np.arange(S)
    is_block_S = (place_S >= case.capacity) & (place_S < case.capacity + T)
    is_read_BS = (place_S < np.asarray(case.lengths)[:, None]) | is_block_S
    k_BKSh, v_BKSh = (np.where(is_read_BS[:, None, :, None], x, np.nan) for x in (k_BKSh, v_BKSh))
    floats = [jnp.asarray(x, dtype) for x in (q_BTKGh, k_BKSh, v_BKSh)]
    return *floats, jnp.asarray(case.lengths, jnp.int32), jnp.asarray(is_visible_BTT)


def folded(q_BTKGh):
    """Queries as the kernel takes them: [B, K, G, T, h]."""
    return q_BTKGh.transpose(0, 2, 3, 1, 4)


def reference(q_BTKGh, k_BKSh, v_BKSh, length_B, is_visible_BTT, capacity):
    """Float64 softmax row by row over the slots it may read; and what |v| gives in place of v, the scale of errors."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_BTKGh, k_BKSh, v_BKSh))
    out, size = np.zeros_like(q), np.zeros_like(q)
    for b, t, kv, g in np.ndindex(q.shape[:4]):
        slots = [*range(int(length_B[b])), *(capacity + np.flatnonzero(is_visible_BTT[b, t]))]
        scores = k[b, kv, slots] @ q[b, t, kv, g] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[b, t, kv, g], size[b, t, kv, g] = weights @ v[b, kv, slots], weights @ np.abs(v[b, kv, slots])
    return out, size


def run(args, start, tiles=SMALL):
    """The kernel's result, in float64."""
    q_BTKGh, *others = args
    start_B = jnp.broadcast_to(start, others[2].shape)
    out = jax.jit(lambda *args: block_attention(*args, tiles=tiles, interpret=True))(folded(q_BTKGh), *others, start_B)
    out = out.reshape(q_BTKGh.shape)
    assert out.dtype == args[0].dtype
    return np.asarray(out, np.float64)


def largest_error(out, want, size, dtype):
    """In units of what is allowed: bfloat16 rounds the weights and the result, float32 sums some hundred products."""
    return np.max(np.abs(out - want) / size) / (2.01 * 2**-8 if dtype == jnp.bfloat16 else 4e-6)


CASES = {
    "plain decoding": Case(lengths=[37], T=1, K=2, G=4, capacity=50, padding=13),
    "empty, one token, full": Case(lengths=[0, 1, 48], T=10, K=2, G=3, capacity=48, padding=6),
    "a whole tile, one more": Case(lengths=[16, 17, 32], T=10, h=128, capacity=40),
    "splits without tiles": Case(lengths=[5, 0], T=3, K=2, G=4, h=16, capacity=20, tiles=Tiles(16, 16, 8, 4, 2)),
    "one split": Case(lengths=[70], T=30, G=4, capacity=90, padding=8, tiles=Tiles(64, 32, 1, 4, 2)),
    "a block of many tiles": Case(lengths=[60, 5], T=60, G=3, capacity=100, padding=32),
    "rows unlike slots": Case(lengths=[129, 3], T=100, h=128, capacity=130, padding=26, tiles=Tiles(32, 64, 2, 8, 3)),
    "tiles by choice": Case(lengths=[100], T=30, K=2, G=4, h=128, capacity=140, padding=22, tiles=None),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_a_float64_softmax(name):
    check(CASES[name], jnp.float32)


@pytest.mark.parametrize("name", ["empty, one token, full", "splits without tiles", "one split", "tiles by choice"])
def test_equals_a_float64_softmax_in_bfloat16(name):
    check(CASES[name], jnp.bfloat16)


def check(case, dtype):
    args = arrays(case, dtype)
    want, size = reference(*args, case.capacity)
    assert largest_error(run(args, case.capacity, case.tiles), want, size, dtype) <= 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equals_plain_attention_on_a_tree_with_masks(dtype):
    case = Case(lengths=[23, 0], T=12, K=2, G=3, h=32, capacity=40)  # 4 nodes with 2 masks each
    parent_BN = jnp.asarray([[NO_PARENT, 0, 0, 1], [NO_PARENT, 0, 1, 2]], jnp.int32)
    is_ancestor_BNN = ancestors_or_self(parent_BN, max_depth=3)
    is_visible_BRR = block_visible(is_ancestor_BNN, 2)
    can_attend_BRS = block_can_attend(is_visible_BRR, jnp.asarray(case.lengths), case.capacity, case.capacity + case.T)
    q_BTKGh, k_BKSh, v_BKSh, length_B, _ = arrays(case, dtype)
    args = q_BTKGh, k_BKSh, v_BKSh, length_B, is_visible_BRR
    _, size = reference(*args, case.capacity)
    zeroed = jnp.nan_to_num(k_BKSh), jnp.nan_to_num(v_BKSh)  # plain attention multiplies free slots by 0
    plain = np.asarray(layers.attention(q_BTKGh, *zeroed, can_attend_BRS), np.float64)
    assert largest_error(run(args, case.capacity), plain, size, dtype) <= 2  # both round


def test_a_block_may_begin_at_the_end_of_each_rows_prefix():
    """Plain decoding writes its row there; what is behind it is never read."""
    case = Case(lengths=[37, 0, 16], T=1, K=2, G=4, capacity=50)
    q_BTKGh, k_BKSh, v_BKSh, length_B, is_visible_BTT = arrays(case, jnp.float32)
    want, size = reference(q_BTKGh, k_BKSh, v_BKSh, length_B, is_visible_BTT, case.capacity)

    def moved(slots_BKSh):
        rows = [slots_BKSh[b, :, case.capacity] for b in range(3)]
        return (
            jnp.full_like(slots_BKSh, jnp.nan)
            .at[:, :, :37]
            .set(slots_BKSh[:, :, :37])
            .at[jnp.arange(3), :, length_B]
            .set(jnp.stack(rows))
        )

    args = q_BTKGh, moved(k_BKSh), moved(v_BKSh), length_B, is_visible_BTT
    assert largest_error(run(args, length_B), want, size, jnp.float32) <= 1


def test_large_scores_do_not_overflow():
    case = Case(lengths=[37], T=10, G=4, capacity=50)
    q_BTKGh, *others = arrays(case, jnp.float32)
    args = 100 * q_BTKGh, *others
    want, size = reference(*args, case.capacity)
    assert largest_error(run(args, case.capacity), want, size, jnp.float32) <= 100  # as the scores' errors


def watch_products(monkeypatch, note):
    """Calls `note` with the arguments of every product that the kernel makes, when it is traced."""
    real = attention_program.plgpu

    def dot(*args, **kwargs):
        note(*args, **kwargs)
        return real.dot(*args, **kwargs)

    monkeypatch.setattr(attention_program, "plgpu", types.SimpleNamespace(**{**vars(real), "dot": dot}))


def test_reads_the_tiles_in_use_alone(monkeypatch):
    case, products = Case(lengths=[20], T=18, K=2, h=16, capacity=200), []
    watch_products(monkeypatch, lambda *args, **kwargs: jax.debug.callback(lambda: products.append(1)))
    run(arrays(case, jnp.float32), case.capacity)
    jax.effects_barrier()
    # 20 tokens fill 2 tiles of 16, the block of 18 another 2; each of 2 heads reads them for each of 2 tiles of rows.
    assert len(products) == 2 * (2 + 2) * 2 * 2  # scores and values


@pytest.mark.parametrize(("dtype", "precision"), [(jnp.float32, "HIGHEST"), (jnp.bfloat16, "DEFAULT")])
def test_products_shorten_no_float32_and_lengthen_no_bfloat16(monkeypatch, dtype, precision):
    case, seen = Case(lengths=[5], T=3, h=16, capacity=10), set()
    watch_products(monkeypatch, lambda a, b, precision, **_: seen.add((a.dtype, b.dtype, precision)))
    run(arrays(case, dtype), case.capacity)
    assert seen == {(jnp.dtype(dtype), jnp.dtype(dtype), jax.lax.Precision[precision])}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("T", [1, 30, 60])
def test_lowers_for_cuda(T, dtype):
    K, G, h = 8, 4, 128
    shapes = [(1, K, G, T, h), (1, K, 1088, h), (1, K, 1088, h), (1,), (1, T, T), (1,)]
    dtypes = [dtype, dtype, dtype, jnp.int32, jnp.bool_, jnp.int32]
    args = [jax.ShapeDtypeStruct(*pair) for pair in zip(shapes, dtypes, strict=True)]
    assert "__gpu$xla.gpu.triton" in lowered_for_cuda(block_attention, *args)


def test_refuses_what_it_cannot_do():
    assert [h for h in range(1, 513) if is_supported(h, jnp.bfloat16)] == [16, 32, 64, 128, 256]
    assert not is_supported(64, jnp.float16)
    args = arrays(Case(lengths=[5], T=3, h=80, capacity=10), jnp.float32)
    with pytest.raises(ValueError, match="no kernel for heads of 80 float32"):
        run(args, 10)


CHAIN = [NO_PARENT, 0, 1, 2]  # one path of four, and beside it:
FORK = [NO_PARENT, 0, 0, 1]
DEPTH = {tuple(CHAIN): [0, 1, 2, 3], tuple(FORK): [0, 1, 1, 2]}
WINDOW = 4


def anchored_args(parents, length, capacity, q_BTKGh, k_BKSh, v_BKSh):
    """What attention takes of one text with a tree without masks."""
    parent_BN, depth_BN = jnp.asarray([parents]), jnp.asarray([DEPTH[tuple(parents)]])
    is_visible_BRR = block_visible(ancestors_or_self(parent_BN, max_depth=3), 0)
    length_B = jnp.asarray([length])
    tail = absolute_tail(is_visible_BRR, block_positions(depth_BN, length_B, 0), length_B, capacity, WINDOW)
    return (q_BTKGh, k_BKSh, v_BKSh, length_B, *tail.values()), (is_visible_BRR, length_B)


@jax.jit
def run_anchored(q_BTKGh, k_BKSh, v_BKSh, length_B, *tail):
    out = anchored_attention(folded(q_BTKGh), k_BKSh, v_BKSh, length_B, *tail, tiles=SMALL, interpret=True)
    return out.reshape(q_BTKGh.shape)


@pytest.mark.parametrize("parents", [CHAIN, FORK], ids=["chain", "fork"])
@pytest.mark.parametrize("length", [0, 3, 16, 37, 120])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_anchored_equals_a_float64_softmax(parents, length, dtype):
    case = Case(lengths=[length], T=4, K=2, G=3, h=32, capacity=120)
    q_BTKGh, k_BKSh, v_BKSh, _, _ = arrays(case, dtype)
    args, (is_visible_BRR, length_B) = anchored_args(parents, length, case.capacity, q_BTKGh, k_BKSh, v_BKSh)
    want, size = reference(*args[:3], length_B, is_visible_BRR, case.capacity)
    assert largest_error(np.asarray(run_anchored(*args), np.float64), want, size, dtype) <= 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_anchored_gives_a_token_the_same_bits_as_root_and_as_draft(dtype):
    """A chain of four tokens behind 37, at any place of it the root; ordinary attention gives others in float32."""
    case = Case(lengths=[37 + 3], T=4, K=2, G=2, h=32, capacity=50)
    q_BTKGh, k_BKSh, v_BKSh, _, _ = arrays(case, dtype)
    at_S = np.arange(k_BKSh.shape[2])

    def put(slots_BKSh, path_slots):
        """The four tokens' rows in these slots; the block's others hold noise, and slots that nobody may read NaN."""
        kept = jnp.where(((at_S < 37) | (at_S >= case.capacity))[:, None], slots_BKSh, jnp.nan)
        return kept.at[:, :, jnp.asarray(path_slots)].set(slots_BKSh[:, :, 36:40])

    results = {"anchored": [], "ordinary": []}
    for root in range(4):
        length = 37 + root
        path_slots = [*range(37, length), *range(case.capacity, case.capacity + 4 - root)]
        k, v = (put(slots, path_slots) for slots in (k_BKSh, v_BKSh))
        q = jnp.roll(q_BTKGh, -root, axis=1)
        args, (is_visible_BRR, length_B) = anchored_args(CHAIN, length, case.capacity, q, k, v)
        results["anchored"].append(run_anchored(*args)[:, 3 - root])
        ordinary = block_attention(
            folded(q), k, v, length_B, is_visible_BRR, jnp.asarray([case.capacity]), tiles=SMALL, interpret=True
        )
        results["ordinary"].append(ordinary.reshape(q.shape)[:, 3 - root])
    bits = {name: {np.asarray(x, np.float32).tobytes() for x in found} for name, found in results.items()}
    assert np.isfinite(np.asarray(results["anchored"], np.float32)).all()
    assert len(bits["anchored"]) == 1
    if dtype == jnp.float32:
        assert len(bits["ordinary"]) > 1


def test_anchored_lowers_for_cuda():
    T, J = 30, 4
    shapes = [(1, 8, 4, T, 128), (1, 8, 1088, 128), (1, 8, 1088, 128), (1,), (1, T), (1, T, J), (1, T, J)]
    dtypes = [jnp.bfloat16] * 3 + [jnp.int32] * 3 + [jnp.bool_]
    args = [jax.ShapeDtypeStruct(*pair) for pair in zip(shapes, dtypes, strict=True)]
    text = lowered_for_cuda(anchored_attention, *args)
    assert text.count("__gpu$xla.gpu.triton") == 2  # and the merge
