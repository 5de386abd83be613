"""A file of prompts in, a file of answers out: what each record gets, and runs that are cut off, go on, fail or are refused."""

import dataclasses
import json
import logging
import os
import re
import resource
import signal

import numpy as np
import pytest
import reference
from checkpoints import EOS, SPECIAL, TEMPLATE, make_checkpoint, make_tokenizer, word, words, write_folder
from conftest import BASE, make_tiny

from jax_probe_mtp import Settings
from jax_probe_mtp.commands import generate as generate_cli
from jax_probe_mtp.commands import options
from jax_probe_mtp.commands.main import main
from jax_probe_mtp.files import answer_file
from jax_probe_mtp.files.prompt_file import Record
from jax_probe_mtp.generation import scheduler
from jax_probe_mtp.generation.programs import Programs
from jax_probe_mtp.jobs import progress
from jax_probe_mtp.jobs.encode import capacity_of

# A user turn of w50 alone is one that the template cannot take.
FAILING = "{% if messages[0]['content'] == 'w50' %}{{ raise_exception('no such\nturn') }}{% endif %}" + TEMPLATE
NEW = 24
FLAGS = ["--tree", "7,3", "--batch-size", "3", "--max-new-tokens", str(NEW), "--calls-per-chunk", "2"]
SIZES = ["--capacity", "128"]  # of `RECORDS`, so that other records need no programs of their own
# Ten records through three rows. The first is the longest by far, so that it is not the first to end.
RECORDS = [
    {"id": "long", "prompt_ids": [5, 9, 2, 44, 17, 3, 3], "max_new_tokens": 60},
    {"id": 2, "prompt_ids": [7], "max_new_tokens": 1},
    {"id": "3", "prompt_ids": [60, 1, 33, 8], "max_new_tokens": 3},
    {"id": "drawn", "prompt_ids": [1, 2, 3], "temperature": 1.0, "seed": 4, "max_new_tokens": 9},
    *({"id": f"more {i}", "prompt_ids": [(i * 7) % 58, i], "max_new_tokens": 2 + i % 3} for i in range(6)),
]
IDS = [record["id"] for record in RECORDS]


@pytest.fixture(scope="module", autouse=True)
def _programs_are_compiled_once():
    """All runs of this file share what they compile."""
    shared, honest = {}, Programs.get

    def get(self, *args, **how):
        key = (*self._static.values(), str(self._params["embed"].dtype))
        self._compiled = shared.setdefault(key, {})
        return honest(self, *args, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "get", get)
        yield


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("models") / "tiny", make_checkpoint(tiny, template=FAILING))


@pytest.fixture(autouse=True)
def _log_level_stays():
    logger = logging.getLogger("jax_probe_mtp")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture
def generate(run, model, monkeypatch):
    """Runs `generate` on the tiny model. Its log lines go to stderr, as where pytest has no handlers of its own."""

    def generate(*args, of=model):
        with monkeypatch.context() as patch:
            patch.setattr(logging.root, "handlers", [])
            return run("generate", "--model", of, *FLAGS, *args)

    return generate


@pytest.fixture(scope="module")
def whole_run(model, tmp_path_factory):
    """The lines of the run over `RECORDS` that nothing cut off, in the order in which they were written; and what made them."""
    folder = tmp_path_factory.mktemp("whole")
    files = ["--input", write(folder, RECORDS), "--output", folder / "answers.jsonl"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "set")  # so that `main` leaves JAX's settings as they are
        assert main([str(arg) for arg in ["generate", "--model", model, *FLAGS, *files]]) == 0
    lines = read(folder / "answers.jsonl")
    assert sorted(map(str, ids_of(lines))) == sorted(map(str, IDS))
    assert ids_of(lines) != IDS, "choose records that do not end in the order of the file"
    return lines, (folder / "answers.jsonl.run.json").read_bytes()


@pytest.fixture(scope="module")
def whole(whole_run):
    return whole_run[0]


