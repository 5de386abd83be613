"""The runs of a benchmark: draft sources by their text forms (`drafting/spec.py`), separated by `;`."""

import dataclasses
import re

from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One way of drafting under its name.

    Attributes:
      name: as it was written.
      source: where drafts come from.
    """

    name: str
    source: DraftSource


def method_of(name: str) -> str:
    """Gives what stands before the shape and the options of a run's name."""
    return re.split("[:@]", name)[0]


def parse_runs(text: str) -> list[Run]:
    """Reads runs. Plain decoding comes first, named or not: what every run is compared with.

    Raises:
      ValueError: names the run that cannot be read and what it could be, or that is there twice.
    """
    plain = parse_draft(PLAIN)
    named = [(name.strip(), parse_draft(name.strip())) for name in text.split(";") if name.strip()]
    runs = [Run(name=PLAIN, source=plain)]
    runs += [Run(name=name, source=source) for name, source in named if source != plain]
    for i, run in enumerate(runs):
        twin = next((other for other in runs[:i] if other.source == run.source), None)
        if twin:
            raise ValueError(f"runs {twin.name!r} and {run.name!r} are the same; leave one out.")
    return runs
