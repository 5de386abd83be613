"""A batch whose rows come and go: a prompt enters a free row, then all rows are decoded for a few calls, and so on.

What one row holds never depends on the others: a prompt is prefilled at a padded length that its own alone decides, in a
program of one shape however many prompts come, and every product treats its rows alike. In float32, at one batch size
and capacity, its tokens are therefore the same bit for bit beside any neighbour and after any.

All functions are pure, take any number of rows, and run under `jax.shard_map` as well, each device on its rows.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.decoding import block_layer
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import Prefix, prefill
from jax_probe_mtp.decoding.request import Request
from jax_probe_mtp.decoding.state import DecodeState, TopTokens, as_carried, largest, whole
from jax_probe_mtp.decoding.step import step
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.model import cache as kv
from jax_probe_mtp.model.config import DATA, ModelConfig
from jax_probe_mtp.model.params import Params


class Report(flax.struct.PyTreeNode, kw_only=True):
    """What the host is told after a few calls; small, whatever the capacity.

    Attributes:
      length_BQ: int32 [B, Q], committed slots of each row after each call; -1 for calls that were not made.
      token_BU: int32 [B, U], the tokens that the calls gave a row, in order; how many follows from the lengths.
      logprob_BU: float32 [B, U], their log-probabilities; None without `has_logprobs`.
      top_BUC: [B, U, C], the most likely tokens in their places; None where `num_top` is 0.
      is_done_B: bool [B].
      calls_B: int32 [B], decode calls of the row's text so far.
      accepted_by_depth_BX: int32 [B, X], accepted drafts of the row's text so far.
    """

    length_BQ: jax.Array
    token_BU: jax.Array
    logprob_BU: jax.Array | None
    top_BUC: TopTokens | None
    is_done_B: jax.Array
    calls_B: jax.Array
    accepted_by_depth_BX: jax.Array


def empty(
    params: Params, request: Request, shared: Any, cfg: ModelConfig, source: DraftSource, decode_cfg: DecodeConfig
) -> DecodeState:
    """Makes a state without texts, for a request whose rows may emit nothing; `shared` as for `prefill`."""
    prompt_BT = jnp.zeros((request.prompt_length_B.shape[0], 1), jnp.int32)
    nothing = request.replace(prompt_length_B=jnp.ones_like(request.prompt_length_B))
    return prefill(params, prompt_BT, nothing, cfg, source, decode_cfg, shared)


def admit(
    params: Params,
    prompt_NT: jax.Array,
    arriving: Request,
    row_N: jax.Array,
    request: Request,
    state: DecodeState,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
    prefix: Prefix | None = None,
    rest_chunk: int | None = None,
) -> tuple[Request, DecodeState]:
    """Puts prompts into rows, over whatever was there; the other rows stay as they are, bit for bit.

    Args:
      params: the model's parameters.
      prompt_NT: int32 [N, T], padded on the right; T - 1 within the capacity.
      arriving: the prompts' request, of N rows. Where `max_new_tokens` is 0 nothing arrives, and no row changes.
      row_N: int32 [N], where they go: all different, but for those that do not arrive.
      request: of all rows; donate it, as `state`.
      state: of all rows.
      cfg: the model; static.
      source: the draft source; static.
      decode_cfg: as for `prefill`; static.
      prefix, rest_chunk: as for `prefill`.

    Returns:
      The request and the state with the rows replaced.
    """
    slots = max(prompt_NT.shape[1] - 1, 1)
    shared = state.source.shared
    fresh = prefill(params, prompt_NT, arriving, cfg, source, decode_cfg, shared, slots, prefix, rest_chunk)
    put = functools.partial(_put, row_N, arriving.max_new_tokens_B < 1)
    cache = state.cache.replace(
        k=tuple(map(put, state.cache.k, fresh.cache.k)), v=tuple(map(put, state.cache.v, fresh.cache.v))
    )
    # What is shared is what the arriving prompts left of it, all else is of the rows alone.
    begun = fresh.source.replace(rows=jax.tree.map(put, state.source.rows, fresh.source.rows))
    rest = jax.tree.map(put, state.replace(cache=None, source=None), fresh.replace(cache=None, source=None))
    request = request.replace(
        prompt_length_B=put(request.prompt_length_B, arriving.prompt_length_B),
        max_new_tokens_B=put(request.max_new_tokens_B, arriving.max_new_tokens_B),
        sampling=jax.tree.map(put, request.sampling, arriving.sampling),
        penalties=jax.tree.map(put, request.penalties, arriving.penalties),
    )
    return request, rest.replace(cache=cache, source=begun)


def _put(row_N: jax.Array, is_empty_N: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """Puts `new` [N, ...] into rows of `old` [B, ...]; of axes that are shorter in `new`, the rest lies behind the text."""
    if len(row_N) > 1:
        to_N = jnp.where(is_empty_N, len(old), row_N)  # outside: dropped
        return old.at[(to_N, *map(slice, new.shape[1:]))].set(new, mode="drop")
    # One row is no special case but in speed: a slice is written in place everywhere, a scatter is not.
    row = row_N[0]
    start: Sequence[Any] = (
        row,
        *[jnp.zeros_like(row)] * (new.ndim - 1),  # of its own dtype, whatever JAX takes a 0 for
    )
    new = jnp.where(is_empty_N[0], jax.lax.dynamic_slice(old, start, new.shape), new)
    return jax.lax.dynamic_update_slice(old, new, start)


def admit_after(
    params: Params,
    prompt_1T: jax.Array,
    arriving: Request,
    row_1: jax.Array,
    prefix: Prefix,
    request: Request,
    state: DecodeState,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
    rest_chunk: int,
) -> tuple[Request, DecodeState]:
    """Puts a prompt into a row as `admit` does, of which the `prefix` has been read; the rest in pieces of `rest_chunk`."""
    return admit(params, prompt_1T, arriving, row_1, request, state, cfg, source, decode_cfg, prefix, rest_chunk)


def prompt_logprobs(
    params: Params,
    row_N: jax.Array,
    state: DecodeState,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
    num_slots: int,
) -> tuple[jax.Array, TopTokens | None]:
    """Looks up the log-probabilities of the prompts that were put into rows, with `has_prompt_logprobs`.

    Args:
      params, cfg, source, decode_cfg: as for `admit`; not read.
      row_N: int32 [N], the rows.
      state: of all rows.
      num_slots: T; static.

    Returns:
      Those of the tokens in the first T places, float32 [D N, T], and the most likely ones there, [D N, T, C]: of all D shards.
    """
    found = jax.tree.map(lambda x: x[row_N, :num_slots], (state.logprob_BT, state.top_BTC))
    if cfg.is_sharded:  # every process reads all of it
        found = jax.tree.map(lambda x: jax.lax.all_gather(x, DATA, tiled=True), found)
    return found


def run_calls(
    params: Params,
    request: Request,
    state: DecodeState,
    is_stopped_B: jax.Array,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
    num_calls: int,
) -> tuple[DecodeState, Report]:
    """Makes at most Q = `num_calls` calls, fewer when every row is done before.

    Args:
      params: the model's parameters.
      request: of all rows.
      state: of all rows; donate it.
      is_stopped_B: bool [B], rows that end here though the device does not know why (a stop string).
      cfg: the model; static.
      source: the draft source; static.
      decode_cfg: as for `prefill`; static.
      num_calls: Q; static.
    """
    return run_some_calls(params, request, state, is_stopped_B, num_calls, cfg, source, decode_cfg, num_calls)


def run_some_calls(
    params: Params,
    request: Request,
    state: DecodeState,
    is_stopped_B: jax.Array,
    limit: jax.Array | int,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
    num_calls: int,
) -> tuple[DecodeState, Report]:
    """Makes calls as `run_calls` does, and no more than `limit`, an int32 scalar up to `num_calls`.

    `source` may be another size of the one that made the state: its tree no deeper, its rows no more.
    """
    state = state.replace(is_done_B=state.is_done_B | is_stopped_B)
    start_B = state.length_B

    def is_going_on(carry: tuple[jax.Array, DecodeState, jax.Array]) -> jax.Array:
        i, state, _ = carry
        return (i < limit) & (largest(cfg, jnp.sum(~state.is_done_B)) > 0)

    def call(carry: tuple[jax.Array, DecodeState, jax.Array]) -> tuple[jax.Array, DecodeState, jax.Array]:
        i, state, length_BQ = carry
        state = step(params, request, state.replace(cache=kv.whole(state.cache)), cfg, source, decode_cfg)
        state = as_carried(state, state.cache.mail)
        return i + 1, state, jax.lax.dynamic_update_slice_in_dim(length_BQ, state.length_B[:, None], i, axis=1)

    no_length_BQ = jnp.full((start_B.shape[0], num_calls), -1, jnp.int32)
    num_rows, longest_path = len(start_B) * source.num_rows, source.max_depth + source.num_masks
    begun = as_carried(state, block_layer.mailboxes(params, cfg, decode_cfg, num_rows, longest_path))
    _, ended, length_BQ = jax.lax.while_loop(is_going_on, call, (jnp.int32(0), begun, no_length_BQ))
    state = whole(ended)

    position_BU = start_B[:, None] + 1 + jnp.arange(num_calls * (source.max_depth + 1))[None]

    def taken(all_BT: jax.Array) -> jax.Array:
        at = jnp.expand_dims(position_BU, range(2, all_BT.ndim))
        return jnp.take_along_axis(all_BT, at, axis=1, mode="clip")

    report = Report(
        length_BQ=length_BQ,
        token_BU=taken(state.token_BT),
        logprob_BU=jax.tree.map(taken, state.logprob_BT),
        top_BUC=jax.tree.map(taken, state.top_BTC),
        is_done_B=state.is_done_B,
        calls_B=state.calls_B,
        accepted_by_depth_BX=state.accepted_by_depth_BX,
    )
    if cfg.is_sharded:  # every process reads all of it
        report = jax.tree.map(lambda x: jax.lax.all_gather(x, DATA, tiled=True), report)
    return state, report