@pytest.fixture
def leave(whole_run, tmp_path):
    """Leaves the folder as a run over `RECORDS` that was cut off does."""

    def leave(lines, torn=""):
        (tmp_path / "answers.jsonl").write_text("".join(lines) + torn, encoding="utf-8")
        (tmp_path / "answers.jsonl.run.json").write_bytes(whole_run[1])

    return leave


def write(folder, records, name="prompts.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read(path):
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def ids_of(lines):
    return [json.loads(line)["id"] for line in lines]


def files(folder, records=RECORDS):
    return "--input", write(folder, records), "--output", folder / "answers.jsonl"


def assert_refused(result, *says):
    code, out, err = result
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.fullmatch("error: .*" + ".*".join(re.escape(str(part)) for part in says) + ".*\n", err), err


def text_of(tokens):
    return words(*[token for token in tokens if token not in SPECIAL])


def cut_at(tokens, stop):
    """Tokens and text up to the first of the stop texts, found by looking at every beginning of the answer."""
    for size in range(1, len(tokens) + 1):
        text = text_of(tokens[:size])
        places = [text.index(each) for each in stop if each in text]
        if places:
            return tokens[:size], text[: min(places)]
    return tokens, text_of(tokens)


def seed_of(digits):
    """The seed that the first 8 digits of a SHA-256 stand for."""
    return int.from_bytes(bytes.fromhex(digits), "little")


def test_every_record_has_its_own_settings(generate, tiny, tmp_path):
    of_run = {"temperature": 0.8, "top_p": 0.95}
    greedy, run_stop = {"temperature": 0}, ["w33"]
    cuts = {"top_k": 5, "top_p": 0.7}
    own = {"seed": 9, "temperature": 1.0}
    cases = [  # record, its tokens, how it is drawn, its stop texts
        ({"id": "text", "prompt": words(5, 9), **greedy}, [0, 59, 5, 9, 60], greedy, run_stop),
        ({"id": "turns", "messages": [{"role": "user", "content": "w7"}], **greedy}, [0, 59, 7, 60], greedy, run_stop),
        ({"id": "short", "prompt_ids": [3, 1], "max_new_tokens": 5, **greedy}, [3, 1], greedy, run_stop),
        ({"id": "ends", "prompt_ids": [7], **greedy}, [7], greedy, run_stop),
        # Seeds of the run's and the id: `printf '7:own cuts' | sha256sum`.
        ({"id": "own cuts", "prompt_ids": [3, 1], **cuts}, [3, 1], {"seed": seed_of("1898b1e7")} | cuts, run_stop),
        ({"id": "of the run", "prompt_ids": [3, 1]}, [3, 1], {"seed": seed_of("a3738e8c")}, run_stop),
        ({"id": 6, "prompt_ids": [3, 1], **own}, [3, 1], own, run_stop),
        ({"id": 7, "prompt_ids": [5, 9, 2], "stop": ["no such", ". w3"], **greedy}, [5, 9, 2], greedy, [". w3"]),
        ({"id": 8, "prompt_ids": [0, 59, 5, 9, 60], "stop": [], **greedy}, [0, 59, 5, 9, 60], greedy, []),
    ]
    expected = {}
    for record, prompt, draw, stop in cases:
        new = record.get("max_new_tokens", NEW)
        draw = of_run | draw
        tokens, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=new, eos=(EOS,), **draw)
        assert gap > 1e-3, "choose another prompt: rounding could decide this one"
        tokens, text = cut_at(tokens, stop)
        reason = "stop" if tokens[-1] == EOS or text != text_of(tokens) else "length"
        expected[record["id"]] = {"prompt_ids": prompt, "token_ids": tokens, "text": text, "finish_reason": reason}
    assert expected[7]["text"] == "w17 w36 w36 . "  # and w37 was the token that completed the stop text
    reasons = " ".join(expected[name]["finish_reason"] for name in ("text", "turns", "ends", 7, 8))
    assert reasons == "stop length stop stop length"
    flags = ["--temperature", "0.8", "--seed", "7", "--top-p", "0.95", "--stop", "w33", *SIZES]
    code, out, err = generate(*files(tmp_path, [record for record, *_ in cases]), *flags)
    assert (code, out, err) == (0, "", "")
    answers = [json.loads(line) for line in read(tmp_path / "answers.jsonl")]
    names = ("prompt_ids", "token_ids", "text", "finish_reason")
    assert {answer["id"]: {name: answer[name] for name in names} for answer in answers} == expected
    others = {"id", "draft", "calls", "committed", "accepted_by_depth"}
    assert all(answer.keys() == {*names, *others} for answer in answers)


