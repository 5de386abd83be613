"""What to decode: prompts, limits and sampling as arrays, checked before anything runs."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import numpy as np

from jax_probe_mtp.drafting.draft_config import (
    DEFAULT_MASK_EMA,
    DraftConfig,
    ProbeConfig,
    RecycleConfig,
    check_is_draft,
)
from jax_probe_mtp.drafting.recycle import NUM_SUCCESSORS
from jax_probe_mtp.model.config import DecodeConfig, ModelConfig
from jax_probe_mtp.model.sampling import Sampling

SMALLEST_BUCKET = 64
NO_LIMIT = 2**31 - 1  # of accepted drafts
LARGEST_TEMPERATURE = 1e30  # a draw is uniform long before, and float32 soon ends
SMALLEST_TEMPERATURE = 1e-30  # below it rows are greedy, as they are far above it: float32 ends at 1e-37
SMALLEST_TOP_P = 1e-30  # keeps the best token alone, as any p as small does; much smaller ones are 0 in float32


class Request(flax.struct.PyTreeNode, kw_only=True):
    """How to decode a batch of prompts, all arrays: other values do not recompile. `make_request` checks and builds one.

    Attributes:
      prompt_length_B: int32 [B], at least 1.
      max_new_tokens_B: int32 [B], tokens to emit at most, the prefill's included.
      eos_E: int32 [E], ids that end a text.
      sampling: temperature, top-k, top-p and seed of each row.
      mask_ema: float32 scalar, lambda of Eq. (5).
      max_accept: int32 scalar, drafts that a call accepts at most; 0 is plain decoding by the very same program.
    """

    prompt_length_B: jax.Array
    max_new_tokens_B: jax.Array
    eos_E: jax.Array
    sampling: Sampling
    mask_ema: jax.Array
    max_accept: jax.Array


def idle_request(rows: int, eos_token_ids: Sequence[int], mask_ema: float, max_accept: int | None = None) -> Request:
    """A request of rows that have no prompt and emit nothing."""
    return _request(
        lengths=[1] * rows,
        limits=[0] * rows,
        seeds=[0] * rows,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        eos_token_ids=eos_token_ids,
        mask_ema=mask_ema,
        max_accept=max_accept,
    )


def _request(
    *,
    lengths: Sequence[int],
    limits: Sequence[int],
    seeds: Sequence[int],
    temperature: float,
    top_k: int,
    top_p: float,
    eos_token_ids: Sequence[int],
    mask_ema: float,
    max_accept: int | None,
) -> Request:
    """The request of rows with one way of sampling. Its arrays are NumPy's: the host makes many, and a program takes them."""
    B = len(lengths)

    def array(values: object, dtype: type) -> Any:
        return np.asarray(values, dtype)

    return Request(
        prompt_length_B=array(lengths, np.int32),
        max_new_tokens_B=array(limits, np.int32),
        eos_E=array(list(eos_token_ids), np.int32),
        sampling=Sampling(
            temperature_B=array([temperature] * B, np.float32),
            top_k_B=array([top_k] * B, np.int32),
            top_p_B=array([top_p] * B, np.float32),
            seed_B=array(seeds, np.uint32),
        ),
        mask_ema=array(mask_ema, np.float32),
        max_accept=array(NO_LIMIT if max_accept is None else min(max_accept, NO_LIMIT), np.int32),
    )


def join_requests(requests: Sequence[Request]) -> Request:
    """The rows of several requests in one; what all rows share is the first one's."""
    if len(requests) == 1:
        return requests[0]
    shared = {name: getattr(requests[0], name) for name in ("eos_E", "mask_ema", "max_accept")}
    rows = [request.replace(**dict.fromkeys(shared)) for request in requests]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows).replace(**shared)


def bucket(size: int) -> int:
    """The power of two, at least 64, that holds `size`: so that a new length is seldom a new program."""
    return max(SMALLEST_BUCKET, 1 << (size - 1).bit_length())


