"""One call of the model: draft, forward, verify, commit, learn. Plain decoding is the same step with a bare root."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.decoding import block_layer, penalties, verify
from jax_probe_mtp.decoding.block import make_block
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.request import Request
from jax_probe_mtp.decoding.state import DecodeState, TopTokens, num_emitted
from jax_probe_mtp.drafting.candidates import NO_TOKEN
from jax_probe_mtp.drafting.shown import FinishedCall, Model, Text
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.tree import Tree, build_tree
from jax_probe_mtp.model import cache as kv
from jax_probe_mtp.model import sampling, transformer
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.logits import Logits
from jax_probe_mtp.model.params import Params


class Call(flax.struct.PyTreeNode, kw_only=True):
    """What a call was: for whoever looks on (`trace.py`); the loop itself drops it.

    Attributes:
      tree: what was verified.
      owner_BO: int32 [B, O], nodes that owned masks; None where all did.
      accepted: the walk through the tree.
      num_new_B: int32 [B], tokens that each row got, 0 for a row that was done.
    """

    tree: Tree
    owner_BO: jax.Array | None
    accepted: verify.Accepted
    num_new_B: jax.Array


def step(
    params: Params,
    request: Request,
    state: DecodeState,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
) -> DecodeState:
    """Makes one call of the model. Rows that are done stay as they are."""
    return step_and_call(params, request, state, cfg, source, decode_cfg)[0]


def step_and_call(
    params: Params,
    request: Request,
    state: DecodeState,
    cfg: ModelConfig,
    source: DraftSource,
    decode_cfg: DecodeConfig,
) -> tuple[DecodeState, Call]:
    """Makes one call of the model, and says what it was."""
    tree = draft_tree(request, state, source)
    owner_BO = None if source.num_owners is None else source.owners(state.source, tree)
    logits, cache = run_block(params, cfg, tree, owner_BO, state, source, decode_cfg)
    accepted = _verify(logits, tree, state, request, source.max_depth, is_exact=decode_cfg.is_exact)
    if source.num_rows > 1:
        cache = kv.keep_path(cache, accepted.node_BP, state.length_B)
    logprobs = None
    if decode_cfg.has_logprobs:
        logprobs = token_logprobs(logits.rows(accepted.node_BP), accepted.token_BP, decode_cfg)
    after = _commit(request, state.replace(cache=cache), tree, accepted, logprobs)
    num_new_B = after.length_B - state.length_B
    finished = FinishedCall(
        model=Model(params, cfg),
        tree=tree,
        logits=logits,
        num_masks=source.num_masks,
        owner_BO=owner_BO,
        node_BP=accepted.node_BP,
        num_accepted_B=accepted.num_accepted_B,
        new_token_BP=accepted.token_BP,
        num_new_B=num_new_B,
        root_position_B=after.length_B,
        sampling=request.draw,
    )
    after = after.replace(source=source.learn(state.source, finished))
    return after, Call(tree=tree, owner_BO=owner_BO, accepted=accepted, num_new_B=num_new_B)


def draft_tree(request: Request, state: DecodeState, source: DraftSource) -> Tree:
    """Builds the tree of the next call: its root is the newest token, its drafts what the source proposes."""
    text = Text(token_BT=state.token_BT, root_position_B=state.length_B)
    candidates = source.propose(state.source, text)
    has_emitted_B1 = (num_emitted(state, request) > 0)[:, None]  # a row's first call belongs to the prefill
    token_BP = jnp.where(has_emitted_B1, candidates.token_BP, NO_TOKEN)
    return build_tree(text.root_B, candidates.replace(token_BP=token_BP), source.num_nodes)


def run_block(
    params: Params,
    cfg: ModelConfig,
    tree: Tree,
    owner_BO: jax.Array | None,
    state: DecodeState,
    source: DraftSource,
    decode_cfg: DecodeConfig,
) -> tuple[Logits, kv.KVCache]:
    """Runs the tree's nodes and their masks through the model.

    Returns:
      Logits [B, R, V] of the nodes and of the owners' masks, and the cache with their keys and values in its scratch.
    """
    x_BRD = transformer.embed(params, cfg, tree.token_BN)
    if source.num_masks:
        num_owners = source.num_nodes if owner_BO is None else owner_BO.shape[1]
        masks_BMD = source.masks(state.source).astype(x_BRD.dtype)
        x_BRD = jnp.concatenate([x_BRD, jnp.tile(masks_BMD, (1, num_owners, 1))], axis=1)  # owner by owner
    block = make_block(tree, owner_BO, state.length_B, state.cache.capacity, source)
    run_layer = block_layer.block_layer(params, cfg, block, state.cache.k[0].shape[2], decode_cfg)
    norm = block_layer.first_norm(params, cfg, decode_cfg, block.longest_path)
    hidden_BRD, cache = transformer.forward(params, cfg, x_BRD, block.position_BR, state.cache, run_layer, norm)
    head = block_layer.head(params, cfg, decode_cfg, block.longest_path)
    return transformer.split_logits(params, cfg, hidden_BRD, head), cache


def _verify(
    logits: Logits, tree: Tree, state: DecodeState, request: Request, max_depth: int, *, is_exact: bool
) -> verify.Accepted:
    """Finds the drafts that the model would have chosen, and the token after them."""
    if request.draw is None and request.penalties is None:
        greedy_BN = logits.first(tree.token_BN.shape[1]).argmax()  # of all nodes: it is cheap
        return verify.follow(tree, greedy_BN, max_depth=max_depth, max_accept=request.max_accept)
    choose = _chooser(logits, state, request, is_exact=is_exact)
    return verify.walk(tree, choose, max_depth=max_depth, max_accept=request.max_accept, is_looped=is_exact)


def _chooser(
    logits: Logits, state: DecodeState, request: Request, *, is_exact: bool
) -> Callable[[jax.Array, jax.Array | int, jax.Array], jax.Array]:
    """Makes the function by which `verify.walk` asks for the model's own next token after a node of the tree."""
    length_B, change = state.length_B, _penalizer(state, request, logits.vocab_size)

    def choose(
        node_B: jax.Array, depth: jax.Array | int, chosen_BD: jax.Array
    ) -> jax.Array:  # of visited nodes alone: noise, cuts and counts are not cheap
        logits_BV = change(logits.rows(node_B[:, None]).whole()[:, 0], depth, chosen_BD)
        args = logits_BV, length_B + depth + 1, request.draw
        return jax.lax.map(_draw_alone, args) if is_exact else sampling.next_token(*args)

    return choose


