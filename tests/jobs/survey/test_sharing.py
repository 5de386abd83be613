"""Prompts that begin alike are read once: the answers, the calls and, whoever came first, the bits are the same."""

import dataclasses
import functools
import json
import random

import numpy as np
import pytest
import reference
from checkpoints import EOS, make_checkpoint
from support.commands import read_lines, write

from jax_probe_mtp import Prompt, Settings
from jax_probe_mtp.drafting import Merged, Ngram, Plain, Probe, Recycle
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.generation import chunks, scheduler
from jax_probe_mtp.generation.answers import Stats
from jax_probe_mtp.generation.groups import Groups
from jax_probe_mtp.jobs import survey
from jax_probe_mtp.jobs.encode import Encoder


def drawn(seed, length):
    return random.Random(seed).choices(range(2, 61), k=length)


SYSTEM, OTHER = drawn("system", 500), drawn("other", 300)
SOURCES = {
    "plain": Plain(),
    "probe": Probe(widths=(4,)),
    "ngram": Ngram(num_drafts=4),
    "recycle": Recycle(tree=7),
    "merged": Merged(rows=16, mask_init="mean"),
}
LONG = [[*SYSTEM[:150], *drawn(i, 3 + 15 * i)] for i in range(5)] + [[*OTHER[:90], *drawn(9, 4)]] * 2


def answers_of(tiny, source, num_shared, **settings):
    """Answers with so many first tokens of each of the first prompts shared, by id; and the stats."""
    settings = Settings(max_new_tokens=11, batch_size=2, **settings)
    texts = zip(LONG, num_shared, strict=False)
    prompts = [Prompt(id=i, token_ids=ids, seed=i, num_shared=shared) for i, (ids, shared) in enumerate(texts)]
    groups, stats = groups_of(tiny, source), Stats()
    decoder = groups.stream(settings, stats=stats, shared=groups.begin_shared(), capacity=512, is_sampled=True)
    found = {n: answer for update in decoder.run(enumerate(prompts)) for n, answer in update.finished}
    return [found[n] for n in range(len(prompts))], stats


@functools.cache
def groups_of(tiny, source):
    """Compiles once for all tests."""
    return Groups(make_checkpoint(tiny), source)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("source", SOURCES)
def test_answers_and_calls_are_those_without_sharing(tiny, source, temperature):
    source, num_shared = SOURCES[source], [150] * 5 + [90] * 2 * (source == "plain")  # other lengths are other programs
    shared, stats = answers_of(tiny, source, num_shared, temperature=temperature)
    alone, without = answers_of(tiny, source, [0] * len(num_shared), temperature=temperature)
    assert (stats.prefix_tokens, without.prefix_tokens) == (
        4 * 150 + num_shared.count(90) // 2 * 90,
        0,
    )  # but the first
    assert [answer.token_ids for answer in shared] == [answer.token_ids for answer in alone]
    assert [answer.accepted_by_depth for answer in shared] == [answer.accepted_by_depth for answer in alone]
    for n, answer in enumerate(shared):
        draw = {"temperature": temperature, "seed": n}
        tokens, gap = reference.plain_decode(tiny.reference, LONG[n], max_new_tokens=11, eos=[EOS], **draw)
        assert gap > 1e-4, "choose another prompt"
        assert answer.token_ids == tokens


def test_a_prefix_may_be_all_but_one_token_and_longer_than_a_piece(tiny):
    ids = drawn("long", 400)
    outs = []
    for num_shared in (0, 399, 256, 300):
        settings = Settings(max_new_tokens=5, batch_size=1)
        groups = groups_of(tiny, Recycle(tree=7))
        decoder = groups.stream(settings, stats=Stats(), shared=groups.begin_shared(), capacity=512, is_sampled=False)
        items = enumerate([Prompt(token_ids=ids, num_shared=num_shared)] * 2)
        outs.append([a.token_ids for update in decoder.run(items) for _, a in update.finished])
    assert outs[1:] == outs[:1] * 3


def test_where_pieces_are_long_a_rest_is_still_read_alone(tiny, monkeypatch):
    def in_long_pieces(checkpoint, settings, capacity):
        return dataclasses.replace(settings.decode_config(capacity), prefill_chunk=1024)

    prompts = [[*SYSTEM[:300], *drawn(i, 80)] for i in range(2)]
    outs = []
    for _ in range(2):
        groups, stats = Groups(make_checkpoint(tiny), Plain()), Stats()
        settings = Settings(max_new_tokens=5, batch_size=1)
        decoder = groups.stream(settings, stats=stats, shared=groups.begin_shared(), capacity=512, is_sampled=False)
        items = enumerate([Prompt(token_ids=ids, num_shared=300) for ids in prompts])
        outs.append([a.token_ids for update in decoder.run(items) for _, a in update.finished])
        assert stats.prefix_tokens == 300
        monkeypatch.setattr(scheduler, "decode_config", in_long_pieces)
    assert outs[0] == outs[1]


