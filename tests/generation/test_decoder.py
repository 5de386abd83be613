"""Prompts in, generations out: order, batches, seeds, texts, counts, programs. Expected values come from `reference.py`."""

import dataclasses

import pytest
import reference
from checkpoints import ASSISTANT, BOS, EOS, SPECIAL, USER, make_checkpoint, words

from jax_probe_mtp import Prompt, Settings, generate, stream
from jax_probe_mtp.decoding.settings import record_seed
from jax_probe_mtp.drafting import Plain, Probe
from jax_probe_mtp.generation import tokenizer
from jax_probe_mtp.generation.answers import Stats
from jax_probe_mtp.generation.decoder import Decoder

TREE = {
    "tree": (7, 3),
    "num_masks": 2,
    "block_complexity": None,
    "prune": True,
    "mask_init": "mean",
    "mask_offset": 5.0,
}
PROBE = Probe(widths=(7, 3))
PROMPTS = [
    Prompt(id="a", token_ids=[7]),
    Prompt(id="b", token_ids=[5, 9, 2, 44, 17, 3, 3]),
    Prompt(id="c", token_ids=[60, 1, 33, 8]),
    Prompt(id="d", token_ids=list(range(12, 24))),
]
CUTS = {"temperature": 1.0, "top_k": 40, "top_p": 0.95}
GREEDY = Settings(max_new_tokens=24)
DRAWN = Settings(max_new_tokens=24, seed=7, **CUTS)


def _seed(first_digits):
    return int.from_bytes(bytes.fromhex(first_digits), "little")


# The first 8 digits of `printf 7:a | sha256sum`, and so on.
SEEDS_OF_RUN_7 = {"a": _seed("82d9d62b"), "b": _seed("ec2ad6f6"), "c": _seed("18ec666c"), "d": _seed("d3a3c601")}


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


@pytest.fixture(scope="module")
def decoder(checkpoint):
    return Decoder(checkpoint, PROBE)


