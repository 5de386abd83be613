"""The flags that say how to draft, and what they stand for."""

import argparse
from typing import Any

from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.drafting.draft_config import (
    MASK_INITS,
    NGRAM_MATCHES,
    PLAIN,
    DraftConfig,
    NgramConfig,
    ProbeConfig,
    RecycleConfig,
)
from jax_probe_mtp.generation.decoder import DEFAULT_DRAFT

METHODS = ("probe", "ar", "ngram", "recycle")
AUTO = "auto"  # the --tree that is chosen by what a call costs
ALL_METHODS_OF = {  # which methods an option belongs to; with another one it is refused rather than ignored
    "tree": ("probe", "ngram", "recycle"),
    "num_masks": ("probe",),
    "block_complexity": ("probe",),
    "mask_init": ("probe",),
    "mask_offset": ("probe",),
    "mask_ema": ("probe",),
    "no_prune": ("probe",),
    "rank_without_noise": ("probe",),
    "max_ngram": ("ngram",),
    "match": ("ngram",),
    "warm": ("recycle",),
}


def add_draft(parser: argparse.ArgumentParser) -> None:
    """How to draft. Options that were not given stay at None, so that `draft_config` can tell."""
    parser.add_argument(
        "--tree",
        metavar="T",
        help="probe: candidates by depth, such as 14 or 15,4, or 'dynamic' (14); generate and verify: or 'auto', what pays "
        "here; ngram: tokens of the chain (10); recycle: nodes, root included, or 'static80' (60)",
    )
    parser.add_argument("--num-masks", type=int, metavar="K", help="mask tokens of each node, 1 to 3; 0 is plain")
    parser.add_argument("--block-complexity", type=int, metavar="BC", help="rows a call may have")
    parser.add_argument("--mask-init", choices=MASK_INITS, help=f"first value of the masks ({PLAIN.mask_init})")
    parser.add_argument(
        "--mask-offset", type=float, metavar="C", help=f"of --mask-init offset ({PLAIN.mask_offset:g} deviations)"
    )
    parser.add_argument(
        "--mask-ema", type=float, metavar="L", help=f"lambda; 0 freezes the masks ({Settings().mask_ema:g})"
    )
    flag: dict[str, Any] = {"action": "store_true", "default": None}
    parser.add_argument("--no-prune", **flag, help="keep candidates that repeat their parent's token")
    parser.add_argument("--rank-without-noise", **flag, help="rank sampled drafts as the paper does")
    parser.add_argument("--max-ngram", type=int, metavar="N", help="ngram: tokens compared at most (5)")
    parser.add_argument("--match", choices=NGRAM_MATCHES, help="ngram: which of equally long matches (recent)")
    parser.add_argument("--warm", **flag, help="recycle: one table for all prompts, which stays")


def draft_config(args: argparse.Namespace, *, takes_auto: bool = False) -> DraftConfig:
    """The way of drafting that the flags of `add_draft` and `--method` name.

    Args:
      args: the flags.
      takes_auto: True where the command chooses a tree for `--tree auto`: the default tree then stands in its place.

    Raises:
      ValueError: one line, for an option of another method too.
    """
    if args.tree == AUTO and args.method != "probe":
        raise ValueError(f"--tree auto is for --method probe, not {args.method}.")
    if args.tree == AUTO and not takes_auto:
        raise ValueError("--tree auto is for generate and verify; name a tree here, such as --tree 14.")
    given = {name for name in ALL_METHODS_OF if getattr(args, name) is not None}
    is_maskless = args.method == "probe" and args.num_masks == 0 and args.tree is None
    if args.method == "ar" or is_maskless:
        if given - {"num_masks"} or (given and not is_maskless):
            name = "--num-masks 0" if is_maskless else "--method ar"
            raise ValueError(f"{name} is plain decoding: leave the options of masks and trees out.")
        return PLAIN
    for name in sorted(given):
        if args.method not in ALL_METHODS_OF[name]:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is for --method {' or '.join(ALL_METHODS_OF[name])}, not {args.method}.")
    if args.method == "ngram":
        return NgramConfig(**_present(num_drafts=_whole(args.tree), max_ngram=args.max_ngram, match=args.match))
    if args.method == "recycle":
        tree = args.tree if args.tree == "static80" else _whole(args.tree)
        return RecycleConfig(**_present(tree=tree, is_warm=args.warm))
    return _probe_config(args)


def _probe_config(args: argparse.Namespace) -> ProbeConfig:
    tree: tuple[int, ...] | str
    if args.tree in (None, AUTO):
        for option, value in (("--num-masks", args.num_masks), ("--block-complexity", args.block_complexity)):
            if value is not None and args.tree == AUTO:
                raise ValueError(f"--tree auto chooses masks and rows itself: leave {option} {value} out.")
            if value is not None:
                raise ValueError(f"{option} {value} needs a --tree, such as --tree 14; --method ar is plain decoding.")
        tree = DEFAULT_DRAFT.tree
    elif args.tree == "dynamic":
        tree = "dynamic"
    else:
        try:
            tree = tuple(int(width) for width in args.tree.split(","))
        except ValueError:
            raise ValueError(f"--tree must be numbers, such as 14 or 15,4, or dynamic, got {args.tree!r}.") from None
    if args.mask_offset is not None and args.mask_init != "offset":
        raise ValueError("--mask-offset is of --mask-init offset; give both.")
    more = _present(mask_init=args.mask_init, mask_offset=args.mask_offset)
    return ProbeConfig(
        tree=tree,
        num_masks=args.num_masks,
        block_complexity=args.block_complexity,
        prune=not args.no_prune,
        rank_with_noise=not args.rank_without_noise,
        **more,
    )


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _whole(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        raise ValueError(f"--tree must be a whole number for this method, got {text!r}.") from None
