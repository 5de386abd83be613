"""The decode loop: prefill, then `lax.while_loop` over steps.

The text of a row is `token_BT`: prompt, then what was emitted. The newest token is the root: its keys and values are not
in the cache yet, so the cache's length is the root's position. The first call after the prefill has the last prompt
token for its root and drafts nothing; its bonus is the first new token. Reports do not count it: it belongs to the
prefill.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.decoding import block_layer
from jax_probe_mtp.decoding.batch import Batch
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.request import Request
from jax_probe_mtp.decoding.state import (
    DecodeResult,
    DecodeState,
    TopTokens,
    as_carried,
    largest,
    num_emitted,
    whole,
)
from jax_probe_mtp.decoding.step import step, token_logprobs
from jax_probe_mtp.drafting.candidates import NO_TOKEN
from jax_probe_mtp.drafting.shown import Model, PromptChunk, Prompts, ReadPrompts
from jax_probe_mtp.drafting.source import DraftSource, SourceState, begin_shared
from jax_probe_mtp.model import cache as kv
from jax_probe_mtp.model import transformer
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params

Logprobs = tuple[jax.Array | None, TopTokens | None]  # of `token_logprobs`, at each place of texts
SCORED_ROWS = 64  # of prompts whose logits are there at a time: 33 MB of them for a vocabulary of 128,000 tokens


def decode(params: Params, batch: Batch, cfg: ModelConfig, source: DraftSource, shared: Any = None) -> DecodeResult:
    """Decodes a batch of prompts to their ends: one pure function, to be called inside `jax.jit`.

    It is not differentiable: it is a `lax.while_loop` over whole numbers.

    Args:
      params: the tree of `abstract_params(cfg)`; `check_params` says where another one differs.
      batch: prompts, limits and sampling, of `make_batch`; an argument of the jitted function, its `config` static. A row
        that fills the capacity stops there; `make_batch` checks that prompt + new tokens - 1 fit.
      cfg: the model; static.
      source: where drafts come from; static. `Plain()` is plain decoding.
      shared: what the source's rows share: an earlier result's, or what the caller brings, such as tuned masks; None
        begins with what the source begins with.

    Returns:
      The same tokens for every source; only the number of calls differs.

    Raises:
      ValueError: if the padded prompts are longer than the capacity by more than one token, or `shared` has other arrays
        than the source's `init_shared`.
    """
    state = prefill(params, batch.prompt_BT, batch.request, cfg, source, batch.config, shared)
    state = run_steps(params, batch.request, state, cfg, source, batch.config)
    return DecodeResult(
        token_BT=state.token_BT,
        num_emitted_B=num_emitted(state, batch.request),
        calls_B=state.calls_B,
        accepted_by_depth_BX=state.accepted_by_depth_BX,
        accepted_by_kind_BZ=state.accepted_by_kind_BZ,
        logprob_BT=state.logprob_BT,
        top_BTC=state.top_BTC,
        shared=state.source.shared,
    )


class Prefix(flax.struct.PyTreeNode, kw_only=True):
    """Tokens that several prompts begin with, read once.

    Attributes:
      k, v: L arrays [1, K, T, h], their keys and values; T is padded.
      hidden_1TD: [1, T, D], their hidden states after the final norm, for sources that read prompts.
      length: int32 [1], how many they are.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    hidden_1TD: jax.Array
    length: jax.Array


def read_prefix(
    params: Params,
    token_1T: jax.Array,
    length: jax.Array,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
) -> Prefix:
    """Runs a prefix through the model, as `prefill` runs prompts: `token_1T` [1, T] holds `length` [1] tokens."""
    dtype, (_, T) = params["embed"].dtype, token_1T.shape
    cache = kv.allocate(cfg, batch_size=1, capacity=T, scratch=0, dtype=dtype)
    nothing_1TD = jnp.zeros((1, T, cfg.width), dtype)
    chunk = min(T, decode_cfg.prefill_chunk)
    how = _how_prompts_run(params, cfg, source, decode_cfg)
    cache, hidden_1TD = transformer.read_text(
        params, cfg, token_1T, cache, length[0], chunk, transformer.keep_hidden, nothing_1TD, *how
    )
    return Prefix(k=cache.k, v=cache.v, hidden_1TD=hidden_1TD, length=length)


def _how_prompts_run(
    params: Params, cfg: ModelConfig, source: DraftSource, decode_cfg: DecodeConfig
) -> tuple[Any, Any]:
    """Gives what runs pieces of prompts, and what makes a layer of them."""
    norm = block_layer.first_norm(params, cfg, decode_cfg, _longest_path(source))
    make_layer = block_layer.prompt_layer(params, cfg, decode_cfg, _longest_path(source))
    return functools.partial(transformer.forward, norm=norm), make_layer