@pytest.fixture(scope="module")
def expected(tiny):
    """What plain decoding gives, and the drafts accepted in each call of the probe."""

    def run(draw, seeds):
        outputs = {}
        for prompt in PROMPTS:
            limits = {"max_new_tokens": 24, "eos": (EOS,), "seed": seeds[prompt.id]} | draw
            tokens, gap = reference.plain_decode(tiny.reference, prompt.token_ids, **limits)
            assert gap > 1e-3, "choose another prompt: rounding could decide this one"
            outputs[prompt.id] = tokens, reference.probe_decode(tiny.reference, prompt.token_ids, TREE, **limits)[2]
        return outputs

    return {False: run({}, dict.fromkeys("abcd", 0)), True: run(CUTS, SEEDS_OF_RUN_7)}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("settings", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_every_record_is_the_references(decoder, expected, settings, batch_size):
    settings = dataclasses.replace(settings, batch_size=batch_size)  # 3: the second batch has one record
    got = list(decoder.run(PROMPTS, settings))
    assert [generation.id for generation in got] == ["a", "b", "c", "d"]
    reasons = []
    for generation, prompt in zip(got, PROMPTS, strict=True):
        tokens, accepted = expected[settings.temperature > 0][prompt.id]
        assert generation.prompt_ids == prompt.token_ids
        assert generation.token_ids == tokens
        assert generation.committed == len(tokens) - 1
        assert generation.calls == len(accepted)
        assert generation.accepted_by_depth == [sum(count >= depth for count in accepted) for depth in (1, 2)]
        assert generation.text == words(*[token for token in tokens if token not in SPECIAL])
        assert generation.finish_reason == ("stop" if tokens[-1] == EOS else "length")
        reasons.append(generation.finish_reason)
    assert set(reasons) == {"stop", "length"}, "choose other prompts: both ends must be seen"
    assert any(generation.calls < generation.committed for generation in got), "no draft was right"


def test_tokens_do_not_depend_on_the_place_in_a_batch(decoder, expected):
    turned = [PROMPTS[i] for i in (3, 1, 0)]
    for settings in (GREEDY, DRAWN):
        got = list(decoder.run(turned, dataclasses.replace(settings, batch_size=99)))  # no more rows than prompts
        assert [generation.id for generation in got] == ["d", "b", "a"]
        for generation in got:
            assert generation.token_ids == expected[settings.temperature > 0][generation.id][0]


def test_end_of_text_is_a_token_but_no_text(decoder, expected):
    (stopped,) = decoder.run(PROMPTS[:1], GREEDY)
    assert stopped.token_ids == [8, 8, EOS]  # drawn by the reference; the call that gives EOS had a token behind it
    assert expected[False]["a"][0] == [8, 8, EOS]
    assert stopped.text == "été été"
    assert (stopped.finish_reason, stopped.committed, stopped.calls) == ("stop", 2, 2)


def test_end_of_text_as_the_last_token_allowed_is_a_stop(decoder):
    (stopped,) = decoder.run(PROMPTS[:1], dataclasses.replace(GREEDY, max_new_tokens=3))
    (cut,) = decoder.run(PROMPTS[:1], dataclasses.replace(GREEDY, max_new_tokens=2))
    assert (stopped.token_ids, stopped.finish_reason) == ([8, 8, EOS], "stop")
    assert (cut.token_ids, cut.finish_reason) == ([8, 8], "length")


def test_one_new_token_needs_no_call(decoder, expected):
    (generation,) = decoder.run(PROMPTS[1:2], dataclasses.replace(GREEDY, max_new_tokens=1))
    assert generation.token_ids == expected[False]["b"][0][:1]
    assert (generation.calls, generation.committed, generation.accepted_by_depth) == (0, 0, [0, 0])
    assert generation.finish_reason == "length"


def test_plain_decoding_makes_one_call_a_token(checkpoint, expected):
    got = list(Decoder(checkpoint, Plain()).run(PROMPTS, dataclasses.replace(GREEDY, batch_size=3)))
    assert [generation.token_ids for generation in got] == [expected[False][name][0] for name in "abcd"]
    assert [generation.calls for generation in got] == [generation.committed for generation in got] == [2, 23, 23, 23]
    assert all(generation.accepted_by_depth == [] for generation in got)


def test_a_seed_of_its_own_replaces_the_runs(decoder, tiny):
    prompt = dataclasses.replace(PROMPTS[2], seed=2**32 - 1)
    tokens, gap = reference.plain_decode(
        tiny.reference, prompt.token_ids, max_new_tokens=24, eos=(EOS,), seed=2**32 - 1, **CUTS
    )
    assert gap > 1e-3
    for run_seed in (7, 8):
        (generation,) = decoder.run([prompt], dataclasses.replace(DRAWN, seed=run_seed))
        assert generation.token_ids == tokens


def test_the_smallest_top_p_keeps_the_best_token(decoder, expected):
    (generation,) = decoder.run(PROMPTS[1:2], dataclasses.replace(DRAWN, top_k=0, top_p=1e-60))
    assert generation.token_ids == expected[False]["b"][0]


def test_record_seed_comes_from_the_runs_seed_and_the_id():
    for name, seed in SEEDS_OF_RUN_7.items():
        assert record_seed(7, Prompt(id=name, token_ids=[1])) == seed
    assert record_seed(7, Prompt(id=0, token_ids=[1])) == _seed("f5ff61d7")
    assert record_seed(7, Prompt(id=1, token_ids=[1])) == _seed("d7a0cee7")
    assert record_seed(8, Prompt(id="a", token_ids=[1])) == _seed("76f5c6c1")
    assert record_seed(8, Prompt(id="a", token_ids=[2, 3])) == _seed("76f5c6c1")  # not from the text
    assert record_seed(8, Prompt(id="a", token_ids=[1], seed=0)) == 0  # 0 is a seed, not none


def test_a_bad_record_stops_the_run_before_it_starts(decoder):
    calls = decoder.stats.calls
    with pytest.raises(ValueError, match=r"\Aprompt bad .* 61, .*\Z"):
        decoder.run([*PROMPTS, Prompt(id="bad", token_ids=[61])], GREEDY)  # not even iterated
    assert decoder.stats.calls == calls


def test_no_prompts_give_no_generations(decoder):
    assert list(decoder.run([], GREEDY)) == []


def test_programs_are_compiled_once_a_shape(checkpoint):
    decoder = Decoder(checkpoint, PROBE)
    list(decoder.run(PROMPTS[:1], DRAWN))
    assert decoder.stats.compile_seconds > 0
    assert len(decoder.groups.programs[0]) == 3  # an empty batch, a prompt that comes, the calls

    def added(prompts, **changes):
        programs, seconds = len(decoder.groups.programs[0]), decoder.stats.compile_seconds
        list(decoder.run(prompts, dataclasses.replace(DRAWN, **changes)))
        is_new = len(decoder.groups.programs[0]) > programs
        assert is_new == (decoder.stats.compile_seconds > seconds)
        return len(decoder.groups.programs[0]) - programs

    assert added(PROMPTS[:1]) == 0
    assert added(PROMPTS[1:]) == 0  # other lengths of the same bucket, three batches
    assert added(PROMPTS[1:2], seed=9, temperature=0.5, top_k=3, top_p=0.5, max_new_tokens=5) == 0
    short, longer = [Prompt(id=0, token_ids=[1] * 30)], [Prompt(id=0, token_ids=[1] * 70)]
    larger = {"temperature": 0.0, "capacity": 128, "max_new_tokens": 2}
    assert added(short, **larger) == 3
    assert added(longer, **larger) == 1  # a longer prompt enters by another program, the calls are the same
    assert added(longer, **larger) == 0


def test_stats_add_up_over_runs(checkpoint, expected):
    decoder = Decoder(checkpoint, PROBE)
    got = [*decoder.run(PROMPTS[:2], GREEDY), *decoder.run(PROMPTS[2:], GREEDY)]
    stats = decoder.stats
    calls = sum(len(accepted) for _, accepted in expected[False].values())
    new_tokens = sum(len(tokens) for tokens, _ in expected[False].values())
    assert (stats.calls, stats.committed, stats.new_tokens) == (calls, new_tokens - 4, new_tokens)
    assert stats.tau == (new_tokens - 4) / calls > 1
    assert stats.seconds > 0
    assert len(got) == 4


def test_stats_read_well():
    stats = Stats(calls=8, committed=10, new_tokens=12, seconds=2.0, compile_seconds=3.25)
    assert (
        str(stats) == "tau 1.250, 8 calls for 10 tokens, 6.0 tokens/s (12 tokens in 2.00 s, and 3.2 s of compilation)"
    )
    assert str(Stats()).startswith("tau 1.000, 0 calls for 0 tokens, 0.0 tokens/s")


@pytest.mark.parametrize("adds_bos", [False, True])
def test_chat_template_gives_one_beginning_of_text(tiny, adds_bos):
    chat = make_checkpoint(tiny, adds_bos=adds_bos)
    text = words(5, 13)
    assert tokenizer.encode(chat.tokenizer, text, use_chat_template=True) == [BOS, USER, 5, 13, ASSISTANT]
    assert tokenizer.encode(chat.tokenizer, text, use_chat_template=False) == ([BOS] if adds_bos else []) + [5, 13]


def test_a_tokenizer_without_a_template_asks_for_plain_text(tiny):
    plain = make_checkpoint(tiny, template=None)
    with pytest.raises(ValueError, match=r"\Athe tokenizer has no chat template; .*--no-chat-template.*\Z"):
        generate(plain, ["w5"])
    (generation,) = generate(plain, ["w5"], draft=PROBE, settings=Settings(max_new_tokens=1), use_chat_template=False)
    assert generation.prompt_ids == [5]


def test_text_is_not_cleaned_up(checkpoint):
    # A clean-up would pull "." and "n't" to the word before.
    assert tokenizer.decode(checkpoint.tokenizer, [8, BOS, 20, 13, EOS, 28, ASSISTANT]) == "été . 海 n't"


def test_generate_answers_in_order_and_by_default_with_the_template(checkpoint, tiny):
    texts, settings = [words(7), words(39), words(52)], Settings(max_new_tokens=16, batch_size=3)
    got = generate(checkpoint, texts, draft=PROBE, settings=settings)
    assert [generation.id for generation in got] == [0, 1, 2]
    for generation, token in zip(got, (7, 39, 52), strict=True):
        prompt = [BOS, USER, token, ASSISTANT]
        tokens, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=16, eos=(EOS,))
        assert gap > 1e-3
        assert (generation.prompt_ids, generation.token_ids) == (prompt, tokens)


