"""tau_and_tree.ipynb runs, cell by cell, on a small model, draws the tree that it says, and keeps small outputs.

Its cells are plain Python, so they run in this process: a Jupyter kernel would bring some thirty packages.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import matplotlib
import numpy as np
import own_draft_source
import pytest
import reference
from checkpoints import EOS, make_checkpoint

import checkpoints_convert
from jax_probe_mtp.drafting import NO_PARENT, NO_TOKEN

NOTEBOOK = Path(own_draft_source.__file__).parent / "tau_and_tree.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def said(tiny):
    """What is defined after all cells, what they print, and the figures that they show."""
    from matplotlib import pyplot as plt

    printed, shown = [], []
    checkpoint = make_checkpoint(tiny)
    checkpoint.tokenizer.chat_template = "w5 w9 w2 w44 w17 w3 w3"
    namespace = {"print": lambda text: printed.append(text)}
    before = matplotlib.get_backend()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints_convert, "load_checkpoint", lambda name, dtype: checkpoint)
        patch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
        plt.switch_backend("agg")
        for cell in CELLS:
            exec("".join(cell["source"]), namespace)
    yield namespace, printed, shown
    plt.close("all")
    plt.switch_backend(before)


def test_tau_is_measured_and_the_tokens_are_plain_decodings(said, tiny):
    namespace, printed, _ = said
    plain, gap = reference.plain_decode(tiny.reference, [5, 9, 2, 44, 17, 3, 3], max_new_tokens=32, eos=(EOS,))
    assert gap > 1e-3, "choose another prompt: rounding could decide this one"
    assert namespace["plain"] == [plain] * 3
    assert {name: [rows for rows, _ in line] for name, line in namespace["points"].items()} == {
        "probe, 1 mask": [1, 10, 30],
        "Token Recycling": [1, 10, 30],
    }
    taus = [tau for line in namespace["points"].values() for _, tau in line]
    assert taus[0] == taus[3] == 1
    assert max(taus) > 1
    assert [line.split(" ")[-1] for line in printed[:4]] == [f"{tau:.3f}" for tau in [*taus[1:3], *taus[4:]]]


def test_both_figures_show_what_was_found(said):
    namespace, _, (of_tau, of_tree) = said
    lines = {line.get_label(): line.get_xydata().tolist() for line in of_tau.axes[0].lines}
    assert lines == {name: [list(point) for point in points] for name, points in namespace["points"].items()}
    best, num_accepted = namespace["best"], namespace["num_accepted"]
    assert num_accepted == max(int(call.accepted.num_accepted_B[0]) for call in namespace["calls"]) > 0
    drawn = [text for text in of_tree.axes[0].texts if text.get_bbox_patch() is not None]
    assert len(drawn) == int(np.sum(np.asarray(best.tree.token_BN) != NO_TOKEN))
    assert sum(line.get_linewidth() == 3 for line in of_tree.axes[0].lines) == num_accepted


def test_a_tree_drawn_by_hand(said):
    """Root 7 with children 4 and 5, under 4 the drafts 8 and 9, an unused node; 4 and 9 are accepted."""
    from matplotlib import pyplot as plt

    tree = SimpleNamespace(
        token_BN=jnp.asarray([[7, 4, 5, 8, 9, NO_TOKEN]]),
        parent_BN=jnp.asarray([[NO_PARENT, 0, 0, 1, 1, 0]]),
        depth_BN=jnp.asarray([[0, 1, 1, 2, 2, 1]]),
    )
    accepted = SimpleNamespace(node_BP=jnp.asarray([[0, 1, 4]]), num_accepted_B=jnp.asarray([2]))
    _, axes = plt.subplots()
    said[0]["draw_tree"](axes, tree, accepted, str)
    places = {text.get_text(): tuple(map(float, text.get_position())) for text in axes.texts}
    assert places == {"7": (0, 1.25), "4": (1, 0.5), "5": (1, 2), "8": (2, 0), "9": (2, 1)}
    thick = [line.get_xydata().tolist() for line in axes.lines if line.get_linewidth() == 3]
    assert thick == [[[0, 1.25], [1, 0.5]], [[1, 0.5], [2, 1]]]


def test_the_kept_outputs_are_small_and_whole():
    assert NOTEBOOK.stat().st_size < 100_000
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    text = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert [line.split(":")[1] for line in text.splitlines()[:4]] == ["4", "14", "10", "30"]
    assert re.search(r"^\d+ calls; drawn is one that accepted \d+ drafts$", text, flags=re.MULTILINE)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