def _penalizer(
    state: DecodeState, request: Request, vocab_size: int
) -> Callable[[jax.Array, jax.Array | int, jax.Array], jax.Array]:
    """Makes the function that changes logits [B, V] after nodes at a depth, whose tokens `walk` has chosen."""
    asked = request.penalties
    if asked is None:
        return lambda logits_BV, depth, chosen_BD: logits_BV
    num_tokens_B = state.length_B + 1  # the root among them
    text = penalties.used(state.token_BT, request.prompt_length_B, num_tokens_B, vocab_size)

    def change(logits_BV: jax.Array, depth: jax.Array | int, chosen_BD: jax.Array) -> jax.Array:
        here = text.followed_by(chosen_BD, jnp.full_like(num_tokens_B, depth))
        return penalties.penalize(logits_BV, asked, here)

    return change


def _draw_alone(args: tuple[jax.Array, jax.Array, sampling.Sampling | None]) -> jax.Array:
    """Draws one row's token: several rows' sums over the vocabulary may have another order than one's."""
    return sampling.next_token(*jax.tree.map(lambda leaf: leaf[None], args))[0]


def token_logprobs(logits: Logits, token_BP: jax.Array, decode_cfg: DecodeConfig) -> tuple[jax.Array, TopTokens | None]:
    """Computes the log-probabilities of tokens by the model's own softmax, before temperature and cuts.

    Args:
      logits: [B, P, V], after the token before each.
      token_BP: int32 [B, P], the tokens.
      decode_cfg: what is asked for; static.

    Returns:
      Those of the tokens, float32 [B, P], and the `num_top` most likely tokens [B, P, C] in their places, None for 0.
    """
    if decode_cfg.is_exact:  # row by row, as `_draw_alone`
        rows_Mv = logits.part_Xv.reshape(-1, logits.part_Xv.shape[-1])
        sum_M1 = jax.lax.map(lambda row_v: logits.replace(part_Xv=row_v[None]).logsumexp()[0], rows_Mv)
        sum_BP1 = sum_M1.reshape(*token_BP.shape, 1)
    else:
        sum_BP1 = logits.logsumexp()
    logprob_BP = (logits.at(token_BP[..., None]) - sum_BP1)[..., 0]
    if not decode_cfg.num_top:
        return logprob_BP, None
    best_BPC, id_BPC = logits.top_k(decode_cfg.num_top)
    return logprob_BP, TopTokens(id=id_BPC, logprob=best_BPC - sum_BP1)


