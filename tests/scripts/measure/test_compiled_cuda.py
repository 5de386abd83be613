"""What XLA makes of a decode step for an H100 that is not here: neither weights nor cache move, and our kernels are in it.

Needs JAX's CUDA plugin, and no GPU: scripts/test_cuda.sh.
"""

import importlib.util
import json
import os
import subprocess
import sys

import compiled_step
import pytest

pytestmark = [
    pytest.mark.full_compile,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda13_plugin") is None, reason="compiles for GPUs: needs the plugin"
    ),
]
SHAPE = ["--shape", "smollm2-135m", "--layers", "1", "--programs", "steps"]


def compiled(folder, *flags):
    """In a process of its own: XLA reads its flags once."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path), "XLA_FLAGS": ""}
    command = [sys.executable, compiled_step.__file__, "--topology", "h100", *SHAPE, *flags]
    command += ["--text", str(folder), "--output", str(folder / "r.json")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "r.json").read_text())["runs"]


@pytest.mark.parametrize(
    ("dtype", "drafts"),
    [
        ("bfloat16", {"plain": 9, "probe:14": 10, "recycle:30": 10}),
        ("float32", {"plain": 9, "probe:14": 10}),
        ("bfloat16", {"merged:16": 11}),
    ],
    ids=["bfloat16", "float32", "merged"],
)
def test_a_call_moves_neither_weights_nor_cache(tmp_path, dtype, drafts):
    """A layer is nine kernels of ours; with drafts one keeps the accepted path, of a merged draft one grows the tree."""
    runs = compiled(tmp_path, "--dtype", dtype, "--drafts", *drafts)
    assert [run["draft"] for run in runs] == list(drafts)
    for run in runs:
        loop = max(run["loops"], key=lambda loop: loop["reads"]["weights"])
        assert loop["reads"]["weights"] > 2 * 28e6  # the head's numbers are 28 million
        assert loop["moved"]["weights"] == loop["moved"]["cache"] == 0
        [path] = tmp_path.glob(f"*-{run['draft'].replace(':', '_')}-*.txt")
        text = path.read_text()
        assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == drafts[run["draft"]]
