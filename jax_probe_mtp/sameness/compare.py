"""Compares what a way of drafting gives with plain decoding's or transformers' tokens: a verdict for each prompt."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import PLAIN, draft_name, parse_draft
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
    show: Callable[[Generation], None] = lambda _: None,
) -> Iterator[Verdict]:
    """Decodes with and without drafts; gives a verdict for each prompt, and says on stderr what each took on its own.

    In the exact mode plain decoding is the same program that accepts nothing, and no difference is a tie.
    """
    drafted = Decoder(checkpoint, source)
    if settings.is_exact:
        plain = Decoder(checkpoint, source, programs=drafted.programs)
    else:
        plain = Decoder(checkpoint, parse_draft(PLAIN))
    plainly = dataclasses.replace(settings, max_accept=0) if settings.is_exact else settings
    expected_ones, answers = (
        _answers(plain, prompts, plainly, "plain"),
        _answers(drafted, prompts, settings, draft_name(source)),
    )
    for expected, got, prompt in zip(expected_ones, answers, prompts, strict=True):
        show(got)
        found = first_difference.compare_answers(checkpoint, prompt, settings, expected, got)
        if found and settings.is_exact:
            found = dataclasses.replace(found, tolerance=-math.inf)
        yield _compared(got, found, f"; {got.calls} calls, plain decoding {expected.calls}")


def _answers(decoder: Decoder, prompts: list[Prompt], settings: Settings, name: str) -> list[Generation]:
    """Collects all of one decoder's answers, and says its speed on stderr.

    Were they made in turns with another's, its seconds would hold the other's work as well.
    """
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
    checkpoint: Checkpoint, prompts: list[Prompt], source: DraftSource, settings: Settings
) -> Iterator[Verdict]:
    """Decodes with drafts, and greedily with transformers; gives a verdict for each prompt."""
    from checkpoints_convert import compare as with_torch  # it imports this package, so not at the top

    model = with_torch.torch_model(checkpoint.config, checkpoint.params, str(checkpoint.params["embed"].dtype))
    drafted = Decoder(checkpoint, source)
    for got, prompt in zip(_answers(drafted, prompts, settings, draft_name(source)), prompts, strict=True):
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
