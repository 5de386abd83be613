"""Which loops sum over devices by way of mailboxes, and what that makes of their programs."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BASE

from jax_probe_mtp.decoding import block_layer
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import run_steps
from jax_probe_mtp.decoding.rows import run_calls
from jax_probe_mtp.drafting.spec import parse_draft
from jax_probe_mtp.generation.programs import EVERYWHERE, REQUEST, ROWS, STATE
from jax_probe_mtp.kernels import exchange
from jax_probe_mtp.measuring.call_cost import filled_state
from jax_probe_mtp.model import mesh as meshes
from jax_probe_mtp.model.config import DATA, TENSOR
from jax_probe_mtp.model.params import abstract_params, partition_specs

WIDE = dataclasses.replace(BASE, width=128, num_heads=4, num_kv_heads=2, head_dim=64, mlp_width=128, vocab_size=64)
MINE = dataclasses.replace(WIDE, num_heads=2, num_kv_heads=1, mlp_width=64, is_sharded=True)
lowered_here = pytest.mark.skipif(not exchange.can_lower(), reason="the kernel is for JAX 0.11.2")


def two_gpus():
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    kinds = (jax.sharding.AxisType.Auto,) * 2
    return jax.sharding.AbstractMesh((1, 2), (DATA, TENSOR), axis_types=kinds, abstract_device=device)


def mailboxes(
    num_rows=4, longest_path=1, dtype=jnp.bfloat16, has_mailboxes=True, attention="auto", is_exact=False, **other
):
    """Gives those of a loop on one of two devices, or None."""
    cfg = dataclasses.replace(MINE, has_mailboxes=has_mailboxes, **other)
    decode_cfg = DecodeConfig(capacity=16, attention=attention, is_exact=is_exact)

    def make():
        return block_layer.mailboxes(abstract_params(cfg, dtype), cfg, decode_cfg, num_rows, longest_path)

    on_mesh = jax.shard_map(make, mesh=two_gpus(), in_specs=(), out_specs=EVERYWHERE, check_vma=False)
    return jax.eval_shape(on_mesh)


@lowered_here
def test_where_loops_have_mailboxes():
    assert mailboxes(dtype=jnp.bfloat16).words.shape == (4, 2, 2, 1, 128)
    assert mailboxes(dtype=jnp.float32).words.shape == (4, 2, 2, 2, 128)
    assert mailboxes(is_exact=True, longest_path=block_layer.WINDOW + 1) is not None  # its sums have no one order


@pytest.mark.parametrize(
    "other",
    [
        {"has_mailboxes": False},
        {"attention": "plain"},
        {"is_exact": True},
        {"num_rows": exchange.MAX_ROWS + 1},
        {"width": 192, "family": "qwen3"},
        {"head_dim": 24},
    ],
    ids=lambda other: next(iter(other)),
)
def test_where_they_have_none(other):
    assert mailboxes(**other) is None


def gpu(number, **other):
    """Describes an H200 as JAX does."""
    known = {"platform": "gpu", "compute_capability": "9.0", "core_count": 132, "local_hardware_id": number}
    return SimpleNamespace(id=number, **(known | other))


def mesh(*devices, data=1):
    """Stands for a mesh of them."""
    grid = np.array(devices, dtype=object).reshape(data, -1)
    return SimpleNamespace(devices=grid, shape={DATA: data, TENSOR: grid.shape[1]})


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        (mesh(gpu(0), gpu(1)), True),
        (mesh(gpu(0)), False),
        (mesh(gpu(0), gpu(1), data=2), False),
        (mesh(gpu(1), gpu(0)), False),
        (mesh(gpu(0), gpu(1, compute_capability="8.0")), False),
        (mesh(gpu(0), gpu(1, core_count=114)), False),
        (mesh(*(SimpleNamespace(id=i, platform="cpu") for i in range(2))), False),
    ],
)
def test_which_devices_can_exchange(monkeypatch, devices, says):
    monkeypatch.setattr(exchange, "can_lower", lambda: True)
    monkeypatch.setattr(meshes, "_reach_each_other", lambda ordinals: True)
    monkeypatch.setattr(jax, "device_count", lambda: devices.devices.size)
    assert meshes.can_exchange(devices) is says


def test_they_cannot_where_something_is_missing(monkeypatch):
    two = mesh(gpu(0), gpu(1))
    monkeypatch.setattr(exchange, "can_lower", lambda: True)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not meshes.can_exchange(two)  # no driver of CUDA's here, or no such devices
    monkeypatch.setattr(meshes, "_reach_each_other", lambda ordinals: ordinals == [0, 1])
    assert meshes.can_exchange(two)
    for module, name, value in (
        (exchange, "can_lower", lambda: False),
        (jax, "device_count", lambda: 4),  # others would decode beside them
        (jax, "process_count", lambda: 2),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(module, name, value)
            assert not meshes.can_exchange(two)


def lowered(function, draft, has_mailboxes, batch_size=1, **static):
    """Gives the text of a loop over two H200s."""
    source, decode_cfg = parse_draft(draft), DecodeConfig(capacity=64)
    params = abstract_params(WIDE, jnp.bfloat16)
    request, state = filled_state(params, WIDE, source, decode_cfg, batch_size=batch_size, in_use=8, new_tokens=4)
    cfg = dataclasses.replace(MINE, has_mailboxes=has_mailboxes)
    run = functools.partial(function, cfg=cfg, source=source, decode_cfg=decode_cfg, **static)
    takes, gives = [partition_specs(WIDE, None), REQUEST, STATE], STATE
    args = [params, request, state]
    if function is run_calls:
        takes, gives, args = [*takes, ROWS], (STATE, EVERYWHERE), [*args, jnp.zeros(batch_size, jnp.bool_)]
    on_mesh = jax.shard_map(run, mesh=two_gpus(), in_specs=tuple(takes), out_specs=gives, check_vma=False)
    return jax.jit(on_mesh).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


@lowered_here
@pytest.mark.parametrize(
    ("function", "batch_size", "draft", "static"),
    [(run_steps, 1, "plain", {}), (run_calls, 3, "recycle:4", {"num_calls": 2})],
)
def test_the_sums_of_layers_go_through_mailboxes(function, batch_size, draft, static):
    """All but the one of the embeddings, which holds a call's first exchange until all devices have mailboxes."""
    without, with_them = (lowered(function, draft, has, batch_size, **static) for has in (False, True))
    assert "@mosaic_gpu_v2" not in without
    kernels = with_them.count("@mosaic_gpu_v2") - 1  # which finds the mailboxes
    assert kernels in (2, 4)  # in the one function of a layer, or, as JAX 0.12 lowers it, in each of two
    sums = [text.count("stablehlo.all_reduce") for text in (without, with_them)]
    assert sums[0] - sums[1] == kernels
    assert sums[1] >= 1
