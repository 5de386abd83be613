"""The promise: every token is plain decoding's, every tree is the slow builder's, whatever the settings.

Everything is compared with `reference`, which shares no code with the package: float64 NumPy, no cache, the whole text
through the model for every token.
"""

import functools

import jax
import numpy as np
import pytest
import reference
from conftest import BASE, Tiny
from support.decoding.calls import run_by_calls

from jax_probe_mtp.drafting import DynamicProbe, Ngram, Plain, Probe, Recycle
from jax_probe_mtp.drafting.mask_tokens import PAPER_INITS, TRIED
from jax_probe_mtp.model.params import dequantize_params, quantize_params, random_params

PROMPTS = [[7], [5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]]
SHORTEST_FOR_LAST_K = [PROMPTS[1][:3], *PROMPTS[1:]]
NEW_TOKENS = 17
GREEDY = {"temperature": 0.0}
DRAWN = {"temperature": 1.0, "top_k": 40, "top_p": 0.95}
SEEDS = [11, 2**32 - 1, 0, 5]

TREES = [
    {"tree": (9,), "num_masks": 1, "block_complexity": None},
    {"tree": "dynamic", "num_masks": 1, "block_complexity": 20},
    {"tree": (7, 3), "num_masks": 2, "block_complexity": None},
    {"tree": "dynamic", "num_masks": 2, "block_complexity": 34},
    {"tree": (5, 4, 2), "num_masks": 3, "block_complexity": None},
    {"tree": "dynamic", "num_masks": 3, "block_complexity": 50},
]
# Every other source: how the package is asked for it, and how the reference decodes the same.
SOURCES = {
    "ngram": (
        Ngram(num_drafts=4, max_ngram=3),
        functools.partial(reference.ngram_decode, num_drafts=4, max_ngram=3, match="recent"),
    ),
    "recycle-7": (Recycle(tree=7), functools.partial(reference.recycle_decode, num_nodes=7, max_depth=6)),
    "recycle-static80": (Recycle(tree="static80"), functools.partial(reference.recycle_decode, num_nodes="static80")),
}


def _name(value):
    if isinstance(value, dict) and "tree" in value:
        return f"{value['tree']}x{value['num_masks']}".replace(" ", "")
    return str(value)


@pytest.fixture(scope="session")
def repetitive() -> Tiny:
    """A model that is surer of its next token and falls into loops, which prompt lookup needs."""
    params = random_params(BASE, jax.random.key(0))
    params["head"] = params["head"] * 3
    return Tiny(BASE, params, reference.Model(params, BASE))


def probe_of(*, tree, num_masks, block_complexity, **masks):
    """The source that the reference's words describe."""
    if tree == "dynamic":
        return DynamicProbe(rows=block_complexity, num_masks=num_masks, **masks)
    return Probe(widths=tree, **masks)


