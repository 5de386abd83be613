"""The decode loop: prefill, one step, and `lax.while_loop` over it. Plain decoding is the same step with a bare root.

The text of a row is `token_BT`: prompt, then what was emitted. The newest token is the root: its keys and values are not
in the cache yet, so the cache's length is the root's position. The first call after the prefill has the last prompt
token for its root and drafts nothing; its bonus is the first new token. Reports do not count it: it belongs to the
prefill.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.decoding import verify
from jax_probe_mtp.decoding.batch import Request
from jax_probe_mtp.decoding.block import block_positions, block_visible
from jax_probe_mtp.decoding.block_layer import block_layer
from jax_probe_mtp.drafting import candidates as draft
from jax_probe_mtp.drafting import recycle
from jax_probe_mtp.drafting import source as sources
from jax_probe_mtp.drafting.draft_config import DraftConfig
from jax_probe_mtp.drafting.tree import Tree, ancestors_or_self
from jax_probe_mtp.model import cache as kv
from jax_probe_mtp.model import sampling, transformer
from jax_probe_mtp.model.config import ANCHORED, DATA, TENSOR, DecodeConfig, ModelConfig
from jax_probe_mtp.model.params import Params


class DecodeState(flax.struct.PyTreeNode, kw_only=True):
    """What a step reads and replaces.

    Attributes:
      token_BT: int32 [B, S + 1], prompt and emitted tokens.
      length_B: int32 [B], committed slots of the cache; `token_BT[b, length]` is the root.
      is_done_B: bool [B], True for a row that has emitted its last token.
      cache: keys and values.
      source: what the draft source keeps between calls.
      calls_B: int32 [B], decode calls the row was active in, the prefill's not counted.
      accepted_by_depth_BD: int32 [B, D], drafts accepted at depth 1..D, before the cut at the end of the text; D is the
        deepest of the tree.
      logprob_BT: float32 [B, S + 1], of each emitted token what `emitted_logprobs` says; None without `has_logprobs`.
    """

    token_BT: jax.Array
    length_B: jax.Array
    is_done_B: jax.Array
    cache: kv.KVCache
    source: sources.SourceState
    calls_B: jax.Array
    accepted_by_depth_BD: jax.Array
    logprob_BT: jax.Array | None = None


class DecodeResult(flax.struct.PyTreeNode, kw_only=True):
    """Tokens and counts, the rows' own.

    Attributes:
      token_BT: int32 [B, S + 1], prompt and emitted tokens; what is behind a row's last one means nothing.
      num_emitted_B: int32 [B], tokens emitted, an end-of-text token included.
      calls_B: int32 [B], decode calls, without the prefill; `num_emitted - 1` tokens came from them.
      accepted_by_depth_BD: int32 [B, D], accepted drafts by depth, before the cut at the end of the text.
      logprob_BT: float32 [B, S + 1], the log-probabilities of emitted tokens; None without `has_logprobs`.
      table: the shared table of a warm `RecycleConfig`, to go on with in the next batch; else None.
    """

    token_BT: jax.Array
    num_emitted_B: jax.Array
    calls_B: jax.Array
    accepted_by_depth_BD: jax.Array
    logprob_BT: jax.Array | None
    table: recycle.Table | None


def decode(
    params: Params,
    prompt_BT: jax.Array,
    request: Request,
    cfg: ModelConfig,
    draft_cfg: DraftConfig,
    decode_cfg: DecodeConfig,
    table: recycle.Table | None = None,
) -> DecodeResult:
    """Decodes a batch of prompts to their ends: one pure function, to be called inside `jax.jit`.

    Args:
      params: the tree of `abstract_params(cfg)`.
      prompt_BT: int32 [B, T], token ids, padded on the right with anything.
      request: lengths, limits and sampling; arrays.
      cfg: the model; static.
      draft_cfg: where drafts come from and their tree; static. `ProbeConfig()` is plain decoding.
      decode_cfg: capacity; static. A row that fills it stops there, so check first that
        prompt + new tokens - 1 <= capacity (`make_request` does).
      table: what a warm `RecycleConfig` goes on with: an earlier result's; None begins with nothing.

    Returns:
      The same tokens for every `draft_cfg`; only the number of calls differs.

    Raises:
      ValueError: if the padded prompts are longer than the capacity by more than one token, or the table has no use.
    """
    state = prefill(params, prompt_BT, request, cfg, draft_cfg, decode_cfg, table)
    state = run_steps(params, request, state, cfg, draft_cfg, decode_cfg)
    return DecodeResult(
        token_BT=state.token_BT,
        num_emitted_B=num_emitted(state, request),
        calls_B=state.calls_B,
        accepted_by_depth_BD=state.accepted_by_depth_BD,
        logprob_BT=state.logprob_BT,
        table=sources.table_to_keep(state.source, draft_cfg),
    )


def num_emitted(state: DecodeState, request: Request) -> jax.Array:
    """Tokens that each row has emitted, int32 [B], the prefill's included."""
    return state.length_B + 1 - request.prompt_length_B


