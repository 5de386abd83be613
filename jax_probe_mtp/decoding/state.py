"""What a step of the decode loop reads and replaces, and what comes out in the end."""

from typing import Any, NamedTuple

import flax.struct
import jax

from jax_probe_mtp.decoding.request import Request
from jax_probe_mtp.drafting.source import SourceState
from jax_probe_mtp.kernels.exchange import Mail
from jax_probe_mtp.model import cache as kv
from jax_probe_mtp.model.cache import KVCache
from jax_probe_mtp.model.config import TENSOR, ModelConfig


class TopTokens(NamedTuple):
    """The most likely tokens, best first, of equal ones the lower id first.

    Attributes:
      id: int32 [..., C].
      logprob: float32 [..., C], of the model's own softmax.
    """

    id: jax.Array
    logprob: jax.Array


class DecodeState(flax.struct.PyTreeNode, kw_only=True):
    """What a step reads and replaces.

    Attributes:
      token_BT: int32 [B, S + 1], prompt and emitted tokens.
      length_B: int32 [B], committed slots of the cache; `token_BT[b, length]` is the root.
      is_done_B: bool [B], True for a row that has emitted its last token.
      cache: keys and values.
      source: what the draft source keeps between calls.
      calls_B: int32 [B], decode calls the row was active in, the prefill's not counted.
      accepted_by_depth_BX: int32 [B, X], drafts accepted at depth 1..X, before the cut at the end of the text; X is the
        deepest of the tree.
      accepted_by_kind_BZ: int32 [B, Z], the same drafts by their kind, `DraftSource.kinds`.
      logprob_BT: float32 [B, S + 1], of each emitted token what `token_logprobs` says, with `has_prompt_logprobs` of those of
        the prompt too, but for the first, which has none; None without `has_logprobs`.
      top_BTC: [B, S + 1, C], what the model thought likely in its place; None where C = `num_top` is 0.
    """

    token_BT: jax.Array
    length_B: jax.Array
    is_done_B: jax.Array
    cache: KVCache
    source: SourceState
    calls_B: jax.Array
    accepted_by_depth_BX: jax.Array
    accepted_by_kind_BZ: jax.Array
    logprob_BT: jax.Array | None = None
    top_BTC: TopTokens | None = None


class DecodeResult(flax.struct.PyTreeNode, kw_only=True):
    """Tokens and counts, the rows' own.

    Attributes:
      token_BT: int32 [B, S + 1], prompt and emitted tokens; what is behind a row's last one means nothing.
      num_emitted_B: int32 [B], tokens emitted, an end-of-text token included.
      calls_B: int32 [B], decode calls, the prefill's not counted.
      accepted_by_depth_BX: int32 [B, X], drafts accepted at depth 1..X, before the cut at the end of the text.
      accepted_by_kind_BZ: int32 [B, Z], the same drafts by their kind, `DraftSource.kinds`.
      logprob_BT: float32 [B, S + 1], log-probability of each emitted token, and of the prompt's as in `DecodeState`; None
        without `has_logprobs`.
      top_BTC: [B, S + 1, C], the most likely tokens in place of each emitted one; None where `num_top` is 0.
      shared: what the draft source's rows share, to go on with in the next batch.
    """

    token_BT: jax.Array
    num_emitted_B: jax.Array
    calls_B: jax.Array
    accepted_by_depth_BX: jax.Array
    accepted_by_kind_BZ: jax.Array
    logprob_BT: jax.Array | None
    top_BTC: TopTokens | None
    shared: Any


def as_carried(state: DecodeState, mail: Mail | None) -> DecodeState:
    """Gives the state as a loop of calls carries it, with the mailboxes that its calls use."""
    return state.replace(cache=kv.as_carried(state.cache).replace(mail=mail))


def whole(state: DecodeState) -> DecodeState:
    """Gives the state that `as_carried` was given: its mailboxes end with the loop."""
    return state.replace(cache=kv.whole(state.cache).replace(mail=None))


def num_emitted(state: DecodeState, request: Request) -> jax.Array:
    """Counts the tokens that each row has emitted, int32 [B], the prefill's included."""
    return state.length_B + 1 - request.prompt_length_B


def largest(cfg: ModelConfig, value: jax.Array) -> jax.Array:
    """Finds the largest of what the devices that share weights hold, so that they make the same turns of a loop.

    Others make their own: a loop exchanges nothing with them.
    """
    return jax.lax.pmax(value, TENSOR) if cfg.is_sharded else value