def _longest_path(source: DraftSource) -> int:
    return source.max_depth + source.num_masks


def run_steps(
    params: Params,
    request: Request,
    state: DecodeState,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
) -> DecodeState:
    """Steps until every row has ended. Donate `state` when this is jitted by itself: the cache is updated in place."""

    def go_on(state: DecodeState) -> DecodeState:
        state = step(params, request, state.replace(cache=kv.whole(state.cache)), cfg, source, decode_cfg)
        return as_carried(state, state.cache.mail)

    mail = block_layer.mailboxes(params, cfg, decode_cfg, len(state.length_B) * source.num_rows, _longest_path(source))
    return whole(jax.lax.while_loop(lambda state: ~jnp.all(state.is_done_B), go_on, as_carried(state, mail)))


def prefill(
    params: Params,
    prompt_BT: jax.Array,
    request: Request,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
    shared: Any = None,
    slots: int | None = None,
    prefix: Prefix | None = None,
    rest_chunk: int | None = None,
) -> DecodeState:
    """Fills the cache with all prompt tokens but the last, which becomes the root; starts the draft source.

    The prompt enters in chunks of equal size, as many as the longest row needs. All rows start at slot 0, so a chunk
    has the same slots in each; what padding writes lies behind a row's length and is never read.

    Args:
      params, prompt_BT, request, cfg, source, decode_cfg, shared: as in a `decode` of them.
      slots: of the cache that is filled, for a row that is going to be put among others; None for the capacity.
      prefix: what the one prompt begins with; at least one token comes after it.
      rest_chunk: tokens of that rest that enter at a time; static.
    """
    prompt_BT = jnp.asarray(prompt_BT, jnp.int32)  # new tokens are written beside them: a narrow dtype would wrap
    B, T = prompt_BT.shape
    S = decode_cfg.capacity if slots is None else slots
    if T > S + 1:
        raise ValueError(f"prompts padded to {T} tokens need a capacity of {T - 1}, got {S}; raise it or pad less.")
    cache = kv.allocate(cfg, batch_size=B, capacity=S, scratch=source.num_rows, dtype=params["embed"].dtype)
    chunk = min(T, decode_cfg.prefill_chunk if rest_chunk is None else rest_chunk)
    model = Model(params, cfg)
    prompts = Prompts(
        token_BT=prompt_BT,
        length_B=request.prompt_length_B,
        seed_B=request.sampling.seed_B,
        capacity=decode_cfg.capacity,
    )
    before_BT = jnp.pad(prompt_BT, ((0, 0), (1, 0)), constant_values=NO_TOKEN)
    begun = source.start(model, prompts, begin_shared(source, cfg, shared))

    score = _scorer(params, prompt_BT, cfg, source, decode_cfg)

    def read(
        carried: tuple[SourceState, Logprobs],
        start: jax.Array,
        token_BU: jax.Array,
        hidden_BUD: jax.Array,
        end_B: jax.Array | None = None,
    ) -> tuple[SourceState, Logprobs]:
        begun, logprobs = carried
        size, end_B = token_BU.shape[1], request.prompt_length_B - 1 if end_B is None else end_B
        place_1U = start + jnp.arange(size)[None]
        begun = source.read(
            begun,
            PromptChunk(
                model=model,
                token_BU=token_BU,
                before_BU=jax.lax.dynamic_slice_in_dim(before_BT, start, size, axis=1),
                is_used_BU=place_1U < end_B[:, None],
                hidden_BUD=hidden_BUD,
                sampling=request.draw,
            ),
        )
        return begun, score(logprobs, start, hidden_BUD)

    logprobs = _no_logprobs(B, T + 1, decode_cfg)
    if T > 1:  # else all are roots, and the model is neither traced nor compiled: so a job begins, with an empty batch
        num_tokens = largest(cfg, jnp.max(request.prompt_length_B) - 1)
        first: jax.Array | int = 0
        if prefix is not None:
            first = prefix.length[0]
            cache, (begun, logprobs) = _after(
                prefix, prompt_BT, cache, read, (begun, logprobs), decode_cfg.prefill_chunk
            )
        how = _how_prompts_run(params, cfg, source, decode_cfg)
        cache, (begun, logprobs) = transformer.read_text(
            params, cfg, prompt_BT, cache, num_tokens, chunk, read, (begun, logprobs), *how, first=first
        )
    logprob_BT, top_BTC = jax.tree.map(
        lambda x: jnp.pad(x[:, : S + 1], ((0, 0), (0, max(S - T, 0)), *[(0, 0)] * (x.ndim - 2))), logprobs
    )
    begun = source.try_masks(
        begun, ReadPrompts(model=model, token_BT=prompt_BT, length_B=request.prompt_length_B, cache=cache)
    )
    return DecodeState(
        token_BT=jnp.pad(prompt_BT, ((0, 0), (0, S + 1 - T))),
        length_B=request.prompt_length_B - 1,
        is_done_B=request.max_new_tokens_B < 1,
        cache=cache,
        source=begun,
        calls_B=jnp.zeros(B, jnp.int32),
        accepted_by_depth_BX=jnp.zeros((B, source.max_depth), jnp.int32),
        accepted_by_kind_BZ=jnp.zeros((B, len(source.kinds)), jnp.int32),
        logprob_BT=logprob_BT,
        top_BTC=top_BTC,
    )


