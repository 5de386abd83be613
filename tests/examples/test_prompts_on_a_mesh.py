"""prompts_on_a_mesh.py on CPU devices that XLA is made to see: the tokens of one device, from Python and by the command."""

import os
import subprocess
import sys

import pytest
import reference
from checkpoints import EOS, make_checkpoint, words, write_folder
from support.commands import read_lines, write
from support.devices import cpu_devices

PROMPTS = {"a": [7], "b": [5, 9, 2, 44, 17, 3, 3], "c": [60, 1, 33, 8]}
NEW = 16
RUNS = {
    "python": ["-m", "prompts_on_a_mesh", "--data", "2", "--tensor", "2"],
    "command": ["-m", "jax_probe_mtp", "generate", "--mesh", "data=2,tensor=2", "--batch-size", "4"],
}


@pytest.fixture(scope="module")
def answers(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mesh")
    checkpoint = make_checkpoint(tiny)
    checkpoint.tokenizer.chat_template = "{{ messages[0]['content'] }}"  # so that prompts are their ids alone
    model = write_folder(folder / "tiny", checkpoint)
    prompts = write(folder / "p.jsonl", [{"id": name, "prompt": words(*ids)} for name, ids in PROMPTS.items()])
    own = cpu_devices(4) | {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(folder / "cache")}
    found = {}
    for name, command in RUNS.items():
        output = folder / f"{name}.jsonl"
        files = ["--model", model, "--input", prompts, "--output", output]
        done = subprocess.run(
            [sys.executable, *command, *map(str, files), "--draft", "probe:4", "--max-new-tokens", str(NEW)],
            env=os.environ | own,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found[name] = done.stdout, {line["id"]: line for line in read_lines(output)}
    return found


@pytest.mark.parametrize("run", RUNS)
def test_the_tokens_are_those_of_one_device(answers, tiny, run):
    _, lines = answers[run]
    assert sorted(lines) == list(PROMPTS)
    for name, prompt in PROMPTS.items():
        plain, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=NEW, eos=(EOS,))
        assert gap > 1e-3, "choose another prompt: rounding could decide this one"
        assert (lines[name]["prompt_ids"], lines[name]["token_ids"]) == (prompt, plain)


def test_it_says_what_it_ran_on(answers):
    says, lines = answers["python"]
    tokens = sum(len(line["token_ids"]) - 1 for line in lines.values())
    assert says.startswith(f"3 answers on data=2,tensor=2: {tokens} tokens in ")
