"""The README's Python runs as it stands there, on a tiny checkpoint in place of the hub's."""

import re
from pathlib import Path

import reference
from checkpoints import EOS, make_checkpoint

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
            tiny_checkpoint, namespace["prompts"], draft=namespace["probe"], settings=namespace["settings"]
        )
    ]
    counts = [
        len(reference.plain_decode(tiny.reference, prompt, max_new_tokens=32, eos=(EOS,))[0])
        for prompt in ([1, 17, 4], [1, 9])
    ]
    assert out.endswith(f"\n[{counts[0]:2} {counts[1]:2}]\n")


def test_the_first_example_is_ten_lines():
    block = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL).group(1)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