def _commit(
    request: Request,
    state: DecodeState,
    tree: Tree,
    accepted: verify.Accepted,
    logprobs: tuple[jax.Array, TopTokens | None] | None,
) -> DecodeState:
    """Emits the accepted drafts and the bonus, cut at the end of the text; counts."""
    B, P = accepted.token_BP.shape
    place_1P = jnp.arange(P)[None]
    num_emitted_B = num_emitted(state, request)
    room_B = jnp.minimum(request.max_new_tokens_B - num_emitted_B, state.cache.capacity - state.length_B)
    num_new_B = jnp.minimum(accepted.num_accepted_B + 1, room_B)
    is_eos_BP = penalties.is_end(request.penalties, request.eos_E, accepted.token_BP)
    is_eos_BP &= place_1P < num_new_B[:, None]
    has_eos_B = jnp.any(is_eos_BP, axis=1)
    num_new_B = jnp.where(has_eos_B, jnp.argmax(is_eos_BP, axis=1).astype(jnp.int32) + 1, num_new_B)
    num_new_B = jnp.where(state.is_done_B, 0, num_new_B)

    target_BP = state.length_B[:, None] + 1 + place_1P
    target_BP = jnp.where(place_1P < num_new_B[:, None], target_BP, state.token_BT.shape[1])  # outside: dropped
    is_counted_B = ~state.is_done_B & (num_emitted_B > 0)
    is_counted_BX = (accepted.num_accepted_B[:, None] > place_1P[:, : P - 1]) & is_counted_B[:, None]
    is_kind_BZX = is_counted_BX[:, None]
    if state.accepted_by_kind_BZ.shape[1] > 1:  # else all are of the one kind, and looking it up costs kernels
        kind_BX = jnp.take_along_axis(tree.kind_BN, accepted.node_BP[:, 1:], axis=1)
        number_1Z1 = jnp.arange(state.accepted_by_kind_BZ.shape[1])[None, :, None]
        is_kind_BZX &= kind_BX[:, None] == number_1Z1
    at = (jnp.arange(B)[:, None], target_BP)
    if logprobs is not None:
        kept = state.logprob_BT, state.top_BTC
        logprob_BT, top_BTC = jax.tree.map(
            lambda all_BT, new_BP: all_BT.at[at].set(new_BP, mode="drop"), kept, logprobs
        )
        state = state.replace(logprob_BT=logprob_BT, top_BTC=top_BTC)
    return state.replace(
        token_BT=state.token_BT.at[at].set(accepted.token_BP, mode="drop"),
        length_B=state.length_B + num_new_B,
        is_done_B=state.is_done_B | has_eos_B | (num_new_B >= room_B),
        calls_B=state.calls_B + is_counted_B.astype(jnp.int32),
        accepted_by_depth_BX=_add_depths(state.accepted_by_depth_BX, is_counted_BX.astype(jnp.int32)),
        accepted_by_kind_BZ=state.accepted_by_kind_BZ + jnp.sum(is_kind_BZX, axis=2, dtype=jnp.int32),
    )


def _add_depths(count_BX: jax.Array, new_Bx: jax.Array) -> jax.Array:
    """Adds counts by depth, of a tree that may be less deep than others that were counted."""
    missing = count_BX.shape[1] - new_Bx.shape[1]
    return count_BX + (jnp.pad(new_Bx, ((0, 0), (0, missing))) if missing else new_Bx)
