"""The flags that say how to draft: one text form, and the older flags as its shorthand."""

import argparse
import os
import sys
from typing import Any

import jax

from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.drafting import mask_tokens
from jax_probe_mtp.drafting.check_source import check_source
from jax_probe_mtp.drafting.shorthand import DEFAULT_METHOD, FLAGS, METHODS, parse_flags
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import DEFAULT_DRAFT, draft_name, is_listed, parse_draft, with_tuned_masks
from jax_probe_mtp.errors import local_file
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.tuning.masks_file import check_masks, read_masks


def add_draft(parser: argparse.ArgumentParser, *, without_plain: bool = False) -> None:
    """Adds how to draft. Flags that were not given stay at None, so that `draft_source` can tell.

    Args:
      parser: a command's.
      without_plain: True where plain decoding is what drafting is compared with.
    """
    parser.add_argument(
        "--draft",
        metavar="SPEC",
        help="where drafts come from: probe:14, probe:15+4@mask_init=last_k, dynamic:60@num_masks=2, ngram:10, recycle:60, "
        "merged:64, auto (as many rows as pay), plain, or my_module:MySource "
        f"(default: {DEFAULT_DRAFT}); the flags that follow are shorthand for it",
    )
    methods = [method for method in METHODS if not (without_plain and method in ("ar", "plain"))]
    parser.add_argument("--method", choices=methods, help=f"ar is plain decoding, as plain (default: {DEFAULT_METHOD})")
    parser.add_argument(
        "--tree",
        metavar="T",
        help="probe: candidates by depth, such as 14 or 15,4, or 'dynamic'; ngram: tokens of the chain; recycle: nodes, root "
        "included, or 'static80'; merged: rows (default: 14, 10, 60 and 64)",
    )
    parser.add_argument(
        "--num-masks",
        type=int,
        metavar="K",
        help="mask tokens of each node, 1 to 3; 0 is plain (default: as --tree says)",
    )
    parser.add_argument(
        "--block-complexity", type=int, metavar="BC", help="rows a call may have (default: what --tree makes)"
    )
    inits = [init for init in mask_tokens.INITS if init != mask_tokens.TUNED]
    parser.add_argument("--mask-init", choices=inits, help="first value of the masks (default: auto)")
    parser.add_argument("--mask-offset", type=float, metavar="C", help="of --mask-init offset, deviations (default: 5)")
    parser.add_argument(
        "--mask-ema",
        type=float,
        metavar="L",
        help=f"lambda; 0 freezes the masks (default: auto chooses it too; {mask_tokens.DEFAULT_EMA:g} with the paper's inits, "
        "else 0)",
    )
    add_masks(parser)
    flag: dict[str, Any] = {"action": "store_true", "default": None}
    parser.add_argument("--no-prune", **flag, help="keep candidates that repeat their parent's token")
    parser.add_argument("--rank-without-noise", **flag, help="rank sampled drafts as the paper does")
    parser.add_argument("--max-ngram", type=int, metavar="N", help="ngram: tokens compared at most (default: 5)")
    parser.add_argument("--match", help="ngram: which of equally long matches, recent or first (default: recent)")
    parser.add_argument("--warm", **flag, help="recycle and merged: what is learned stays for all prompts")


def add_masks(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that bring tuned masks."""
    parser.add_argument(
        "--masks", type=local_file, metavar="FILE", help="masks that tune-masks made (default: untuned ones)"
    )
    parser.add_argument(
        "--masks-of-relative",
        action="store_true",
        help="take the --masks of another model as wide, such as the same one in another precision",
    )


class MasksFlags:
    """The tuned masks that the flags of `add_masks` name, if any; nothing else knows the file.

    Attributes:
      digest: by which answers and records name them; None where there are none.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        """Reads and checks the file.

        Raises:
          ValueError: one line, also for a flag that has no effect.
        """
        self._path, self._is_relative = args.masks, args.masks_of_relative
        if self._is_relative and not self._path:
            raise ValueError("--masks-of-relative says whose --masks may be taken; give --masks too.")
        self._tuned = read_masks(self._path) if self._path else None
        self.digest = self._tuned.digest if self._tuned else None

    @property
    def said(self) -> dict[str, str]:
        """Gives what a record says of them, as JSON has it; nothing where there are none."""
        return {"masks": self.digest} if self.digest else {}

    def put_into(self, source: DraftSource) -> DraftSource:
        """Gives the same source with these masks, or as it is where there are none.

        Raises:
          ValueError: if it cannot have them, or needs some and there are none.
        """
        if self._tuned:
            source = with_tuned_masks(source)
        self.check(source)
        return source

    def check(self, source: DraftSource) -> None:
        """Raises ValueError where a source needs masks and there are none, or not as many as a node owns."""
        if not source.needs_shared:
            return
        if self._tuned is None:
            raise ValueError(f"{draft_name(source)} needs {source.needs_shared}: give --masks FILE.")
        num_masks = len(self._tuned.masks_MD)
        if num_masks != source.num_masks:
            raise ValueError(
                f"{self._path} holds {num_masks} masks, but a node of {draft_name(source)} owns {source.num_masks}; give a way "
                f"of drafting with {num_masks}, or masks tuned with --num-masks {source.num_masks}."
            )

    def check_model(self, checkpoint: Checkpoint) -> None:
        """Raises ValueError where the masks are another model's."""
        if self._tuned is not None:
            check_masks(self._tuned, self._path, checkpoint, is_relative=self._is_relative)

    def shared(self, source: DraftSource) -> Any:
        """Gives what the source's rows share, float32 [M, D]; None where it needs nothing."""
        return self._tuned.shared if self._tuned is not None and source.needs_shared else None


def draft_source(args: argparse.Namespace) -> DraftSource:
    """Reads the way of drafting that the flags of `add_draft` name.

    Raises:
      ValueError: one line, for a flag that has no effect too.
    """
    given = [name for name in ("method", *FLAGS) if getattr(args, name) is not None]
    if args.draft is not None:
        if given:
            raise ValueError(f"--draft says all of it: leave --{given[0].replace('_', '-')} out.")
        find_own_modules()
        return parse_draft(args.draft)
    if args.tree == "auto":  # as earlier versions had it
        raise ValueError("--tree auto is --draft auto now (of generate and verify), which chooses while it decodes.")
    return parse_flags(args.method or DEFAULT_METHOD, {name: getattr(args, name) for name in FLAGS})


def check_choice(source: DraftSource, settings: Settings) -> None:
    """Raises ValueError where a source of several sizes cannot choose among them, before anything is loaded."""
    if not source.sizes:
        return
    name_one = "name a size, such as merged:64."
    if jax.process_count() > 1:
        raise ValueError(f"several processes would each choose another size of {draft_name(source)}; {name_one}")
    if settings.is_exact and jax.default_backend() != "gpu":
        raise ValueError(
            f"--exact is exact within one program here, and {draft_name(source)} chooses among several; {name_one}"
        )


def find_own_modules() -> None:
    """Lets `my_module:MySource` be found in the working folder, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def check_own(source: DraftSource, cfg: ModelConfig) -> None:
    """Runs the contract of a source that is none of the project's own, before anything slow starts."""
    if not is_listed(source):
        check_source(source, cfg)
