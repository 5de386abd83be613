"""The decode loop: prefill, then `lax.while_loop` over steps.

The text of a row is `token_BT`: prompt, then what was emitted. The newest token is the root: its keys and values are not
in the cache yet, so the cache's length is the root's position. The first call after the prefill has the last prompt
token for its root and drafts nothing; its bonus is the first new token. Reports do not count it: it belongs to the
prefill.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp.decoding import block_layer
from jax_probe_mtp.decoding.batch import Batch
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.request import Request
from jax_probe_mtp.decoding.state import DecodeResult, DecodeState, TopTokens, largest, num_emitted
from jax_probe_mtp.decoding.step import step
from jax_probe_mtp.drafting.candidates import NO_TOKEN
from jax_probe_mtp.drafting.shown import Model, PromptChunk, Prompts, ReadPrompts
from jax_probe_mtp.drafting.source import DraftSource, SourceState, begin_shared
from jax_probe_mtp.model import cache as kv
from jax_probe_mtp.model import transformer
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params


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
        return state.replace(cache=kv.as_carried(state.cache))

    begun = state.replace(cache=kv.as_carried(state.cache))
    ended = jax.lax.while_loop(lambda state: ~jnp.all(state.is_done_B), go_on, begun)
    return ended.replace(cache=kv.whole(ended.cache))


def prefill(
    params: Params,
    prompt_BT: jax.Array,
    request: Request,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
    shared: Any = None,
    slots: int | None = None,
) -> DecodeState:
    """Fills the cache with all prompt tokens but the last, which becomes the root; starts the draft source.

    The prompt enters in chunks of equal size, as many as the longest row needs. All rows start at slot 0, so a chunk
    has the same slots in each; what padding writes lies behind a row's length and is never read.

    Args:
      params, prompt_BT, request, cfg, source, decode_cfg, shared: as in a `decode` of them.
      slots: of the cache that is filled, for a row that is going to be put among others; None for the capacity.
    """
    prompt_BT = jnp.asarray(prompt_BT, jnp.int32)  # new tokens are written beside them: a narrow dtype would wrap
    B, T = prompt_BT.shape
    S = decode_cfg.capacity if slots is None else slots
    if T > S + 1:
        raise ValueError(f"prompts padded to {T} tokens need a capacity of {T - 1}, got {S}; raise it or pad less.")
    cache = kv.allocate(cfg, batch_size=B, capacity=S, scratch=source.num_rows, dtype=params["embed"].dtype)
    chunk = min(T, decode_cfg.prefill_chunk)
    model = Model(params, cfg)
    prompts = Prompts(
        token_BT=prompt_BT,
        length_B=request.prompt_length_B,
        seed_B=request.sampling.seed_B,
        capacity=decode_cfg.capacity,
    )
    before_BT = jnp.pad(prompt_BT, ((0, 0), (1, 0)), constant_values=NO_TOKEN)
    begun = source.start(model, prompts, begin_shared(source, cfg, shared))

    def read(begun: SourceState, start: jax.Array, token_BU: jax.Array, hidden_BUD: jax.Array) -> SourceState:
        place_1U = start + jnp.arange(chunk)[None]
        return source.read(
            begun,
            PromptChunk(
                model=model,
                token_BU=token_BU,
                before_BU=jax.lax.dynamic_slice_in_dim(before_BT, start, chunk, axis=1),
                is_used_BU=place_1U < request.prompt_length_B[:, None] - 1,
                hidden_BUD=hidden_BUD,
                sampling=request.draw,
            ),
        )

    if T > 1:  # else all are roots, and the model is neither traced nor compiled: so a job begins, with an empty batch
        num_tokens = largest(cfg, jnp.max(request.prompt_length_B) - 1)
        longest_path = source.max_depth + source.num_masks
        norm = block_layer.first_norm(params, cfg, decode_cfg, longest_path)
        run_rows = functools.partial(transformer.forward, norm=norm)
        make_layer = block_layer.prompt_layer(params, cfg, decode_cfg, longest_path)
        cache, begun = transformer.read_text(
            params, cfg, prompt_BT, cache, num_tokens, chunk, read, begun, run_rows, make_layer
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
        logprob_BT=jnp.zeros((B, S + 1), jnp.float32) if decode_cfg.has_logprobs else None,
        top_BTC=_no_top(B, S + 1, decode_cfg.num_top),
    )


def _no_top(num_rows: int, num_places: int, num_top: int) -> TopTokens | None:
    if not num_top:
        return None
    shape = (num_rows, num_places, num_top)
    return TopTokens(id=jnp.zeros(shape, jnp.int32), logprob=jnp.zeros(shape, jnp.float32))
