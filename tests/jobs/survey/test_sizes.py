"""A few long records among short ones: the short ones have small caches, and all answers are the same."""

import dataclasses
from array import array

import chex
import pytest
import safetensors.numpy
from support.commands import read_lines, write

from jax_probe_mtp.generation.groups import Groups
from jax_probe_mtp.jobs.survey import Survey, _capacity_of_short
from jax_probe_mtp.jobs.warm import warm_path

SHORT = [{"id": n, "prompt_ids": [5 + n, 9, 2 + n]} for n in range(9)]
LONG = {"id": "long", "prompt_ids": [(7 * i * i + 3 * i) % 58 + 2 for i in range(300)]}
LAST = {"id": "last", "prompt_ids": [60, 7]}


@pytest.mark.parametrize(
    ("powers", "capacity", "batch_size", "found"),
    [
        ([6] * 40 + [11], 2048, 8, 64),
        ([6] * 31 + [11], 2048, 8, None),  # too few
        ([6] * 40 + [7], 128, 8, None),  # no longer ones that are four times as long
        ([6] * 40 + [8], 256, 8, 64),
        ([6] * 20 + [7] * 40 + [11], 2048, 8, 128),  # 60 of them, rather than none
        ([6] * 40 + [7] * 4 + [11], 2048, 8, 128),  # 44 x 1920 slots are more than 40 x 1984
        ([6] * 400 + [9] * 4 + [11], 2048, 8, 64),
        ([11] * 100, 2048, 8, None),
        ([6] * 40 + [11], 1500, 8, 64),  # the model's context is no power of two
    ],
)
def test_the_size_is_the_one_that_saves_most(powers, capacity, batch_size, found):
    assert _capacity_of_short(array("B", powers), capacity, batch_size) == found


def test_each_record_has_the_smallest_size_that_holds_it():
    survey = Survey(2048, None, 128, array("B", [6, 11, 7, 8]))
    assert survey.capacities == [128, 2048]
    assert [survey.place_of(index) for index in range(4)] == [0, 1, 0, 1]
    survey = dataclasses.replace(survey, capacity_of_short=None)
    assert survey.capacities == [2048]
    assert [survey.place_of(index) for index in range(4)] == [0] * 4


@pytest.fixture
def sizes(monkeypatch):
    """Gives the cache sizes of the decoders that were made, and the ids that each was given."""
    found, honest = {}, Groups.stream

    def stream(self, settings, *, capacity, **more):
        decoder, ids = honest(self, settings, capacity=capacity, **more), found.setdefault(capacity, [])
        run = decoder.run

        def watched(items, should_stop):
            def seen():
                for number, item in items:
                    ids.append(item.id)
                    yield number, item

            return run(seen(), should_stop)

        decoder.run = watched
        return decoder

    monkeypatch.setattr(Groups, "stream", stream)
    return found


def test_answers_are_those_of_one_size(generate, tmp_path, sizes):
    prompts = write(tmp_path / "p.jsonl", [*SHORT, LONG, LAST])
    flags = ["--input", prompts, "--max-new-tokens", "7", "--batch-size", "2"]

    def answers(name, *more):
        sizes.clear()
        code, _, err = generate(*flags, "--output", tmp_path / name, *more)
        assert code == 0, err
        return {line["id"]: line for line in read_lines(tmp_path / name)}

    split = answers("split.jsonl")
    assert sizes == {64: [*range(9), "last"], 512: ["long"]}
    for name, more in (("ordered.jsonl", ["--ordered"]), ("one.jsonl", ["--capacity", "512"])):
        assert answers(name, *more) == split
        assert sizes == {512: [*range(9), "long", "last"]}
    assert [line["id"] for line in read_lines(tmp_path / "ordered.jsonl")] == [*range(9), "long", "last"]
    assert sum(sum(line["accepted_by_depth"]) for line in split.values()) > 0

    lines = (tmp_path / "split.jsonl").read_text().splitlines(keepends=True)
    for num_kept in (4, 10):  # cut off among the short ones, and before the long one
        (tmp_path / "split.jsonl").write_text("".join(lines[:num_kept]))
        assert answers("split.jsonl") == split
        assert sum(map(len, sizes.values())) == 11 - num_kept


def test_what_is_learned_goes_on_with_the_next_size(run, model, tmp_path, sizes):
    """The long record comes last in both runs: it takes as many calls, and the same is learned in the end."""
    prompts = write(tmp_path / "p.jsonl", [*SHORT, LONG])
    calls, learned = {}, {}
    for name, more in (("two", []), ("one", ["--capacity", "512"])):
        output = tmp_path / f"{name}.jsonl"
        command = ["generate", "--model", model, "--input", prompts, "--output", output, "--draft", "recycle:7@warm=1"]
        sizes.clear()
        code, _, err = run(*command, "--max-new-tokens", "30", "--batch-size", "1", *more)
        assert code == 0, err
        assert len(sizes) == (2 if name == "two" else 1)
        calls[name] = {line["id"]: line["calls"] for line in read_lines(output)}
        learned[name] = safetensors.numpy.load_file(warm_path(output))
    assert calls["two"] == calls["one"]
    chex.assert_trees_all_close(learned["two"], learned["one"], rtol=1e-4, atol=1e-4)  # other sizes round otherwise
