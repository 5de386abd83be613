"""JAX's strict modes: no array of another rank or dtype is promoted in silence, on the way through a whole decode."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from conftest import BASE

from jax_probe_mtp import Settings, decode, make_batch
from jax_probe_mtp.drafting import check_source, parse_draft
from jax_probe_mtp.model.params import abstract_params

DRAFTS = [
    "plain",
    "probe:5+3",
    *(f"probe:5@mask_init={init}" for init in ("last_k", "sample", "offset")),
    "dynamic:30",
    "ngram:4",
    "recycle:10",
    "recycle:static80",
    "recycle:12@warm=1",
    "merged:12",
    "merged:12@warm=1,without=pairs",
]
# Models that have GPU kernels, and a vocabulary whose best are found in stages.
LARGE = dataclasses.replace(BASE, head_dim=64, width=128, num_heads=4, mlp_width=128, vocab_size=40_000)
QWEN2 = dataclasses.replace(LARGE, family="qwen2", has_qkv_bias=True)
QWEN3 = dataclasses.replace(LARGE, family="qwen3", has_qk_norm=True)


@pytest.fixture
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def shapes_of(cfg, draft, dtype=jnp.float32, attention="auto", **settings):
    """Traces a decode, and gives the shapes of its result."""
    source = parse_draft(draft)
    batch = make_batch(
        cfg, source, [[1, 2, 3], [5, 6, 7, 8, 9]], Settings(max_new_tokens=8, **settings), eos_token_ids=[2]
    )
    batch = batch.replace(config=dataclasses.replace(batch.config, attention=attention))
    return jax.eval_shape(lambda params, batch: decode(params, batch, cfg, source), abstract_params(cfg, dtype), batch)


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_source_is_traced(strict, draft, temperature):
    cuts = {"top_k": 5, "top_p": 0.9} if temperature else {}
    result = shapes_of(BASE, draft, temperature=temperature, logprobs=True, top_logprobs=3, **cuts)
    assert result.token_BT.shape == result.logprob_BT.shape == (2, 65)
    assert result.top_BTC.id.shape == result.top_BTC.logprob.shape == (2, 65, 3)


@pytest.mark.parametrize("cfg", [QWEN2, QWEN3], ids=lambda cfg: cfg.family)
@pytest.mark.parametrize("is_exact", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernels_are_traced(strict, cfg, is_exact, dtype):
    for draft in ("plain", "probe:14", "recycle:30", "merged:32"):
        assert shapes_of(cfg, draft, dtype, "fused", is_exact=is_exact).calls_B.dtype == jnp.int32


def test_the_contract_of_sources_is_checked(strict):
    check_source(parse_draft("ngram:2"), BASE)


def test_the_modes_do_raise(strict):
    with pytest.raises(ValueError, match="rank_promotion"):
        jax.eval_shape(lambda x: x + x[:, None], jnp.zeros(3))
