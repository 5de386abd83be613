"""The runs of a benchmark by name: `method[:shape][@option=value,...]`, such as `probe:15+4@init=last_k,ema=0.5`.

| method | shape | options |
|---|---|---|
| `ar` | none | none |
| `probe` | `14`, `15+4`, or `dynamic60k2`: 60 rows, 2 masks | `init`, `offset`, `ema`, `prune`, `noise` |
| `ngram` | `10`, tokens of the chain | `n`, the most tokens compared; `match`, recent or first |
| `recycle` | `60`, nodes of a best-first tree, or `static80` | `warm` |
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from jax_probe_mtp.drafting.draft_config import PLAIN, DraftConfig, NgramConfig, ProbeConfig, RecycleConfig
from jax_probe_mtp.generation.decoder import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One way of drafting under its name.

    Attributes:
      name: as it was written.
      draft: the draft source and its tree.
      mask_ema: lambda of ESP's Eq. (5).
    """

    name: str
    draft: DraftConfig
    mask_ema: float = Settings().mask_ema

    @property
    def method(self) -> str:
        """What stands before the shape and the options."""
        return method_of(self.name)


def method_of(name: str) -> str:
    """The method of a run's name."""
    return re.split("[:@]", name)[0]


def parse_runs(text: str) -> list[Run]:
    """Runs separated by `;`. Plain decoding comes first, named or not: what every run is compared with.

    Raises:
      ValueError: names the run that cannot be read and what it could be, or that is there twice.
    """
    names = [name.strip() for name in text.split(";") if name.strip()]
    runs = [parse_run(name) for name in ["ar", *(name for name in names if name != "ar")]]
    for i, run in enumerate(runs):
        twin = next((other for other in runs[:i] if (other.draft, other.mask_ema) == (run.draft, run.mask_ema)), None)
        if twin:
            raise ValueError(f"runs {twin.name!r} and {run.name!r} are the same; leave one out.")
    return runs


def parse_run(name: str) -> Run:
    """One run; see the module's table."""
    matched = re.fullmatch(r"(\w+)(?::([\w+]+))?(?:@(.+))?", name)
    if not matched or matched[1] not in _PARSERS:
        raise ValueError(
            f"run {name!r} cannot be read: write method:shape@option=value,..., with one of the methods "
            f"{', '.join(_PARSERS)}, such as probe:15+4@init=last_k,ema=0.5."
        )
    method, shape, options = matched.groups()
    known = _OPTIONS[method]
    values: dict[str, Any] = {}
    for option in options.split(",") if options else []:
        key, _, value = option.partition("=")
        if key not in known or key in values:
            twice = " once" if key in values else ""
            raise ValueError(
                f"run {name!r}: {method} takes{twice} {', '.join(known) or 'no options'} after the @, got {option!r}."
            )
        try:
            values[key] = known[key](value)
        except ValueError:
            raise ValueError(f"run {name!r}: {key} cannot be {value!r}.") from None
    try:
        return dataclasses.replace(_PARSERS[method](shape, values), name=name)
    except ValueError as error:
        raise ValueError(f"run {name!r}: {error}") from None


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:  # nan too
        raise ValueError(text)
    return value


def _ar(shape: str | None, values: dict[str, Any]) -> Run:
    if shape:
        raise ValueError(f"plain decoding has no shape, got {shape!r}.")
    return Run(name="ar", draft=PLAIN)


def _probe(shape: str | None, values: dict[str, Any]) -> Run:
    if "offset" in values and values.get("init") != "offset":
        raise ValueError("offset is of init=offset; write both.")
    dynamic = re.fullmatch(r"dynamic(\d+)k(\d+)", shape or "")
    named = {"init": "mask_init", "offset": "mask_offset", "prune": "prune", "noise": "rank_with_noise"}
    more = {named[key]: value for key, value in values.items() if key in named}
    if dynamic:
        more |= {"tree": "dynamic", "block_complexity": int(dynamic[1]), "num_masks": int(dynamic[2])}
    elif re.fullmatch(r"\d+(\+\d+)*", shape or ""):
        more["tree"] = tuple(int(width) for width in str(shape).split("+"))
    else:
        raise ValueError(f"a probe's shape is 14, 15+4 or dynamic60k2, got {shape or 'none'}.")
    return Run(name="probe", draft=ProbeConfig(**more), mask_ema=values.get("ema", Settings().mask_ema))


def _ngram(shape: str | None, values: dict[str, Any]) -> Run:
    if not (shape or "").isdecimal():
        raise ValueError(f"an ngram's shape is the length of its chain, such as 10, got {shape or 'none'}.")
    named = {"n": "max_ngram", "match": "match"}
    more = {named[key]: value for key, value in values.items()}
    return Run(name="ngram", draft=NgramConfig(num_drafts=int(str(shape)), **more))


def _recycle(shape: str | None, values: dict[str, Any]) -> Run:
    if shape != "static80" and not (shape or "").isdecimal():
        raise ValueError(f"a recycle's shape is its number of nodes, such as 60, or static80, got {shape or 'none'}.")
    tree = shape if shape == "static80" else int(str(shape))
    return Run(name="recycle", draft=RecycleConfig(tree=tree, is_warm=values.get("warm", False)))


_PARSERS: dict[str, Callable[[str | None, dict[str, Any]], Run]] = {
    "ar": _ar,
    "probe": _probe,
    "ngram": _ngram,
    "recycle": _recycle,
}
_OPTIONS: dict[str, dict[str, Callable[[str], Any]]] = {
    "ar": {},
    "probe": {"init": str, "offset": float, "ema": _number, "prune": _flag, "noise": _flag},
    "ngram": {"n": int, "match": str},
    "recycle": {"warm": _flag},
}
