"""What comes of prompts: one answer each, and the sums over a run."""

import dataclasses
import html
from collections.abc import Mapping
from typing import Any

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.generation import tokenizer
from jax_probe_mtp.model.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What came of one prompt.

    Attributes:
      id: the prompt's.
      prompt_ids: its token ids.
      token_ids: the new tokens, the end-of-text token included where it was generated.
      text: their text, without special tokens, cut before a stop string, whose tokens stay up to the one that completed
        it; empty where the checkpoint has no tokenizer.
      finish_reason: "stop" at a token that ends the text or a stop string, "length" at the limit, "error" if it could not run.
      draft: what drafted it, by `spec.draft_name`.
      calls: decode calls, without the prefill.
      committed: tokens that those calls gave; the prefill's first token is not among them.
      calls_by_draft: of these calls, how many each way of drafting made; None where one way made all.
      accepted_by_depth: drafts accepted at depth 1, 2, ..., before the cut at the end of the text.
      logprobs: log-probability of each new token; None unless asked for.
      top_logprobs: of each new token's place the most likely tokens' ids and log-probabilities; None unless asked for.
      prompt_logprobs: log-probability of each token of the prompt, None of the first; None unless asked for.
      prompt_top_logprobs: as `top_logprobs`, for the tokens of the prompt; None for the first.
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
    calls_by_draft: dict[str, int] | None = None
    logprobs: list[float] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None
    prompt_logprobs: list[float | None] | None = None
    prompt_top_logprobs: list[list[tuple[int, float]] | None] | None = None
    error: str | None = None

    def _repr_html_(self) -> str:
        """Shows the answer in a notebook: its text, and what it took."""
        depths = ", ".join(
            f"{count} at depth {depth}" for depth, count in enumerate(self.accepted_by_depth, 1) if count
        )
        facts = {
            "finish reason": self.finish_reason if self.error is None else f"{self.finish_reason}: {self.error}",
            "tokens": len(self.token_ids),
            "calls": self.calls,
            "tau": f"{self.committed / self.calls:.3f}" if self.calls else "no call",
            f"drafts of {self.draft} accepted": depths or "none",
        }
        return f'<pre style="white-space: pre-wrap">{html.escape(self.text)}</pre>{_html_table(facts)}'


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
      prefix_tokens: of prompts, that were copied from an earlier prompt instead of read.
      row_calls: rows times calls that the device made.
      busy_row_calls: of these, those that decoded something.
      seconds_by_draft: time of the calls of each way of drafting, where one is chosen while they run.
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
    prefix_tokens: int = 0
    row_calls: int = 0
    busy_row_calls: int = 0
    seconds_by_draft: dict[str, float] = dataclasses.field(default_factory=dict)

    def count(self, generation: Generation) -> None:
        """Adds a record that has ended."""
        self.records += 1
        self.errors += generation.error is not None
        self.calls += generation.calls
        self.committed += generation.committed
        self.new_tokens += len(generation.token_ids)

    def count_draft(self, name: str, seconds: float) -> None:
        """Adds the time of calls that were drafted so."""
        self.seconds_by_draft[name] = self.seconds_by_draft.get(name, 0.0) + seconds

    @property
    def tau(self) -> float:
        """Gives the acceptance length, tokens a decode call gives; 1 for plain decoding, and where there was no call."""
        return self.committed / self.calls if self.calls else 1.0

    def as_json(self) -> dict[str, Any]:
        """Gives all of it, and what follows from it; null where there was nothing to divide by."""

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
        total = sum(self.seconds_by_draft.values())
        shares = [f"{name} {seconds / total:.0%}" for name, seconds in self.seconds_by_draft.items() if total]
        return (
            f"tau {self.tau:.3f}, {self.calls} calls for {self.committed} tokens, {speed:.1f} tokens/s "
            f"({self.new_tokens} tokens in {self.seconds:.2f} s, and {self.compile_seconds:.1f} s of compilation)"
            + (f"; time by {', '.join(shares)}" if shares else "")
        )

    def _repr_html_(self) -> str:
        """Shows the sums in a notebook."""
        known = self.as_json()
        forms = {
            "records": "d",
            "errors": "d",
            "calls": "d",
            "new_tokens": "d",
            "tau": ".3f",
            "tokens_per_second": ".1f",
        }
        forms |= {"seconds": ".2f", "compile_seconds": ".1f"}
        return _html_table(
            {name.replace("_", " "): format(known[name], form) for name, form in forms.items() if known[name]}
        )


def _html_table(facts: Mapping[str, object]) -> str:
    rows = [f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in facts.items()]
    return f"<table>{''.join(rows)}</table>"


Item = Prompt | Generation  # a generation: a record that ended by an error before it began; it is passed on
Numbered = tuple[int, Generation]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """What a chunk of calls gave.

    Attributes:
      finished: (number, generation) of the records that ended, in the order in which they did.
      new_text: (number, text to show) of the records whose text grew; only where texts are streamed.
    """

    finished: list[Numbered]
    new_text: list[tuple[int, str]]


def make_generation(
    checkpoint: Checkpoint, prompt: Prompt, settings: Settings, token_ids: list[int], *, calls: int, **more: Any
) -> Generation:
    """Says what came of a prompt, with its text and why it ended; `more` are fields of `Generation`."""
    ends = prompt.own_settings(settings).ends(checkpoint.eos_token_ids)
    return Generation(
        id=prompt.id,
        prompt_ids=list(prompt.token_ids),
        token_ids=token_ids,
        text="" if checkpoint.tokenizer is None else tokenizer.decode(checkpoint.tokenizer, token_ids),
        finish_reason="stop" if token_ids[-1] in ends else "length",
        calls=calls,
        committed=len(token_ids) - 1,
        **more,
    )


def make_refusal(prompt: Prompt, error: ValueError, *, draft: str, max_depth: int) -> Generation:
    """Says what comes of a prompt that cannot run."""
    return Generation(
        id=prompt.id,
        prompt_ids=list(prompt.token_ids),
        token_ids=[],
        text="",
        finish_reason="error",
        draft=draft,
        calls=0,
        committed=0,
        accepted_by_depth=[0] * max_depth,
        error=one_line(error),
    )
