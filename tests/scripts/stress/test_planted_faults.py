"""`scripts/stress/planted_faults.py`: its faults are where they say, and a test that fails by itself catches one."""

import ast
import collections
import json
import re
from pathlib import Path

import planted_faults
import pytest
from faults import FAULTS
from faults.fault import Fault

from jax_probe_mtp.errors import exit_status

ROOT = Path(__file__).parents[3]
PACKAGES = [
    "kernels",
    "model",
    "drafting",
    "decoding",
    "generation",
    "jobs",
    "files",
    "sameness",
    "checkpoints_convert",
]


def test_there_are_42_in_all_packages():
    assert len(FAULTS) == len({fault.name for fault in FAULTS}) == 42
    assert sorted(collections.Counter(fault.package for fault in FAULTS)) == sorted(PACKAGES)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_changes_one_place_of_code_and_has_tests(fault):
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    planted = fault.planted(ROOT)  # raises where the old text is not there once
    assert planted.count(fault.new) >= 1
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(text)), "no mistake of meaning, or one of syntax"
    assert 1 <= len(fault.tests) <= 4
    assert all((ROOT / test).is_file() and Path(test).name.startswith("test_") for test in fault.tests)


SUMS = "jax_probe_mtp/sums.py"
CODE = "def add(a, b):\n    return a + b\n"
TESTS = {
    "tests/test_sums.py": "from jax_probe_mtp.sums import add\n\ndef test_add():\n    assert add(2, 3) == 5\n",
    "tests/test_blind.py": "from jax_probe_mtp.sums import add\n\ndef test_add():\n    assert add(2, 2) == 4\n",
    "tests/test_broken.py": "from jax_probe_mtp.sums import add\nassert add(2, 3) == 5\n\ndef test_add():\n    pass\n",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A small project in the product's place."""
    root = tmp_path / "root"
    for folder in planted_faults.COPIED_FOLDERS:
        (root / folder).mkdir(parents=True)
    for file in planted_faults.COPIED_FILES:
        (root / file).write_text("")
    package = {"jax_probe_mtp/__init__.py": ""}  # else an installed one would be found first
    for name, text in {**package, SUMS: CODE, **TESTS}.items():
        (root / name).write_text(text)
    monkeypatch.setattr(planted_faults, "ROOT", root)
    monkeypatch.setattr(planted_faults, "SETTLED", 0.0)
    return root


def product(*tests, old="a + b"):
    return Fault(name="-".join(tests), breaks="sums", file=SUMS, old=old, new="a * b", tests=tests)


def test_a_fault_is_caught_by_a_test_that_fails_and_by_nothing_else(root, monkeypatch, tmp_path, capsys):
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    monkeypatch.setattr(planted_faults, "FAULTS", [product(test) for test in TESTS])
    args = ["--json", str(tmp_path / "r.json"), "--page", str(tmp_path / "p.md")]
    assert planted_faults.main(args) == 1
    record = json.loads((tmp_path / "r.json").read_text())
    found = [(fault["is_caught"], fault["first_failed"]) for fault in record["faults"]]
    assert found == [(True, "tests/test_sums.py::test_add"), (False, None), (False, None)]
    assert record["caught"] == 1
    assert "1 of 3 faults are caught" in capsys.readouterr().out
    assert (tmp_path / "p.md").read_text().count("NOT CAUGHT") == 2
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert planted_faults.main(["--only", "tests/test_sums.py"]) == 0


def test_tests_that_fail_without_a_fault_are_told(root, monkeypatch, capsys):
    monkeypatch.setattr(planted_faults, "FAULTS", [product("tests/test_sums.py"), product("tests/test_blind.py")])
    (root / "tests/test_sums.py").write_text(TESTS["tests/test_sums.py"].replace("5", "6"))
    assert planted_faults.main(["--check-clean"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^FAILS without a fault, \d+ s: tests/test_sums.py\n  tests/test_sums.py::test_add$", out, re.M)
    assert re.search(r"^passes without a fault, \d+ s: tests/test_blind.py$", out, re.M)
    assert "faults are caught" not in out


@pytest.mark.parametrize(("old", "count"), [("a - b", 0), ("a", 3)])
def test_code_that_has_moved_on_is_named_before_anything_runs(root, monkeypatch, capsys, old, count):
    monkeypatch.setattr(planted_faults, "FAULTS", [product("tests/test_sums.py"), product("moved", old=old)])
    monkeypatch.setattr(planted_faults, "run_tests", lambda *_: pytest.fail("tests ran"))
    assert exit_status(lambda: planted_faults.main([])) == 2
    says = f"error: fault moved: its old text is {count} times in {SUMS}, not once; mend the fault.\n"
    assert capsys.readouterr().err == says


def test_a_loop_without_an_end_is_not_caught(root, monkeypatch, capsys):
    monkeypatch.setattr(planted_faults, "FAULTS", [product("tests/test_sums.py")])
    monkeypatch.setattr(planted_faults, "LONGEST", 3.0)
    loop = "\n\ndef test_loop():\n    while add(2, 3) != 5:\n        pass\n"
    (root / "tests/test_sums.py").write_text(TESTS["tests/test_sums.py"].split("\n")[0] + loop)
    assert planted_faults.main([]) == 1
    assert "NOT CAUGHT: no end within 3 s" in capsys.readouterr().out


def test_a_name_that_is_none_of_a_fault_is_refused(capsys):
    assert exit_status(lambda: planted_faults.main(["--only", "nothing"])) == 2
    assert capsys.readouterr().err == "error: no fault is named nothing; --list names all.\n"
    assert planted_faults.main(["--list", "--only", "walk-never-accepts"]) == 0
    assert capsys.readouterr().out.startswith("walk-never-accepts ")
