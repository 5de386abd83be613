import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FAMILIES, make_tiny

from jax_probe_mtp.model.cache import allocate, keep_path
from jax_probe_mtp.model.params import abstract_params
from jax_probe_mtp.model.transformer import embed, forward, full_logits, text_layer

TOKENS = np.random.default_rng(1).integers(0, 61, (2, 90)).astype(np.int32)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_numpy_model(family):
    tiny = make_tiny(FAMILIES[family])
    got = full_logits(tiny.params, tiny.cfg, jnp.asarray(TOKENS))
    assert got.dtype == jnp.float32
    for row in range(2):
        expected = tiny.reference.logits(tiny.reference.embed(TOKENS[row]))
        np.testing.assert_allclose(got[row], expected, atol=2e-5)
        assert expected.std() > 0.3  # else the bound above would say nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_near_and_gives_float32_logits(family):
    tiny = make_tiny(FAMILIES[family])
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params)
    got = full_logits(params, tiny.cfg, jnp.asarray(TOKENS))
    assert got.dtype == jnp.float32
    assert np.any(np.asarray(got) != np.asarray(got.astype(jnp.bfloat16).astype(jnp.float32)))  # not rounded on the way
    error = np.asarray(got[0]) - tiny.reference.logits(tiny.reference.embed(TOKENS[0]))
    assert 1e-4 < np.sqrt((error**2).mean()) < 0.05


def test_global_precision_flag_changes_no_bit(tiny):
    before = full_logits(tiny.params, tiny.cfg, jnp.asarray(TOKENS))
    lowered = jax.jit(full_logits, static_argnums=1).lower(tiny.params, tiny.cfg, TOKENS).as_text()
    with jax.default_matmul_precision("bfloat16"):
        np.testing.assert_array_equal(full_logits(tiny.params, tiny.cfg, jnp.asarray(TOKENS)), before)
        # A CPU multiplies float32 in float32 whatever is asked, so look at what is asked too.
        assert jax.jit(full_logits, static_argnums=1).lower(tiny.params, tiny.cfg, TOKENS).as_text() == lowered
    assert lowered.count("dot_general") == lowered.count("precision = [HIGHEST, HIGHEST]") > 0


def test_shapes_of_params_are_said_once(tiny):
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tiny.params)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_params(tiny.cfg))


def test_a_cached_continuation_equals_the_whole_text(tiny):
    """Rows of different length: a chunk of 8, then single tokens, each put in scratch and kept where its row ends."""
    cache = allocate(tiny.cfg, batch_size=2, capacity=12, scratch=3, dtype=jnp.float32)
    lengths = jnp.asarray([5, 8])
    ids = jnp.asarray(TOKENS[:, :8])
    position = jnp.broadcast_to(jnp.arange(8), (2, 8))
    causal = jnp.arange(15) <= position[..., None]
    _, cache = forward(
        tiny.params, tiny.cfg, embed(tiny.params, tiny.cfg, ids), position, cache, text_layer(tiny.cfg, 0, causal)
    )
    for i in range(3):
        token = jnp.take_along_axis(jnp.asarray(TOKENS), (lengths + i)[:, None], axis=1)
        x = embed(tiny.params, tiny.cfg, jnp.concatenate([token * 0, token], axis=1))  # the token is row 1
        slot = jnp.arange(15)
        can_attend = (slot < (lengths + i)[:, None]) | (slot == 12 + 1)
        position = jnp.broadcast_to((lengths + i)[:, None], (2, 2))
        can_attend = jnp.stack([(slot == 12) | jnp.zeros_like(can_attend), can_attend], axis=1)
        _, cache = forward(tiny.params, tiny.cfg, x, position, cache, text_layer(tiny.cfg, 12, can_attend))
        cache = keep_path(cache, jnp.asarray([[1], [1]]), lengths + i)
    whole = allocate(tiny.cfg, batch_size=1, capacity=12, scratch=0, dtype=jnp.float32)
    for row, length in enumerate([8, 11]):
        text = jnp.asarray(TOKENS[row : row + 1, :12])
        position = jnp.arange(12)[None]
        causal = jnp.arange(12) <= position[..., None]
        _, fresh = forward(
            tiny.params, tiny.cfg, embed(tiny.params, tiny.cfg, text), position, whole, text_layer(tiny.cfg, 0, causal)
        )
        for kept, expected in zip(cache.k + cache.v, fresh.k + fresh.v, strict=True):
            np.testing.assert_allclose(kept[row, :, :length], expected[0, :, :length], atol=1e-5)