@pytest.mark.parametrize("draw", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("prune", [True, False], ids=["prune", "keep"])
@pytest.mark.parametrize("tree", TREES, ids=_name)
def test_tokens_and_trees_are_the_references(tiny, tree, prune, batch, draw):
    # One a test, since each is a program of its own; every tree meets all of them, with all first masks.
    mask_ema = (0.0, 0.1, 0.5)[(TREES.index(tree) + prune + (batch == 4) + (draw is DRAWN)) % 3]
    total = 0
    for mask_init in PAPER_INITS:
        settings = tree | {"prune": prune, "mask_init": mask_init, "mask_offset": 2.0 if mask_init == "offset" else 5.0}
        total += compare_with_reference(tiny, settings, mask_ema, batch, draw)
    assert total > 0, "no draft was ever right: this proves nothing about accepting"


LONG = [[(7 * i * i + 3 * i + row) % 61 for i in range(length)] for row, length in enumerate([40, 19, 12, 33])]


@pytest.mark.parametrize("draw", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("tree", [TREES[0], TREES[3]], ids=_name)
def test_masks_that_are_chosen_or_brought_are_the_references(tiny, tree, draw):
    """The default, on prompts of several lengths, one of them too short to tell; and the inits that are not the paper's."""
    brought = np.random.default_rng(0).normal(size=(tree["num_masks"], BASE.width)).astype(np.float32)
    chosen = set()
    for mask_init in ("auto", "vocabulary", "zero", "tuned"):
        words = tree | {"prune": True, "mask_offset": 5.0}
        probe = probe_of(**words, mask_init=mask_init)
        shared = brought if mask_init == "tuned" else None
        tokens, trees, accepted = run_by_calls(tiny, LONG, probe, NEW_TOKENS, SEEDS, shared=shared, **draw)
        for row, prompt in enumerate(LONG):
            row_draw = draw | {"seed": SEEDS[row] if draw is DRAWN else 0}
            init, ema = mask_init, 0.0
            if mask_init == "auto":
                init, ema = reference.chosen_mask(tiny.reference, prompt, TRIED)[0]
                chosen.add((init, ema))
            expected = reference.probe_decode(
                tiny.reference,
                prompt,
                words | {"mask_init": brought if mask_init == "tuned" else init},
                max_new_tokens=NEW_TOKENS,
                mask_ema=ema,
                **row_draw,
            )
            assert (tokens[row], trees[row], accepted[row]) == expected
    assert len(chosen) > 1, "the prompts chose alike: choose others"


@pytest.mark.parametrize("tree", TREES[2:4], ids=_name)
def test_drafts_ranked_without_noise_are_the_references(tiny, tree):
    settings = tree | {"prune": True, "mask_init": "mean", "mask_offset": 5.0}
    ranked_with = compare_with_reference(tiny, settings, 0.1, 4, DRAWN)
    ranked_without = compare_with_reference(tiny, settings, 0.1, 4, DRAWN, rank_with_noise=False)
    assert ranked_with != ranked_without, "the two rankings accepted alike: choose other prompts"


def compare_with_reference(tiny, settings, mask_ema, batch, draw, rank_with_noise=True):
    """Every token, tree and accepted count of the last `batch` prompts; returns how many drafts were accepted."""
    probe = probe_of(**settings, rank_with_noise=rank_with_noise, mask_ema=mask_ema)
    prompts = (SHORTEST_FOR_LAST_K if probe.mask_init == "last_k" else PROMPTS)[-batch:]
    seeds = SEEDS[-batch:] if draw is DRAWN else [0] * batch
    tokens, trees, accepted = run_by_calls(tiny, prompts, probe, NEW_TOKENS, seeds, **draw)
    for row, prompt in enumerate(prompts):
        row_draw = draw | {"seed": seeds[row]}
        plain, gap = plain_reference(tiny, tuple(prompt), tuple(row_draw.items()))
        assert gap > 1e-3, "choose another model or prompt: rounding could decide this one"
        assert tokens[row] == plain
        expected = reference.probe_decode(
            tiny.reference,
            prompt,
            settings,
            max_new_tokens=NEW_TOKENS,
            mask_ema=mask_ema,
            rank_with_noise=rank_with_noise,
            **row_draw,
        )
        assert expected[0] == plain
        assert trees[row] == expected[1]
        assert accepted[row] == expected[2]
    return sum(map(sum, accepted))


@pytest.mark.parametrize("draw", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("source", SOURCES)
def test_tokens_and_trees_of_other_sources_are_the_references(repetitive, source, batch, draw):
    source, decode_slowly = SOURCES[source]
    prompts, seeds = PROMPTS[-batch:], SEEDS[-batch:] if draw is DRAWN else [0] * batch
    tokens, trees, accepted = run_by_calls(repetitive, prompts, source, NEW_TOKENS, seeds, **draw)
    for row, prompt in enumerate(prompts):
        row_draw = draw | {"seed": seeds[row]}
        plain, gap = plain_reference(repetitive, tuple(prompt), tuple(row_draw.items()))
        assert gap > 1e-3, "choose another model or prompt: rounding could decide this one"
        expected = decode_slowly(repetitive.reference, prompt, max_new_tokens=NEW_TOKENS, **row_draw)
        for smallest_gap in expected[4:]:  # of a table
            assert smallest_gap > 1e-5, "choose another model or prompt: rounding could decide a tree"
        assert tokens[row] == expected[0] == plain
        assert list(map(reference.without_padding, trees[row])) == list(map(reference.without_padding, expected[1]))
        assert accepted[row] == expected[2]
    assert sum(map(sum, accepted)) > 0, "no draft was ever right: this proves nothing about accepting"


@pytest.mark.parametrize("source", [*SOURCES, "probe", "plain"])
def test_weights_of_eight_bits_are_decoded_as_plainly(source):
    """Against the NumPy model of the numbers that the rounded weights stand for."""
    drawn = random_params(BASE, jax.random.key(0))
    params = quantize_params(drawn | {"head": drawn["head"] * 3})
    tiny = Tiny(BASE, params, reference.Model(dequantize_params(params), BASE))
    others = {"probe": Probe(widths=(9, 3)), "plain": Plain()}
    tokens, _, accepted = run_by_calls(
        tiny, PROMPTS, others.get(source) or SOURCES[source][0], NEW_TOKENS, [0] * len(PROMPTS), **GREEDY
    )
    for row, prompt in enumerate(PROMPTS):
        plain, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=NEW_TOKENS, **GREEDY)
        assert gap > 1e-3, "choose another model or prompt: rounding could decide this one"
        assert tokens[row] == plain
    assert (sum(map(sum, accepted)) > 0) is (source != "plain")


@functools.cache
def plain_reference(tiny, prompt, draw):
    return reference.plain_decode(tiny.reference, list(prompt), max_new_tokens=NEW_TOKENS, **dict(draw))


@pytest.mark.parametrize("draw", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_plain_decoding_is_the_references(tiny, draw):
    tokens, trees, _ = run_by_calls(tiny, PROMPTS, Plain(), NEW_TOKENS, SEEDS, **draw)
    for row, prompt in enumerate(PROMPTS):
        plain, _ = reference.plain_decode(
            tiny.reference, prompt, max_new_tokens=NEW_TOKENS, **draw, seed=SEEDS[row] if draw is DRAWN else 0
        )
        assert tokens[row] == plain
        assert trees[row] == [[(token, -1, 0)] for token in plain[:-1]]  # one call a token, the root alone in its block
