"""Who may import whom, what no file may know, how large a file may be, and that importing has no effects."""

import ast
import collections
import graphlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints_convert
import jax_probe_mtp
from jax_probe_mtp.drafting.spec import SOURCES

PACKAGE = Path(jax_probe_mtp.__file__).parent
CONVERTER = Path(checkpoints_convert.__file__).parent
TESTS = Path(__file__).parent
SCRIPTS = TESTS.parent / "scripts"
EXAMPLES = TESTS.parent / "docs" / "examples"
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


ORDER = [
    "errors",
    "files",
    "kernels",
    "model",
    "drafting",
    "decoding",
    "generation",
    "jobs",
    "sameness",
    "tuning",
    "measuring",
    "commands",
]


def test_a_package_imports_only_packages_above_it_and_no_file_is_in_a_circle():
    graph = {}
    for path in PACKAGE.rglob("[!_]*.py"):
        own = path.relative_to(PACKAGE).with_suffix("").parts
        graph[own] = others = set()
        for module, _ in imports(path):
            name, *rest = module.split(".")
            if name == "jax_probe_mtp":
                assert ORDER.index(rest[0]) <= ORDER.index(own[0]), f"{path} imports {module}"
                others |= {
                    tuple(rest[:size]) for size in (1, 2) if (PACKAGE / Path(*rest[:size])).with_suffix(".py").exists()
                }
    assert {own[0] for own in graph} == set(ORDER)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_file_is_long_and_no_folder_is_full():
    files = [path for folder in (PACKAGE, CONVERTER, TESTS, SCRIPTS, EXAMPLES) for path in folder.rglob("*.py")]
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {path: length for path, length in lengths.items() if length > 300}
    faces = [path for path in files if path.name == "__init__.py" and TESTS not in path.parents]
    assert not [path for path in faces if lengths[str(path)] > 30]
    in_folders = collections.Counter(path.parent for path in files if path.name != "__init__.py")
    assert max(in_folders.values()) <= 14, in_folders


def test_no_file_outside_drafting_knows_a_source_but_the_public_face():
    names = {place.partition(":")[2] for place in SOURCES.values()}
    modules = {place.partition(":")[0] for place in SOURCES.values()}
    for path in PACKAGE.rglob("*.py"):
        if PACKAGE / "drafting" in path.parents or path == PACKAGE / "__init__.py":
            continue
        for module, _ in imports(path):
            assert module.rpartition(".")[0] not in modules, f"{path} imports {module}"
            assert module.rpartition(".")[2] not in names, f"{path} imports {module}"


def test_nothing_asks_which_source_it_is():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                asked = ast.unparse(node.args[1])
                assert not re.search(r"Source|Probe|Ngram|Recycle|Plain|Table", asked), f"{path}: {ast.unparse(node)}"


def test_all_else_runs_without_a_source(tmp_path):
    """One file, its line in the list of sources and in the two faces: that is all there is of a source."""
    copy = shutil.copytree(PACKAGE, tmp_path / "jax_probe_mtp", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "drafting" / "ngram.py").unlink()
    for path in (copy / "drafting" / "spec.py", copy / "drafting" / "__init__.py"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not re.search(r"ngram[.:]|import Ngram|\"Ngram\"", line)))
    modules = sorted(
        ".".join(["jax_probe_mtp", *path.relative_to(copy).with_suffix("").parts]) for path in copy.rglob("[!_]*.py")
    )
    code = f"""
import importlib, sys
sys.path[:0] = [{str(tmp_path)!r}, {str(TESTS)!r}]
for module in {modules}:
    importlib.import_module(module)
import jax_probe_mtp, jax_probe_mtp.drafting.spec as spec
assert jax_probe_mtp.__file__.startswith({str(tmp_path)!r}) and "ngram" not in spec.SOURCES
from checkpoints import make_checkpoint
from conftest import BASE, make_tiny
settings = jax_probe_mtp.Settings(max_new_tokens=8)
answers = [jax_probe_mtp.generate(make_checkpoint(make_tiny(BASE, 3)), [[5, 9, 2]], draft=draft, settings=settings)
           for draft in ("plain", "probe:4", "recycle:8")]
assert answers[0][0].token_ids == answers[1][0].token_ids == answers[2][0].token_ids
try:
    spec.parse_draft("ngram:4")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("draft 'ngram:4'")


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
