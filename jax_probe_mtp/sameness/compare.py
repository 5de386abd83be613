"""Compares what a way of drafting gives with plain decoding's or transformers' tokens: a verdict for each prompt."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import PLAIN, draft_name, parse_draft
from jax_probe_mtp.generation import one_text
from jax_probe_mtp.generation.answers import Generation
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.sameness import first_difference, verdicts
from jax_probe_mtp.sameness.verdicts import Verdict


def compare(
    checkpoint: Checkpoint,
    prompts: list[Prompt],
    source: DraftSource,
    settings: Settings,
    *,
    shared: Any = None,
    show: Callable[[Generation], None] = lambda _: None,
    plain_answers: list[Generation] | None = None,
) -> Iterator[Verdict]:
    """Decodes with and without drafts; gives a verdict for each prompt, and says on stderr what each took on its own.

    In the exact mode plain decoding is decoded at one row a call, or, where the mode is exact for one program, is the same
    program that accepts nothing; and no difference is a tie.

    Args:
      checkpoint: the model.
      prompts: what to decode.
      source: where drafts come from.
      settings: the settings of both.
      shared: what the source's rows share, such as tuned masks; what it begins with when None.
      show: is called with each answer.
      plain_answers: plain decoding's, where they are there already; not used in the exact mode.
    """
    drafted = Decoder(checkpoint, source, shared=shared)
    if settings.is_exact and one_text.has_one_text(checkpoint):
        plain = Decoder(checkpoint, parse_draft(PLAIN))
        one_row = dataclasses.replace(settings, batch_size=plain.groups.num_shards)
        expected_ones = answers_of(plain, prompts, one_row)
    elif settings.is_exact:
        plain = Decoder(checkpoint, source, groups=drafted.groups, shared=shared)
        expected_ones = answers_of(plain, prompts, dataclasses.replace(settings, max_accept=0))
    elif plain_answers is None:
        expected_ones = answers_of(Decoder(checkpoint, parse_draft(PLAIN)), prompts, settings)
    else:
        expected_ones = plain_answers
    answers = answers_of(drafted, prompts, settings)
    for expected, got, prompt in zip(expected_ones, answers, prompts, strict=True):
        show(got)
        found = first_difference.compare_answers(checkpoint, prompt, settings, expected, got)
        if found and settings.is_exact:
            found = dataclasses.replace(found, tolerance=-math.inf)
        yield _compared(got, found, f"; {got.calls} calls, plain decoding {expected.calls}")


def answers_of(decoder: Decoder, prompts: list[Prompt], settings: Settings) -> list[Generation]:
    """Collects all of one decoder's answers, and says its speed on stderr.

    Were they made in turns with another's, its seconds would hold the other's work as well.
    """
    name = draft_name(decoder.source)
    if settings.max_accept == 0:
        name = PLAIN  # the same program that accepts nothing
    answers = list(tqdm(decoder.run(prompts, settings), desc=name, total=len(prompts), unit="answer", disable=None))
    print(f"{name}: {decoder.stats}", file=sys.stderr)
    return answers


def _compared(got: Generation, found: first_difference.Difference | None, more: str) -> Verdict:
    """Makes the verdict of an answer whose first difference is `found`."""
    kind, difference = verdicts.kind_of([found] if found else [], None)
    return Verdict(
        id=got.id,
        kind=kind,
        num_tokens=len(got.token_ids),
        difference=difference,
        num_compared=min(found.position + 1, len(got.token_ids)) if found else None,
        num_differences=int(found is not None),
        more=more,
    )


def compare_with_torch(
    checkpoint: Checkpoint, prompts: list[Prompt], source: DraftSource, settings: Settings, *, shared: Any = None
) -> Iterator[Verdict]:
    """Decodes with drafts, and greedily with transformers; gives a verdict for each prompt."""
    from checkpoints_convert import compare as with_torch  # it imports this package, so not at the top

    model = with_torch.torch_model(checkpoint.config, checkpoint.params, str(checkpoint.params["embed"].dtype))
    drafted = Decoder(checkpoint, source, shared=shared)
    for got, prompt in zip(answers_of(drafted, prompts, settings), prompts, strict=True):
        token_ids = with_torch.greedy(
            model,
            prompt.token_ids,
            max_new_tokens=prompt.of("max_new_tokens", settings),
            eos_token_ids=checkpoint.eos_token_ids,
        )
        expected = dataclasses.replace(got, token_ids=token_ids)
        found = first_difference.compare_answers(
            checkpoint, prompt, settings, expected, got, first_difference.OTHER_FRAMEWORK_TIE
        )
        yield _compared(got, found, f"; transformers {len(token_ids)} tokens")
