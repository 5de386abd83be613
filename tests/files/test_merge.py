"""Files of answers that become one file."""

import errno
import json
import os

import pytest
from support.files.answer_files import ONE, RUN, THREE, TWO, counts, failing, filled, ids_of, says

from jax_probe_mtp.files import run_file
from jax_probe_mtp.files.answer_file import AnswerFile
from jax_probe_mtp.files.merge import merge
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.run_file import run_path


def prompts_of(folder, *ids):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": name, "prompt": "x"}) + "\n" for name in ids))
    return PromptFile(path)


@pytest.mark.parametrize("taken", ["a.jsonl.run.json", "prompts.jsonl"])
def test_a_merge_does_not_replace_what_is_no_merge(tmp_path, taken):
    parts = [filled(tmp_path / "a.jsonl", ONE), filled(tmp_path / "b.jsonl", TWO)]
    prompts_of(tmp_path, "one")
    before = (tmp_path / taken).read_bytes()
    with pytest.raises(ValueError, match=rf"{taken} .*name another --output"):
        merge(parts, tmp_path / taken, None)
    assert (tmp_path / taken).read_bytes() == before


@pytest.mark.parametrize("text", ['{"prompt": "x"}\n', '{"prompt": "x"}\n\n', "a note", '{"id": 1, "prompt"'])
def test_a_merge_does_not_replace_one_line_that_is_no_answer(tmp_path, text):
    """A prompt without an id among them: it has nothing of an answer."""
    output = tmp_path / "o.jsonl"
    output.write_text(text)
    with pytest.raises(ValueError, match=r"o\.jsonl is there and holds no answers; name another --output\.\Z"):
        merge([filled(tmp_path / "a.jsonl", ONE)], output, None)
    assert output.read_text() == text


def test_merges_in_the_order_of_the_prompts(tmp_path):
    parts = [filled(tmp_path / "a.jsonl", ONE, TWO), filled(tmp_path / "b.jsonl"), filled(tmp_path / "c.jsonl", THREE)]
    prompts = prompts_of(tmp_path, 9, "2", "three", "one", "x")  # 2 and "2" are one id
    output = tmp_path / "out.jsonl"
    assert counts(merge(parts, output, prompts)) == (3, 2)
    lines = {name: part.read_bytes().splitlines(keepends=True) for name, part in zip("abc", parts, strict=True)}
    assert output.read_bytes() == lines["a"][1] + lines["c"][0] + lines["a"][0]
    assert counts(merge(parts[::-1], output, None)) == (3, 0)  # in place of the old one
    assert output.read_bytes() == lines["c"][0] + lines["a"][0] + lines["a"][1]
    assert counts(merge(parts[1:2], output, prompts)) == (0, 5)
    assert counts(merge(parts[:1], output, None)) == (2, 0)
    with AnswerFile(output, RUN) as file:  # and a run goes on with it
        assert (file.num_kept, file.num_errors) == (2, 1)
        file.write([THREE])
    assert ids_of(output) == ["one", 2, "three"]
    assert not list(tmp_path.glob("*.partial"))


def test_merges_many(tmp_path):
    names = [f"record {i}" for i in range(3000)]
    parts = [
        filled(
            tmp_path / f"part {k}.jsonl",
            *({"id": name, "text": "x" * (i % 7)} for i, name in enumerate(names) if i % 3 == k),
        )
        for k in range(3)
    ]
    order = names[::-1]
    assert counts(merge(parts, tmp_path / "out.jsonl", prompts_of(tmp_path, *order))) == (3000, 0)
    assert ids_of(tmp_path / "out.jsonl") == order


@pytest.fixture
def two(tmp_path):
    return [filled(tmp_path / "a.jsonl", ONE, TWO), filled(tmp_path / "b.jsonl", THREE)]


def refused(message, parts, output, prompts=None):
    """Merging fails with the message, and changes nothing."""
    before = {each: each.read_bytes() for each in output.parent.iterdir() if each.is_file()}
    with pytest.raises((ValueError, OSError), match=message):
        merge(parts, output, prompts)
    assert {each: each.read_bytes() for each in output.parent.iterdir() if each.is_file()} == before


def test_merges_files_of_one_run_only(tmp_path, two):
    other = filled(tmp_path / "c.jsonl", {"id": 5}, run=RUN | {"settings": {"temperature": 0.0, "seed": 8}})
    refused(says(two[0], "settings.seed 7", other, "8;"), [*two, other], tmp_path / "out.jsonl")
    run_path(two[1]).unlink()
    refused(says(two[1], "b.jsonl.run.json"), two, tmp_path / "out.jsonl")


