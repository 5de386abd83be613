"""Tests what the exact mode assumes of this device: what a row gives depends on its inputs alone.

The same tokens go through the same program in two ways: each as the root of a call of its own, as plain decoding has them,
and as drafts, in every place of the tree and of the batch, beside other drafts and other neighbours. Every logit must
have the same bits.

                 call 1      call 2      call 3
    roots        t0          t1          t2

                 t0 ┬─ t1    t0 ── t1 ┬─ t2
    drafts          ├─ t1             ├─ t2
                    └─ t1             └─ t2

Where the exact mode gives one text (`one_text.py`), a third way is plain decoding at one row, a program of another shape.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.decoding import any_rows
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.request import idle_request, join_requests
from jax_probe_mtp.decoding.rows import empty
from jax_probe_mtp.decoding.state import DecodeState
from jax_probe_mtp.decoding.step import run_block
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import PLAIN, draft_name, parse_draft
from jax_probe_mtp.drafting.tree import NO_PARENT, Tree
from jax_probe_mtp.generation import one_text
from jax_probe_mtp.generation.programs import REQUEST, ROWS, Programs
from jax_probe_mtp.model import cache as kv
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params

log = logging.getLogger(__name__)


def check(programs: Programs, checkpoint: Checkpoint, source: DraftSource, decode_cfg: DecodeConfig, rows: int) -> int:
    """Runs the test at the shapes of a run, once for each; caches hold noise, at three lengths.

    Where the capacity has no room for the drafts, the test's has a few slots more.

    Args:
      programs: where the run's programs are compiled.
      checkpoint: the model.
      source: where drafts come from.
      decode_cfg: of the run.
      rows: B, of the whole mesh.

    Returns:
      How many rows of logits were compared; 0 where these shapes have been tested before.

    Raises:
      ValueError: if some have other bits: the exact mode is not exact here.
    """
    one_text.check(checkpoint, source)
    return sum(_check(programs, checkpoint, size, decode_cfg, rows) for size in source.sizes or (source,))


def _check(programs: Programs, checkpoint: Checkpoint, source: DraftSource, decode_cfg: DecodeConfig, rows: int) -> int:
    key = (source, decode_cfg, rows)
    if key in programs.tested:
        return 0
    depth = source.max_depth
    decode_cfg = dataclasses.replace(decode_cfg, capacity=max(decode_cfg.capacity, depth + 2))
    most = decode_cfg.capacity - depth - 1
    differ = compared = 0
    for in_use in sorted({1, (most + 1) // 2, most}):
        found = _compare(programs, checkpoint, source, decode_cfg, rows, in_use)
        differ, compared = differ + found[0], compared + found[1]
    if differ:
        where = "their place in the call"
        if one_text.has_one_text(checkpoint) and programs.mesh is None:
            pieces = any_rows.differing(checkpoint.params, rows * source.num_rows)
            where += f"; of the products alone, {' and '.join(pieces) if pieces else 'none'} did"
        raise ValueError(
            f"not exact on this device: {differ} of {compared} rows of logits depend on {where} "
            f"({draft_name(source)}, batch {rows}, capacity {decode_cfg.capacity}, {checkpoint.number_format}, "
            f"attention {'anchored' if decode_cfg.is_exact else decode_cfg.attention}); "
            f"leave --exact out, or try another batch size or dtype."
        )
    programs.tested.add(key)
    log.debug("exact: %d rows of logits have the same bits as drafts and as roots", compared)
    return compared


def _compare(
    programs: Programs,
    checkpoint: Checkpoint,
    source: DraftSource,
    decode_cfg: DecodeConfig,
    rows: int,
    in_use: int,
) -> tuple[int, int]:
    """Counts rows of logits that differ, and those that were compared, `in_use` committed tokens into a text."""
    B, N, D = rows, source.num_nodes, source.max_depth
    draw = np.random.default_rng(in_use)
    path = draw.integers(0, checkpoint.config.vocab_size, D + 1)
    call = _caller(programs, checkpoint, source, decode_cfg, B)
    roots, differ, compared = [], 0, 0
    for d in range(D + 1):
        token_BN = draw.integers(0, checkpoint.config.vocab_size, (B, N))  # beside the root: drafts, never accepted
        token_BN[:, 0] = path[d]
        parent_BN, depth_BN = np.zeros((B, N)), np.ones((B, N))
        parent_BN[:, 0], depth_BN[:, 0] = NO_PARENT, 0
        logits_BNV = call(token_BN, parent_BN, depth_BN, in_use + d)
        roots.append(logits_BNV[:1, :1])
        differ += _count_other(programs, logits_BNV, roots[d], np.arange(N) + np.zeros((B, 1)) == 0)
        compared += B
    number_N = np.arange(N)
    for shift in range(D):
        deep_B1 = 1 + (np.arange(B)[:, None] + shift) % D  # neighbours have other trees
        depth_BN = np.minimum(number_N, deep_B1)
        logits_BNV = call(path[depth_BN], depth_BN - 1, depth_BN, in_use)  # node n < d is at depth n
        for d in range(1, D + 1):
            is_there_BN = (deep_B1 == d) & (depth_BN == d)
            differ += _count_other(programs, logits_BNV, roots[d], is_there_BN)
            compared += int(is_there_BN.sum())
    if one_text.has_one_text(checkpoint):
        one = programs.of_plain(checkpoint)
        rows = one.num_shards
        del call  # and with it the batch's cache
        call = _caller(one, checkpoint, parse_draft(PLAIN), decode_cfg, rows)
        for d in range(D + 1):
            logits_B1V = call(
                np.full((rows, 1), path[d]), np.full((rows, 1), NO_PARENT), np.zeros((rows, 1)), in_use + d
            )
            differ += _count_other(one, logits_B1V, roots[d], np.ones((rows, 1), np.bool_))
            compared += rows
    return differ, compared


def _caller(
    programs: Programs, checkpoint: Checkpoint, source: DraftSource, decode_cfg: DecodeConfig, rows: int
) -> Callable[[np.ndarray, np.ndarray, np.ndarray, int], Any]:
    """Makes the function that gives logits [B, N, V] of a call with a tree, so many committed tokens into a text of noise."""
    state = _noisy_state(programs, checkpoint, source, decode_cfg, rows)

    def call(token_BN: np.ndarray, parent_BN: np.ndarray, depth_BN: np.ndarray, length: int) -> Any:
        nonlocal state
        tree = Tree(
            token_BN=_int32(token_BN),
            parent_BN=_int32(parent_BN),
            depth_BN=_int32(depth_BN),
            score_BN=jnp.zeros(token_BN.shape, jnp.float32),
            kind_BN=jnp.zeros(token_BN.shape, jnp.int32),
        )
        # What an earlier call left from `length` on is written again before it is read.
        args = programs.place(tree), state.replace(length_B=programs.place(_int32(np.full(rows, length))))
        how: dict[str, Any] = {
            "gives": (ROWS, programs.state),
            "donate": (2,),
            "decode_cfg": decode_cfg,
            "source": source,
        }
        give = programs.get(_run_call, *args, **how)
        logits_BNV, state = give(checkpoint.params, *args)
        return logits_BNV

    return call


def _noisy_state(
    programs: Programs, checkpoint: Checkpoint, source: DraftSource, decode_cfg: DecodeConfig, rows: int
) -> DecodeState:
    """Makes a state as the run's, by the run's program, its rows alike and their caches full of noise."""
    request = programs.place(join_requests([idle_request(1, checkpoint.eos_token_ids)] * rows))
    shared = programs.place(programs.begin_shared(source.init_shared(checkpoint.config)), programs.shared)
    takes = REQUEST, programs.shared
    begin = programs.get(empty, request, shared, takes=takes, gives=programs.state, decode_cfg=decode_cfg)
    state: DecodeState = begin(checkpoint.params, request, shared)

    leaves, tree = jax.tree.flatten(state.cache)
    noise = [
        _drawer(leaf.shape, leaf.dtype, decode_cfg.capacity, leaf.sharding)(seed) for seed, leaf in enumerate(leaves)
    ]
    return state.replace(cache=jax.tree.unflatten(tree, noise))


@functools.lru_cache(maxsize=8)
def _drawer(
    shape: tuple[int, ...], dtype: jnp.dtype, capacity: int, sharding: jax.sharding.Sharding
) -> Callable[[int], jax.Array]:
    """Makes what draws noise for one layer's keys or values, compiled once for all of them."""

    def draw(seed: jax.Array) -> jax.Array:
        _, K, S, h = shape
        # The scratch is drawn apart: how long it is does not change what the text's slots hold.
        sizes = zip(jax.random.split(jax.random.key(seed)), (capacity, S - capacity), strict=True)
        parts = [jax.random.normal(key, (K, size, h), dtype) for key, size in sizes]
        return jnp.broadcast_to(jnp.concatenate(parts, axis=1), shape)

    return jax.jit(draw, out_shardings=sharding)


