"""What to decode: prompts, limits and sampling as arrays, checked before anything runs."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import numpy as np

from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.request import Request, make_penalties, make_request
from jax_probe_mtp.decoding.settings import SMALLEST_TEMPERATURE, SMALLEST_TOP_P, Prompt, Settings, sample_seed
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.model.config import ModelConfig

SMALLEST_BUCKET = 64


class Batch(flax.struct.PyTreeNode, kw_only=True):
    """Prompts and how to decode them: an argument of a jitted function, whose `config` is static.

    Attributes:
      prompt_BT: int32 [B, T], padded on the right.
      request: lengths, limits and sampling.
      config: what shapes the program.
    """

    prompt_BT: jax.Array
    request: Request
    config: DecodeConfig = flax.struct.field(pytree_node=False)


def bucket(size: int) -> int:
    """Gives the power of two, at least 64, that holds `size`: so that a new length is seldom a new program."""
    return max(SMALLEST_BUCKET, 1 << (size - 1).bit_length())


def make_batch(
    cfg: ModelConfig,
    source: DraftSource,
    prompts: Sequence[Prompt | Any],
    settings: Settings | None = None,
    *,
    eos_token_ids: Sequence[int],
    rows: int | None = None,
    is_sampled: bool | None = None,
    is_penalized: bool | None = None,
) -> Batch:
    """Checks what can be wrong with a batch, and lays it out as arrays and their static configuration.

    Args:
      cfg: the model.
      source: where drafts come from.
      prompts: token ids of any lengths, as lists or arrays of NumPy or JAX, or `Prompt`s, whose own limits, sampling and
        seeds go before the settings'. Ids that are no `Prompt` have their number for an id.
      settings: for all prompts; `Settings()` when left out. Of these, `batch_size`, `calls_per_chunk`
        and `stop` are of streams of prompts: they are checked, and do nothing here.
      eos_token_ids: ids that end a text; none means that only the limit does.
      rows: B, when it is more than the prompts: the rows behind them are idle.
      is_sampled: True for a program that draws though these prompts be greedy; when left out, the prompts decide.
      is_penalized: True for a program with penalties though these prompts have none; when left out, the prompts decide.

    Returns:
      The batch, all its arrays NumPy's.

    Raises:
      ValueError: one line with the values and a way out.
    """
    settings = Settings() if settings is None else settings
    records = [_as_prompt(number, prompt) for number, prompt in enumerate(_listed(prompts))]
    own = [record.own_settings(settings) for record in records]
    for each in {id(each): each for each in [settings, *own]}.values():
        each.check(cfg, source)
    eos = [int(token) if _is_token(cfg, token) else _refuse_eos(cfg, token) for token in eos_token_ids]
    if rows is not None and rows < len(records):
        raise ValueError(f"{len(records)} prompts do not fit {rows} rows; raise rows or give fewer prompts.")
    for record, each in zip(records, own, strict=True):
        _check_prompt(cfg, source, record, each)

    lengths = [len(record.token_ids) for record in records]
    limits = [int(each.max_new_tokens) for each in own]
    capacity, prompt_slots = _sizes(cfg, settings, lengths, limits)
    draws = [_draw(cfg, each) for each in own]
    if is_sampled is None:
        is_sampled = any(temperature > 0 for temperature, _, _ in draws)
    if is_penalized is None:
        is_penalized = any(each.is_penalized for each in own)
    num_idle = (rows or len(records)) - len(records)
    prompt_BT: Any = np.zeros((len(records) + num_idle, prompt_slots), np.int32)
    for row, record in enumerate(records):
        prompt_BT[row, : lengths[row]] = record.token_ids
    request = make_request(
        lengths=lengths + [1] * num_idle,
        limits=limits + [0] * num_idle,
        seeds=[sample_seed(settings.seed, record) for record in records] + [0] * num_idle,
        draws=draws + [(0.0, 0, 1.0)] * num_idle if is_sampled else None,
        eos_token_ids=eos,
        max_accept=settings.max_accept,
        penalties=make_penalties([*own, *[Settings()] * num_idle], eos, cfg.vocab_size) if is_penalized else None,
    )
    config = settings.decode_config(capacity)
    return Batch(prompt_BT=prompt_BT, request=request, config=config)


def _listed(prompts: Any) -> list[Any]:
    if isinstance(prompts, str | Prompt) or not hasattr(prompts, "__len__") or not len(prompts):
        raise ValueError("no prompts: give at least one, in a list.")
    return list(prompts)


def _as_prompt(number: int, prompt: Any) -> Prompt:
    """Makes a `Prompt` of token ids, whatever array holds them, and reads a `Prompt`'s own."""
    own = prompt if isinstance(prompt, Prompt) else None
    token_ids = prompt if own is None else own.token_ids
    is_list = hasattr(token_ids, "__len__") and not isinstance(token_ids, str | bytes | dict)
    if not is_list or getattr(token_ids, "ndim", 1) != 1:
        raise ValueError(f"each prompt must be a list of token ids, got {one_line(repr(token_ids)):.60}.")
    if hasattr(token_ids, "dtype"):
        token_ids = np.asarray(token_ids).tolist()  # of JAX, whose items are arrays
    return Prompt(id=number, token_ids=token_ids) if own is None else own.with_ids(token_ids)


