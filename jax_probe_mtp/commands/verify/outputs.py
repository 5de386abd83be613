"""Judges a file of outputs that any framework made."""

import argparse
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence

from jax_probe_mtp.commands import draft_options, model_defaults, options
from jax_probe_mtp.commands.verify.file_flags import whole_file
from jax_probe_mtp.commands.verify.report import described_run, report
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft
from jax_probe_mtp.files.formats.given import GivenOutput
from jax_probe_mtp.files.formats.known import AUTO, OURS
from jax_probe_mtp.files.output_file import OutputFile
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.jobs.text_ids import TextIds, given_ids, without_prompt, without_second_bos
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.sameness.frequencies import judge_frequencies
from jax_probe_mtp.sameness.given_outputs import Output

_USUAL = "You are a helpful assistant."


def verify_outputs(args: argparse.Namespace) -> int:
    """Runs the command with --outputs; gives its exit status."""
    of_decoding = [
        "draft",
        "method",
        "against",
        "exact",
        "n",
        "capacity",
        "prompt_slots",
        "calls_per_chunk",
        "masks",
        "masks_of_relative",
    ]
    for option in (*of_decoding, *draft_options.FLAGS):
        if getattr(args, option) is not None and getattr(args, option) is not False:
            raise ValueError(
                f"--{option.replace('_', '-')} says how to decode, and --outputs decodes nothing; leave it out."
            )
    settings = options.settings(args)
    prompts = PromptFile(args.input) if args.input else None
    file = OutputFile(args.outputs, args.format or AUTO, prompts)
    good = OutputFile(args.baseline, AUTO, prompts) if args.baseline else None
    for line in [*file.says, *(good.says if good else [])]:
        print(line, file=sys.stderr)
    opened = options.open_model(args)
    settings = model_defaults.settings_of(args, opened.generation_defaults, settings)
    limit = settings.max_new_tokens
    if args.max_new_tokens is None:  # a record states its own
        limit = max(limit, settings.min_tokens)
    dataclasses.replace(settings, capacity=1, max_new_tokens=limit).check(opened.config, parse_draft(PLAIN))
    checkpoint = opened.load()
    encode = options.encoder(args, opened.tokenizer)
    outputs = _outputs(file, encode, args, checkpoint, settings)
    run = described_run(args, checkpoint, settings) | {"outputs": args.outputs.name}
    if args.frequencies:
        found = judge_frequencies(checkpoint, outputs, settings)
        return report(found, f"First tokens of {args.outputs.name}", run, args)

    def knows_seeds(file: OutputFile) -> bool:  # the noise of other tools is not ours
        return file.form.name == OURS and not args.unknown_seeds

    baseline = (_outputs(good, encode, args, checkpoint, settings), knows_seeds(good)) if good else None
    whole = whole_file(args, checkpoint, settings, knows_seeds(file), baseline)
    asked = {"baseline": args.baseline.name if args.baseline else None, "against_model": args.against_model}
    run |= {"format": file.form.name, "knows_seeds": knows_seeds(file), **asked}
    with whole.asked():
        verdicts = whole.report.verdicts(outputs)
        return report(verdicts, f"Is {args.outputs.name} plain decoding's?", run, args, whole)


def _outputs(
    file: OutputFile, encode: Encoder, args: argparse.Namespace, checkpoint: Checkpoint, settings: Settings
) -> Iterator[Output]:
    for given in file:
        limit = given.record.max_new_tokens or args.max_new_tokens
        error, ids, logprobs = None, TextIds(given.token_ids or [], [False] * len(given.token_ids or [])), None
        try:
            prompt, cut = _without_prompt(encode, given)
            ids, logprobs = given_ids(
                encode.tokenizer,
                cut,
                prompt.token_ids,
                end_ids=prompt.own_settings(settings).ends(checkpoint.eos_token_ids),
                stop=prompt.of("stop", settings),
                limit=limit,
            )
        except ValueError as refused:
            prompt, error = Prompt(id=given.record.id, token_ids=[]), str(refused)
        num_tokens, is_from_text = len(ids.token_ids), given.token_ids is None
        if given.finish_reason == "length" and (limit is None or is_from_text):
            limit = num_tokens  # it says that it reached one, and a text may be cut into another number of tokens
        elif limit is not None and is_from_text:
            limit = max(limit, num_tokens)
        yield Output(
            prompt=prompt,
            token_ids=ids.token_ids,
            limit=limit,
            category=given.category,
            error=error,
            logprobs=logprobs,
            is_ambiguous=ids.is_ambiguous if any(ids.is_ambiguous) else None,
            is_from_text=is_from_text,
            other_prompts=functools.partial(_other_prompts, encode, given.record, prompt.token_ids),
        )


def _other_prompts(encode: Encoder, record: Record, own: Sequence[int]) -> dict[str, list[int]]:
    """Gives other ways in which others may have put a prompt, by name."""
    ways = {
        "as plain text, without the chat template": dataclasses.replace(encode, use_chat_template=False),
        "in the chat template": dataclasses.replace(encode, use_chat_template=True),
        "with an empty system message": dataclasses.replace(encode, use_chat_template=True, system=""),
        f"with the system message {_USUAL!r}": dataclasses.replace(encode, use_chat_template=True, system=_USUAL),
    }
    found = {}
    for name, way in ways.items():
        with contextlib.suppress(ValueError):  # messages as plain text, a template without system messages
            found[name] = list(way(record).token_ids)
    return {name: token_ids for name, token_ids in found.items() if token_ids != list(own)}


def _without_prompt(encode: Encoder, given: GivenOutput) -> tuple[Prompt, GivenOutput]:
    """Gives the prompt in tokens, and the output without it.

    Raises:
      ValueError: if the prompt cannot be read, or the output is to begin with it and does not, or there is none.
    """
    if given.error is not None:
        raise ValueError(given.error)
    encoders = [encode]
    if given.is_plain_prompt and given.record.prompt is not None:
        plain = dataclasses.replace(encode, use_chat_template=False)
        encoders = [plain, encode] if given.includes_prompt and encode.use_chat_template else [plain]
    refusals = []
    for each in encoders:  # the output shows which of them made its prompt
        try:
            prompt = each(given.record)
            if each is not encode:
                prompt = prompt.with_ids(without_second_bos(encode.tokenizer, prompt.token_ids, given.record.prompt))
            prompt_ids, cut = without_prompt(encode.tokenizer, given, prompt.token_ids)
            return prompt.with_ids(prompt_ids), cut
        except ValueError as refused:
            refusals.append(refused)
    raise refusals[0]
