"""How to decode: the settings of a run, and what a single prompt asks for in their place."""

import dataclasses
import hashlib
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.drafting.source import DraftSource, check_is_source
from jax_probe_mtp.model.config import ModelConfig

MOST_CALLS = 2**31 - 1  # int32; no answer reaches it
MOST_TOP = 100  # of a place; each costs 8 bytes a cache slot, and its part of a line of the answers
LARGEST_TEMPERATURE = 1e30  # a draw is uniform long before, and float32 soon ends
SMALLEST_TEMPERATURE = 1e-30  # below it rows are greedy, as they are far above it: float32 ends at 1e-37
LARGEST_REPETITION = 100.0  # and its inverse; far beyond what keeps a text readable
LARGEST_PENALTY = 2.0  # of presence and frequency, as OpenAI and vLLM take them
LARGEST_BIAS = 100.0  # likewise; no logit of these models stands so far out
SMALLEST_TOP_P = 1e-30  # keeps the best token alone, as any p as small does; much smaller ones are 0 in float32

PENALTIES = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "logit_bias",
)
OF_PROMPT = ("max_new_tokens", "temperature", "top_k", "top_p", "stop", *PENALTIES)  # what a prompt may have of its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to decode; the one list of what can be set.

    Attributes:
      max_new_tokens: tokens to emit at most, for each prompt.
      temperature: 0 is greedy, and so is less than 1e-30.
      top_k: the most likely tokens that stay, 0 for all.
      top_p: mass of the most likely tokens that stay, in (0, 1].
      seed: of the run, 0 or more; each prompt draws with a seed of its own made from it and its id (`sample_seed`).
      stop: texts that end an answer where they first appear; they are not part of it.
      repetition_penalty: divides the logits above 0 of tokens in prompt or answer, and multiplies the others; 1 is none.
      presence_penalty: taken from the logits of tokens in the answer, -2 to 2.
      frequency_penalty: the same for each time that a token is there.
      min_tokens: tokens of an answer before one that ends it.
      ignore_eos: True where the model's end-of-text tokens end nothing.
      stop_token_ids: tokens that end an answer besides; they are part of `token_ids`, as an end-of-text token is.
      logit_bias: token id -> what is added to its logit, -100 to 100.
      batch_size: B, rows that are decoded at a time.
      calls_per_chunk: K, decode calls between two looks at the rows: a row that ends waits for the next look.
      max_accept: drafts that a call accepts at most; None for all that are right, 0 for plain decoding by the same program.
      is_exact: True for the exact mode: tokens do not depend on `max_accept`, on CUDA GPUs on nothing but the
        model, the prompt and the sampling (docs/exactness.md).
      logprobs: True for the log-probability of each token, of the model's own softmax (no temperature, no cuts).
      top_logprobs: so many of the most likely tokens at each place with theirs as well, at most `MOST_TOP`.
      prompt_logprobs: True for both of the prompt's own tokens as well; only with `logprobs`.
      capacity: cache slots of a row; the smallest bucket that fits when None.
      prompt_slots: T, when prompts of several batches are to share a program; the smallest bucket when None.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] | None = None
    batch_size: int = 1
    calls_per_chunk: int = 8
    max_accept: int | None = None
    is_exact: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    capacity: int | None = None
    prompt_slots: int | None = None

    def check(self, cfg: ModelConfig, source: DraftSource, *, num_shards: int = 1) -> None:
        """Checks what no prompt can make right, before anything is loaded.

        Args:
          cfg: the model.
          source: where drafts come from.
          num_shards: D, devices (or groups of them) that rows are split over.

        Raises:
          ValueError: one line with the values and a way out.
        """
        self._check_sampling()
        self._check_penalties(cfg)
        self._check_sizes(cfg)
        self._check_stream(num_shards)
        check_is_source(source)
        source.check(cfg)

    @property
    def is_penalized(self) -> bool:
        """Says whether one of `PENALTIES` has a value with which it does something."""
        return bool(self.penalties)

    @property
    def penalties(self) -> dict[str, Any]:
        """Gives those of `PENALTIES` that have a value with which they do something."""
        values = {name: getattr(self, name) for name in PENALTIES}
        return {name: value for name, value in values.items() if value and value != getattr(_NOTHING, name)}

    def ends(self, eos_token_ids: Sequence[int]) -> tuple[int, ...]:
        """Gives the ids that end an answer of a model whose own are `eos_token_ids`."""
        return *(() if self.ignore_eos else eos_token_ids), *self.stop_token_ids

    def decode_config(self, capacity: int) -> DecodeConfig:
        """Gives what these settings make of a decoding program of so many cache slots a row."""
        return DecodeConfig(
            capacity=capacity,
            is_exact=self.is_exact,
            has_logprobs=self.logprobs,
            num_top=self.top_logprobs,
            has_prompt_logprobs=self.prompt_logprobs,
        )

    def _check_sampling(self) -> None:
        if not isinstance(self.max_new_tokens, int | np.integer) or self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be a whole number of at least 1, got {self.max_new_tokens}.")
        if not 0 <= self.temperature <= LARGEST_TEMPERATURE:
            raise ValueError(f"temperature must be 0 (greedy) to {LARGEST_TEMPERATURE:g}, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}; 1 keeps all tokens.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, got {self.top_k}.")
        if self.max_accept is not None and not self.max_accept >= 0:
            raise ValueError(f"max_accept must be at least 0, which is plain decoding, got {self.max_accept}.")

    def _check_penalties(self, cfg: ModelConfig) -> None:
        least = 1 / LARGEST_REPETITION
        if not _is_number(self.repetition_penalty, least, LARGEST_REPETITION):
            raise ValueError(
                f"repetition_penalty must be {least:g} to {LARGEST_REPETITION:g}, got {self.repetition_penalty!r}; 1 is none."
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not _is_number(getattr(self, name), -LARGEST_PENALTY, LARGEST_PENALTY):
                bounds = f"{-LARGEST_PENALTY:g} to {LARGEST_PENALTY:g}"
                raise ValueError(f"{name} must be {bounds}, got {getattr(self, name)!r}; 0 is none.")
        if not _is_whole(self.min_tokens, 0, self.max_new_tokens):
            most = f"max_new_tokens {self.max_new_tokens}"
            raise ValueError(
                f"min_tokens must be 0 to {most}, got {self.min_tokens!r}; lower it, or raise max_new_tokens."
            )
        if not isinstance(self.ignore_eos, bool):
            raise ValueError(f"ignore_eos must be True or False, got {self.ignore_eos!r}.")
        last = cfg.vocab_size - 1
        ends = self.stop_token_ids
        if not isinstance(ends, list | tuple) or not all(_is_whole(token, 0, last) for token in ends):
            raise ValueError(f"stop_token_ids must be a list of ids from 0 to {last}, got {ends!r:.60}.")
        if not isinstance(self.logit_bias, Mapping | None):
            raise ValueError(f"logit_bias must be a mapping of ids to biases, got {self.logit_bias!r:.60}.")
        for token, bias in (self.logit_bias or {}).items():
            if not _is_whole(token, 0, last) or not _is_number(bias, -LARGEST_BIAS, LARGEST_BIAS):
                asked = f"ids from 0 to {last} with a bias from {-LARGEST_BIAS:g} to {LARGEST_BIAS:g}"
                raise ValueError(f"logit_bias takes {asked}, got {token!r:.30}: {bias!r:.30}.")

    def _check_sizes(self, cfg: ModelConfig) -> None:
        capacity, prompt_slots = self.capacity, self.prompt_slots
        most, num_top = min(MOST_TOP, cfg.vocab_size), self.top_logprobs
        if not isinstance(num_top, int) or isinstance(num_top, bool) or not 0 <= num_top <= most:
            raise ValueError(f"top_logprobs (--logprobs K) must be a whole number from 0 to {most}, got {num_top!r}.")
        if not isinstance(self.logprobs, bool):
            raise ValueError(f"logprobs must be True or False, got {self.logprobs!r}; top_logprobs takes a number.")
        if num_top and not self.logprobs:
            raise ValueError(f"top_logprobs {num_top} comes with logprobs=True; set both.")
        if not isinstance(self.prompt_logprobs, bool):
            raise ValueError(f"prompt_logprobs must be True or False, got {self.prompt_logprobs!r}.")
        if self.prompt_logprobs and not self.logprobs:
            raise ValueError("prompt_logprobs comes with logprobs=True (--logprobs); set both.")
        if capacity is not None and capacity > cfg.context_length:
            raise ValueError(
                f"capacity {capacity} is more than the model's context of {cfg.context_length}, which no row can use; "
                f"lower it."
            )
        if prompt_slots is not None and not 1 <= prompt_slots <= cfg.context_length + 1:
            raise ValueError(
                f"prompt_slots must be 1 to {cfg.context_length + 1}, one more than the model's context, got {prompt_slots}."
            )
        if capacity is not None and prompt_slots is not None and prompt_slots > capacity + 1:
            raise ValueError(
                f"prompt_slots {prompt_slots} must be at most {capacity + 1}, one more than the capacity; lower it."
            )

    def _check_stream(self, num_shards: int) -> None:
        B, K = self.batch_size, self.calls_per_chunk
        if B < 1 or K < 1:
            raise ValueError(f"batch_size and calls_per_chunk must be at least 1, got {B} and {K}.")
        if K > MOST_CALLS:
            raise ValueError(f"calls_per_chunk must be at most {MOST_CALLS}, which no answer reaches, got {K}.")
        if B % num_shards:
            raise ValueError(f"batch_size {B} cannot be split over data={num_shards}; use a multiple of it.")
        if isinstance(self.stop, str):
            raise ValueError(f"stop must be a list of texts, got {self.stop!r}, of which each letter would be one.")
        if not all(self.stop):
            raise ValueError("a stop text is empty, which would end every answer at once; leave it out.")


_NOTHING = Settings()


def _is_whole(value: Any, least: int, most: float) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and least <= int(value) <= most


def _is_number(value: Any, least: float, most: float) -> bool:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    return is_number and least <= float(value) <= most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt, with settings of its own where it has some.

    Attributes:
      token_ids: the prompt, at least one token.
      id: names it; also picks its noise when it has no seed of its own.
      noise_name: picks its noise in place of the id, where not None.
      sample: which of several answers to the prompt it asks for, from 0; each draws noise of its own.
      num_shared: of its first tokens, which other prompts begin with as well: they are read once for all; 0 for none.
      seed: seed of its noise, 0 to 2**32 - 1; from the run's seed and that name when None.
      max_new_tokens: its own in place of the run's, where not None; likewise temperature, top_k, top_p, stop,
        repetition_penalty, presence_penalty, frequency_penalty, min_tokens, ignore_eos, stop_token_ids and logit_bias.
    """

    token_ids: Sequence[int]
    id: str | int = 0
    noise_name: str | None = None
    sample: int = 0
    num_shared: int = 0
    seed: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: tuple[int, ...] | None = None
    logit_bias: Mapping[int, float] | None = None

    def of(self, name: str, settings: Settings) -> Any:
        """Gives the prompt's own value of a setting, else the run's."""
        own = getattr(self, name)
        return getattr(settings, name) if own is None else own

    def with_ids(self, token_ids: Sequence[int]) -> "Prompt":
        """Gives the same prompt with other token ids, or itself where they are its own."""
        return self if token_ids is self.token_ids else dataclasses.replace(self, token_ids=token_ids)

    def own_settings(self, settings: Settings) -> Settings:
        """Gives the settings of a run with the prompt's own in their place."""
        own = {name: getattr(self, name) for name in OF_PROMPT if getattr(self, name) is not None}
        return dataclasses.replace(settings, **own) if own else settings


def record_seed(run_seed: int, prompt: Prompt) -> int:
    """Picks the seed of a prompt's noise: its own, else one drawn from the run's seed and its name, whatever its batch."""
    if prompt.seed is not None:
        return prompt.seed
    return _drawn_seed(f"{run_seed}:{prompt.id if prompt.noise_name is None else prompt.noise_name}")


def sample_seed(run_seed: int, prompt: Prompt) -> int:
    """Picks the seed of the noise of one of a prompt's samples: the first has the prompt's, the others one drawn from it."""
    seed = record_seed(run_seed, prompt)
    return _drawn_seed(f"{seed}:sample {prompt.sample}") if prompt.sample else seed


def _drawn_seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
