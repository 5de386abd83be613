"""Who may import whom: each file of the package only files before it in one order, and no torch."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints_convert
import jax_probe_mtp

PACKAGE = Path(jax_probe_mtp.__file__).parent
CONVERTER = Path(checkpoints_convert.__file__).parent
BOTH = sorted([*PACKAGE.rglob("*.py"), *CONVERTER.rglob("*.py")])


def imports(path):
    """(module, is it at the top) of each import of a file; `from package import module` counts as the module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {node for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found += [(f"{node.module}.{alias.name}", node not in inside) for alias in node.names]
    return found


def test_only_the_commands_know_the_converter_and_not_at_the_top():
    importers = {
        (path.stem, is_at_top)
        for path in PACKAGE.rglob("*.py")
        for module, is_at_top in imports(path)
        if module.split(".")[0] == "checkpoints_convert"
    }
    assert importers == {("demo", False), ("options", False), ("compare", False)}


def test_only_the_comparison_with_transformers_imports_torch():
    importers = {path for path in BOTH for module, _ in imports(path) if module.split(".")[0] == "torch"}
    assert importers == {CONVERTER / "compare.py"}


@pytest.mark.parametrize("package", ["jax_probe_mtp", "jax_probe_mtp.commands.main", "checkpoints_convert"])
def test_importing_changes_nothing(package):
    code = f"""
import json, sys
import jax
from jax._src import xla_bridge
before = dict(jax.config.values)
import {package}
print(json.dumps({{
    "torch": "torch" in sys.modules,
    "backend": xla_bridge.backends_are_initialized(),
    "config": [name for name, value in jax.config.values.items() if name in before and before[name] != value],
}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"torch": False, "backend": False, "config": []}
