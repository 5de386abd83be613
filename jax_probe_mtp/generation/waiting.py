"""A prompt that waits for a row of a running batch, checked and laid out as arrays."""

import dataclasses
from collections.abc import Sequence

import jax

from jax_probe_mtp.decoding.batch import NO_LIMIT, Request, check_settings, make_request
from jax_probe_mtp.drafting.draft_config import DraftConfig
from jax_probe_mtp.generation.prompts import Prompt, Settings, record_seed
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import DecodeConfig, ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Newcomer:
    """A prompt and its arrays.

    Attributes:
      number: the record's, given by whoever made the stream.
      prompt: the record.
      prompt_1T: int32 [1, T], padded on the right.
      request: of one row.
    """

    number: int
    prompt: Prompt
    prompt_1T: jax.Array
    request: Request


def make_batch(
    checkpoint: Checkpoint,
    draft_cfg: DraftConfig,
    prompts: Sequence[Prompt],
    settings: Settings,
    rows: int | None = None,
) -> tuple[jax.Array, Request, DecodeConfig]:
    """Prompts as arrays, with the settings of the run; see `make_request`, which also checks them.

    Args:
      checkpoint: the model.
      draft_cfg: where drafts come from.
      prompts: what to decode.
      settings: of all of them.
      rows: B, when it is more than the prompts.
    """
    prompt_BT, request, decode_cfg = make_request(
        checkpoint.config,
        draft_cfg,
        [prompt.token_ids for prompt in prompts],
        names=[str(prompt.id) for prompt in prompts],
        rows=rows,
        max_new_tokens=settings.max_new_tokens,
        eos_token_ids=checkpoint.eos_token_ids,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seeds=[record_seed(settings.seed, prompt) for prompt in prompts],
        mask_ema=settings.mask_ema,
        max_accept=settings.max_accept,
        capacity=settings.capacity,
        prompt_slots=settings.prompt_slots,
    )
    return prompt_BT, request, dataclasses.replace(decode_cfg, attention=settings.attention)


def make_newcomer(
    checkpoint: Checkpoint, draft_cfg: DraftConfig, prompt: Prompt, settings: Settings
) -> tuple[jax.Array, Request, DecodeConfig]:
    """A batch of one prompt, with its own settings where it has some; see `make_batch`."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p")
    own = dataclasses.replace(settings, **{name: prompt.of(name, settings) for name in names})
    return make_batch(checkpoint, draft_cfg, [prompt], own)


def check_sizes(
    cfg: ModelConfig, draft_cfg: DraftConfig, settings: Settings, *, capacity: int, num_shards: int = 1
) -> None:
    """Checks what no record can make right, before anything is loaded.

    Raises:
      ValueError: one line with the values and a way out.
    """
    B, K = settings.batch_size, settings.calls_per_chunk
    if B < 1 or K < 1:
        raise ValueError(f"batch_size and calls_per_chunk must be at least 1, got {B} and {K}.")
    if K > NO_LIMIT:
        raise ValueError(f"calls_per_chunk must be at most {NO_LIMIT}, which no answer reaches, got {K}.")
    if B % num_shards:
        raise ValueError(f"batch_size {B} cannot be split over data={num_shards}; use a multiple of it.")
    if isinstance(settings.stop, str):
        raise ValueError(f"stop must be a list of texts, got {settings.stop!r}, of which each letter would be one.")
    if not all(settings.stop):
        raise ValueError("a stop text is empty, which would end every answer at once; leave it out.")
    check_settings(
        cfg,
        draft_cfg,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        mask_ema=settings.mask_ema,
        max_accept=settings.max_accept,
        capacity=capacity,
        prompt_slots=settings.prompt_slots,
    )