def run_steps(
    params: Params,
    request: Request,
    state: DecodeState,
    cfg: ModelConfig,
    draft_cfg: DraftConfig,
    decode_cfg: DecodeConfig,
) -> DecodeState:
    """Steps until every row has ended. Donate `state` when this is jitted by itself: the cache is updated in place."""
    return jax.lax.while_loop(
        lambda state: ~jnp.all(state.is_done_B),
        lambda state: step(params, request, state, cfg, draft_cfg, decode_cfg),
        state,
    )


def prefill(
    params: Params,
    prompt_BT: jax.Array,
    request: Request,
    cfg: ModelConfig,
    draft_cfg: DraftConfig,
    decode_cfg: DecodeConfig,
    table: recycle.Table | None = None,
) -> DecodeState:
    """Fills the cache with all prompt tokens but the last, which becomes the root; starts the draft source.

    The prompt enters in chunks of equal size, as many as the longest row needs. All rows start at slot 0, so a chunk
    has the same slots in each; what padding writes lies behind a row's length and is never read.
    """
    prompt_BT = jnp.asarray(prompt_BT, jnp.int32)  # new tokens are written beside them: a narrow dtype would wrap
    B, T = prompt_BT.shape
    S = decode_cfg.capacity
    if T > S + 1:
        raise ValueError(f"prompts padded to {T} tokens need a capacity of {T - 1}, got {S}; raise it or pad less.")
    cache = kv.allocate(cfg, batch_size=B, capacity=S, scratch=draft_cfg.num_rows, dtype=params["embed"].dtype)
    chunk = min(T, decode_cfg.prefill_chunk)
    source = sources.start(params, cfg, prompt_BT, request.prompt_length_B, request.sampling.seed_B, draft_cfg, table)

    def look(
        source: sources.SourceState, start: jax.Array, ids_BC: jax.Array, hidden_BCD: jax.Array
    ) -> sources.SourceState:
        is_used_BC = start + jnp.arange(chunk) < request.prompt_length_B[:, None] - 1
        draw = _draw(request, decode_cfg)
        return sources.read_prompt(source, params, cfg, draft_cfg, ids_BC, is_used_BC, hidden_BCD, draw)

    num_tokens = largest(cfg, jnp.max(request.prompt_length_B) - 1)
    cache, source = transformer.read_text(params, cfg, prompt_BT, cache, num_tokens, chunk, look, source)
    return DecodeState(
        token_BT=jnp.pad(prompt_BT, ((0, 0), (0, S + 1 - T))),
        length_B=request.prompt_length_B - 1,
        is_done_B=request.max_new_tokens_B < 1,
        cache=cache,
        source=source,
        calls_B=jnp.zeros(B, jnp.int32),
        accepted_by_depth_BD=jnp.zeros((B, draft_cfg.max_depth), jnp.int32),
        logprob_BT=jnp.zeros((B, S + 1), jnp.float32) if decode_cfg.has_logprobs else None,
    )


