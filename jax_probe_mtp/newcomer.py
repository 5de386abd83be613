"""A prompt that waits for a row of a running batch, checked and laid out as arrays."""

import dataclasses

import jax

from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.config import DecodeConfig, ModelConfig
from jax_probe_mtp.draft_config import DraftConfig
from jax_probe_mtp.prompts import Prompt, Settings, record_seed
from jax_probe_mtp.request import Request, check_settings, make_request


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


def make_newcomer(
    checkpoint: Checkpoint, draft_cfg: DraftConfig, prompt: Prompt, settings: Settings, capacity: int | None
) -> tuple[jax.Array, Request, DecodeConfig]:
    """A batch of one prompt with its own settings; see `make_request`, which also checks it."""
    return make_request(
        checkpoint.config,
        draft_cfg,
        [prompt.token_ids],
        names=[str(prompt.id)],
        max_new_tokens=prompt.of("max_new_tokens", settings),
        eos_token_ids=checkpoint.eos_token_ids,
        temperature=prompt.of("temperature", settings),
        top_k=prompt.of("top_k", settings),
        top_p=prompt.of("top_p", settings),
        seeds=[record_seed(settings.seed, prompt)],
        mask_ema=settings.mask_ema,
        capacity=capacity,
        prompt_slots=settings.prompt_slots,
    )


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
    if B % num_shards:
        raise ValueError(f"batch_size {B} cannot be split over data={num_shards}; use a multiple of it.")
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
        capacity=capacity,
        prompt_slots=settings.prompt_slots,
    )