def make_request(
    cfg: ModelConfig,
    draft_cfg: DraftConfig,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    names: Sequence[str] | None = None,
    rows: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    mask_ema: float = DEFAULT_MASK_EMA,
    max_accept: int | None = None,
    capacity: int | None = None,
    prompt_slots: int | None = None,
) -> tuple[jax.Array, Request, DecodeConfig]:
    """Checks what can be wrong with a batch, and lays it out as arrays and their static configuration.

    Args:
      cfg: the model.
      draft_cfg: where drafts come from, and their tree.
      prompts: lists of token ids, of any lengths.
      max_new_tokens: tokens to emit at most, for each row.
      eos_token_ids: ids that end a text; none means that only the limit does.
      names: what messages call the prompts; their numbers when left out.
      rows: B, when it is more than the prompts: the rows behind them are idle.
      temperature: 0 is greedy, and so is less than 1e-30.
      top_k: the most likely tokens that stay, 0 for all.
      top_p: mass of the most likely tokens that stay, in (0, 1].
      seeds: one for each row, 0 to 2**32 - 1; zeros when left out.
      mask_ema: lambda of Eq. (5), 0 to 1.
      max_accept: drafts that a call accepts at most; all that are right when left out.
      capacity: cache slots of a row; the smallest bucket that fits when left out.
      prompt_slots: T, when prompts of several batches are to share a program; the smallest bucket when left out.

    Returns:
      The prompts as int32 [B, T], padded on the right, in NumPy arrays as all the rest; the request; and the
      `DecodeConfig` it needs.

    Raises:
      ValueError: one line with the values and a way out.
    """
    if len(prompts) == 0:
        raise ValueError("no prompts: give at least one.")
    for prompt in prompts:
        if not hasattr(prompt, "__len__") or isinstance(prompt, str):
            raise ValueError(f"each prompt must be a list of token ids, got {prompt!r:.60}.")
    check_settings(
        cfg,
        draft_cfg,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        mask_ema=mask_ema,
        max_accept=max_accept,
        capacity=capacity,
        prompt_slots=prompt_slots,
    )
    max_new_tokens = int(max_new_tokens)  # of NumPy it may be
    temperature = temperature if temperature >= SMALLEST_TEMPERATURE else 0.0
    for token in eos_token_ids:
        if not _is_token(cfg, token):
            raise ValueError(f"end-of-text id {token} is none of the ids 0 to {cfg.vocab_size - 1}.")
    if rows is not None and rows < len(prompts):
        raise ValueError(f"{len(prompts)} prompts do not fit {rows} rows; raise rows or give fewer prompts.")
    seeds = [0] * len(prompts) if seeds is None else seeds
    if len(seeds) != len(prompts) or not all(0 <= seed < 2**32 for seed in seeds):
        raise ValueError(f"seeds must be {len(prompts)} numbers from 0 to 2**32 - 1, one a prompt, got {list(seeds)}.")
    names = [str(i) for i in range(len(prompts))] if names is None else names
    for prompt, name in zip(prompts, names, strict=True):
        _check_prompt(cfg, draft_cfg, prompt, name, max_new_tokens)

    longest = max(len(prompt) for prompt in prompts)
    needed = longest + max_new_tokens - 1
    if capacity is None:
        capacity = min(bucket(max(needed, (prompt_slots or 1) - 1)), cfg.context_length)
    elif needed > capacity:
        raise ValueError(
            f"cache holds {capacity} tokens, but prompt {longest} + new {max_new_tokens} need {needed}; raise capacity, "
            f"shorten the prompt or ask for fewer tokens."
        )
    if prompt_slots is None:
        prompt_slots = min(bucket(longest), capacity + 1)
    elif not longest <= prompt_slots:
        raise ValueError(f"prompt_slots {prompt_slots} must hold the longest prompt, {longest} tokens; raise it.")
    B, num_idle = rows or len(prompts), (rows or len(prompts)) - len(prompts)
    prompt_BT: Any = np.zeros((B, prompt_slots), np.int32)
    for row, prompt in enumerate(prompts):
        prompt_BT[row, : len(prompt)] = prompt
    request = _request(
        lengths=[len(prompt) for prompt in prompts] + [1] * num_idle,
        limits=[max_new_tokens] * len(prompts) + [0] * num_idle,
        seeds=[*seeds, *[0] * num_idle],
        temperature=temperature,
        top_k=min(top_k, cfg.vocab_size),
        top_p=max(top_p, SMALLEST_TOP_P),
        eos_token_ids=eos_token_ids,
        mask_ema=mask_ema,
        max_accept=max_accept,
    )
    return prompt_BT, request, DecodeConfig(capacity=capacity, is_sampled=temperature > 0)