def test_a_record_is_drawn_where_the_run_is_greedy(whole, tiny):
    answer = json.loads(whole[ids_of(whole).index("drawn")])
    draw = {"temperature": 1.0, "seed": 4}
    tokens, gap = reference.plain_decode(tiny.reference, [1, 2, 3], max_new_tokens=9, eos=(EOS,), **draw)
    assert gap > 1e-3
    assert answer["token_ids"] == tokens


@pytest.mark.parametrize(
    ("kept", "torn"), [(0, ""), (0, '{"id": "lo'), (1, ""), (4, '{"id": "3", "prompt_ids": [60, 1'), (9, "\0\0\0")]
)
def test_a_run_that_was_cut_off_goes_on(generate, leave, whole, tmp_path, kept, torn):
    leave(whole[:kept], torn)
    code, out, err = generate(*files(tmp_path))
    assert (code, out) == (0, "")
    lines = read(tmp_path / "answers.jsonl")
    assert lines[:kept] == whole[:kept]
    assert sorted(lines) == sorted(whole)
    says = [f"dropped {len(torn)} bytes after record {kept}"] if torn else []
    says += [f"holds {kept} of 10 records: going on"] if kept else []
    assert len(err.splitlines()) == len(says)
    assert all(part in line for part, line in zip(says, err.splitlines(), strict=True))


def test_a_run_that_is_complete_changes_nothing_and_takes_new_records(generate, whole, tmp_path):
    command, output = files(tmp_path), tmp_path / "answers.jsonl"
    assert generate(*command)[0] == 0
    assert read(output) == whole
    before = output.stat().st_mtime_ns
    assert generate(*command, "--stats-json", tmp_path / "stats.json")[:2] == (0, "")
    assert (read(output), output.stat().st_mtime_ns) == (whole, before)
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert (stats["records"], stats["calls"], stats["row_calls"], stats["busy_share"]) == (0, 0, 0, None)
    write(tmp_path, [{"id": "before", "prompt_ids": [4]}, *RECORDS, {"id": "behind", "prompt_ids": [4]}])
    assert generate(*command)[0] == 0
    lines = read(output)
    assert lines[:10] == whole
    assert sorted(ids_of(lines[10:])) == ["before", "behind"]
    assert json.loads(lines[10])["token_ids"] == json.loads(lines[11])["token_ids"]


