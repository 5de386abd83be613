"""Files of answers, cut at any byte over and over: what was whole stays, in the end each id is there once."""

import json
import os
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.files.answer_files import counts

from jax_probe_mtp.files.answer_file import AnswerFile
from jax_probe_mtp.files.merge import merge
from jax_probe_mtp.files.prompt_file import PromptFile

RUN = {"settings": {"seed": 7}}
NUM_PARTS = 3

answers = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(max_size=4) | st.integers(),
            "text": st.text(max_size=12),
            "finish_reason": st.sampled_from(["stop", "length", "error"]),
        }
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda answer: str(answer["id"]),  # 1 and "1" are one id
)
places = st.tuples(st.integers(0, 10_000), st.booleans())  # for `cut`
calls = st.lists(st.integers(0, 3), max_size=4)  # answers in each call of `write`
tails = st.sampled_from([b"", b"", b"\0", bytes(9), b"\0\n\0\0\n\n"])  # a power cut leaves NULs, whatever stood there
cuts = st.tuples(calls, places, tails)


@pytest.fixture(autouse=True, scope="module")
def quick_disk():
    """Thousands of small files need not outlive a power cut."""
    with mock.patch.object(os, "fsync"):
        yield


def go_on(path, answers, sizes):
    """A run: of the answers, in order, those that the file does not hold, some in each call."""
    with AnswerFile(path, RUN) as file:
        left = [answer for answer in answers if answer["id"] not in file.done]
        for size in sizes:
            file.write(left[:size])
            left = left[size:]


def finish(path, answers):
    go_on(path, answers, [len(answers)])


def in_file(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def cut(data, place):
    """The bytes before any one of them, or before or behind the end of a line."""
    number, is_at_line_end = place
    ends = [i for i, byte in enumerate(data) if byte == ord("\n")] if is_at_line_end else []
    sizes = [size for end in ends for size in (end, end + 1)] or range(len(data) + 1)
    return data[: sizes[number % len(sizes)]]


def whole_lines(data):
    return data[: data.rfind(b"\n") + 1]


@settings(max_examples=250, derandomize=True, deadline=None)
@given(answers, st.lists(cuts, max_size=4))
def test_a_run_that_is_cut_at_any_byte_ends_with_every_answer_once_in_order(answers, cuts):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.jsonl"
        for sizes, place, tail in cuts:
            go_on(path, answers, sizes)
            data = cut(path.read_bytes(), place)
            path.write_bytes(data + tail)
            with AnswerFile(path, RUN) as file:
                assert path.read_bytes() == whole_lines(data)
                kept = in_file(path)
                assert kept == answers[: len(kept)]
                assert file.num_kept == file.num_written == len(file.done) == len(kept)
                assert file.num_errors == [answer["finish_reason"] for answer in kept].count("error")
                assert [answer["id"] in file.done for answer in answers] == [answer in kept for answer in answers]
        finish(path, answers)
        assert in_file(path) == answers


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.data(), answers)
def test_parts_become_one_file_in_the_order_of_the_prompts_unless_one_is_torn(data, answers):
    part_of = data.draw(
        st.lists(st.integers(0, NUM_PARTS - 1), min_size=len(answers), max_size=len(answers)), "part of"
    )
    in_order = data.draw(st.permutations(answers), "order of the prompts")
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"part {i}.jsonl" for i in range(NUM_PARTS)]
        prompts, output = Path(folder) / "prompts.jsonl", Path(folder) / "merged.jsonl"
        prompts.write_text("".join(json.dumps({"id": answer["id"], "prompt": "x"}) + "\n" for answer in in_order))
        for i, path in enumerate(parts):
            finish(path, [answer for answer, part in zip(answers, part_of, strict=True) if part == i])
        torn = parts[data.draw(st.integers(0, NUM_PARTS - 1), "cut part")]
        left = cut(torn.read_bytes(), data.draw(places, "cut at"))
        torn.write_bytes(left)
        if left != whole_lines(left):
            with pytest.raises(ValueError, match="torn"):
                merge(parts, output, PromptFile(prompts))
            assert not output.exists()
            go_on(torn, answers, [])
        kept = [answer for path in parts for answer in in_file(path)]
        assert counts(merge(parts, output, None)) == (len(kept), 0)
        assert in_file(output) == kept
        assert counts(merge(parts, output, PromptFile(prompts))) == (len(kept), len(answers) - len(kept))
        kept_in_order = [answer for answer in in_order if answer in kept]
        assert in_file(output) == kept_in_order
        finish(output, in_order)  # a run goes on with it
        assert in_file(output) == kept_in_order + [answer for answer in in_order if answer not in kept]
