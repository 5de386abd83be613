"""The method written a second time, slowly: NumPy in float64, no cache, no batch, no masks; one row, plain Python lists.

Every call reruns the model over the whole text. What a mask sees is spelled out by running it: the text up to its owner,
then masks 1..i, plainly causal. Trees are lists of (token, parent index, depth), root first. Nothing here imports the code
under test.
"""

from reference.decode import (
    decode_together,
    merged_batch,
    merged_decode,
    ngram_decode,
    plain_decode,
    probe_decode,
    recycle_batch,
    recycle_decode,
    turns,
    without_padding,
)
from reference.merged import Learned, Merged
from reference.model import Model
from reference.sampling import noise, own_next, penalized, scores
from reference.sources import Ngram, Probe, Recycle, chosen_mask, first_masks, ngram_chain, successors
from reference.trees import NO_TOKEN, STATIC80, best_first_tree, build_tree, static80_tree

__all__ = [
    "NO_TOKEN",
    "STATIC80",
    "Learned",
    "Merged",
    "Model",
    "Ngram",
    "Probe",
    "Recycle",
    "best_first_tree",
    "build_tree",
    "chosen_mask",
    "decode_together",
    "first_masks",
    "merged_batch",
    "merged_decode",
    "ngram_chain",
    "ngram_decode",
    "noise",
    "own_next",
    "penalized",
    "plain_decode",
    "probe_decode",
    "recycle_batch",
    "recycle_decode",
    "scores",
    "static80_tree",
    "successors",
    "turns",
    "without_padding",
]
