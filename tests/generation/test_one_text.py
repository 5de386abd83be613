"""Where exact answers do not depend on the program: who has that, what is refused, and the self-test's way at one row."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest
from checkpoints import make_checkpoint
from conftest import BASE, make_tiny

from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.drafting import Ngram, Plain, Probe
from jax_probe_mtp.drafting.merged.auto import Auto
from jax_probe_mtp.generation import exact_check, one_text
from jax_probe_mtp.generation.programs import Programs
from jax_probe_mtp.model.params import Int8

CFG = dataclasses.replace(
    BASE, num_layers=1, width=64, num_heads=4, head_dim=16, mlp_width=64, vocab_size=64
)  # for which there are kernels


def checkpoint_of(cfg, dtype=jnp.bfloat16):
    made = make_checkpoint(make_tiny(cfg, seed=3))
    return dataclasses.replace(made, params=jax.tree.map(lambda leaf: leaf.astype(dtype), made.params))


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Has this device taken for a CUDA GPU."""
    monkeypatch.setattr(one_text, "has_one_text", lambda checkpoint: True)


@pytest.mark.parametrize(
    ("platform", "version", "dtype", "has"),
    [
        ("gpu", "PJRT C API\ncuda 13010", "bfloat16", True),
        ("gpu", "PJRT C API\ncuda 13010", "float32", True),
        ("gpu", "PJRT C API\ncuda 13010", "float16", False),
        ("gpu", "PJRT C API\nrocm 70000", "bfloat16", False),
        ("tpu", "PJRT C API\nTFRT TPU v6e", "bfloat16", False),
    ],
)
def test_who_has_one_text(platform, version, dtype, has):
    device = types.SimpleNamespace(platform=platform, client=types.SimpleNamespace(platform_version=version))
    table = types.SimpleNamespace(dtype=jnp.dtype(dtype), devices=lambda: [device])

    def says(weight):
        params = {"embed": table, "layers": [{"qkv": weight}]}
        return one_text.has_one_text(types.SimpleNamespace(params=params))

    assert says(table) is has
    assert says(Int8(table, table)) is (has and dtype == "bfloat16")


def test_a_cpu_has_it_not():
    assert not one_text.has_one_text(checkpoint_of(CFG))
    one_text.check(checkpoint_of(BASE), Ngram(num_drafts=40))  # nothing is refused then


@pytest.mark.usefixtures("on_a_gpu")
def test_what_has_no_kernel_is_refused_by_name():
    one_text.check(checkpoint_of(CFG), Ngram(num_drafts=15))
    one_text.check(checkpoint_of(CFG, jnp.float32), Ngram(num_drafts=15))
    with pytest.raises(ValueError, match=r"no GPU kernels for heads of 8, qkv of 24 x 80, .*: leave --exact out, or"):
        one_text.check(checkpoint_of(BASE), Plain())
    with pytest.raises(
        ValueError, match=r"at most 15 rows below a root on a GPU, masks counted, got 16: give a shallower"
    ):
        one_text.check(checkpoint_of(CFG), Ngram(num_drafts=16))
    decode_cfg = DecodeConfig(capacity=32, is_exact=True)
    programs = Programs(checkpoint_of(BASE), Plain())
    with pytest.raises(ValueError, match="heads of 8"):  # before anything runs
        exact_check.check(programs, checkpoint_of(BASE), Plain(), decode_cfg, 1)
    assert len(programs) == 0


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_self_test_compares_with_one_row(monkeypatch, dtype):
    """By interpreted kernels: a batch of two with five rows each, beside plain decoding of one row."""
    checkpoint, source = checkpoint_of(CFG, dtype), Probe(widths=(2,), mask_init="last_k")
    decode_cfg = DecodeConfig(capacity=24, is_exact=True, attention="fused")
    programs = Programs(checkpoint, source)
    compared = exact_check.check(programs, checkpoint, source, decode_cfg, 2)
    assert compared == 3 * (2 * 2 + 2 * 2 + 2)  # lengths; roots, drafts, and the two places by one row
    honest = exact_check._caller

    def a_bit_off(programs, checkpoint, source, *sizes):
        call = honest(programs, checkpoint, source, *sizes)
        return (lambda *args: call(*args) * (1 + 2**-20)) if source == Plain() else call

    monkeypatch.setattr(exact_check, "_caller", a_bit_off)
    monkeypatch.setattr(exact_check.any_rows, "differing", lambda params, rows: ["head"])
    programs.tested.clear()
    with pytest.raises(
        ValueError, match="6 of 30 rows of logits depend on their place in the call; of the products alone, head did"
    ):
        exact_check.check(programs, checkpoint, source, decode_cfg, 2)


@pytest.mark.usefixtures("on_a_gpu")
def test_a_draft_that_changes_its_size_is_tested_in_each():
    """Plain decoding and twelve rows, both beside plain decoding of one row."""
    checkpoint, source = checkpoint_of(CFG, jnp.float32), Auto(rows=12, depth=2, mask_owners=0)
    decode_cfg = DecodeConfig(capacity=24, is_exact=True, attention="fused")
    programs = Programs(checkpoint, source)
    resting, merged = source.sizes
    lengths, roots_and_one_row = 3, 2
    of_merged = lengths * ((2 + 1) * roots_and_one_row + 11 + 10)  # and its drafts, at two depths
    assert exact_check.check(programs, checkpoint, source, decode_cfg, 1) == lengths * roots_and_one_row + of_merged
    assert {size for size, *_ in programs.tested} == {resting, merged}
    assert exact_check.check(programs, checkpoint, source, decode_cfg, 1) == 0
