"""What `verify --outputs` says of a file as a whole: its flags, and the report that they ask for."""

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

from jax_probe_mtp.commands import options
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.errors import local_file
from jax_probe_mtp.files.remote.address import file_or_address
from jax_probe_mtp.files.whole_files import write_files
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.measuring.report import figures
from jax_probe_mtp.measuring.report.verify_figure import VerifyFigure
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.params import WEIGHTS
from jax_probe_mtp.sameness.file_report import FileReport
from jax_probe_mtp.sameness.output import Examined
from jax_probe_mtp.sameness.token_table import TokenTable, check_table
from jax_probe_mtp.sameness.verdicts import UNCHECKED
from jax_probe_mtp.sameness.verified_file import FilesToVerify, check_tokenizer

FLAGS = (
    "unknown_seeds",
    "baseline",
    "against_model",
    "against_dtype",
    "against_weights",
    "tokens",
    "figure",
    "fail_below",
)


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags, in a group of their own."""
    group = parser.add_argument_group("a file of outputs as a whole (docs/verify.md)")
    group.add_argument(
        "--unknown-seeds",
        action="store_true",
        help="drawn outputs have seeds that nobody knows: judge their likelihood (without it only for files in our own format "
        "seeds count as known)",
    )
    group.add_argument(
        "--baseline",
        type=file_or_address,
        metavar="H.jsonl",
        help="outputs that are known to be good: a p-value says whether others were made so",
    )
    group.add_argument("--against-model", metavar="OTHER", help="another model: which of the two explains the outputs?")
    group.add_argument("--against-dtype", choices=("float32", "bfloat16"), help="of its weights (default: --dtype)")
    group.add_argument("--against-weights", choices=WEIGHTS, help="round its matrices to eight bits")
    group.add_argument(
        "--tokens",
        type=local_file,
        metavar="T.jsonl",
        help="a row a token: margin, rank, probability, entropy; T.parquet writes Parquet",
    )
    group.add_argument("--figure", type=local_file, metavar="F.svg", help="match rate along the text, and gaps")
    group.add_argument(
        "--fail-below",
        type=_rate,
        metavar="R",
        help="exit with 1 only where fewer than this share of tokens are the model's own, such as 0.99",
    )


def _rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1, got {text!r:.40}")


def refuse_without_outputs(args: argparse.Namespace) -> None:
    """Raises a ValueError where a flag is given that needs --outputs, or another flag."""
    given = [name for name in FLAGS if getattr(args, name) not in (None, False)]
    if given and args.outputs is None:
        raise ValueError(f"--{given[0].replace('_', '-')} is for --outputs; leave it out.")
    if given and args.frequencies:
        raise ValueError(f"--{given[0].replace('_', '-')} is not for --frequencies; leave one of them out.")
    for name in ("against_dtype", "against_weights"):
        if getattr(args, name) is not None and args.against_model is None:
            raise ValueError(f"--{name.replace('_', '-')} is of the other model: give --against-model as well.")
    if args.tokens:
        check_table(args.tokens)
    if args.figure:
        figures.require_matplotlib()
        if args.figure.suffix != ".svg":
            raise ValueError(f"--figure {args.figure} is written as SVG; name a file that ends in .svg.")


@dataclasses.dataclass
class WholeFile:
    """The report on a file of outputs, as the flags ask for it.

    Attributes:
      report: what was found of it.
      name: the model's.
    """

    report: FileReport
    name: str
    args: argparse.Namespace

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Writes the table and the figure that were asked for, of what is examined inside."""
        tellers: list[Callable[[Examined], None]] = []
        with contextlib.ExitStack() as stack:
            figure = VerifyFigure() if self.args.figure else None
            if figure is not None:
                tellers.append(figure.add)
            if self.args.tokens:
                tellers.append(stack.enter_context(TokenTable(self.args.tokens)).add)

            def tell(found: Examined) -> None:
                for teller in tellers:
                    teller(found)

            self.report.of_each = tell
            yield
        if figure is not None:
            write_files(self.args.figure.parent, {self.args.figure.name: figure.svg()})

    def lines(self) -> list[str]:
        """Says what was found in a few lines."""
        return self.report.lines(self.name)

    def as_json(self) -> dict[str, Any]:
        """Gives it as a report holds it."""
        return self.report.as_json()

    def conclusion(self, totals: dict[str, Any]) -> str:
        """Says in one line what follows: with --fail-below whether the match rate is high enough."""
        least, rate = self.args.fail_below, self.report.match_rate
        if least is None or math.isnan(rate) or totals[UNCHECKED]:
            return self.report.conclusion(totals)
        says, where = ("failed", "below") if rate < least else ("passed", "at least")
        return f"{says}: {rate:.4f} of the tokens are the model's best, {where} {least:g}"

    def status(self, totals: dict[str, Any]) -> int:
        """Gives the exit status: with --fail-below that of the match rate, else the verdicts' or, where worse, the tests'."""
        if self.args.fail_below is None:
            return self.report.status(totals)
        rate = self.report.match_rate
        if math.isnan(rate) or totals[UNCHECKED]:
            unchecked = f"{totals[UNCHECKED]} outputs were not checked"
            why = unchecked if totals[UNCHECKED] else "no output is greedy or of a known seed"
            print(f"--fail-below cannot tell: {why}", file=sys.stderr)
            return 2
        return int(rate < self.args.fail_below)


def whole_file(
    args: argparse.Namespace,
    files: FilesToVerify,
    checkpoint: Checkpoint,
    encode: Encoder,
    settings: Settings,
    other: Any = None,
) -> WholeFile:
    """Makes the report on a file; the baseline, if there is one, is examined here.

    Args:
      args: the flags.
      files: the file, and the baseline.
      checkpoint: the model.
      encode: turns records into tokens.
      settings: those of outputs that have none of their own.
      other: what `open_other` gave.
    """
    loaded = None if other is None else other.load()
    report = files.report(checkpoint, encode, settings, other=loaded and (_named(loaded), loaded))
    return WholeFile(report, _named(checkpoint), args)


def _named(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.name} ({checkpoint.number_format})"


def open_other(args: argparse.Namespace, opened: Any) -> Any:
    """Opens the model of --against-model, None without one; refuses one with other tokens than the opened one has."""
    if args.against_model is None:
        return None
    asked = {
        "model": args.against_model,
        "revision": None,
        "dtype": args.against_dtype or args.dtype,
        "weights": args.against_weights,
    }
    other = options.open_model(argparse.Namespace(**vars(args) | asked))
    check_tokenizer(opened, other, f"--against-model {args.against_model}")
    return other