def largest(cfg: ModelConfig, value: jax.Array) -> jax.Array:
    """The largest of what the devices hold, so that all of them make the same turns of a loop."""
    return jax.lax.pmax(value, (DATA, TENSOR)) if cfg.is_sharded else value


def step(
    params: Params,
    request: Request,
    state: DecodeState,
    cfg: ModelConfig,
    draft_cfg: DraftConfig,
    decode_cfg: DecodeConfig,
) -> DecodeState:
    """One call of the model: draft, forward, verify, commit, learn. Rows that are done stay as they are."""
    tree = draft_tree(request, state, draft_cfg)
    logits_BRV, cache = run_block(params, cfg, tree, state, draft_cfg, decode_cfg)
    accepted = verify.walk(
        tree,
        _chooser(logits_BRV, tree, state.length_B, request, decode_cfg),
        max_depth=draft_cfg.max_depth,
        max_accept=request.max_accept,
        is_looped=decode_cfg.is_sampled and decode_cfg.attention == ANCHORED,
    )
    if not _is_in_place(draft_cfg):
        cache = kv.keep_path(cache, accepted.node_BP, state.length_B)
    logprob_BP = emitted_logprobs(logits_BRV, accepted) if decode_cfg.has_logprobs else None
    after = _commit(request, state.replace(cache=cache), accepted, logprob_BP)
    source = sources.learn(
        state.source,
        params,
        cfg,
        draft_cfg,
        _draw(request, decode_cfg),
        request.mask_ema,
        tree=tree,
        logits_BRV=logits_BRV,
        last_node_B=accepted.node_BP[:, -1],
        committed_BP=accepted.token_BP,
        num_new_B=after.length_B - state.length_B,
        root_position_B=after.length_B,
    )
    return after.replace(source=source)


def draft_tree(request: Request, state: DecodeState, draft_cfg: DraftConfig) -> Tree:
    """The tree of the next call: its root is the newest token, its drafts what the source proposes."""
    root_B = jnp.take_along_axis(state.token_BT, state.length_B[:, None], axis=1)[:, 0]
    candidates = sources.propose(state.source, state.token_BT, state.length_B, draft_cfg)
    has_emitted_B1 = (num_emitted(state, request) > 0)[:, None]  # a row's first call belongs to the prefill
    token_BP = jnp.where(has_emitted_B1, candidates.token_BP, draft.NO_TOKEN)
    return draft.build_tree(root_B, candidates.replace(token_BP=token_BP), draft_cfg.num_nodes)


def _draw(request: Request, decode_cfg: DecodeConfig) -> sampling.Sampling | None:
    return request.sampling if decode_cfg.is_sampled else None


def _is_in_place(draft_cfg: DraftConfig) -> bool:
    """True when the block is the root alone: it always stays, so it is written where it belongs, behind the prefix."""
    return draft_cfg.num_rows == 1


def run_block(
    params: Params, cfg: ModelConfig, tree: Tree, state: DecodeState, draft_cfg: DraftConfig, decode_cfg: DecodeConfig
) -> tuple[jax.Array, kv.KVCache]:
    """Logits [B, R, V] of the tree's nodes and of every node's masks, their keys and values in the cache's scratch."""
    N, M = draft_cfg.num_nodes, draft_cfg.masks_per_node
    nodes_BND = transformer.embed(params, cfg, tree.token_BN)
    masks_BMD = sources.masks(state.source, tree.token_BN.shape[0], cfg)
    masks_BLD = jnp.tile(masks_BMD.astype(nodes_BND.dtype), (1, N, 1))  # L = N M rows, owner by owner
    position_BR = block_positions(tree.depth_BN, state.length_B, M)
    is_ancestor_BNN = ancestors_or_self(tree.parent_BN, max_depth=draft_cfg.max_depth)
    start = state.length_B if _is_in_place(draft_cfg) else state.cache.capacity
    num_slots = state.cache.k[0].shape[2]
    is_visible_BRR = block_visible(is_ancestor_BNN, M)
    run_layer = block_layer(
        cfg,
        nodes_BND.dtype,
        is_visible_BRR,
        position_BR,
        state.length_B,
        start,
        num_slots,
        decode_cfg.attention,
        longest_path=draft_cfg.max_depth + M,
    )
    x_BRD = jnp.concatenate([nodes_BND, masks_BLD], axis=1)
    hidden_BRD, cache = transformer.forward(params, cfg, x_BRD, position_BR, state.cache, run_layer)
    return transformer.logits(params, cfg, hidden_BRD), cache