def _is_token(cfg: ModelConfig, token: Any) -> bool:
    return isinstance(token, int | np.integer) and not isinstance(token, bool) and 0 <= int(token) < cfg.vocab_size


def _refuse_eos(cfg: ModelConfig, token: Any) -> int:
    raise ValueError(f"end-of-text id {token} is none of the ids 0 to {cfg.vocab_size - 1}.")


def _draw(cfg: ModelConfig, settings: Settings) -> tuple[float, int, float]:
    temperature = settings.temperature if settings.temperature >= SMALLEST_TEMPERATURE else 0.0
    return temperature, min(settings.top_k, cfg.vocab_size), max(settings.top_p, SMALLEST_TOP_P)


def _check_prompt(cfg: ModelConfig, source: DraftSource, prompt: Prompt, settings: Settings) -> None:
    length, new = len(prompt.token_ids), settings.max_new_tokens
    if length == 0:
        raise ValueError(f"prompt {prompt.id} is empty: it needs at least one token.")
    for token in prompt.token_ids:
        if not _is_token(cfg, token):
            raise ValueError(
                f"prompt {prompt.id} holds token id {one_line(token):.60}, but ids are 0 to {cfg.vocab_size - 1}."
            )
    if length + new > cfg.context_length:
        raise ValueError(
            f"prompt {prompt.id} has {length} tokens, with {new} new ones more than the model's context of "
            f"{cfg.context_length}; shorten the prompt or ask for at most {max(cfg.context_length - length, 0)} new."
        )
    if type(prompt.sample) is not int or prompt.sample < 0:
        raise ValueError(f"prompt {prompt.id}: sample must be a whole number of at least 0, got {prompt.sample!r:.60}.")
    if not 0 <= prompt.num_shared < length:
        raise ValueError(
            f"prompt {prompt.id} has num_shared {prompt.num_shared}; give 0 to {length - 1}, one token less."
        )
    if prompt.seed is not None and not 0 <= prompt.seed < 2**32:
        raise ValueError(f"prompt {prompt.id} has seed {prompt.seed}, but seeds are 0 to 2**32 - 1.")
    try:
        source.check(cfg, length)
    except ValueError as error:
        raise ValueError(f"prompt {prompt.id}: {error}") from None


def _sizes(cfg: ModelConfig, settings: Settings, lengths: list[int], limits: list[int]) -> tuple[int, int]:
    """Chooses capacity and prompt slots, or checks those that the settings name."""
    longest, capacity, prompt_slots = max(lengths), settings.capacity, settings.prompt_slots
    needed, length, new = max((length + new - 1, length, new) for length, new in zip(lengths, limits, strict=True))
    if capacity is None:
        capacity = min(bucket(max(needed, (prompt_slots or 1) - 1)), cfg.context_length)
    elif needed > capacity:
        raise ValueError(
            f"cache holds {capacity} tokens, but prompt {length} + new {new} need {needed}; raise capacity, shorten the "
            f"prompt or ask for fewer tokens."
        )
    if prompt_slots is None:
        prompt_slots = min(bucket(longest), capacity + 1)
    elif prompt_slots < longest:
        raise ValueError(f"prompt_slots {prompt_slots} must hold the longest prompt, {longest} tokens; raise it.")
    return capacity, prompt_slots
