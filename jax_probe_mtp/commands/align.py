"""`align` as a command: how close the masks' hidden states are to the true tokens'."""

import argparse
from typing import Any

from tqdm import tqdm

from jax_probe_mtp.commands import draft_options, options
from jax_probe_mtp.errors import local_path
from jax_probe_mtp.files.questions import read_questions
from jax_probe_mtp.measuring import alignment, bench
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.measuring.report import alignment_report
from jax_probe_mtp.model.fingerprint import model_identity


def add_command(commands: Any) -> None:
    """Adds the command to the parser's."""
    figure = commands.add_parser(
        "align", allow_abbrev=False, help="how close the masks' hidden states are to the true tokens', layer by layer"
    )
    options.add_questions(figure)
    options.add_sampling(figure, max_new_tokens=options.NEW_TOKENS)
    draft_options.add_draft(figure)
    figure.add_argument(
        "--output",
        type=local_path,
        required=True,
        metavar="DIR",
        help="folder for the numbers, the table and the figure",
    )
    figure.set_defaults(command=_align)


def _align(args: argparse.Namespace) -> int:
    masks, settings = draft_options.MasksFlags(args), options.settings(args)
    source = masks.put_into(draft_options.draft_source(args))
    if not source.num_masks:
        raise ValueError("align looks at mask tokens: give a --tree with at least one mask, such as --tree 14.")
    if settings.batch_size != 1:
        raise ValueError(f"align reads one text at a time: leave --batch-size {settings.batch_size} out.")
    alignment_report.check_output(args.output)
    questions = read_questions(args.questions, args.per_category)
    checkpoint = options.load(args)
    masks.check_model(checkpoint)
    prompts, skipped = bench.read_prompts(
        checkpoint, questions, settings.max_new_tokens, use_chat_template=not args.no_chat_template
    )
    options.say_skipped(skipped)
    draft_options.check_own(source, checkpoint.config)
    measured = alignment.measure(
        checkpoint,
        prompts,
        source,
        settings,
        progress=lambda prompts: tqdm(prompts, unit="question", disable=None),
        shared=masks.shared(source),
    )
    measured_on = environment(checkpoint.number_format) | {
        "model": model_identity(checkpoint),
        **masks.said,
    }
    for path in alignment_report.write_alignment(measured, measured_on, args.output):
        print(path)
    return 0