def test_generate_uses_one_mask_and_14_candidates_by_default(checkpoint, monkeypatch):
    probes = []

    class Spy(Decoder):
        def __init__(self, checkpoint, probe, **options):
            probes.append(probe)
            super().__init__(checkpoint, probe, **options)

    monkeypatch.setattr("jax_probe_mtp.generation.api.Decoder", Spy)
    settings = Settings(max_new_tokens=1)
    generate(checkpoint, [], settings=settings)
    generate(checkpoint, [], settings=settings, draft=Plain())  # no drafts: a value, not "left out"
    assert probes == [Probe(widths=(14,)), Plain()]


def test_a_context_that_is_no_power_of_two_is_used_to_its_end(tiny):
    small = dataclasses.replace(tiny, cfg=dataclasses.replace(tiny.cfg, context_length=45))
    prompt = Prompt(id=0, token_ids=[5, 9, 2, 44, 17, 3, 3] * 3)
    (got,) = Decoder(make_checkpoint(small), PROBE).run([prompt], Settings(max_new_tokens=24))
    assert got.token_ids == reference.plain_decode(tiny.reference, prompt.token_ids, max_new_tokens=24, eos=(EOS,))[0]


def test_a_stop_text_alone_is_no_list_of_letters(decoder):
    with pytest.raises(ValueError, match="stop must be a list of texts, got 'Paris'"):
        list(decoder.run(PROMPTS[:1], Settings(stop="Paris")))


def test_a_stream_is_checked_before_its_first_piece_is_asked_for(checkpoint):
    with pytest.raises(ValueError, match="max_new_tokens must be"):
        stream(checkpoint, "w5", settings=Settings(max_new_tokens=0))


@pytest.mark.parametrize(
    ("args", "says"),
    [(("tiny", PROBE), "checkpoint must be what load_checkpoint gives"), ((None, "probe:14"), "got None")],
)
def test_a_decoder_says_what_it_takes(args, says):
    with pytest.raises(ValueError, match=says):
        Decoder(*args)


def test_a_decoder_takes_drafts_alone(checkpoint):
    with pytest.raises(
        ValueError, match=r"source must be a DraftSource such as Probe\(widths=\(14,\)\), got 'probe:14'"
    ):
        Decoder(checkpoint, "probe:14")
