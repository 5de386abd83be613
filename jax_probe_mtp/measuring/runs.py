"""The runs of a benchmark: draft sources by their text forms (`drafting/spec.py`), separated by `;`."""

from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft


def parse_runs(text: str) -> list[DraftSource]:
    """Reads runs. Plain decoding comes first, named or not: what every run is compared with.

    Raises:
      ValueError: names the run that cannot be read and what it could be, or that is there twice.
    """
    names = [PLAIN, *(name.strip() for name in text.split(";") if name.strip() not in ("", PLAIN, "ar"))]
    runs: dict[DraftSource, str] = {}
    for name in names:
        source = parse_draft(name)
        if source in runs:
            raise ValueError(f"runs {runs[source]!r} and {name!r} are the same; leave one out.")
        runs[source] = name
    return list(runs)
