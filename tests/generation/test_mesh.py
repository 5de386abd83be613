"""Several devices: what is split how, and the same tokens in the same calls as on one device.

What they give is measured once, by `support/generation/mesh_program.py`.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import reference
from checkpoints import EOS, SPECIAL, make_checkpoint, words, write_folder
from support.devices import cpu_devices
from support.generation.mesh_program import CASES

SECONDS = 900  # more is an error, on a slow and busy machine too


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mesh")
    model = write_folder(folder / "tiny", make_checkpoint(tiny))
    own = cpu_devices(8) | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    }
    command = [sys.executable, "-m", "support.generation.mesh_program", str(model), str(folder / "results.json")]
    done = subprocess.run(
        command,
        env=os.environ | own,
        capture_output=True,
        timeout=SECONDS,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_a_mesh_gives_the_tokens_of_plain_decoding_in_as_many_calls_as_one_device(measured, name):
    case = measured["cases"][name]
    assert case["got"] == case["expected"]
    tokens, calls, accepted = zip(*case["got"], strict=True)
    assert len(tokens) == 10  # through four rows
    assert max(map(len, tokens)) > 12
    assert sum(map(sum, accepted)) > sum(calls) // 10, "choose a model of which drafts are accepted"
    _, _, _, (data, tensor), *_ = CASES[name]
    # Of each group: an empty batch, a prompt of up to 64 tokens, the decode calls, and a look at log-probabilities of prompts.
    assert case["programs"] == [3 + (name == "probe")] * data
    own = case["own program"]
    assert own["summed between"] == ([] if tensor == 1 else [[[0, 1]]])  # of the group alone
    assert bool(own["all-gather"]) == bool(own["all-reduce"]) == (tensor > 1)
    assert own["others"] == []


def test_a_mesh_gives_the_logprobs_of_one_device(measured):
    several, one = measured["cases"]["probe"]["logprobs"]
    assert len(several) == 10
    for (got, got_top), (expected, expected_top) in zip(several, one, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)
        np.testing.assert_allclose(got_top, expected_top, atol=1e-4)  # ids and log-probabilities
        assert np.shape(got_top) == (len(got), 3, 2)
    assert [len(got) for got, _ in several][:2] == [0 + 12, 5 + 10]  # of prompts, and of answers


@pytest.mark.parametrize(("number", "dtype"), [(0, "float32"), (1, "bfloat16")])
def test_the_exact_mode_has_the_same_bits_on_a_mesh(measured, number, dtype):
    (plain, plain_calls), (drafted, calls) = measured["exact"][number]
    assert drafted == plain
    assert len(plain) == 10
    assert calls < plain_calls == sum(len(tokens) - 1 for tokens, _ in plain)


def test_several_processes_share_one_program_and_give_the_same_tokens(measured):
    assert measured["program"]["got"] == measured["cases"]["probe"]["expected"]


def test_no_program_of_a_mesh_has_a_constant_without_elements(measured):
    """XLA of JAX 0.11 crashes at one: see docs/upstream/empty_constant.md."""
    assert measured["bad border"] == [2, 3], "one in and one out; one in, and a constant, which is handed in too"
    assert len(measured["empty constants"]) == 7
    assert set(measured["empty constants"].values()) == {0}


def test_a_decode_call_sums_and_gathers_no_weights(measured):
    program = measured["program"]
    assert program["summed between"] == [[[0, 1], [2, 3], [4, 5], [6, 7]]]  # no group waits for another
    # One row a device, 33 rows a call of 11 nodes with 2 masks each, 24 wide; at most 3 tokens a call.
    assert program["all-gather"] == sorted(
        [
            *["f32[1,1,62]"]
            * 3,  # whole logits of a node that the walk visits, for a draw: two devices have 31 tokens each
            "f32[1,2,62]",  # and of its two masks, which are ranked with noise
            "s32[2,2,1,3,1]",  # for log-probabilities: the largest and the sum of all on both devices, of the new tokens
            "s32[2,2,1,2,1]",  # and of both masks
            "s32[4,8]",  # the report: lengths after each of 8 calls
            "s32[4,24]",  # its tokens
            "f32[4,24]",  # their log-probabilities
            "pred[4]",  # which rows are done
            "s32[4]",  # calls
            "s32[4,2]",  # accepted at depth 1 and 2
        ]
    )
    # Attention's and the MLP's output; embeddings of the nodes, and of the tokens that the masks learn from; the loop's end;
    # logits of those tokens, and of the 8 best of both masks.
    summed = ["f32[1,33,24]", "f32[1,11,24]", "f32[1,3,24]", "s32[]", "f32[1,3,1]", "f32[1,2,8]"]
    assert program["all-reduce"] == sorted(summed)
    assert program["others"] == []
    slots = 64 + 33  # capacity and scratch
    assert f"f32[1,1,{slots},8]" in program["shapes"]  # a device's part of the cache: one row, one kv head
    held = {tuple(map(int, re.findall(r"\d+", shape.partition("[")[2]))) for shape in program["shapes"]}
    assert not held & {(4, 2, slots, 8), (4, 1, slots, 8), (1, 2, slots, 8)}
    assert (24, 40) in held  # of q, k and v, half of 80 columns; gate and up have 20 of 40
    assert not held & {(24, 80), (48, 24), (40, 24), (62, 24), (61, 24)}


def test_each_device_holds_its_part_of_the_weights(measured):
    weights = measured["weights"]
    layer = {
        "attn_norm": [24],
        "qkv": [24, 40],
        "out": [24, 24],
        "mlp_norm": [24],
        "gate": [24, 20],
        "up": [24, 20],
        "down": [20, 24],
    }
    assert weights["shapes"] == {
        "embed": [[31, 24]],  # 61 tokens and one that is none
        "head": [[31, 24]],
        "final_norm": [[24]],
        **{f"layers.{i}.{name}": [shape] for i in range(2) for name, shape in layer.items()},
    }
    assert [name for name, is_part in weights["are_parts"].items() if not is_part] == []
    assert weights["is_on_mesh"]


def test_an_exact_job_names_the_devices_of_one_program(measured):
    """Of meshes 1 x 1, 2 x 1, 1 x 2, 4 x 2 and no mesh: groups of devices have programs of their own."""
    assert measured["weights"]["programs"] == [[None, 1], [None, 2], ["tensor=2", 1], ["tensor=2", 4], [None, 1]]


def test_each_group_of_devices_has_warm_tables_and_weights_of_its_own(measured):
    warm = measured["warm"]
    assert warm["got"] == warm["expected"]
    assert sum(accepted for _, _, accepted in warm["got"]) > 0


def test_masks_that_the_caller_brings_serve_all_groups_and_the_next_run(measured):
    alone, first, second = measured["tuned"]
    assert first == second == alone
    assert len(alone) == 4


def test_what_a_mesh_cannot_do_is_refused(measured):
    assert measured["refusals"]["rows"] == "batch_size 3 cannot be split over data=2; use a multiple of it."


def test_fewer_prompts_than_rows_are_no_reason_to_refuse(measured):
    assert measured["refusals"]["fewer prompts"] is None


def test_the_command_names_what_fits(measured, tiny):
    commands = measured["commands"]
    assert commands["data=2,tensor=3"] == [
        2,
        "",
        "error: tensor=3 must divide the model's 2 kv heads and mlp width 40; tensor may be 1, 2.\n",
    ]
    assert commands["tensor=2,data=3"] == [
        2,
        "",
        "error: batch size 1 cannot be split over data=3; use a multiple of 3.\n",
    ]
    says = "error: mesh data=64,tensor=1 needs 64 devices, but there are 8; use a smaller one.\n"
    assert commands["data=64"] == [2, "", says]
    assert commands["tensor"] == [2, "", "error: --mesh must be like data=2,tensor=4, got 'tensor'.\n"]
    tokens, _ = reference.plain_decode(tiny.reference, [0, 59, 5, 9, 2, 60], max_new_tokens=9, eos=(EOS,))
    text = words(*[token for token in tokens if token not in SPECIAL])
    assert commands["tensor=2"] == [0, text + "\n", ""]