def check_settings(
    cfg: ModelConfig,
    draft_cfg: DraftConfig,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    mask_ema: float,
    max_accept: int | None = None,
    capacity: int | None = None,
    prompt_slots: int | None = None,
) -> None:
    """Checks what no prompt can make right; see `make_request`.

    Raises:
      ValueError: one line with the values and a way out.
    """
    if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens}.")
    if not 0 <= temperature <= LARGEST_TEMPERATURE:
        raise ValueError(f"temperature must be 0 (greedy) to {LARGEST_TEMPERATURE:g}, got {temperature}.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}; 1 keeps all tokens.")
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (all tokens) or more, got {top_k}.")
    if not 0 <= mask_ema <= 1:
        raise ValueError(f"mask_ema must be between 0 (frozen masks) and 1, got {mask_ema}.")
    if max_accept is not None and not max_accept >= 0:
        raise ValueError(f"max_accept must be at least 0, which is plain decoding, got {max_accept}.")
    if capacity is not None and capacity > cfg.context_length:
        raise ValueError(
            f"capacity {capacity} is more than the model's context of {cfg.context_length}, which no row can use; lower it."
        )
    if prompt_slots is not None and not 1 <= prompt_slots <= cfg.context_length + 1:
        raise ValueError(
            f"prompt_slots must be 1 to {cfg.context_length + 1}, one more than the model's context, got {prompt_slots}."
        )
    if capacity is not None and prompt_slots is not None and prompt_slots > capacity + 1:
        raise ValueError(
            f"prompt_slots {prompt_slots} must be at most {capacity + 1}, one more than the capacity; lower it."
        )
    _check_draft(cfg, draft_cfg)


def _is_token(cfg: ModelConfig, token: int) -> bool:
    return isinstance(token, int | np.integer) and 0 <= token < cfg.vocab_size


def _check_draft(cfg: ModelConfig, draft_cfg: DraftConfig) -> None:
    check_is_draft(draft_cfg)
    if isinstance(draft_cfg, ProbeConfig) and draft_cfg.masks_per_node and draft_cfg.num_candidates > cfg.vocab_size:
        raise ValueError(
            f"the tree looks at {draft_cfg.num_candidates} candidates of a mask (with pruning one more than its widest "
            f"depth), but the vocabulary has {cfg.vocab_size} tokens; use fewer."
        )
    if isinstance(draft_cfg, RecycleConfig) and cfg.vocab_size < NUM_SUCCESSORS:
        raise ValueError(
            f"the table keeps {NUM_SUCCESSORS} successors of a token, but the vocabulary has {cfg.vocab_size} tokens; "
            f"use another draft source."
        )


def _check_prompt(
    cfg: ModelConfig, draft_cfg: DraftConfig, prompt: Sequence[int], name: str, max_new_tokens: int
) -> None:
    if len(prompt) == 0:
        raise ValueError(f"prompt {name} is empty: it needs at least one token.")
    for token in prompt:
        if not _is_token(cfg, token):
            raise ValueError(f"prompt {name} holds token id {token}, but ids are 0 to {cfg.vocab_size - 1}.")
    if len(prompt) + max_new_tokens > cfg.context_length:
        raise ValueError(
            f"prompt {name} has {len(prompt)} tokens, with {max_new_tokens} new ones more than the model's context of "
            f"{cfg.context_length}; shorten the prompt or ask for at most {max(cfg.context_length - len(prompt), 0)} new."
        )
    if isinstance(draft_cfg, ProbeConfig) and draft_cfg.mask_init == "last_k":
        num_masks = draft_cfg.masks_per_node
        if len(prompt) < num_masks:
            raise ValueError(
                f"prompt {name} has {len(prompt)} tokens, but mask_init last_k with {num_masks} masks needs as many; "
                f"use mask_init mean."
            )