def test_a_prefix_is_read_once_and_few_are_kept(tiny, monkeypatch):
    reads, honest = [], chunks.Chunks._put

    def put(self, arrival, request, state, stats):
        inner = honest(self, arrival, request, state, stats)

        def counted(rows, after):
            reads.append(arrival.prefix not in self._prefixes)
            result = inner(rows, after)
            assert len(self._prefixes) <= chunks.MOST_PREFIXES
            return result

        return counted

    monkeypatch.setattr(chunks.Chunks, "_put", put)
    answers_of(tiny, Plain(), [150] * 5 + [90] * 2)
    assert reads == [True, False, False, False, False, True, False]
    del reads[:]
    monkeypatch.setattr(chunks, "MOST_PREFIXES", 2)
    answers_of(tiny, Plain(), [150, 149, 150, 148, 149, 90, 90])
    assert reads == [True, True, False, True, True, True, False]


def test_a_job_shares_and_goes_on_with_the_same_answers(generate, tmp_path, monkeypatch):
    """Whole, cut off after three records, and without sharing."""
    prompts = write(tmp_path / "p.jsonl", [{"id": n, "prompt_ids": ids} for n, ids in enumerate(LONG)])
    flags = ["--input", prompts, "--max-new-tokens", "9", "--batch-size", "2", "--logprobs"]

    def answers(name, *more):
        stats, output = tmp_path / f"{name}.stats.json", tmp_path / f"{name}.jsonl"
        code, _, err = generate(*flags, "--output", output, "--stats-json", stats, *more)
        assert code == 0, err
        return {line["id"]: line for line in read_lines(output)}, json.loads(stats.read_text())["prefix_tokens"]

    without, num_without = answers("without")
    monkeypatch.setattr(survey, "LEAST_SAVED_ON_CPU", 100)
    whole, num_shared = answers("whole")
    _, num_first = answers("cut", "--limit", "3")
    cut, num_rest = answers("cut")
    assert (num_without, num_shared, num_first + num_rest) == (0, 4 * 150 + 93, num_shared - 150)
    assert cut == whole  # log-probabilities too: bit for bit
    assert [whole[n]["token_ids"] for n in whole] == [without[n]["token_ids"] for n in whole]


def test_samples_of_a_prompt_are_prefilled_once(generate, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "LEAST_SAVED_ON_CPU", 100)
    prompts = write(tmp_path / "p.jsonl", [{"id": n, "prompt_ids": LONG[n], "n": 4, "seed": n} for n in (1, 5)])
    output, stats = tmp_path / "a.jsonl", tmp_path / "s.json"
    flags = ["--input", prompts, "--output", output, "--max-new-tokens", "9", "--temperature", "1", "--batch-size", "2"]
    assert generate(*flags, "--stats-json", stats)[0] == 0
    of_each = 3 * (len(LONG[1]) - 1) + 3 * (len(LONG[5]) - 1)  # all but the last token, which is the root
    assert json.loads(stats.read_text())["prefix_tokens"] == of_each
    for answer in read_lines(output):
        if answer["sample"] == 0:
            draw = {"temperature": np.float32(1), "seed": answer["id"]}
            tokens, gap = reference.plain_decode(
                tiny.reference, LONG[answer["id"]], max_new_tokens=9, eos=[EOS], **draw
            )
            assert gap > 1e-4, "choose another prompt"
            assert answer["token_ids"] == tokens
    assert len({tuple(answer["token_ids"]) for answer in read_lines(output)}) == 8


def test_the_exact_mode_shares_nothing(tiny, monkeypatch):
    """The job does not ask for it, and the decoder does not do it."""
    monkeypatch.setattr(survey, "LEAST_SAVED_ON_CPU", 100)
    for is_exact, num_shared in ((False, [150] * 5 + [93] * 2), (True, [0] * 7)):
        records = [Record(index=n, id=n, prompt_ids=ids) for n, ids in enumerate(LONG)]
        found = survey.survey(records, tiny.cfg, Encoder(None), Settings(max_new_tokens=3, is_exact=is_exact))
        assert [found.prefixes.of(n) for n in range(7)] == num_shared
    _, stats = answers_of(tiny, Plain(), [150] * 5 + [90] * 2, is_exact=True)
    assert stats.prefix_tokens == 0


def test_bits_of_a_prefix_do_not_depend_on_who_reads_it(tiny):
    found = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2]):
        settings = Settings(max_new_tokens=6, batch_size=2, logprobs=True)
        groups = groups_of(tiny, Plain())
        decoder = groups.stream(settings, stats=Stats(), shared=groups.begin_shared(), capacity=512, is_sampled=False)
        items = [(n, Prompt(id=n, token_ids=LONG[n], num_shared=150)) for n in order]
        found.append({n: a.logprobs for update in decoder.run(items) for n, a in update.finished})
    assert found[0] == found[1]
    assert found[2] == {2: found[0][2]}
