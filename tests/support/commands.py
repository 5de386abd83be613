"""What the tests of several commands share: prompts, files, a refusal."""

import json

from checkpoints import SPECIAL, words

PROMPT = [5, 9, 2, 44, 17, 3, 3]
TEXT = words(*PROMPT)
PROMPTS = {"a": [7], "b": PROMPT, "c": [60, 1, 33, 8]}
NEW = 24
RAW = ["--no-chat-template", "--max-new-tokens", "24", "--tree", "7,3"]


def text_of(tokens):
    return words(*[token for token in tokens if token not in SPECIAL])


def write_prompts(folder, prompts=PROMPTS):
    path = folder / "prompts.jsonl"
    lines = [json.dumps({"id": name, "prompt": words(*prompt)}) for name, prompt in prompts.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_refused(result, says):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert says in err
