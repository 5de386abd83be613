"""A token's bits do not depend on how it was decoded: the exact mode's GPU kernels, interpreted, in many ways of decoding.

What a GPU adds to this (the order inside its own instructions) no interpretation shows: `exact_check` tests that there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BASE, make_tiny
from support.decoding.batches import batch_of
from support.kernels import lowered_for_cuda

from jax_probe_mtp.decoding import any_rows, block_layer
from jax_probe_mtp.decoding.loop import prefill, run_steps
from jax_probe_mtp.drafting import Merged, Ngram, Plain, Probe, Recycle
from jax_probe_mtp.kernels import int8_product, product, tiles
from jax_probe_mtp.model import transformer
from jax_probe_mtp.model.params import quantize_params

# Every sum has several tiles or parts; the norms of queries and keys sum as well.
CFG = dataclasses.replace(
    BASE,
    family="qwen3",
    has_qk_norm=True,
    num_layers=1,
    width=128,
    num_heads=4,
    head_dim=16,
    mlp_width=128,
    vocab_size=128,
)
PROMPTS = [[5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8], [(7 * i) % 11 for i in range(66)]]
NEW_TOKENS = 6
WAYS = {
    "probe, three texts": (Probe(widths=(4,)), [0, 1, 2], 96, {}),
    "two masks, in another order, drawn": (Probe(widths=(3, 2)), [2, 0, 1], 160, {"temperature": 1.0, "top_p": 0.9}),
    "recycling, a text twice": (Recycle(tree=7), [1, 1, 2, 0], 96, {}),
    "merged, alone": (Merged(rows=12, depth=3), [2], 128, {}),
    "n-grams, short pieces of the prompt": (Ngram(num_drafts=6, max_ngram=2), [2, 0], 96, {}),
    "plain, three texts": (Plain(), [0, 2, 1], 96, {}),
}


@functools.cache
def weights(kind):
    """A model sure enough of its next token that drafts are right now and then."""
    made = make_tiny(CFG, seed=3).params
    dtype = jnp.float32 if kind == "float32" else jnp.bfloat16
    made = jax.tree.map(lambda leaf: leaf.astype(dtype), made | {"head": made["head"] * 3})
    return quantize_params(made) if kind == "int8" else made


def program(source, numbers, capacity, chunk=256, attention="fused", **draw):
    """Prefill and loop of some of the texts, to be jitted, and what they take behind the parameters."""
    batch = batch_of(
        CFG,
        source,
        [PROMPTS[n] for n in numbers],
        seeds=[7 + n for n in numbers],
        max_new_tokens=NEW_TOKENS,
        eos_token_ids=[],
        capacity=capacity,
        is_exact=True,
        logprobs=True,
        **draw,
    )
    config = dataclasses.replace(batch.config, attention=attention, prefill_chunk=chunk)

    def run(params, prompt_BT, request):
        state = prefill(params, prompt_BT, request, CFG, source, config)
        return run_steps(params, request, state, CFG, source, config)

    return run, batch.prompt_BT, batch.request


def decode(kind, source, numbers, capacity, **more):
    """Gives of each text the tokens and the bits of their log-probabilities, keys and values, and how many were drafted."""
    run, *args = program(source, numbers, capacity, **more)
    state = jax.device_get(jax.jit(run)(weights(kind), *args))
    found = []
    for row, number in enumerate(numbers):
        first, length = len(PROMPTS[number]), len(PROMPTS[number]) + NEW_TOKENS - 1
        arrays = [state.logprob_BT[row, first : length + 1]]
        arrays += [slots[row, :, :length] for slots in (*state.cache.k, *state.cache.v)]
        bits = [np.ascontiguousarray(array).tobytes() for array in arrays]
        found.append((state.token_BT[row, first : length + 1].tolist(), bits))
    return found, int(state.accepted_by_depth_BX.sum())


@functools.cache
def alone(kind, number, is_drawn=False):
    """A text by plain decoding, alone: one row a call."""
    draw = {"temperature": 1.0, "top_p": 0.9} if is_drawn else {}
    return decode(kind, Plain(), [number], 96, **draw)[0][0]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_decoding_gives_the_bits_of_one_row(way):
    source, numbers, capacity, draw = WAYS[way]
    found, accepted = decode("bfloat16", source, numbers, capacity, chunk=16 if "pieces" in way else 256, **draw)
    assert found == [alone("bfloat16", number, bool(draw)) for number in numbers]
    assert accepted > 0 or draw or source == Plain(), "no draft was ever right: this proves nothing"


def test_float32_too():
    found, accepted = decode("float32", Recycle(tree=12), [0, 2, 1], 96)
    assert found == [alone("float32", number) for number in (0, 2, 1)]
    assert accepted > 0


def test_weights_of_eight_bits_too():
    """In blocks of rows, of which the kernel takes 32 at a time: three texts of 12 rows."""
    found, accepted = decode("int8", Recycle(tree=12), [0, 2, 1], 96)
    assert found == [alone("int8", number) for number in (0, 2, 1)]
    assert accepted > 0


def by_choice(q_shape, dtype):
    return tiles.choose_tiles(q_shape, 96, dtype, 32)


def short_tail(visible, position, length, start, window, tail=block_layer.absolute_tail):
    return tail(visible, position, length, start, min(window, 6))


UNDONE = {
    "attention's tiles by the shape of the call": (block_layer.tiles, "tiles_for_any_rows", by_choice),
    "a tail as long as the source's paths": (block_layer, "absolute_tail", short_tail),
    "the head by XLA": (block_layer, "head", lambda *_: transformer.plain_head),
    "prompts by XLA": (block_layer, "prompt_layer", lambda *_: functools.partial(transformer.text_layer, CFG)),
}


@pytest.mark.parametrize("piece", UNDONE)
def test_each_piece_is_needed(monkeypatch, piece):
    expected = [alone("bfloat16", number) for number in (0, 2)]
    monkeypatch.setattr(*UNDONE[piece])
    assert decode("bfloat16", Recycle(tree=7), [0, 2], 160)[0] != expected


@pytest.mark.parametrize(
    "source", [Plain(), Ngram(num_drafts=6, max_ngram=2)], ids=lambda source: type(source).__name__
)
def test_xla_multiplies_nothing_in_a_gpus_program(source):
    """Of sources that draft without products of their own."""
    run, *args = program(source, [0, 1], 96, attention="auto")
    assert "stablehlo.dot_general" not in lowered_for_cuda(run, weights("bfloat16"), *args)


def test_what_is_lacking(monkeypatch):
    assert any_rows.lacking(weights("bfloat16"), CFG) == []
    assert any_rows.lacking(weights("int8"), CFG) == []
    assert any_rows.lacking(weights("float32"), CFG) == []
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), weights("float32"))
    assert any_rows.lacking(half, CFG) == ["float16"]
    odd = dataclasses.replace(CFG, head_dim=24, vocab_size=61)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), make_tiny(odd, seed=3).params)
    assert any_rows.lacking(params, odd) == ["heads of 24", "out of 96 x 128", "head of 128 x 61"]


def test_products_of_any_rows_are_those_of_few():
    """Blocks of 64 rows; the head's weight lies by rows."""
    rng = np.random.default_rng(0)
    x_MD = jnp.asarray(rng.normal(size=(150, 128)), jnp.bfloat16)
    weight_DI = jnp.asarray(rng.normal(size=(128, 96)), jnp.bfloat16)
    exact_MI = np.asarray(x_MD, np.float64) @ np.asarray(weight_DI, np.float64)
    parts_PMI = product.product_parts(x_MD, weight_DI, interpret=True)
    np.testing.assert_allclose(np.asarray(parts_PMI, np.float64).sum(0), exact_MI, rtol=1e-5, atol=1e-4)
    logits_MI = product.head_product(x_MD, weight_DI.T, interpret=True)
    np.testing.assert_allclose(np.asarray(logits_MI, np.float64), exact_MI, rtol=1e-5, atol=1e-4)
    value_ID, scale_I = jnp.asarray(rng.integers(-127, 128, (96, 128)), jnp.int8), jnp.full(96, 0.01, jnp.float32)
    got_MI = np.asarray(int8_product.product_parts(x_MD, (value_ID, scale_I), interpret=True), np.float64).sum(0)
    exact_MI = np.asarray(x_MD, np.float64) @ (np.asarray(value_ID, np.float64) * 0.01).T
    np.testing.assert_allclose(got_MI, exact_MI, rtol=1e-5, atol=1e-3)


def test_a_product_that_depends_on_its_rows_is_named(monkeypatch):
    interpreted = functools.partial(product.product_parts, interpret=True)
    monkeypatch.setattr(any_rows.product, "gated_product", functools.partial(product.gated_product, interpret=True))
    monkeypatch.setattr(any_rows, "head", functools.partial(any_rows.head, interpret=True))
    monkeypatch.setattr(any_rows.product, "product_parts", interpreted)
    assert any_rows.differing(weights("bfloat16"), 20) == []

    def by_rows(x_MD, weight_DI):
        return interpreted(x_MD, weight_DI) + (len(x_MD) > 1 and weight_DI.shape == (128, 128))

    monkeypatch.setattr(any_rows.product, "product_parts", by_rows)
    assert set(any_rows.differing(weights("bfloat16"), 20)) >= {"down"}
