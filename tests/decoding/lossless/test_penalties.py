"""Penalties, biases and ends of their own: the tokens are plain decoding's with the same settings, whatever drafts them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import BASE, Tiny
from support.decoding.batches import batch_of
from support.decoding.calls import run_by_calls

from jax_probe_mtp import Settings, decode
from jax_probe_mtp.decoding import penalties
from jax_probe_mtp.decoding.penalties import penalize, used
from jax_probe_mtp.decoding.request import make_penalties
from jax_probe_mtp.drafting import DynamicProbe, Merged, Ngram, Plain, Probe, Recycle
from jax_probe_mtp.model.params import random_params

V = BASE.vocab_size
PROMPTS = [[7], [5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]]
SEEDS = [11, 2**32 - 1, 0, 5]
NEW_TOKENS = 17
EOS = 3
EACH = {
    "repetition_penalty": 1.3,
    "presence_penalty": 0.7,
    "frequency_penalty": 0.4,
    "min_tokens": 9,
    "logit_bias": {5: 2.5, 44: -100.0, EOS: 1.0},
}
OF_ROWS = [  # what each row asks for; the last one for nothing
    EACH | {"ignore_eos": True, "stop_token_ids": (30, 31)},
    {"frequency_penalty": 0.3, "min_tokens": 4},  # so that a draft of two tokens stands or falls with the first
    {"repetition_penalty": 2.0, "ignore_eos": True},
    {},
]


@pytest.fixture(scope="session")
def repetitive():
    """A model that falls into loops: what is drafted from the text is right, and each loop meets a penalty."""
    params = random_params(BASE, jax.random.key(0))
    params["head"] = params["head"] * 3
    return Tiny(BASE, params, reference.Model(params, BASE))


def ends_of(own):
    return [*([] if own.get("ignore_eos") else [EOS]), *own.get("stop_token_ids", ())]


def penalties_of(own, prompt):
    numbers = {name: value for name, value in own.items() if name in EACH}
    return {"num_prompt": len(prompt), "ends": ends_of(own)} | numbers


@pytest.mark.parametrize("names", [*[(name,) for name in EACH], tuple(EACH)], ids="+".join)
def test_logits_are_those_of_the_reference(names):
    rng = np.random.default_rng(0)
    own = {name: EACH[name] for name in names}
    logits_BV = rng.normal(size=(3, V)).astype(np.float32) * 4
    texts, num_prompt = [[1, 4, 4], [9, 44, 5, 5, 5, 8], [2] * 12], [3, 2, 1]
    token_BT = np.full((3, 15), 60)  # what is behind a text means nothing
    for row, text in enumerate(texts):
        token_BT[row, : len(text)] = text
    text = used(jnp.asarray(token_BT), jnp.asarray(num_prompt), jnp.asarray([3, 6, 12]), V)
    found = penalize(jnp.asarray(logits_BV), make_penalties([Settings(**own)] * 3, [EOS], V), text)
    num_changed = 0
    for row, text in enumerate(texts):
        expected = reference.penalized(logits_BV[row], text, **penalties_of(own, text[: num_prompt[row]]))
        num_changed += int(np.sum(expected != logits_BV[row]))
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-5)
    assert num_changed > 0


def test_a_row_that_asks_for_nothing_keeps_its_logits_bit_for_bit():
    logits_BV = np.random.default_rng(0).normal(size=(1, V)).astype(np.float32)
    text = used(jnp.asarray([[4, 5, 5]]), jnp.asarray([1]), jnp.asarray([3]), V)
    neutral = make_penalties([Settings()], [EOS], V)
    assert jax.jit(penalize)(jnp.asarray(logits_BV), neutral, text).tolist() == logits_BV.tolist()


def test_a_drawn_example():
    """Prompt 2, text 1 1; logits 1, 1, -1, 1: 1 was emitted twice, 2 is the prompt's, 3 would end too early."""
    settings = Settings(
        repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5, min_tokens=3, logit_bias={0: -3}
    )
    text = used(jnp.asarray([[2, 1, 1]]), jnp.asarray([1]), jnp.asarray([3]), 4)
    found = penalize(jnp.asarray([[1.0, 1.0, -1.0, 1.0]]), make_penalties([settings], [3], 4), text)
    assert found.tolist() == [[-2.0, 1 / 2 - 2 * 0.5 - 0.25, -2.0, -np.inf]]


