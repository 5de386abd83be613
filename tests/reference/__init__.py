"""The method written a second time, slowly: NumPy in float64, no cache, no batch, no masks; one row, plain Python lists.

Every call reruns the model over the whole text. What a mask sees is spelled out by running it: the text up to its owner,
then masks 1..i, plainly causal. Trees are lists of (token, parent index, depth). Nothing here imports the code under test.
"""

from reference.decode import *  # noqa: F403
