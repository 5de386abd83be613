"""Several devices: what is split how, and the same tokens in the same calls as on one device.

The devices are eight that XLA makes of one CPU. Their number is fixed when JAX starts, so all that needs them is done by
this file as a program of its own: `python test_mesh.py MODEL RESULTS`.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import reference
from checkpoints import EOS, SPECIAL, make_checkpoint, words, write_folder
from conftest import BASE, FAMILIES

from jax_probe_mtp import Settings
from jax_probe_mtp.commands.main import main
from jax_probe_mtp.decoding import rows as row_batch
from jax_probe_mtp.decoding.settings import Prompt
from jax_probe_mtp.drafting import Ngram, Plain, Probe, Recycle
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.model.mesh import check_mesh, make_mesh, mesh_of, parse_mesh, sharded_params
from jax_probe_mtp.model.params import abstract_params

PROBE = {"num_masks": 2, "block_complexity": None, "prune": True, "mask_init": "mean", "mask_offset": 5.0}
DYNAMIC = {"tree": "dynamic", "num_masks": 2, "block_complexity": 30}
DRAWN = {"tree": (5,), "mask_init": "sample"}
CASES = {  # model, draft source, the same for `reference`, sizes of the mesh, and whether every other prompt is drawn
    "probe": (BASE, Probe(widths=(7, 3)), PROBE | {"tree": (7, 3)}, (4, 2), True),
    "masks drawn": (FAMILIES["qwen2"], ProbeConfig(**DRAWN), PROBE | DRAWN | {"num_masks": 1}, (1, 2), True),
    "dynamic": (FAMILIES["qwen3"], ProbeConfig(**DYNAMIC), PROBE | DYNAMIC, (2, 1), True),
    "ngram": (
        FAMILIES["llama"],
        Ngram(num_drafts=4, max_ngram=3),
        {"num_drafts": 4, "max_ngram": 3, "match": "recent"},
        (1, 2),
        False,
    ),
    "recycle": (BASE, Recycle(tree=12), {"num_nodes": 12, "max_depth": 6}, (2, 2), False),
}
PROMPTS = [
    Prompt(id=i, token_ids=[(7 * i + j * j) % 57 for j in range(1 + (i * 5) % 23)], seed=i, max_new_tokens=12 + i)
    for i in range(10)
]
SETTINGS = Settings(batch_size=4, top_p=0.95, logprobs=True)
SECONDS = 300  # more is an error


# What is done where there are eight devices.


def measure(model, results):
    measured = {"cases": {name: measure_case(*case) for name, case in CASES.items()}}
    measured["exact"] = [measure_exact(dtype) for dtype in ("float32", "bfloat16")]
    measured["program"] = measure_program(measured["cases"]["probe"].pop("decoder"))
    measured["weights"] = measure_weights(model)
    measured["refusals"] = measure_refusals()
    measured["commands"] = measure_commands(model)
    results.write_text(json.dumps(measured))


def measure_case(cfg, source, of_reference, sizes, is_sampled):
    """What a mesh gives, what `reference` gives and, for one case, what one device gives."""
    checkpoint = random_checkpoint(cfg)
    prompts = [dataclasses.replace(prompt, temperature=is_sampled * (prompt.id % 2) * 1.0) for prompt in PROMPTS]
    several = Decoder(split(checkpoint, *sizes), source)
    answers = list(several.run(prompts, SETTINGS))
    model = reference.Model(checkpoint.params, cfg)
    case = {
        "got": [[answer.token_ids, answer.calls, answer.accepted_by_depth] for answer in answers],
        "expected": [decode_slowly(model, source, of_reference, prompt) for prompt in prompts],
        "programs": len(several.programs),
    }
    if sizes == (4, 2):
        alone = Decoder(checkpoint, source).run(prompts, SETTINGS)
        case["logprobs"] = [[answer.logprobs for answer in answers], [answer.logprobs for answer in alone]]
        case["decoder"] = several
    return case


def measure_exact(dtype):
    """Tokens and log-probabilities of the exact mode, and its calls, without and with accepted drafts."""
    checkpoint = random_checkpoint(BASE)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), checkpoint.params)
    decoder = Decoder(split(dataclasses.replace(checkpoint, params=params), 2, 2), Probe(widths=(7, 3)))
    measured = []
    for limit in (0, None):
        settings = dataclasses.replace(SETTINGS, is_exact=True, max_accept=limit)
        answers = list(decoder.run(PROMPTS, settings))
        measured.append([[[a.token_ids, a.logprobs] for a in answers], sum(a.calls for a in answers)])
    return measured


def decode_slowly(model, source, of_reference, prompt):
    how = {"max_new_tokens": prompt.max_new_tokens, "eos": (EOS,), "temperature": prompt.temperature}
    how |= {"seed": prompt.seed, "top_p": SETTINGS.top_p}
    if isinstance(source, ProbeConfig):
        tokens, _, accepted = reference.probe_decode(model, prompt.token_ids, of_reference, **how)
    elif isinstance(source, NgramConfig):
        tokens, _, accepted = reference.ngram_decode(model, prompt.token_ids, **of_reference, **how)
    else:
        tokens, _, accepted, _, _ = reference.recycle_decode(model, prompt.token_ids, **of_reference, **how)
    by_depth = [sum(count >= depth for count in accepted) for depth in range(1, source.max_depth + 1)]
    return tokens, len(accepted), by_depth


def random_checkpoint(cfg):
    """A model like those of `random_params`, its numbers NumPy's: compiling that takes as long as all else of a case."""
    draw = np.random.default_rng(3)

    def leaf(path, wanted):
        noise, name = draw.standard_normal(wanted.shape, np.float32), path[-1].key
        if name.endswith("norm"):
            return jax.device_put(1 + 0.1 * noise)
        fan_in = {"embed": cfg.width, "head": cfg.width, "out": noise.size // cfg.width, "qkv_bias": 100}
        return jax.device_put(noise * fan_in.get(name, wanted.shape[0]) ** -0.5)

    params = jax.tree_util.tree_map_with_path(leaf, abstract_params(cfg))
    return make_checkpoint(SimpleNamespace(params=params, cfg=cfg))


def split(checkpoint, data, tensor):
    """The checkpoint on a mesh, its vocabulary padded with zeros."""

    def leaf(wanted, array):
        padding = [(0, after - before) for before, after in zip(array.shape, wanted.shape, strict=True)]
        return jax.device_put(np.pad(np.asarray(array), padding), wanted.sharding)

    wanted = sharded_params(checkpoint.config, make_mesh(data, tensor))
    return dataclasses.replace(checkpoint, params=jax.tree.map(leaf, wanted, checkpoint.params))


def measure_program(decoder):
    """What the decode program exchanges, and shapes that it knows."""
    programs = {key[0].__name__: program for key, program in decoder.programs._compiled.items()}
    text = programs[row_batch.run_calls.__name__].as_text()
    return {
        "all-gather": sorted(re.findall(r" = (\S+?\])\S* all-gather\(", text)),
        "all-reduce": sorted(set(re.findall(r" = (\S+?\])\S* all-reduce\(", text))),
        "others": re.findall(r" (all-to-all|collective-permute|reduce-scatter)\S*\(", text),
        "shapes": sorted(set(re.findall(r"\b\w+\[[\d,]*\]", text))),
    }


def measure_weights(model):
    """The shape of each device's part of the weights of a folder, and whether the parts are those of the whole."""
    from checkpoints_convert import load_checkpoint

    mesh = make_mesh(2, 2)
    whole, parts = load_checkpoint(model).params, load_checkpoint(model, mesh=mesh).params
    shapes, are_parts = {}, {}
    for (path, array), leaf in zip(jax.tree_util.tree_leaves_with_path(parts), jax.tree.leaves(whole), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        shapes[name] = sorted({shard.data.shape for shard in array.addressable_shards})
        padded = np.zeros(array.shape, leaf.dtype)
        padded[tuple(slice(n) for n in leaf.shape)] = leaf
        are_parts[name] = len(array.addressable_shards) == 4 and all(
            np.array_equal(shard.data, padded[shard.index]) for shard in array.addressable_shards
        )
    is_on_mesh = mesh_of(parts) == mesh and mesh_of(whole) is None
    return {"shapes": shapes, "are_parts": are_parts, "is_on_mesh": is_on_mesh}


def measure_refusals():
    checkpoint = split(random_checkpoint(BASE), 2, 1)
    plain = Decoder(checkpoint, Plain())

    def message(do):
        try:
            do()
        except ValueError as error:
            return str(error)
        return None

    return {
        "warm": message(lambda: Decoder(checkpoint, Recycle(tree=12, warm=True))),
        "rows": message(lambda: list(plain.run(PROMPTS, dataclasses.replace(SETTINGS, batch_size=3)))),
        "batch": message(lambda: plain.run_batch(PROMPTS[:2], Settings(batch_size=2))),
        "fewer prompts": message(lambda: plain.stream(PROMPTS[:3], SETTINGS)),
    }


def measure_commands(model):
    """Exit code, stdout and stderr of `generate --prompt` on several meshes."""

    def run(*flags):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["generate", "--model", str(model), "--prompt", "w5 w9 w2", *flags])
        return code, out.getvalue(), err.getvalue()

    short = ["--method", "ar", "--max-new-tokens", "9"]
    meshes = ["data=2,tensor=3", "tensor=2,data=3", "data=64", "tensor", "tensor=2"]
    return {mesh: run(*short, "--mesh", mesh) for mesh in meshes}


if __name__ == "__main__":
    measure(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.exit()


# The tests.


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mesh")
    model = write_folder(folder / "tiny", make_checkpoint(tiny))
    own = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    }
    command = [sys.executable, __file__, str(model), str(folder / "results.json")]
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
    assert case["programs"] == 3  # an empty batch, a newcomer of up to 64 tokens, the decode calls


def test_a_mesh_gives_the_logprobs_of_one_device(measured):
    several, one = measured["cases"]["probe"]["logprobs"]
    assert len(several) == 10
    for got, expected in zip(several, one, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(("number", "dtype"), [(0, "float32"), (1, "bfloat16")])
def test_the_exact_mode_has_the_same_bits_on_a_mesh(measured, number, dtype):
    (plain, plain_calls), (drafted, calls) = measured["exact"][number]
    assert drafted == plain
    assert len(plain) == 10
    assert calls < plain_calls == sum(len(tokens) - 1 for tokens, _ in plain)


def test_a_decode_call_sums_and_gathers_no_weights(measured):
    program = measured["program"]
    # One row a device, 33 rows a call of 11 nodes with 2 masks each, 24 wide; at most 3 tokens a call.
    assert program["all-gather"] == sorted(
        [
            "f32[1,33,62]",  # logits: two devices have 31 tokens each
            "s32[4,8]",  # the report: lengths after each of 8 calls
            "s32[4,24]",  # its tokens
            "f32[4,24]",  # their log-probabilities
            "pred[4]",  # which rows are done
            "s32[4]",  # calls
            "s32[4,2]",  # accepted at depth 1 and 2
        ]
    )
    # Attention's and the MLP's output; embeddings of the nodes, and of the tokens that the masks learn from; the loop's end.
    assert program["all-reduce"] == sorted(["f32[1,33,24]", "f32[1,11,24]", "f32[1,3,24]", "s32[]"])
    assert program["others"] == []
    slots = 64 + 33  # capacity and scratch
    assert f"f32[1,1,{slots},8]" in program["shapes"]  # a device's part of the cache: one row, one kv head
    held = {tuple(map(int, re.findall(r"\d+", shape.partition("[")[2]))) for shape in program["shapes"]}
    assert not held & {(4, 2, slots, 8), (4, 1, slots, 8), (1, 2, slots, 8)}
    assert (24, 1, 5, 8) in held
    assert not held & {(24, 2, 5, 8), (24, 80), (2, 3, 8, 24), (48, 24), (24, 2, 40), (40, 24), (62, 24), (61, 24)}


def test_each_device_holds_its_part_of_the_weights(measured):
    weights = measured["weights"]
    layer = {
        "attn_norm": [24],
        "qkv": [24, 1, 5, 8],
        "out": [1, 3, 8, 24],
        "mlp_norm": [24],
        "gate_up": [24, 2, 20],
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


def test_what_a_mesh_cannot_do_is_refused(measured):
    assert measured["refusals"]["warm"] == ("a warm table is shared by all rows: use data=1 or no --warm, got data=2.")
    assert measured["refusals"]["rows"] == "batch_size 3 cannot be split over data=2; use a multiple of it."
    assert measured["refusals"]["batch"].startswith("a batch on its own runs on one device; use `run`")


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
