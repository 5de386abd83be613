"""The merged draft in several sizes: whichever runs when, the text is plain decoding's."""

import threading
import time
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
import reference
from checkpoints import EOS, make_checkpoint

from jax_probe_mtp import Prompt, Settings
from jax_probe_mtp.decoding.rows import run_some_calls
from jax_probe_mtp.drafting import Merged, SourceState, parse_draft
from jax_probe_mtp.drafting.merged.auto import Auto, Resting
from jax_probe_mtp.drafting.merged.choice import Choice, Turn
from jax_probe_mtp.drafting.merged.source import MergedRows
from jax_probe_mtp.drafting.spec import draft_name
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.generation.programs import CompileClock, compiled
from jax_probe_mtp.generation.scheduler import ContinuousDecoder
from jax_probe_mtp.measuring.timed_batch import TimedBatches

PROMPTS = [
    Prompt(id=i, token_ids=[(7 * i + j * j) % 57 for j in range(1 + (i * 5) % 23)], seed=i, max_new_tokens=12 + i)
    for i in range(6)
]
CASES = {
    "three sizes": (Auto(rows=32, mask_init="mean"), {}),
    "warm, drawn": (Auto(rows=16, warm=True, mask_init="mean"), {"temperature": 0.8, "top_p": 0.95}),
    "no masks": (Auto(rows=16, mask_owners=0), {}),
}


class InTurn(Choice):
    """Takes one size after the other, each for a chunk of one to three calls."""

    def __init__(self, sizes, calls_per_chunk, batch, costs=None):
        super().__init__(sizes, calls_per_chunk, batch, costs)
        self._sources, self.noted = sizes, []

    def turn(self, has=None):
        size = len(self.noted) % len(self._sources)
        return Turn(size, self._sources[size], 1 + len(self.noted) % 3)

    def note(self, turn, **what):
        assert what["calls"] <= turn.calls
        assert what["row_calls"] <= what["tokens"]
        assert what["seconds"] > 0
        self.noted.append((turn, what))


@pytest.mark.parametrize("case", CASES)
def test_sizes_in_turn_give_plain_decodings_text(tiny, monkeypatch, case):
    source, draw = CASES[case]
    monkeypatch.setattr(compiled, "Choice", InTurn)
    decoder = Decoder(make_checkpoint(tiny), source)
    answers = list(decoder.run(PROMPTS, Settings(batch_size=2, calls_per_chunk=3, **draw)))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        how = (
            {"temperature": 0.0} | draw | {"max_new_tokens": prompt.max_new_tokens, "seed": prompt.seed, "eos": (EOS,)}
        )
        expected, gap = reference.plain_decode(tiny.reference, prompt.token_ids, **how)
        assert gap > 1e-4, "rounding could decide this one"
        assert answer.token_ids == expected
        assert answer.draft == draft_name(source)
        assert len(answer.accepted_by_depth) == source.max_depth
        assert sum(answer.calls_by_draft.values()) == answer.calls
    assert sum(sum(answer.accepted_by_depth) for answer in answers) > 0
    assert decoder.stats.calls < decoder.stats.committed
    names = ["plain", *(draft_name(size) for size in source.sizes[1:])]
    assert {name for answer in answers for name in answer.calls_by_draft} == set(names)
    assert list(decoder.stats.seconds_by_draft) == names
    assert all(seconds > 0 for seconds in decoder.stats.seconds_by_draft.values())
    [choice] = decoder.groups.programs[0]._choices.values()
    committed = decoder.stats.committed + len(answers)  # each text's first token is its prefill's, by the first call
    assert sum(what["tokens"] for _, what in choice.noted) == committed
    rested = [what for turn, what in choice.noted if turn.size == 0]
    assert rested
    assert all(what["tokens"] == what["row_calls"] for what in rested)


