"""The README's Python runs as it stands there, on a tiny checkpoint in place of the hub's."""

import re
from pathlib import Path

from checkpoints import make_checkpoint

import checkpoints_convert

README = Path(__file__).parent.parent / "README.md"


def test_the_python_examples_run(monkeypatch, capsys, tiny):
    tiny_checkpoint = make_checkpoint(tiny)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    asked = []

    def load(name, *, dtype):
        asked.append((name, dtype))
        return tiny_checkpoint

    monkeypatch.setattr(checkpoints_convert, "load_checkpoint", load)
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    assert asked == [("HuggingFaceTB/SmolLM2-135M-Instruct", "float32")]
    out = capsys.readouterr().out
    assert re.findall(r"^(\d+) tokens in (\d+) calls$", out, flags=re.MULTILINE) == [
        (str(answer.committed), str(answer.calls))
        for answer in namespace["generate"](
            tiny_checkpoint, namespace["prompts"], probe=namespace["probe"], settings=namespace["settings"]
        )
    ]
    assert re.search(r"^\[32 32\]$", out, flags=re.MULTILINE)


def test_the_first_example_is_ten_lines():
    block = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL).group(1)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