@pytest.mark.parametrize(
    ("flags", "then", "now"),
    [
        (["--temperature", "0.5"], "settings.temperature 0.0", "0.5"),
        (["--stop", "w9"], "settings.stop []", "['w9']"),
        (["--tree", "7"], "settings.draft 'probe:7+3'", "'probe:7'"),
        (["--method", "ngram", "--tree", "4"], "settings.draft 'probe:7+3'", "'ngram:4'"),
        (["--mask-ema", "0.5"], "settings.draft 'probe:7+3'", "'probe:7+3@ema=0.5'"),
        (["--max-new-tokens", "23"], "settings.max_new_tokens 24", "23"),
        (["--top-k", "3", "--top-p", "0.5"], "settings.top_k 0, settings.top_p 1.0", "3, 0.5"),
        (["--seed", "1"], "settings.seed 0", "1"),
        (["--logprobs"], "settings.logprobs False", "True"),
        (["--dtype", "bfloat16"], "model.dtype 'float32'", "'bfloat16'"),
        (["--no-chat-template"], "settings.chat_template True", "False"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_answers_of_another_run_are_left_alone(generate, leave, whole, tmp_path, flags, then, now):
    leave(whole[:3])
    command = files(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert_refused(generate(*command, *flags), "answers.jsonl was made with", then, "but this run has", now)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_answers_of_another_model_are_left_alone(generate, leave, whole, tmp_path):
    leave(whole[:3])
    other = write_folder(tmp_path / "other" / "tiny", make_checkpoint(make_tiny(BASE, seed=4)))  # of the same name
    result = generate(*files(tmp_path), of=other)
    assert_refused(
        result, "answers.jsonl was made with model.fingerprint '", "', but this run has '", "'; name another"
    )
    assert read(tmp_path / "answers.jsonl") == whole[:3]


def test_sizes_may_change_between_two_runs(generate, leave, whole, tmp_path):
    leave(whole[:3])
    sizes = ["--batch-size", "2", "--capacity", "100", "--calls-per-chunk", "5", "--prompt-slots", "7"]
    assert generate(*files(tmp_path), *sizes)[0] == 0
    lines = read(tmp_path / "answers.jsonl")
    assert lines[:3] == whole[:3]
    assert sorted(lines) == sorted(whole)


def test_exact_answers_are_those_of_one_program(generate, tmp_path):
    command = [*files(tmp_path, RECORDS[1:4]), "--exact", *SIZES]
    assert generate(*command)[0] == 0
    lines = read(tmp_path / "answers.jsonl")
    for flags, name in ((["--batch-size", "2"], "batch_size"), (["--calls-per-chunk", "3"], "calls_per_chunk")):
        assert_refused(generate(*command, *flags), f"was made with program.{name} ", "but this run has", flags[1])
    assert_refused(
        generate(*files(tmp_path, RECORDS[1:4]), *SIZES), "was made with settings.exact True", "but this run has False"
    )
    assert generate(*command)[0] == 0
    assert read(tmp_path / "answers.jsonl") == lines


@pytest.mark.parametrize("kept", [0, 4])
def test_ordered_answers_are_in_the_order_of_the_prompts(generate, leave, whole, tmp_path, kept):
    by_id = dict(zip(ids_of(whole), whole, strict=True))
    in_order = [by_id[name] for name in IDS]
    leave(in_order[:kept])
    assert generate(*files(tmp_path), "--ordered")[0] == 0
    assert read(tmp_path / "answers.jsonl") == in_order


def test_what_was_written_out_of_order_stays_where_it_is(generate, leave, whole, tmp_path):
    leave(whole[1:3])
    assert generate(*files(tmp_path), "--ordered")[0] == 0
    lines = read(tmp_path / "answers.jsonl")
    assert lines[:2] == whole[1:3]
    assert ids_of(lines[2:]) == [name for name in IDS if name not in ids_of(whole[1:3])]


ERRORS = [
    {"id": "too long", "prompt_ids": [1] * 500, "temperature": 1},
    {"id": "asks too much", "prompt_ids": [1], "max_new_tokens": 512},
    {"id": "empty", "prompt_ids": []},
    {"id": "good", "prompt_ids": [7], "max_new_tokens": 2},
    {"id": "no such token", "prompt_ids": [61]},
    {"id": "bad turn", "messages": [{"role": "user", "content": "w50"}]},
    {"id": "also good", "prompt_ids": [7], "max_new_tokens": 2},
]
REASONS = {
    "too long": "prompt too long has 500 tokens, with 24 new ones more than the model's context of 512; ",
    "asks too much": "prompt asks too much has 1 tokens, with 512 new ones more than the model's context of 512; ",
    "empty": "prompt empty is empty: it needs at least one token.",
    "no such token": "prompt no such token holds token id 61, but ids are 0 to 60.",
    "bad turn": "the chat template failed (no such turn); pass --no-chat-template.",
}


def test_records_that_cannot_run_get_an_error_each_and_the_others_their_answer(generate, tiny, tmp_path):
    command, output = (*files(tmp_path, ERRORS), *SIZES), tmp_path / "answers.jsonl"
    code, out, err = generate(*command, "--ordered")
    assert (code, out) == (3, "")
    assert err == f'5 records could not run; their "error" in {output} says why: delete those lines to try them again\n'
    lines = read(output)
    assert ids_of(lines) == [record["id"] for record in ERRORS]
    tokens, _ = reference.plain_decode(tiny.reference, [7], max_new_tokens=2, eos=(EOS,))
    for record, line in zip(ERRORS, lines, strict=True):
        answer = json.loads(line)
        if record["id"] not in REASONS:
            assert (answer["token_ids"], answer["finish_reason"], "error" in answer) == (tokens, "length", False)
            continue
        assert answer.pop("error").startswith(REASONS[record["id"]])
        assert answer == {
            "id": record["id"],
            "prompt_ids": record.get("prompt_ids", []),
            "token_ids": [],
            "text": "",
            "finish_reason": "error",
            "draft": "probe:7+3",
            "calls": 0,
            "committed": 0,
            "accepted_by_depth": [0, 0],
        }
    code, _, err = generate(*command)  # nothing is left to do, but the errors are still there
    assert (code, read(output)) == (3, lines)
    assert (
        err.splitlines()[-1]
        == f'5 records could not run; their "error" in {output} says why: delete those lines to try them again'
    )
    output.write_text("".join(lines[:1] + lines[3:4]), encoding="utf-8")
    assert generate(*command)[0] == 3
    assert sorted(read(output)) == sorted(lines)


def test_messages_need_the_chat_template(generate, tmp_path):
    records = [{"id": 1, "messages": [{"role": "user", "content": "w7"}]}, {"id": 2, "prompt": "w7"}]
    records += [{"id": 3, "prompt_ids": [1], "temperature": 1}]
    flags = ["--no-chat-template", "--ordered", "--max-new-tokens", "2", *SIZES]
    assert generate(*files(tmp_path, records), *flags)[0] == 3
    bad, good, _ = map(json.loads, read(tmp_path / "answers.jsonl"))
    assert bad["error"] == "messages need the chat template; leave --no-chat-template out, or give a prompt."
    assert (good["prompt_ids"], good["finish_reason"]) == ([7], "length")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"id": 1, "prompt": "x"}\n{"id": 2, "prompt": 7}\n', "line 2: prompt must be a text, got 7"),
        (b'{"id": 1, "prompt": "x"}\nnone\n', "line 2 is not JSON"),
        (
            b'{"id": 1, "prompt": "x", "temperature": -1}\n',
            "line 1: temperature must be a number of at least 0, got -1",
        ),
        (b'{"id": 1, "prompt": "x"}\n{"id": "1", "prompt": "y"}\n', "line 2 has the id '1' of line 1; ids must differ"),
        (b'{"id": 1, "prompt": "\xff"}\n', "line 1 is not UTF-8 (byte 21 of the file)"),
        (b"\n", "holds no records"),
    ],
)
def test_bad_prompts_are_refused_before_anything_is_opened(generate, tmp_path, monkeypatch, content, says):
    monkeypatch.setattr(options, "open_model", lambda *_: pytest.fail("the model was opened"))
    command = files(tmp_path)
    (tmp_path / "prompts.jsonl").write_bytes(content)
    assert_refused(generate(*command), tmp_path / "prompts.jsonl", says)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--prompt", "w7", "--ordered"], "--ordered is for --input; leave it out"),
        (["--prompt", "w7", "--distributed"], "--distributed is for --input; leave it out"),
        (["--prompt", "w7", "--output", "o"], "--input and --output go together"),
        (["--input", "i"], "--input and --output go together"),
        (["--input", "i", "--output", "o", "--stream"], "--stream is for --prompt; leave it out"),
        (
            ["--input", "i", "--output", "o", "--tree", "auto", "--mesh", "data=1"],
            "--tree auto times calls on one device",
        ),
        (["--input", "i", "--output", "o", "--tree", "auto", "--distributed"], "--tree auto times calls on one device"),
        (["--input", "i", "--output", "o", "--coordinator", "h:1"], "are of --distributed; give it too"),
        (["--input", "i", "--output", "o", "--num-processes", "2"], "are of --distributed; give it too"),
        (["--prompt", "w7", "--process-id", "0"], "are of --distributed; give it too"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_go_together(generate, tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, RECORDS, "i")
    monkeypatch.setattr(options, "open_model", lambda *_: pytest.fail("the model was opened"))
    assert_refused(generate(*flags), says)
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


@pytest.fixture
def at_write(monkeypatch):
    """Has something done right after the answers are written for the `number`th time."""

    def at_write(number, do):
        honest, count = answer_file.AnswerFile.write, [0]

        def write(self, answers):
            honest(self, answers)
            count[0] += 1
            if count[0] == number:
                do(self)

        monkeypatch.setattr(answer_file.AnswerFile, "write", write)

    return at_write


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
def test_a_signal_ends_the_run_after_the_calls_under_way(generate, whole, tmp_path, at_write, number, status):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    written_before = []

    def stop(answers):
        written_before.append(answers.num_written)
        os.kill(os.getpid(), number)

    at_write(2, stop)
    code, out, err = generate(*files(tmp_path))
    lines, name = read(tmp_path / "answers.jsonl"), signal.Signals(number).name
    assert (code, out) == (status, "")
    assert err.splitlines() == [
        f"{name}: finishing the calls under way",
        f"stopped by {name}: {tmp_path / 'answers.jsonl'} holds {len(lines)} of 10 records; give the same command to go on",
    ]
    assert lines == whole[: len(lines)]
    assert written_before[0] < len(lines) < 10  # what ended in the calls under way was written too
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert generate(*files(tmp_path))[0] == 0
    assert read(tmp_path / "answers.jsonl")[: len(lines)] == lines
    assert sorted(read(tmp_path / "answers.jsonl")) == sorted(whole)


def test_a_signal_counts_what_is_in_the_file_where_answers_wait_for_their_turn(generate, leave, tmp_path, monkeypatch):
    honest, count = progress.Progress.show, [0]

    def show(self):
        honest(self)
        count[0] += 1
        if count[0] == 4:  # the first record is still being decoded; others have ended and wait for it
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(progress.Progress, "show", show)
    code, _, err = generate(*files(tmp_path), "--ordered")
    assert code == 143
    assert read(tmp_path / "answers.jsonl") == []
    assert f"stopped by SIGTERM: {tmp_path / 'answers.jsonl'} holds 0 of 10 records; " in err


def test_a_signal_is_heard_where_no_record_can_run(generate, tmp_path, at_write, monkeypatch):
    monkeypatch.setattr(scheduler, "MOST_REFUSALS", 2)  # that are written at a time, and three rows'
    at_write(2, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    command = files(tmp_path, [{"id": i, "prompt_ids": []} for i in range(40)])
    code, _, err = generate(*command)
    num_done = len(read(tmp_path / "answers.jsonl"))
    assert (code, num_done < 40) == (143, True)
    assert f"stopped by SIGTERM: {tmp_path / 'answers.jsonl'} holds {num_done} of 40 records; " in err


def test_a_second_signal_ends_the_run_at_once(generate, whole, tmp_path, at_write):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]

    def stop(_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    at_write(1, stop)
    code, _, err = generate(*files(tmp_path))
    assert (code, err.splitlines()[-1]) == (130, "error: interrupted")
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert generate(*files(tmp_path))[0] == 0
    assert sorted(read(tmp_path / "answers.jsonl")) == sorted(whole)


def test_a_full_disk_keeps_what_is_whole(generate, leave, whole, tmp_path):
    leave(whole[:1])
    command = files(tmp_path)
    room = sum(len(line.encode()) for line in whole[:3]) + 40  # bytes: the fourth record does not fit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        code, out, err = generate(*command, "--log-level", "error")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    says = "File too large; 3 records are whole in it: free some space and give the same command again."
    assert (code, out, err) == (2, "", f"error: {tmp_path / 'answers.jsonl'}: {says}\n")
    assert read(tmp_path / "answers.jsonl") == whole[:3]
    assert generate(*files(tmp_path))[0] == 0
    assert sorted(read(tmp_path / "answers.jsonl")) == sorted(whole)


def test_logprobs_and_stats(generate, tiny, tmp_path):
    command = [*files(tmp_path, [RECORDS[0], *ERRORS[3:5]]), "--batch-size", "8", "--logprobs", "--ordered"]
    command += ["--calls-per-chunk", "5"]  # so that a row ends in the middle of a chunk, and waits
    code, _, err = generate(*command, "--stats", "--stats-json", tmp_path / "s.json", "--log-level", "error")
    assert code == 3
    first, second, refused = map(json.loads, read(tmp_path / "answers.jsonl"))
    for answer in (first, second):
        ids = [*answer["prompt_ids"], *answer["token_ids"]]
        logits = tiny.reference.logits(tiny.reference.embed(ids))[len(answer["prompt_ids"]) - 1 : -1]
        expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        expected = expected[range(len(logits)), answer["token_ids"]]
        np.testing.assert_allclose(answer["logprobs"], expected, atol=1e-4)
    assert "logprobs" not in refused

    stats = json.loads((tmp_path / "s.json").read_text())
    calls, tokens = first["calls"] + second["calls"], len(first["token_ids"]) + len(second["token_ids"])
    assert (stats["records"], stats["errors"]) == (3, 1)
    assert (stats["batch_size"], stats["capacity"]) == (3, 128)  # no more rows than records; 7 + 60 do not fit 64
    assert (stats["calls"], stats["committed"], stats["new_tokens"]) == (calls, tokens - 2, tokens)
    assert stats["tau"] == pytest.approx((tokens - 2) / calls)
    # Of 3 rows one decodes a call for each of the 60 tokens' calls and the prefill's, one for the 3 tokens', one nothing.
    assert (stats["row_calls"], stats["busy_row_calls"]) == (3 * (first["calls"] + 1), calls + 2)
    assert stats["busy_share"] == pytest.approx((calls + 2) / (3 * (first["calls"] + 1)))
    assert 0 < stats["host_seconds"] < stats["seconds"]
    assert stats["host_share"] == pytest.approx(stats["host_seconds"] / stats["seconds"])
    assert stats["tokens_per_second"] == pytest.approx(tokens / stats["seconds"])
    assert 5 * 10**7 < stats["peak_host_bytes"] < 10**11
    assert (stats["rows_per_call"], stats["choice"], stats["mesh"]) == (33, None, None)
    assert stats["run"] == json.loads((tmp_path / "answers.jsonl.run.json").read_text())
    assert stats["run"]["settings"] | {"draft": "probe:7+3", "logprobs": True, "stop": []} == stats["run"]["settings"]
    assert err.startswith(f"tau {(tokens - 2) / calls:.3f}, {calls} calls for {tokens - 2} tokens, ")
    assert "; 33 rows a call" in err
    assert err.count("\n") == 1


def test_a_stream_is_the_answer_in_pieces(generate, monkeypatch):
    flags = ["--prompt", words(5, 9, 2), "--stats"]
    expected = generate(*flags)
    end = expected[1].split()[-1]
    flags += ["--stop", f"{end} no such"]  # the end of the answer may become a stop text, and is held back
    pieces = []

    def note(*args, **more):
        if more.get("file") is None:
            pieces.append("".join(args))
        print(*args, **more)

    monkeypatch.setattr(generate_cli, "print", note, raising=False)
    code, out, err = generate(*flags, "--stream")
    assert (code, out) == (0, expected[1])
    assert err.split(" tokens/s")[0].rsplit(", ", 1)[0] == expected[2].split(" tokens/s")[0].rsplit(", ", 1)[0]
    assert len([piece for piece in pieces if piece]) >= 5
    assert "".join(pieces) + "\n" == out


def test_the_log_level_says_what_is_told(generate, whole, leave, tmp_path):
    records = [record | {"category": "x", "turns": []} for record in RECORDS]
    leave(whole[:2])
    code, _, err = generate(*files(tmp_path, records))
    assert code == 0
    assert err.splitlines() == [
        f"{tmp_path / 'prompts.jsonl'}: not read: category, turns",
        f"{tmp_path / 'answers.jsonl'} holds 2 of 10 records: going on",
    ]
    leave(whole[:2])
    assert generate(*files(tmp_path, records), "--log-level", "warning") == (0, "", "")
    leave(whole[:2])
    debug = generate(*files(tmp_path, records), "--log-level", "debug")[2].splitlines()
    assert len(debug) == 3
    assert re.fullmatch(r"weights .* \+ 3 rows of .* a device; capacity 128", debug[1])


def test_progress_is_told_line_by_line_where_no_terminal_is(generate, whole, leave, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.0)
    leave(whole[:2])
    code, _, err = generate(*files(tmp_path))
    assert code == 0
    lines = err.splitlines()[1:]
    rule = re.compile(r"(\d+) of 10 records, \d+\.\d tokens/s, tau \d\.\d{3}, about [\d:]+ left")
    done = [int(rule.fullmatch(line)[1]) for line in lines]
    assert done == sorted(done)
    assert min(done) > 2
    assert done[-1] == 10
    assert lines[-1].endswith("about 00:00 left")


def test_the_capacity_is_that_of_the_longest_record_that_fits():
    tokenizer = make_tokenizer(61, template=FAILING)

    def capacity(*records, cfg=BASE, use_chat_template=True):
        records = [Record(index=i, id=i, **record) for i, record in enumerate(records)]
        return capacity_of(records, cfg, tokenizer, Settings(max_new_tokens=20), use_chat_template=use_chat_template)

    assert capacity({"prompt_ids": [1]}) == 64  # the smallest one
    assert capacity({"prompt_ids": [1] * 45}) == 64  # 45 + 20 - 1: the last token needs no slot
    assert capacity({"prompt_ids": [1] * 46}) == 128
    assert capacity({"prompt_ids": [1] * 46}, {"prompt_ids": [1]}) == 128
    assert capacity({"prompt_ids": [1] * 46, "max_new_tokens": 19}) == 64
    assert capacity({"prompt_ids": [1], "max_new_tokens": 200}) == 256
    assert (
        capacity({"prompt_ids": [1], "max_new_tokens": 512}, {"prompt_ids": [1]}) == 64
    )  # more than the context of 512
    assert capacity({"prompt_ids": [1], "max_new_tokens": 511}) == 512
    assert capacity({"prompt": words(*[1] * 43)}) == 128  # with the three tokens of the template
    assert capacity({"prompt": words(*[1] * 43)}, use_chat_template=False) == 64
    assert capacity({"prompt": word(50)}, {"prompt_ids": [1] * 46}) == 128  # the first one's template fails
    short = dataclasses.replace(BASE, context_length=50)
    assert capacity({"prompt_ids": [1] * 30}, cfg=short) == 50  # not a bucket of 64


def test_calls_of_a_chunk_are_a_number_that_the_device_can_count(generate, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps(RECORDS[1]) + "\n")
    files = ["--input", tmp_path / "p.jsonl", "--output", tmp_path / "o.jsonl"]
    assert_refused(generate(*files, "--calls-per-chunk", 2**31), "calls_per_chunk must be at most 2147483647")
    assert not (tmp_path / "o.jsonl").exists()
