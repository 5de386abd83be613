"""The kernel that grows a merged tree, run as JAX operations on the CPU, against the plain way, which goes depth by depth.

The plain way itself is compared with a slow builder in `test_merged_decode.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.kernels import lowered_for_cuda

from jax_probe_mtp.drafting import NO_TOKEN
from jax_probe_mtp.drafting.merged.facts import MASK_CANDIDATES, NUM_WEIGHTS
from jax_probe_mtp.drafting.merged.grow import grow, grow_by_depth
from jax_probe_mtp.drafting.merged.grow_kernel import grow_in_kernel
from jax_probe_mtp.drafting.merged.keys import CONTEXT, keys_of
from jax_probe_mtp.drafting.merged.memory import Sizes, empty_memory, keep_ngrams, keep_successors, pack

V = 60
SIZES = Sizes(tokens=64, pairs=256, ngrams=64)  # so small that keys share places
ALL = frozenset(("successors", "pairs", "ngrams"))


def both_ways(**sizes):
    plain = jax.jit(functools.partial(grow_by_depth, **sizes))
    kernel = jax.jit(functools.partial(grow_in_kernel, interpret=True, **sizes))
    return plain, kernel


@pytest.fixture(scope="module")
def usual():
    return both_ways(sources=ALL, num_drafts=27, max_depth=8)


def packed_lists(rng, *lead, size):
    ids = np.argsort(rng.random((*lead, V)), axis=-1)[..., :size]
    return pack(jnp.asarray(ids, jnp.int32), jnp.asarray(-np.sort(rng.exponential(2, ids.shape)), jnp.float32))


def learned(rng, *, Y, length):
    """Tables after a text of `length` tokens a row, and the text's last nine."""
    text_YT = jnp.asarray(rng.integers(0, V, (Y, CONTEXT + length)), jnp.int32)
    context_YTL = jnp.stack([text_YT[:, i : i + length] for i in range(CONTEXT)], axis=-1)
    every_YT = jnp.ones((Y, length), bool)
    memory = keep_ngrams(empty_memory(Y, SIZES), keys_of(context_YTL), text_YT[:, CONTEXT:], every_YT)
    order_YT = jnp.broadcast_to(jnp.arange(length), (Y, length))
    newest_YTL = jnp.stack([text_YT[:, i + 1 : i + 1 + length] for i in range(CONTEXT)], axis=-1)
    listed_YT8 = packed_lists(rng, Y, length, size=8)
    memory = keep_successors(memory, newest_YTL[..., -1], keys_of(newest_YTL), listed_YT8, order_YT)
    return memory, text_YT[:, -CONTEXT:]


def weights(rng, Y):
    return jnp.asarray(np.round(rng.normal(8, 30, (Y, NUM_WEIGHTS))), jnp.int32)


def assert_same(got, expected):
    for name in expected._fields:
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_the_kernel_finds_the_same_paths(usual, seed):
    """Three rows of one table; what the mask guesses is known in two of them."""
    plain, kernel = usual
    rng = np.random.default_rng(seed)
    memory, _ = learned(rng, Y=1, length=150)
    recent_BL = jnp.asarray(rng.integers(0, V, (3, CONTEXT)), jnp.int32).at[2, :6].set(NO_TOKEN)
    mask_BC = packed_lists(rng, 3, size=MASK_CANDIDATES).at[1].set(NO_TOKEN)
    arguments = memory, weights(rng, 1), recent_BL, mask_BC
    expected = plain(*arguments)
    assert_same(kernel(*arguments), expected)
    assert np.max(expected.depth_BP) > 2


def test_equal_costs_go_to_the_shorter_path_then_to_the_better_parent_then_to_the_lower_token(usual):
    plain, kernel = usual
    rng = np.random.default_rng(3)
    memory, _ = learned(rng, Y=1, length=150)
    recent_BL = jnp.asarray(rng.integers(0, V, (3, CONTEXT)), jnp.int32)
    mask_BC = packed_lists(rng, 3, size=MASK_CANDIDATES).at[1:].set(NO_TOKEN)
    arguments = memory, jnp.zeros((1, NUM_WEIGHTS), jnp.int32), recent_BL, mask_BC
    expected = plain(*arguments)
    assert_same(kernel(*arguments), expected)
    cost_P, depth_P, parent_P, token_P = (
        np.asarray(x[1]) for x in (expected.cost_BP, expected.depth_BP, expected.parent_BP, expected.token_BP)
    )
    assert cost_P.tolist() == (44 * depth_P).tolist()  # log 2 in 64ths
    order = sorted(zip(depth_P.tolist(), parent_P.tolist(), token_P.tolist(), strict=True))
    assert order == list(zip(depth_P.tolist(), parent_P.tolist(), token_P.tolist(), strict=True))


def test_long_paths_where_little_is_known(usual):
    """A repeated text: each n-gram has one follower, and all that follow are likely."""
    plain, kernel = usual
    text_T = np.tile([7, 3, 9, 1, 5], 6)
    memory = empty_memory(1, SIZES)
    context = jnp.asarray([[text_T[i : i + CONTEXT] for i in range(text_T.size - CONTEXT)]], jnp.int32)
    memory = keep_ngrams(
        memory, keys_of(context), jnp.asarray(text_T[None, CONTEXT:], jnp.int32), jnp.ones((1, 21), bool)
    )
    recent_BL = jnp.asarray(np.stack([text_T[-CONTEXT:], text_T[-CONTEXT - 1 : -1], np.full(CONTEXT, 50)]), jnp.int32)
    mask_BC = jnp.full((3, MASK_CANDIDATES), NO_TOKEN, jnp.int32)
    arguments = memory, jnp.full((1, NUM_WEIGHTS), 30, jnp.int32), recent_BL, mask_BC
    expected = plain(*arguments)
    assert_same(kernel(*arguments), expected)
    assert expected.token_BP[0, :9].tolist() == [7, 3, 9, 1, 5, 7, 3, 9, NO_TOKEN]
    assert expected.depth_BP[0, :8].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert expected.parent_BP[0, :8].tolist() == [-1, 0, 1, 2, 3, 4, 5, 6]
    assert (np.asarray(expected.token_BP[2]) == NO_TOKEN).all()  # nothing is known of the third text


def test_a_table_for_each_row_without_pairs_and_masks():
    plain, kernel = both_ways(sources=ALL - {"pairs"}, num_drafts=9, max_depth=3)
    rng = np.random.default_rng(5)
    memory, recent_BL = learned(rng, Y=2, length=80)
    arguments = memory, weights(rng, 2), recent_BL, None
    expected = plain(*arguments)
    assert_same(kernel(*arguments), expected)
    assert (np.asarray(expected.token_BP) != NO_TOKEN).sum() > 9


def test_a_gpu_grows_the_tree_in_one_kernel():
    memory = empty_memory(1, SIZES)
    arguments = (
        memory,
        jnp.zeros((1, NUM_WEIGHTS), jnp.int32),
        jnp.zeros((1, CONTEXT), jnp.int32),
        jnp.zeros((1, MASK_CANDIDATES), jnp.int32),
    )
    program = functools.partial(grow, sources=ALL, num_drafts=56, max_depth=8)
    text = lowered_for_cuda(program, *arguments)
    assert text.count("__gpu$xla.gpu.triton") == 1
    assert "stablehlo.while" not in text
    assert "stablehlo.gather" not in text
