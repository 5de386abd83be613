"""The flags that stood for a way of drafting before there was a text form, as shorthand for it.

--method recycle --tree 60 --warm                             recycle:60@warm=1
--tree 15,4 --mask-init last_k                                probe:15+4@mask_init=last_k
--tree dynamic --num-masks 2 --block-complexity 60            dynamic:60@num_masks=2
"""

from collections.abc import Mapping
from typing import Any

from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import DEFAULT_DRAFT, PLAIN, SOURCES, parse_draft, source_fields

DEFAULT_METHOD = "probe"
METHODS = ("probe", "ar", *(name for name in SOURCES if name not in ("probe", "dynamic")))
FIELDS = {  # flag -> the field it sets, and what it sets where it takes no value
    "mask_init": ("mask_init", None),
    "mask_offset": ("mask_offset", None),
    "mask_ema": ("mask_ema", None),
    "no_prune": ("prune", "0"),
    "rank_without_noise": ("rank_with_noise", "0"),
    "max_ngram": ("max_ngram", None),
    "match": ("match", None),
    "warm": ("warm", "1"),
}
FLAGS = ("tree", "num_masks", "block_complexity", *FIELDS)


def parse_flags(method: str, flags: Mapping[str, Any]) -> DraftSource:
    """Reads a draft source from flags.

    Args:
      method: one of `METHODS`.
      flags: name -> value, of `FLAGS`; None where a flag was not given.

    Raises:
      ValueError: one line, for a flag of another method too: none is ignored.
    """
    given = {name: flags[name] for name in FLAGS if flags.get(name) is not None}
    has_no_masks = method == "probe" and given.get("num_masks") == 0 and "tree" not in given
    if method in ("ar", PLAIN) or has_no_masks:
        if set(given) - {"num_masks"} or (given and not has_no_masks):
            name = "--num-masks 0" if has_no_masks else f"--method {method}"
            raise ValueError(f"{name} is plain decoding: leave the options of masks and trees out.")
        return parse_draft(PLAIN)
    for name in sorted(given):
        methods = [each for each in METHODS if _takes(each, name)]
        if method not in methods:
            raise ValueError(f"{_flag(name)} is for --method {' or '.join(methods) or 'none'}, not {method}.")
    if "mask_offset" in given and given.get("mask_init") != "offset":
        raise ValueError("--mask-offset is of --mask-init offset; give both.")
    text = _probe(given) if method == "probe" else method + (f":{given['tree']}" if "tree" in given else "")
    options = [f"{field}={value or given[name]}" for name, (field, value) in FIELDS.items() if name in given]
    if options:
        text += ("," if "@" in text else "@") + ",".join(options)
    source = parse_draft(text)
    _check_size(source, given)
    return source


def _takes(method: str, flag: str) -> bool:
    if method in ("ar", PLAIN):
        return False
    if flag == "tree":
        return True
    if flag in ("num_masks", "block_complexity"):
        return method == DEFAULT_METHOD
    return FIELDS[flag][0] in source_fields(method)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _probe(given: Mapping[str, Any]) -> str:
    """Writes the text form of a probe's tree."""
    if "tree" not in given:
        for name in ("num_masks", "block_complexity"):
            if name in given:
                raise ValueError(
                    f"{_flag(name)} {given[name]} needs a --tree, such as --tree 14; --method ar is plain decoding."
                )
        return DEFAULT_DRAFT
    if given["tree"] != "dynamic":
        widths = [part.strip() for part in given["tree"].split(",")]
        if not all(width.lstrip("+-").isdecimal() for width in widths):
            raise ValueError(f"--tree must be numbers, such as 14 or 15,4, or dynamic, got {given['tree']!r}.")
        if not all(width.isdecimal() for width in widths):
            raise ValueError(
                f"each depth of a tree needs a whole number of candidates, at least 1, got {given['tree']}."
            )
        return f"probe:{'+'.join(widths)}"
    if "num_masks" not in given or "block_complexity" not in given:
        raise ValueError("a dynamic tree needs --num-masks and --block-complexity, such as 2 and 60.")
    return f"dynamic:{given['block_complexity']}@num_masks={given['num_masks']}"


def _check_size(source: DraftSource, given: Mapping[str, Any]) -> None:
    """Holds what was read against the masks and rows that were named beside the tree."""
    num_masks = given.get("num_masks", source.num_masks)
    if num_masks != source.num_masks:
        raise ValueError(
            f"{num_masks} masks need a tree of {num_masks} numbers, one a mask, got {given['tree']}; give such a tree, or "
            f"leave --num-masks out."
        )
    if source.num_rows > given.get("block_complexity", source.num_rows):
        raise ValueError(
            f"tree {given['tree']} makes {source.num_rows} rows, but --block-complexity is {given['block_complexity']}; "
            f"raise it or use fewer candidates."
        )