def test_plain_calls_go_on_while_a_size_is_compiled(tiny, monkeypatch):
    may_go_on, honest = threading.Event(), compiled.Programs._compile

    def slow(self, asked, name):
        if asked.function is run_some_calls and asked.static["source"].max_depth:
            assert may_go_on.wait(60)
        return honest(self, asked, name)

    monkeypatch.setattr(compiled.Programs, "_compile", slow)
    decoder = Decoder(make_checkpoint(tiny), Auto(rows=16, mask_init="mean"))
    answers, run = [], decoder.run(PROMPTS, Settings(batch_size=1, calls_per_chunk=3))
    for answer in run:
        answers.append(answer)
        if len(answers) == 2:
            clock = decoder.groups.programs[0].clock
            assert CompileClock.waiting
            waited, begun = decoder.stats.compile_seconds, time.perf_counter()
            assert not clock.was_quiet_since(begun)
            may_go_on.set()
            while CompileClock.waiting:
                time.sleep(0.01)
            assert not clock.was_quiet_since(begun), "it has just ended"
            assert decoder.stats.compile_seconds == waited, "nobody waited for it"
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        limits = {"temperature": 0.0, "max_new_tokens": prompt.max_new_tokens, "eos": (EOS,)}
        assert answer.token_ids == reference.plain_decode(tiny.reference, prompt.token_ids, **limits)[0]
    assert [set(answer.calls_by_draft) for answer in answers[:2]] == [{"plain"}] * 2
    after = [answer for answer in answers[2:] if "merged:16@mask_init=mean" in answer.calls_by_draft]
    assert sum(sum(answer.accepted_by_depth) for answer in after) > 0


@pytest.mark.parametrize("fails", ["merged:16", "merged:32"])
def test_a_size_that_cannot_be_compiled_is_left_out(tiny, monkeypatch, caplog, fails):
    honest, tried = compiled.Programs._compile, []

    def fail(self, asked, name):
        source = asked.static.get("source")
        if source is not None and draft_name(source) == f"{fails}@mask_init=mean":
            tried.append(source)
            raise RuntimeError("out of memory")
        return honest(self, asked, name)

    monkeypatch.setattr(compiled.Programs, "_compile", fail)
    decoder = Decoder(make_checkpoint(tiny), Auto(rows=32, mask_init="mean"))
    answers = list(decoder.run(PROMPTS, Settings(calls_per_chunk=1)))
    clock = decoder.groups.programs[0].clock
    while not clock.was_quiet_since(time.perf_counter()):
        time.sleep(0.01)
    answers += decoder.run(PROMPTS, Settings(calls_per_chunk=1))
    for prompt, answer in zip(PROMPTS * 2, answers, strict=True):
        limits = {"temperature": 0.0, "max_new_tokens": prompt.max_new_tokens, "eos": (EOS,)}
        assert answer.token_ids == reference.plain_decode(tiny.reference, prompt.token_ids, **limits)[0]
        assert f"{fails}@mask_init=mean" not in answer.calls_by_draft
    assert len(tried) == 1, "it is tried once"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{fails}@mask_init=mean cannot be compiled, and is left out: out of memory"
    ]


def test_its_sizes():
    assert draft_name(parse_draft("auto")) == "auto:64"
    assert parse_draft("auto").sizes[1:] == (Merged(rows=16), Merged(rows=32), Merged(rows=64))
    assert Auto(rows=20, mask_owners=9, depth=3).sizes[1:] == (
        Merged(rows=16, mask_owners=8, depth=3),
        Merged(rows=20, mask_owners=9, depth=3),
    )
    assert Auto(rows=16).sizes[1:] == (Merged(rows=16),)
    assert [size.max_depth for size in Auto(rows=12).sizes] == [0, 8]
    assert Merged(rows=64).sizes == ()


def test_what_rests_follows_the_text():
    recent_BL = jnp.asarray([[-1, -1, 1, 2, 3, 4, 5, 6, 7], [11, 12, 13, 14, 15, 16, 17, 18, 19]])
    state = SourceState(rows=MergedRows(recent_BL=recent_BL, probe=(), learned="kept"))
    call = SimpleNamespace(new_token_BP=jnp.asarray([[8], [20]]), num_new_B=jnp.asarray([1, 0]))  # the second has ended
    after = Resting(Merged(rows=16)).learn(state, call)
    assert after.rows.recent_BL.tolist() == [[-1, 1, 2, 3, 4, 5, 6, 7, 8], recent_BL[1].tolist()]
    assert after.rows.learned == "kept"


def test_what_cannot_choose_says_so(tiny, monkeypatch):
    checkpoint = make_checkpoint(tiny)
    with pytest.raises(ValueError, match=r"exact within one program here, .* name a size, such as merged:64"):
        list(Decoder(checkpoint, Auto(rows=16)).run(PROMPTS, Settings(is_exact=True)))
    with pytest.raises(ValueError, match="auto:16 changes its size between chunks of calls"):
        TimedBatches(checkpoint, Auto(rows=16))
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match="several processes would each choose another size"):
        ContinuousDecoder(checkpoint, Auto(rows=16), Settings(), capacity=64, is_sampled=False)
