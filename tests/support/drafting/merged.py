"""The merged draft in tests: the weights that come with the package, and how the reference decodes as a source does."""

import functools
import json
from pathlib import Path

import reference

import jax_probe_mtp.drafting.merged

WEIGHTS = json.loads(Path(jax_probe_mtp.drafting.merged.__file__).with_name("weights.json").read_text())


def of_reference(source, capacity):
    """Makes the reference's decoding of one row with a cold source."""
    how = {"num_rows": source.rows, "mask_owners": source.num_owned, "max_depth": source.depth}
    how |= {"mask_init": source.mask_init} if source.num_owned else {}
    return functools.partial(reference.merged_decode, weights=WEIGHTS, capacity=capacity, **how)