def _run_call(
    params: Params,
    tree: Tree,
    state: DecodeState,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
) -> tuple[jax.Array, DecodeState]:
    """Computes the logits [B, N, V] of a call's nodes, and the state with its root kept."""
    # A source with owners has as many in every call; which nodes they are does not matter here.
    owner_BO = None if source.num_owners is None else jnp.zeros((tree.token_BN.shape[0], source.num_owners), jnp.int32)
    logits, cache = run_block(params, cfg, tree, owner_BO, state, source, decode_cfg)
    if source.num_rows > 1:
        cache = kv.keep_path(cache, jnp.zeros((tree.token_BN.shape[0], 1), jnp.int32), state.length_B)
    return logits.first(source.num_nodes).whole(), state.replace(cache=cache)


def _count_other(programs: Programs, logits_BNV: jax.Array, expected_11V: jax.Array, is_there_BN: np.ndarray) -> int:
    """Counts the marked rows that have other bits than the expected one."""
    return int(_other_bits(logits_BNV, expected_11V, programs.place(is_there_BN)))


@jax.jit
def _other_bits(logits_BNV: jax.Array, expected_11V: jax.Array, is_there_BN: jax.Array) -> jax.Array:
    bits_BNV, expected = (jax.lax.bitcast_convert_type(x, jnp.int32) for x in (logits_BNV, expected_11V))
    return jnp.sum(jnp.any(bits_BNV != expected, axis=-1) & is_there_BN)


def _int32(values: np.ndarray) -> Any:
    return values.astype(np.int32)