def _after(
    prefix: Prefix,
    prompt_1T: jax.Array,
    cache: kv.KVCache,
    read: Callable[..., Any],
    begun: Any,
    chunk: int,
) -> tuple[kv.KVCache, Any]:
    """Puts a prefix into an empty cache, and lets the source read it piece by piece, as where it goes through the model."""
    hidden_1TD, num_slots = prefix.hidden_1TD, cache.k[0].shape[2]
    size = min(chunk, hidden_1TD.shape[1], prompt_1T.shape[1])

    def put(slots_1KSh: jax.Array, prefix_1KTh: jax.Array) -> jax.Array:
        return kv.write_rows(slots_1KSh, prefix_1KTh[:, :, :num_slots].swapaxes(1, 2), 0)

    def read_piece(i: jax.Array, begun: Any) -> Any:
        start = jnp.minimum(i * size, min(hidden_1TD.shape[1], prompt_1T.shape[1]) - size)
        token_1U, hidden_1UD = (jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in (prompt_1T, hidden_1TD))
        return read(begun, start, token_1U, hidden_1UD, prefix.length)

    begun = jax.lax.fori_loop(0, (prefix.length[0] + size - 1) // size, read_piece, begun)
    k, v = (tuple(map(put, of_cache, of_prefix)) for of_cache, of_prefix in ((cache.k, prefix.k), (cache.v, prefix.v)))
    return cache.replace(k=k, v=v), begun


def _scorer(
    params: Params, prompt_BT: jax.Array, cfg: ModelConfig, source: DraftSource, decode_cfg: DecodeConfig
) -> Callable[[Logprobs, jax.Array, jax.Array], Logprobs]:
    """Makes what puts a piece's log-probabilities among those of the prompts, [B, T + 1]; nothing where none are kept."""
    if not decode_cfg.has_prompt_logprobs:
        return lambda logprobs, start, hidden_BUD: logprobs
    head = block_layer.head(params, cfg, decode_cfg, _longest_path(source))
    next_BT = jnp.pad(prompt_BT[:, 1:], ((0, 0), (0, 1)))
    most = max(1, SCORED_ROWS // prompt_BT.shape[0])

    def score(logprobs: Logprobs, start: jax.Array, hidden_BUD: jax.Array) -> Logprobs:
        size = min(most, hidden_BUD.shape[1])

        def score_some(i: jax.Array, logprobs: Logprobs) -> Logprobs:
            at = jnp.minimum(i * size, hidden_BUD.shape[1] - size)
            hidden_BPD = jax.lax.dynamic_slice_in_dim(hidden_BUD, at, size, axis=1)
            token_BP = jax.lax.dynamic_slice_in_dim(next_BT, start + at, size, axis=1)
            logits = transformer.split_logits(params, cfg, hidden_BPD, head)
            found: Logprobs = token_logprobs(logits, token_BP, decode_cfg)
            return jax.tree.map(
                lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, start + at + 1, axis=1), logprobs, found
            )

        return jax.lax.fori_loop(0, -(-hidden_BUD.shape[1] // size), score_some, logprobs)

    return score


def _no_logprobs(num_rows: int, num_places: int, decode_cfg: DecodeConfig) -> Logprobs:
    if not decode_cfg.has_logprobs:
        return None, None
    shape = num_rows, num_places, decode_cfg.num_top
    top = TopTokens(id=jnp.zeros(shape, jnp.int32), logprob=jnp.zeros(shape, jnp.float32))
    return jnp.zeros(shape[:2], jnp.float32), top if decode_cfg.num_top else None
