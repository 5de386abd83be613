"""own_draft_source.py keeps the contract, is lossless, and accepts what a slow search by hand says, from Python and by name."""

import jax
import numpy as np
import own_draft_source
import pytest
import reference
from checkpoints import EOS, make_checkpoint, words, write_folder
from own_draft_source import Echo
from support.commands import read_lines, write

from jax_probe_mtp import Settings, decode, generate, make_batch
from jax_probe_mtp.commands.main import main
from jax_probe_mtp.drafting import check_source, parse_draft

PROMPTS = [[7], [5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8, 60, 1, 8, 60, 1], [12, 13, 12, 14, 12]]
NEW, LENGTH = 40, 3


def calls_by_hand(prompt, plain, longer):
    """What each call accepts, and of which chain: the text behind the last and behind the first earlier newest token.

    Drafts are counted before the text is cut at its end, so `longer` goes on there.
    """
    calls, emitted = [], 1
    while emitted < len(plain):
        text = [*prompt, *longer[:emitted]]
        places = [place for place, token in enumerate(text[:-1]) if token == text[-1]]
        chains = [
            text[place + 1 : place + 1 + LENGTH] for place in places[-1:] + (places[:1] if len(places) > 1 else [])
        ]
        right = [0, 0]
        for number, chain in enumerate(chains):
            while (
                right[number] < len(chain)
                and chain[: right[number] + 1] == longer[emitted : emitted + right[number] + 1]
            ):
                right[number] += 1
        # Of two chains that begin alike the walk goes down the one listed first.
        kind = 0 if right[0] or not right[1] else 1
        calls.append((right[kind], kind))
        emitted += right[kind] + 1
    return calls


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


@pytest.fixture(scope="module")
def plains(tiny):
    found = [reference.plain_decode(tiny.reference, each, max_new_tokens=NEW, eos=(EOS,)) for each in PROMPTS]
    assert min(gap for _, gap in found) > 1e-3, "choose another prompt: rounding could decide this one"
    return [plain for plain, _ in found]


@pytest.fixture(scope="module")
def by_hand(tiny, plains):
    longer = [reference.plain_decode(tiny.reference, each, max_new_tokens=NEW + LENGTH)[0] for each in PROMPTS]
    return [calls_by_hand(*of_prompt) for of_prompt in zip(PROMPTS, plains, longer, strict=True)]


def test_the_contract_is_kept(checkpoint):
    check_source(Echo(LENGTH), checkpoint.config)
    with pytest.raises(ValueError, match=r"length must be 1 to 16, got 17\.\Z"):
        generate(checkpoint, PROMPTS, draft=Echo(17))


def test_the_text_is_plain_decodings_and_calls_are_those_by_hand(checkpoint, plains, by_hand):
    settings = Settings(max_new_tokens=NEW, batch_size=2)  # rows are refilled
    answers = generate(checkpoint, PROMPTS, draft=Echo(LENGTH), settings=settings)
    assert [answer.token_ids for answer in answers] == plains
    for answer, calls in zip(answers, by_hand, strict=True):
        assert answer.calls == len(calls)
        assert answer.accepted_by_depth == [sum(count >= depth for count, _ in calls) for depth in (1, 2, 3)]
    batch = make_batch(checkpoint.config, Echo(LENGTH), PROMPTS, settings, eos_token_ids=[EOS])
    result = jax.jit(decode, static_argnames=("cfg", "source"))(
        checkpoint.params, batch, checkpoint.config, Echo(LENGTH)
    )
    by_kind = [[sum(count for count, kind in calls if kind == of) for of in (0, 1)] for calls in by_hand]
    assert result.accepted_by_kind_BZ.tolist() == by_kind
    assert np.sum(by_kind, axis=0).min() > 0, "one of the two chains was never right: choose other prompts"


def test_the_command_line_finds_it_by_name(checkpoint, plains, own_caches, tmp_path):
    assert parse_draft("own_draft_source:Echo@length=3") == Echo(LENGTH)
    folder = write_folder(tmp_path / "tiny", checkpoint)
    prompts = write(tmp_path / "p.jsonl", [{"id": n, "prompt": words(*ids)} for n, ids in enumerate(PROMPTS)])
    flags = ["--input", prompts, "--output", tmp_path / "a.jsonl", "--max-new-tokens", NEW, "--no-chat-template"]
    draft = ["--draft", "own_draft_source:Echo@length=3"]
    assert main(list(map(str, ["generate", "--model", folder, *flags, *draft]))) == 0
    lines = {line["id"]: line for line in read_lines(tmp_path / "a.jsonl")}
    assert [lines[n]["token_ids"] for n in range(len(PROMPTS))] == plains
    assert {line["draft"] for line in lines.values()} == {"own_draft_source:Echo@length=3"}
    assert sum(sum(line["accepted_by_depth"]) for line in lines.values()) > 0


def test_it_runs_as_a_command(checkpoint, tmp_path, capsys):
    folder = write_folder(tmp_path / "tiny", checkpoint)
    own_draft_source.main(["--model", str(folder), "--prompt", "w5 w9 w5", "--length", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("own_draft_source:Echo@length=3: ")
    assert lines[1] == "the same tokens"