SOURCES = {
    "plain": Plain(),
    "probe": Probe(widths=(9, 3)),
    "dynamic": DynamicProbe(rows=34, num_masks=2),
    "ngram": Ngram(num_drafts=4, max_ngram=3),
    "recycle": Recycle(tree=7),
    "merged": Merged(rows=16, mask_init="mean"),
}
DRAWS = {"greedy": {"temperature": 0.0}, "drawn": {"temperature": 0.8, "top_k": 40, "top_p": 0.95}}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("source", SOURCES)
def test_tokens_are_plain_decodings(repetitive, source, draw):
    how = DRAWS[draw] | {"eos_token_ids": [EOS]}
    seeds = SEEDS if draw == "drawn" else [0] * 4
    tokens, _, accepted = run_by_calls(repetitive, PROMPTS, SOURCES[source], NEW_TOKENS, seeds, own=OF_ROWS, **how)
    for row, (prompt, own, seed) in enumerate(zip(PROMPTS, OF_ROWS, seeds, strict=True)):
        plainly = functools.partial(reference.plain_decode, repetitive.reference, prompt, max_new_tokens=NEW_TOKENS)
        of_draw = DRAWS[draw] | {"seed": seed}
        expected, gap = plainly(eos=ends_of(own), penalties=penalties_of(own, prompt), **of_draw)
        assert gap > 1e-4, "choose another prompt: rounding could decide this one"
        assert tokens[row] == expected
        assert (expected != plainly(eos=[EOS], **of_draw)[0]) is bool(own), "the settings change nothing: choose others"
    assert (sum(map(sum, accepted)) > 0) is (source != "plain")


@pytest.mark.parametrize("draw", DRAWS)
def test_the_exact_mode_gives_the_same_bits_with_and_without_accepted_drafts(repetitive, draw):
    found = []
    for max_accept in (None, 0):
        batch = batch_of(
            BASE,
            SOURCES["ngram"],
            PROMPTS,
            seeds=SEEDS,
            own=OF_ROWS,
            eos_token_ids=[EOS],
            max_new_tokens=NEW_TOKENS,
            is_exact=True,
            logprobs=True,
            max_accept=max_accept,
            **DRAWS[draw],
        )
        found.append(jax.jit(decode, static_argnums=(2, 3))(repetitive.params, batch, BASE, SOURCES["ngram"]))
    drafted, plain = found
    assert drafted.calls_B.sum() < plain.calls_B.sum()
    assert drafted.num_emitted_B.tolist() == plain.num_emitted_B.tolist()
    for row, (prompt, num) in enumerate(zip(PROMPTS, plain.num_emitted_B.tolist(), strict=True)):
        text = slice(len(prompt), len(prompt) + num)
        for name in ("token_BT", "logprob_BT"):
            of_both = (np.asarray(getattr(result, name))[row, text].tolist() for result in found)
            assert next(of_both) == next(of_both)


def test_a_text_has_as_many_tokens_as_it_must_before_it_ends(repetitive):
    always = {"logit_bias": {EOS: 100.0}}
    least = [0, 1, 5, 16]
    own = [always | {"min_tokens": num} for num in least]
    tokens, *_ = run_by_calls(repetitive, PROMPTS, Recycle(tree=7), NEW_TOKENS, own=own, eos_token_ids=[EOS])
    assert [len(ids) for ids in tokens] == [num + 1 for num in least]
    assert all(ids[-1] == EOS and EOS not in ids[:-1] for ids in tokens)


def test_an_ignored_end_stays_in_the_text(repetitive):
    own = [{"logit_bias": {EOS: 100.0}, "ignore_eos": True}] * 4
    tokens, *_ = run_by_calls(repetitive, PROMPTS, Recycle(tree=7), 6, own=own, eos_token_ids=[EOS])
    assert tokens == [[EOS] * 6] * 4


def test_greedy_programs_without_them_hold_nothing_of_them(repetitive, monkeypatch):
    """No array, and none of the functions is asked."""
    plain, own = (
        batch_of(BASE, SOURCES["probe"], PROMPTS, eos_token_ids=[EOS], own=own)
        for own in (None, [{}, {}, {}, {"min_tokens": 2}])
    )
    assert plain.request.penalties is None
    assert own.request.penalties is not None
    with monkeypatch.context() as patch:
        for name in ("used", "penalize"):
            patch.setattr(penalties, name, None)  # to call it fails
        jax.make_jaxpr(lambda batch: decode(repetitive.params, batch, BASE, SOURCES["probe"]))(plain)
        with pytest.raises(TypeError):
            jax.make_jaxpr(lambda batch: decode(repetitive.params, batch, BASE, SOURCES["probe"]))(own)


BAD = {
    "repetition_penalty": [0, -1.0, 101, float("nan"), "1.2", True],
    "presence_penalty": [2.5, -3, float("inf"), None],
    "frequency_penalty": [2.5, "0", False],
    "min_tokens": [-1, 200, 1.5, True],
    "ignore_eos": [1, "yes", None],
    "stop_token_ids": [[V], [-1], "12", [1.5], [True]],
    "logit_bias": [{V: 1}, {"5": 1}, {5: 101}, {5: None}, {-1: 1}, {5: float("nan")}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD for value in BAD[name]])
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name) as error:
        Settings(**{name: value}).check(BASE, Plain())
    assert len(str(error.value)) < 200


def test_neutral_values_ask_for_nothing():
    neutral = {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "min_tokens": 0}
    more = {"ignore_eos": False, "stop_token_ids": (), "logit_bias": {}}
    assert not Settings(**neutral, **more).is_penalized
    assert all(Settings(**{name: value}).is_penalized for name, value in EACH.items())
    for one, other in itertools.product(EACH, EACH):
        assert Settings(**{one: EACH[one], other: EACH[other]}).is_penalized