def test_merges_an_id_only_once(tmp_path, two):
    other = filled(tmp_path / "c.jsonl", {"id": 5}, {"id": "2"})
    refused(says("the id 2 is in", two[0], other), [*two, other], tmp_path / "out.jsonl")
    refused(says("the id '2' is in", other, two[0]), [other, *two], tmp_path / "out.jsonl")


def test_merges_no_torn_file(tmp_path, two):
    with two[1].open("ab") as file:
        file.write(b'{"id": 3')
    refused(says(two[1], "has not ended", "go on"), two, tmp_path / "out.jsonl")


def test_merges_no_file_in_use(tmp_path, two):
    (tmp_path / "out.jsonl").touch()
    for path in (two[1], tmp_path / "out.jsonl"):
        with AnswerFile(path, RUN):
            refused(says("another run is writing", path), two, tmp_path / "out.jsonl")
    assert counts(merge(two, tmp_path / "out.jsonl", None)) == (3, 0)


def test_merges_no_answer_that_the_prompts_do_not_ask_for(tmp_path, two):
    prompts = prompts_of(tmp_path, "one", "three", "four")
    refused(says(two[0], "line 2", prompts.path, "has no id 2"), two, tmp_path / "out.jsonl", prompts)


def test_merges_into_a_file_of_its_own(tmp_path, two):
    prompts = prompts_of(tmp_path, "one", 2, "three")
    for path in (two[0], two[1], prompts.path):
        refused(says(path, "is read"), two, path, prompts)
    (tmp_path / "link.jsonl").symlink_to("b.jsonl")
    refused(says("b.jsonl", "is read"), two, tmp_path / "link.jsonl")
    refused(says("b.jsonl", "is read"), [two[0], tmp_path / "link.jsonl"], two[1])


def test_two_merges_into_one_file_share_no_unfinished_one(tmp_path, two, monkeypatch):
    replace, output = os.replace, tmp_path / "out.jsonl"

    def another_merge_first(source, target):
        monkeypatch.setattr(os, "replace", replace)
        assert counts(merge(two[1:], output, None)) == (1, 0)
        replace(source, target)

    monkeypatch.setattr(os, "replace", another_merge_first)
    assert counts(merge(two, output, None)) == (3, 0)
    assert output.read_bytes() == two[0].read_bytes() + two[1].read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_merges_files_that_are_there_and_differ(tmp_path, two):
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    os.mkfifo(tmp_path / "pipe")
    for parts, message in [
        ([], says("no files")),
        ([*two, tmp_path / "link.jsonl"], says("link.jsonl", "twice")),
        ([*two, tmp_path / "none.jsonl"], "none.jsonl"),
        ([*two, tmp_path / "pipe"], says("pipe", "not a file")),
    ]:
        refused(message, parts, tmp_path / "out.jsonl")


def test_a_full_disk_leaves_the_old_merge(tmp_path, two, monkeypatch):
    merge(two[:1], tmp_path / "out.jsonl", None)
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC, "No space left on device"))
    refused(says("out.jsonl", "No space left", "nothing was changed", "free some space"), two, tmp_path / "out.jsonl")


@pytest.mark.parametrize("step", ["replace", "run"])
def test_a_merge_that_is_cut_off_never_pairs_answers_with_another_run(tmp_path, two, monkeypatch, step):
    output = filled(tmp_path / "out.jsonl", {"id": "old"}, run={"settings": {}})
    failed = failing(errno.EIO, "cut off")
    monkeypatch.setattr(*((os, "replace", failed) if step == "replace" else (run_file, "write_json", failed)))
    with pytest.raises(OSError, match="cut off"):
        merge(two, output, None)
    monkeypatch.undo()
    assert ids_of(output) == (["old"] if step == "replace" else ["one", 2, "three"])
    for run in (RUN, {"settings": {}}):
        with pytest.raises(ValueError, match=r"out\.jsonl\.run\.json"):
            AnswerFile(output, run)
    assert counts(merge(two, output, None)) == (3, 0)


NEW_RUN = RUN | {"format": 2}
ASKED = [{"prompt": "x"}, {"prompt": "y"}, {"prompt": "x"}, {"id": "a", "prompt": "x", "max_new_tokens": 3}]


