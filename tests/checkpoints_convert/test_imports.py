"""Checks who imports whom in the converter: a folder or file only those on lines above its own, and no file in a circle."""

import ast
import graphlib
from pathlib import Path

import checkpoints_convert

PACKAGE = Path(checkpoints_convert.__file__).parent
LINES = ["errors", "mapping", "params", "gguf huggingface", "load convert", "info compare", "cli", "__init__ __main__"]
LINE_OF = {name: i for i, line in enumerate(LINES) for name in line.split()}


def test_imports_point_one_way():
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        graph[".".join(parts)] = others = set()
        for package, name, *rest in (module.split(".") for module in modules if "." in module):
            if package == "checkpoints_convert":
                assert name == parts[0] or LINE_OF[name] < LINE_OF[parts[0]], f"{path} imports {name}"
                others.add(".".join([name, *rest]))
            assert package != "jax_probe_mtp" or name in ("errors", "model"), f"{path} imports {name}"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
