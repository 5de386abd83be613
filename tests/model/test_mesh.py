"""Meshes of devices: their text form, their order, and what can be split over them."""

import dataclasses
import re

import jax
import pytest
from conftest import BASE

from jax_probe_mtp.model.mesh import check_mesh, make_mesh, parse_mesh


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("data=2,tensor=4", (2, 4)),
        ("tensor=4,data=2", (2, 4)),
        ("tensor=8", (1, 8)),
        ("data=16", (16, 1)),
        (" data = 2 , tensor = 1 ", (2, 1)),
        ("data=999999", (999999, 1)),
    ],
)
def test_reads_the_sizes_of_a_mesh(text, sizes):
    assert parse_mesh(text) == sizes


@pytest.mark.parametrize(
    "text",
    [
        *("", "data", "2,4", "data=0", "data=-1", "data=2,", "data=1,data=2", "rows=2", "data=2;tensor=2", "data=1e3"),
        *("data=1000000", "data=٣", "data=1٣", "data=02", "data=2 tensor=2"),
    ],
)
def test_refuses_what_is_no_mesh(text):
    with pytest.raises(ValueError, match=re.escape(f"--mesh must be like data=2,tensor=4, got {text!r}.")):
        parse_mesh(text)


def test_devices_that_share_weights_are_next_to_each_other():
    devices = [f"device {i}" for i in range(7)]
    mesh = make_mesh(3, 2, devices)
    assert mesh.axis_names == ("data", "tensor")
    assert mesh.devices.tolist() == [["device 0", "device 1"], ["device 2", "device 3"], ["device 4", "device 5"]]
    assert make_mesh(7, 1, devices).devices.shape == (7, 1)
    with pytest.raises(ValueError, match="mesh data=4,tensor=2 needs 8 devices, but there are 7; use a smaller one"):
        make_mesh(4, 2, devices)
    assert make_mesh(1, 1).devices.tolist() == [[jax.devices()[0]]]


@pytest.mark.parametrize(
    ("sizes", "batch_size", "data", "tensor", "says"),
    [
        ({}, 4, 4, 2, None),
        ({}, 8, 4, 1, None),
        ({}, 4, 1, 3, "tensor=3 must divide the model's 2 kv heads and mlp width 40; tensor may be 1, 2."),
        ({}, 4, 1, 4, "tensor=4 must divide the model's 2 kv heads and mlp width 40; tensor may be 1, 2."),
        (  # 4 and 12 divide the heads, but not the width
            {"num_heads": 12, "num_kv_heads": 12, "mlp_width": 90},
            4,
            1,
            4,
            "tensor=4 must divide the model's 12 kv heads and mlp width 90; tensor may be 1, 2, 3, 6.",
        ),
        ({"mlp_width": 41}, 4, 1, 2, "tensor may be 1."),
        ({}, 6, 4, 2, "batch size 6 cannot be split over data=4; use a multiple of 4."),
        ({}, 1, 2, 1, "batch size 1 cannot be split over data=2; use a multiple of 2."),
    ],
)
def test_checks_that_a_model_and_a_batch_can_be_split(sizes, batch_size, data, tensor, says):
    cfg = dataclasses.replace(BASE, **sizes)
    if says is None:
        check_mesh(cfg, batch_size, data, tensor)
        return
    with pytest.raises(ValueError, match=re.escape(says) + r"\Z"):
        check_mesh(cfg, batch_size, data, tensor)
