"""The faults that `planted_faults.py` plants, by the package that they are in."""

from faults.of_checkpoints import CHECKPOINTS
from faults.of_decoding import DECODING
from faults.of_drafting import DRAFTING
from faults.of_jobs import JOBS
from faults.of_model import MODEL

FAULTS = (*MODEL, *DRAFTING, *DECODING, *JOBS, *CHECKPOINTS)
