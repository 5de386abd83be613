"""Sums over devices by a kernel: what is sent of a number, and the kernel as it is lowered for GPUs.

Only GPUs can run it: `scripts/measure/exchange.py` compares it there with XLA's sums, bit for bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jax_probe_mtp.kernels import exchange, exchange_program

lowered_here = pytest.mark.skipif(not exchange.can_lower(), reason="the kernel is for JAX 0.11.2")


def mesh_of(num_devices):
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    kinds = (jax.sharding.AxisType.Auto,) * 2
    return jax.sharding.AbstractMesh((1, num_devices), ("data", "tensor"), axis_types=kinds, abstract_device=device)


def lowered(num_devices, num_rows, width, dtype, num_parts, num_out):
    """Gives the text of two exchanges, one after the other, lowered for so many H200s."""

    def two(x_MD, parts_PND, weight_D):
        mail = exchange.allocate(num_rows, width, dtype, "tensor")
        x_MD, _, mail = exchange.exchange_add_norm(x_MD, parts_PND, weight_D, mail, eps=1e-5, num_out=num_out)
        return exchange.exchange_add_norm(x_MD, parts_PND, weight_D, mail, eps=1e-5, num_out=num_out)

    on_mesh = jax.shard_map(two, mesh=mesh_of(num_devices), in_specs=P(), out_specs=P(), check_vma=False)
    x_MD, weight_D = jnp.zeros((num_rows, width), dtype), jnp.ones(width, dtype)
    parts_PND = jnp.zeros((num_parts, num_rows, width), jnp.float32)
    return jax.jit(on_mesh).trace(x_MD, parts_PND, weight_D).lower(lowering_platforms=("cuda",)).as_text()


@lowered_here
@pytest.mark.parametrize(
    ("num_devices", "num_rows", "width", "dtype", "num_parts", "num_out"),
    [
        (2, 1, 4096, jnp.bfloat16, 4, 0),
        (2, 30, 896, jnp.float32, 1, 32),  # seven times 128 columns: one number a load
        (4, 300, 8192, jnp.bfloat16, 1, 0),  # several rows a program
    ],
)
def test_it_lowers_for_gpus(num_devices, num_rows, width, dtype, num_parts, num_out):
    """One kernel an exchange, and one before that finds the mailboxes and waits for no other device; all write in place."""
    text = lowered(num_devices, num_rows, width, dtype, num_parts, num_out)
    find, *exchanges = (line for line in text.splitlines() if "@mosaic_gpu_v2" in line)
    assert len(exchanges) == 2
    assert "skip_device_barrier = true" in find
    assert "uses_xla_collective_metadata = true" in find
    assert "output_tuple_indices = [1], operand_index = 0" in find
    for call in exchanges:
        assert "uses_xla_collective_metadata = false" in call
        for output, operand in ((2, 4), (3, 5)):  # the mailboxes' words, and their turns
            assert f"output_tuple_indices = [{output}], operand_index = {operand}" in call
    assert "all_reduce" not in text


@pytest.mark.parametrize("num_words", [1, 2])
def test_words_leave_room_for_the_turn(num_words):
    """Two words hold every bit of a number, one the upper 24, with not-a-number and infinity among them."""
    rng = np.random.default_rng(0)
    numbers = np.concatenate(
        [rng.normal(size=100), 1e30 * rng.normal(size=100), [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45]]
    ).astype(np.float32)
    words = exchange_program._as_words(jnp.asarray(numbers), num_words)
    assert len(words) == num_words
    for word in words:
        assert not np.any(np.asarray(word) & exchange_program.TURN)
    got = np.asarray(exchange_program._as_numbers([word | 0xA5 for word in words]))
    if num_words == 2:
        np.testing.assert_array_equal(got.view(np.int32), numbers.view(np.int32))
        return
    np.testing.assert_array_equal(got.view(np.int32), numbers.view(np.int32) & ~0xFF)
    finite = np.isfinite(numbers) & (np.abs(numbers) > 1e-30)
    np.testing.assert_allclose(got[finite], numbers[finite], rtol=2**-15)
    bfloat16 = jnp.asarray(numbers, jnp.bfloat16).astype(jnp.float32)  # a product of that dtype arrives whole
    again = exchange_program._as_numbers(exchange_program._as_words(bfloat16, 1))
    np.testing.assert_array_equal(np.asarray(again).view(np.int32), np.asarray(bfloat16).view(np.int32))


@lowered_here
def test_mailboxes_hold_two_turns_of_every_device():
    def shapes(num_devices, *args):
        make = jax.shard_map(
            lambda: exchange.allocate(*args, "tensor"),
            mesh=mesh_of(num_devices),
            in_specs=(),
            out_specs=P(),
            check_vma=False,
        )
        return [leaf.shape for leaf in jax.eval_shape(make)]

    assert shapes(4, 30, 896, jnp.bfloat16) == [(30, 2, 4, 1, 896), (30,), (5, 2)]
    assert shapes(2, 1, 128, jnp.float32) == [(1, 2, 2, 2, 128), (1,), (3, 2)]


def test_what_is_supported():
    assert exchange.is_supported(exchange.MAX_ROWS, 4096, jnp.dtype("bfloat16"))
    assert exchange.is_supported(1, 896, jnp.float32)
    assert not exchange.is_supported(exchange.MAX_ROWS + 1, 4096, jnp.bfloat16)
    assert not exchange.is_supported(1, 576, jnp.bfloat16)  # SmolLM2-135M: not a multiple of 128
    assert not exchange.is_supported(1, 2 * exchange.MAX_WIDTH, jnp.bfloat16)
    assert not exchange.is_supported(1, 4096, jnp.float16)
