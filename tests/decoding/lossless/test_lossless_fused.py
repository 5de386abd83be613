"""Decoding with the fused attention kernel, interpreted on the CPU, is decoding with plain attention; and who gets which."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import BASE, make_tiny
from support.decoding.batches import batch_of
from support.kernels import lowered_for_cuda

from jax_probe_mtp import decode
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import prefill, run_steps
from jax_probe_mtp.drafting import Merged, Plain, Probe, Recycle
from jax_probe_mtp.model.params import abstract_params

CFG = dataclasses.replace(BASE, head_dim=16, num_layers=1)  # the smallest head that the kernel takes
PROMPTS = [[5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]]
SEEDS = [11, 2**32 - 1, 5]
NEW_TOKENS, CAPACITY = 12, 48
DRAWN = {"temperature": 1.0, "top_k": 40, "top_p": 0.95}
CASES = {
    "plain": (Plain(), {}),
    "probe-4": (Probe(widths=(4,)), {}),
    "probe-3-2": (Probe(widths=(3, 2)), {}),
    "recycle-7": (Recycle(tree=7), {}),
    "merged-12": (Merged(rows=12, depth=3), {}),
    "probe-3-2-drawn": (Probe(widths=(3, 2)), DRAWN),
}
STATIC = ("cfg", "source", "decode_cfg")
jit_decode = jax.jit(decode, static_argnames=("cfg", "source"))


@pytest.fixture(scope="module")
def wide():
    """A model with heads of 16, sure enough of its next token that drafts are now right, now wrong."""
    params_of = make_tiny(CFG, seed=3)
    params = params_of.params | {"head": params_of.params["head"] * 3}
    return dataclasses.replace(params_of, params=params, reference=reference.Model(params, CFG))


def run(tiny, case, attention):
    """Tokens, calls and accepted drafts of every row."""
    source, draw = CASES[case]
    batch = batch_of(
        tiny.cfg, source, PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_ids=[], seeds=SEEDS, capacity=CAPACITY, **draw
    )
    batch = batch.replace(config=dataclasses.replace(batch.config, attention=attention))
    result = jax.device_get(jit_decode(tiny.params, batch, tiny.cfg, source))
    assert result.num_emitted_B.tolist() == [NEW_TOKENS] * len(PROMPTS)
    tokens = [result.token_BT[row, len(p) : len(p) + NEW_TOKENS].tolist() for row, p in enumerate(PROMPTS)]
    return tokens, result.calls_B.tolist(), result.accepted_by_depth_BX.tolist()


@pytest.mark.parametrize("case", CASES)
def test_tokens_calls_and_accepted_drafts_are_those_of_plain_attention(wide, case):
    source, draw = CASES[case]
    fused = run(wide, case, "fused")
    assert fused == run(wide, case, "plain")
    tokens, calls, accepted = fused
    for row, prompt in enumerate(PROMPTS):
        row_draw = {"temperature": 0.0} | draw | {"seed": SEEDS[row]}
        expected, gap = reference.plain_decode(wide.reference, prompt, max_new_tokens=NEW_TOKENS, **row_draw)
        assert gap > 1e-3, "choose another model or prompt: rounding could decide this one"
        assert tokens[row] == expected
    if source.max_depth == 0:
        assert calls == [NEW_TOKENS - 1] * len(PROMPTS)
    else:
        assert np.sum(accepted) > 0, "no draft was ever right: this proves nothing about accepting"
        assert min(calls) < NEW_TOKENS - 1


def abstract_step(cfg, source, attention, batch_size=1, is_exact=False, weights=None):
    """`run_steps`, ready to be lowered, and its arguments without values."""
    batch = batch_of(
        cfg,
        source,
        [[7, 8]] * batch_size,
        max_new_tokens=9,
        eos_token_ids=[],
        capacity=CAPACITY,
        is_exact=is_exact,
    )
    static = {"cfg": cfg, "source": source, "decode_cfg": dataclasses.replace(batch.config, attention=attention)}
    params = abstract_params(cfg, jnp.bfloat16, weights)
    state = jax.eval_shape(functools.partial(prefill, **static), params, batch.prompt_BT, batch.request)
    return jax.jit(functools.partial(run_steps, **static)), (params, batch.request, state)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU gets the kernel")
@pytest.mark.parametrize("case", ["plain", "probe-3-2"])
def test_auto_on_a_cpu_has_no_kernel(case):
    """An interpreted kernel is a loop over its programs, with loops over tiles inside."""
    loops = {}
    for how in ("plain", "auto", "fused"):
        step, args = abstract_step(CFG, CASES[case][0], how)
        loops[how] = step.lower(*args).as_text().count("stablehlo.while")
    assert loops["plain"] == loops["auto"] < loops["fused"]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU gets the kernel")
def test_auto_on_a_cpu_gives_the_bits_of_plain_attention(wide):
    source, _ = CASES["probe-4"]
    batch = batch_of(CFG, source, PROMPTS[:2], max_new_tokens=5, eos_token_ids=[], capacity=CAPACITY)
    begun = prefill(wide.params, batch.prompt_BT, batch.request, CFG, source, batch.config)
    states = {}
    for how in ("plain", "auto", "fused"):
        decode_cfg = dataclasses.replace(batch.config, attention=how)
        state = jax.jit(run_steps, static_argnames=STATIC)(wide.params, batch.request, begun, CFG, source, decode_cfg)
        states[how] = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    assert states["auto"] == states["plain"]
    assert states["fused"] != states["plain"], "the kernel rounds alike here: this does not tell them apart"


def gpu_program(cfg, source, attention, batch_size=1, is_exact=False, weights=None):
    """The program for a CUDA GPU, before it is compiled."""
    step, args = abstract_step(cfg, source, attention, batch_size, is_exact, weights)
    return lowered_for_cuda(step, *args)


def num_kernels(*what, **more):
    """Kernels in the program, Triton's and Mosaic's; one that all layers share is one."""
    text = gpu_program(*what, **more)
    return text.count("__gpu$xla.gpu.triton") + text.count("stablehlo.custom_call @mosaic_gpu")


OF_A_LAYER = 5  # split_qkv, attention, its merge, the norm in the middle, the norm at the end
PRODUCTS = 4


@pytest.mark.parametrize(
    ("case", "batch_size", "others"),
    [("plain", 1, 0), ("plain", 2, 0), ("probe-3-2", 1, 1), ("probe-3-2", 2, 1)],
    ids=["a-row", "two-rows", "a-tree", "two-trees"],  # the copy of the accepted path
)
@pytest.mark.parametrize("is_exact", [False, True])
def test_a_gpu_gets_the_kernels_unless_it_is_to_be_plain(case, batch_size, others, is_exact):
    source, _ = CASES[case]
    assert num_kernels(CFG, source, "plain", batch_size, is_exact) == others
    assert num_kernels(CFG, source, "auto", batch_size, is_exact) == others + OF_A_LAYER


@pytest.mark.parametrize(("is_exact", "kernel"), [(False, "_visible_kernel"), (True, "_anchored_kernel")])
def test_a_gpu_gets_the_attention_of_the_mode(is_exact, kernel):
    program = gpu_program(CFG, CASES["probe-3-2"][0], "auto", is_exact=is_exact)
    assert [name for name in ("_visible_kernel", "_anchored_kernel") if f'"{name}"' in program] == [kernel]


@pytest.mark.parametrize(("rows", "products"), [(64, PRODUCTS), (128, PRODUCTS), (130, 0)])
def test_few_rows_get_kernels_for_their_products(rows, products):
    """Small weights that tiles divide; of more rows, or of widths they do not divide as above, XLA makes the products."""
    wide = dataclasses.replace(CFG, width=64, head_dim=32, mlp_width=128, vocab_size=128)
    source = Probe(widths=(rows // 2 - 1,))
    assert num_kernels(wide, source, "auto") == OF_A_LAYER + products + 1


# JAX 0.12 refuses the kernels of Hopper, and Triton's take 32 rows.
EIGHT_BITS_ROWS = 128 if jax.__version_info__ < (0, 12) else 32


@pytest.mark.parametrize(("rows", "products"), [(EIGHT_BITS_ROWS, PRODUCTS + 1), (130, 0)])
def test_few_rows_get_kernels_for_products_with_eight_bits(rows, products):
    """Those of a layer, and the head's. A vocabulary of 128, since that of 61 has no tiles."""
    wide = dataclasses.replace(CFG, width=64, head_dim=32, mlp_width=128, vocab_size=128)
    source = Probe(widths=(rows // 2 - 1,))
    assert num_kernels(wide, source, "auto", weights="int8") == OF_A_LAYER + products + 1


def test_more_rows_than_the_kernels_take_are_not_rounded_up():
    """To a multiple of 8, which XLA's products would compute for nothing."""
    wide = dataclasses.replace(CFG, width=64, head_dim=32, mlp_width=128, vocab_size=128)
    for rows, rounded in ((100, 104), (130, 136)):
        text = gpu_program(wide, Probe(widths=(rows // 2 - 1,)), "auto", weights="int8")
        assert (f"tensor<{rounded}x64xbf16>" in text) == (rows <= EIGHT_BITS_ROWS)


def test_heads_without_a_kernel_get_plain_attention_everywhere():
    source, _ = CASES["probe-3-2"]
    odd = dataclasses.replace(CFG, head_dim=12)
    assert [num_kernels(odd, source, how) for how in ("plain", "auto", "fused")] == [0, 0, 0]


def test_other_words_and_numbers_are_refused():
    with pytest.raises(ValueError, match="attention must be one of auto, plain, fused, got 'flash'"):
        DecodeConfig(capacity=8, attention="flash")
    with pytest.raises(ValueError, match="num_top 2 needs has_logprobs=True"):
        DecodeConfig(capacity=8, num_top=2)