def _chooser(
    logits_BRV: jax.Array, tree: Tree, length_B: jax.Array, request: Request, decode_cfg: DecodeConfig
) -> Callable[[jax.Array, jax.Array | int], jax.Array]:
    """The model's own next token after a node of the tree, as `verify.walk` asks for it."""
    if not decode_cfg.is_sampled:  # all nodes at once: an argmax is cheap, and it is one kernel
        greedy_BN = jnp.argmax(logits_BRV[:, : tree.token_BN.shape[1]], axis=-1).astype(jnp.int32)
        return lambda node_B, depth: jnp.take_along_axis(greedy_BN, node_B[:, None], axis=1)[:, 0]

    def draw(
        node_B: jax.Array, depth: jax.Array | int
    ) -> jax.Array:  # of visited nodes alone: noise and cuts are not cheap
        logits_BV = jnp.take_along_axis(logits_BRV, node_B[:, None, None], axis=1)[:, 0]
        return sampling.next_token(logits_BV, length_B + depth + 1, request.sampling)

    return draw


def emitted_logprobs(logits_BRV: jax.Array, accepted: verify.Accepted) -> jax.Array:
    """Log-probabilities of a call's tokens, float32 [B, P]: of the model's own softmax, before temperature and cuts."""
    logits_BPV = jnp.take_along_axis(logits_BRV, accepted.node_BP[..., None], axis=1)
    chosen_BP1 = jnp.take_along_axis(logits_BPV, accepted.token_BP[..., None], axis=2)
    return chosen_BP1[..., 0] - jax.nn.logsumexp(logits_BPV, axis=-1)


def _commit(
    request: Request, state: DecodeState, accepted: verify.Accepted, logprob_BP: jax.Array | None
) -> DecodeState:
    """Emits the accepted drafts and the bonus, cut at the end of the text; counts."""
    B, P = accepted.token_BP.shape
    place_P = jnp.arange(P)
    num_emitted_B = num_emitted(state, request)
    room_B = jnp.minimum(request.max_new_tokens_B - num_emitted_B, state.cache.capacity - state.length_B)
    num_new_B = jnp.minimum(accepted.num_accepted_B + 1, room_B)
    is_eos_BP = jnp.any(accepted.token_BP[..., None] == request.eos_E, axis=-1) & (place_P < num_new_B[:, None])
    has_eos_B = jnp.any(is_eos_BP, axis=1)
    num_new_B = jnp.where(has_eos_B, jnp.argmax(is_eos_BP, axis=1).astype(jnp.int32) + 1, num_new_B)
    num_new_B = jnp.where(state.is_done_B, 0, num_new_B)

    target_BP = state.length_B[:, None] + 1 + place_P
    target_BP = jnp.where(place_P < num_new_B[:, None], target_BP, state.token_BT.shape[1])  # outside: dropped
    is_counted_B = ~state.is_done_B & (num_emitted_B > 0)
    reached_BD = accepted.num_accepted_B[:, None] > jnp.arange(P - 1)
    at = (jnp.arange(B)[:, None], target_BP)
    if logprob_BP is not None:
        assert state.logprob_BT is not None
        state = state.replace(logprob_BT=state.logprob_BT.at[at].set(logprob_BP, mode="drop"))
    return state.replace(
        token_BT=state.token_BT.at[at].set(accepted.token_BP, mode="drop"),
        length_B=state.length_B + num_new_B,
        is_done_B=state.is_done_B | has_eos_B | (num_new_B >= room_B),
        calls_B=state.calls_B + is_counted_B,
        accepted_by_depth_BD=state.accepted_by_depth_BD + (reached_BD & is_counted_B[:, None]),
    )
