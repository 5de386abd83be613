"""The page of the examples names each of them once, and each says how to run it."""

import ast
import re
from pathlib import Path

import own_draft_source

FOLDER = Path(own_draft_source.__file__).parent
EXAMPLES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb"))


def test_each_example_has_a_line():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[(\S+)\]\(\1\) \|", page, flags=re.MULTILINE)) == EXAMPLES


def test_each_file_says_how_to_run_it():
    for name in EXAMPLES:
        if name.endswith(".py"):
            says = ast.get_docstring(ast.parse((FOLDER / name).read_text(encoding="utf-8")))
            assert re.search(rf"^    .*python {name}\b", says, flags=re.MULTILINE), name
