"""What is asked and what comes of it: prompts, settings, generations and their sums."""

import dataclasses
import hashlib
from typing import Any

from jax_probe_mtp.drafting.draft_config import DEFAULT_MASK_EMA
from jax_probe_mtp.model.config import ANCHORED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One record to generate from.

    Attributes:
      id: names the record; also picks its noise when it has no seed of its own.
      token_ids: the prompt.
      seed: seed of its noise, 0 to 2**32 - 1; from the run's seed and the id when None.
      max_new_tokens, temperature, top_k, top_p, stop: its own in place of the run's, where not None.
    """

    id: str | int
    token_ids: list[int]
    seed: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] | None = None

    def of(self, name: str, settings: "Settings") -> Any:
        """The record's own value of a setting, else the run's."""
        own = getattr(self, name)
        return getattr(settings, name) if own is None else own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to generate.

    Attributes:
      max_new_tokens, temperature, top_k, top_p, mask_ema, capacity, prompt_slots: as for `make_request`.
      seed: of the run; each record draws with a seed of its own made from it and its id (`record_seed`).
      stop: texts that end an answer where they first appear; they are not part of it.
      batch_size: B, rows that are decoded at a time.
      calls_per_chunk: K, decode calls between two looks at the rows: a row that ends waits for the next look.
      max_accept: drafts that a call accepts at most; None for all that are right, 0 for plain decoding by the same program.
      is_exact: True for the exact mode: in any dtype, tokens do not depend on `max_accept` (docs/exactness.md).
      logprobs: True for the log-probability of each token, of the model's own softmax (no temperature, no cuts).
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    mask_ema: float = DEFAULT_MASK_EMA
    batch_size: int = 1
    calls_per_chunk: int = 8
    max_accept: int | None = None
    is_exact: bool = False
    logprobs: bool = False
    capacity: int | None = None
    prompt_slots: int | None = None

    @property
    def attention(self) -> str:
        """The attention of decode calls, `DecodeConfig.attention`."""
        return ANCHORED if self.is_exact else "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What came of one prompt.

    Attributes:
      id: the prompt's.
      prompt_ids: its token ids.
      token_ids: the new tokens, the end-of-text token included where it was generated.
      text: their text, without special tokens, cut before a stop string; the tokens are there up to the one that completed it.
      finish_reason: "stop" at an end-of-text token or a stop string, "length" at the limit, "error" if it could not run.
      draft: what drafted it, by `draft_name`.
      calls: decode calls, without the prefill.
      committed: tokens that those calls gave; the prefill's first token is not among them.
      accepted_by_depth: drafts accepted at depth 1, 2, ..., before the cut at the end of the text.
      logprobs: log-probability of each new token; None unless asked for.
      error: why it could not run; None if it could.
    """

    id: str | int
    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    draft: str
    calls: int
    committed: int
    accepted_by_depth: list[int]
    logprobs: list[float] | None = None
    error: str | None = None


@dataclasses.dataclass
class Stats:
    """Sums over a run.

    Attributes:
      records: that have ended, those of `errors` among them.
      errors: that could not run.
      calls: decode calls of the records that ended.
      committed: tokens of those calls.
      new_tokens: tokens of the records that ended, the prefills' among them.
      seconds: wall time, prefills included, compilation not.
      prefill_seconds: wall time of prefills, where they were timed apart.
      compile_seconds: wall time of compilation.
      host_seconds: wall time between two chunks of calls, in which the device had nothing to do.
      row_calls: rows times calls that the device made.
      busy_row_calls: of these, those that decoded something.
    """

    records: int = 0
    errors: int = 0
    calls: int = 0
    committed: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    compile_seconds: float = 0.0
    host_seconds: float = 0.0
    row_calls: int = 0
    busy_row_calls: int = 0

    def count(self, generation: Generation) -> None:
        """Adds a record that has ended."""
        self.records += 1
        self.errors += generation.error is not None
        self.calls += generation.calls
        self.committed += generation.committed
        self.new_tokens += len(generation.token_ids)

    @property
    def tau(self) -> float:
        """Acceptance length: tokens a decode call gives; 1 for plain decoding, and where there was no call."""
        return self.committed / self.calls if self.calls else 1.0

    def as_json(self) -> dict[str, float | None]:
        """All of it, and what follows from it; null where there was nothing to divide by."""

        def share(part: float, whole: float) -> float | None:
            return part / whole if whole else None

        return dataclasses.asdict(self) | {
            "tau": self.tau,
            "tokens_per_second": share(self.new_tokens, self.seconds),
            "busy_share": share(self.busy_row_calls, self.row_calls),
            "host_share": share(self.host_seconds, self.seconds),
        }

    def __str__(self) -> str:
        speed = self.new_tokens / self.seconds if self.seconds else 0.0
        return (
            f"tau {self.tau:.3f}, {self.calls} calls for {self.committed} tokens, {speed:.1f} tokens/s "
            f"({self.new_tokens} tokens in {self.seconds:.2f} s, and {self.compile_seconds:.1f} s of compilation)"
        )


def record_seed(run_seed: int, prompt: Prompt) -> int:
    """The seed of one record's noise: its own, else one drawn from the run's seed and its id, whatever its batch."""
    if prompt.seed is not None:
        return prompt.seed
    digest = hashlib.sha256(f"{run_seed}:{prompt.id}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