def asked_file(folder, records, name="prompts.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return PromptFile(path)


def answers_to(prompts):
    return [{"id": record.id, "text": f"{record.prompt} {record.id}"} | record.as_answered() for record in prompts]


def test_answers_to_records_without_ids_follow_them_and_get_their_numbers(tmp_path):
    answers = answers_to(asked_file(tmp_path, ASKED))
    parts = [
        filled(tmp_path / "a.jsonl", *answers[:1], run=NEW_RUN),
        filled(tmp_path / "b.jsonl", *answers[1:], run=NEW_RUN),
    ]
    moved = asked_file(tmp_path, [{"prompt": "new"}, ASKED[1], ASKED[0], {"prompt": "new"}, *ASKED[2:]])
    output = tmp_path / "out.jsonl"
    done = merge(parts, output, moved)
    assert (counts(done), done.num_left_out, done.num_by_id) == ((4, 2), 0, 0)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in lines] == [2, 3, 5, "a"]
    assert [line["text"] for line in lines] == ["y 2", "x 1", "x 3", "x a"]  # what is there but the numbers stays
    with AnswerFile(output, NEW_RUN) as file:
        assert file.num_kept == 4


@pytest.mark.parametrize(
    ("record", "says_what"),
    [
        (
            {"id": "a", "prompt": "z", "max_new_tokens": 3},
            "asks something else under the id 'a' (its prompt is another)",
        ),
        ({"id": "a", "prompt": "x", "max_new_tokens": 4}, "under the id 'a' (max_new_tokens 3 became 4)"),
        ({"id": "b", "prompt": "x", "max_new_tokens": 3}, "has no id 'a'"),
        ({"prompt": "x", "max_new_tokens": 3}, "has no id 'a'"),
    ],
)
def test_answers_to_other_records_are_refused_or_left_out(tmp_path, record, says_what):
    part = filled(tmp_path / "part.jsonl", *answers_to(asked_file(tmp_path, ASKED)), run=NEW_RUN)
    prompts, output = asked_file(tmp_path, [*ASKED[:3], record]), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match=says("part.jsonl, line 4", says_what, "--leave-out-others")):
        merge([part], output, prompts)
    assert not output.exists()
    done = merge([part], output, prompts, leaves_out_others=True)
    assert (counts(done), done.num_left_out) == ((3, 1), 1)
    assert ids_of(output) == [1, 2, 3]


def test_a_record_without_an_id_that_is_gone_is_named_by_its_line(tmp_path):
    part = filled(tmp_path / "part.jsonl", *answers_to(asked_file(tmp_path, ASKED)), run=NEW_RUN)
    prompts = asked_file(tmp_path, ASKED[1:])  # one of two equal records
    with pytest.raises(ValueError, match=says("part.jsonl, line 3", "has no such record as line 3 was")):
        merge([part], tmp_path / "out.jsonl", prompts)


def test_answers_of_several_runs_without_ids_need_the_prompts(tmp_path):
    first = filled(tmp_path / "a.jsonl", *answers_to(asked_file(tmp_path, ASKED[:1])), run=NEW_RUN)
    moved = asked_file(tmp_path, [{"prompt": "new"}, *ASKED[:1]])
    second = filled(tmp_path / "b.jsonl", answers_to(moved)[0], run=NEW_RUN)
    output = tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match=says("the same number", "give --input, which numbers them anew")):
        merge([first, second], output, None)
    assert counts(merge([first, second], output, moved)) == (2, 0)
    assert ids_of(output) == [1, 2]


def test_an_earlier_part_and_records_without_ids_do_not_mix(tmp_path):
    run = {"model": {"name": "a", "fingerprint": "f00"}, "settings": {"seed": 7}}
    old = filled(tmp_path / "a.jsonl", ONE, run=run)
    newer = run | {"format": 2, "model": run["model"] | {"weights": "0f"}}
    new = filled(tmp_path / "b.jsonl", *answers_to(asked_file(tmp_path, ASKED)), run=newer)
    refused(says("b.jsonl, line 1 answers a record without an id"), [old, new], tmp_path / "out.jsonl", None)
    named = filled(tmp_path / "c.jsonl", TWO | {"content": "0" * 16}, run=newer)
    assert counts(merge([old, named], tmp_path / "out.jsonl", None)) == (2, 0)
    assert json.loads(run_path(tmp_path / "out.jsonl").read_text()) == run
