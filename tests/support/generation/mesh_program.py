"""What a mesh of eight devices does, measured: `python -m support.generation.mesh_program MODEL RESULTS`.

The devices are eight that XLA makes of one CPU. Their number is fixed when JAX starts, so all that needs them is done by
this program of its own.
"""

import contextlib
import dataclasses
import functools
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import reference
from checkpoints import EOS, make_checkpoint
from conftest import BASE, FAMILIES

from jax_probe_mtp import Prompt, Settings
from jax_probe_mtp.drafting import DynamicProbe, Merged, Ngram, Plain, Probe, Recycle
from jax_probe_mtp.drafting.merged.memory import Sizes
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.generation.groups import program_of
from jax_probe_mtp.generation.programs import Programs
from jax_probe_mtp.generation.scheduler import ContinuousDecoder
from jax_probe_mtp.model.mesh import make_mesh, mesh_of
from jax_probe_mtp.model.params import abstract_params, dequantize_params, quantize_params
from support.drafting import merged
from support.generation.mesh_texts import count_empty_constants, measure_bad_border, read_program
from support.generation.split_checkpoint import split


def of_probe(probe):
    """Makes the decoding of `reference` with a probe."""
    return functools.partial(reference.probe_decode, probe=probe)


PROBE = {"num_masks": 2, "block_complexity": None, "prune": True, "mask_init": "mean", "mask_offset": 5.0}
DYNAMIC = {"tree": "dynamic", "num_masks": 2, "block_complexity": 30}
MERGED = Merged(rows=16, mask_init="mean")
DRAWN = {"tree": (5,), "mask_init": "sample", "num_masks": 1}
CASES = {  # model, draft source, the same in `reference`, sizes of the mesh, and whether every other prompt is drawn
    "probe": (BASE, Probe(widths=(7, 3), mask_init="mean"), of_probe(PROBE | {"tree": (7, 3)}), (2, 2), True),
    "masks drawn": (FAMILIES["qwen2"], Probe(widths=(5,), mask_init="sample"), of_probe(PROBE | DRAWN), (1, 2), True),
    "dynamic": (
        FAMILIES["qwen3"],
        DynamicProbe(rows=30, num_masks=2, mask_init="mean"),
        of_probe(PROBE | DYNAMIC),
        (2, 1),
        True,
    ),
    "ngram": (
        FAMILIES["llama"],
        Ngram(num_drafts=4, max_ngram=3),
        functools.partial(reference.ngram_decode, num_drafts=4, max_ngram=3, match="recent"),
        (1, 2),
        False,
    ),
    "merged": (
        BASE,
        MERGED,
        merged.of_reference(MERGED, capacity=64),  # where the longest prompt and its answer fit
        (1, 2),
        False,
    ),
    "recycle": (
        FAMILIES["smollm3"],
        Recycle(tree=12),
        functools.partial(reference.recycle_decode, num_nodes=12, max_depth=6),
        (2, 2),
        False,
    ),
    "int8": (
        FAMILIES["llama"],  # tied: its head is a table of its own
        Recycle(tree=12),
        functools.partial(reference.recycle_decode, num_nodes=12, max_depth=6),
        (1, 2),
        False,
    ),
}
PROMPTS = [
    Prompt(id=i, token_ids=[(7 * i + j * j) % 57 for j in range(1 + (i * 5) % 23)], seed=i, max_new_tokens=12 + i)
    for i in range(10)
]
SETTINGS = Settings(batch_size=4, top_p=0.95, logprobs=True, top_logprobs=3)


def measure(model, results):
    measured = {"cases": {name: measure_case(name, *case) for name, case in CASES.items()}}
    measured["exact"] = [measure_exact(dtype) for dtype in ("float32", "bfloat16")]
    measured["warm"] = measure_warm()
    measured["tuned"], measured["bad border"] = measure_tuned(), measure_bad_border()
    measured["program"] = measure_program()
    measured["empty constants"] = count_empty_constants(split(random_checkpoint(BASE), 1, 2), PROMPTS[5])
    measured["weights"] = measure_weights(model)
    measured["refusals"] = measure_refusals()
    measured["commands"] = measure_commands(model)
    results.write_text(json.dumps(measured))


def measure_case(name, cfg, source, decode_again, sizes, is_sampled):
    """Decodes on a mesh, by `reference` and, in one case, on one device."""
    checkpoint, is_rounded = random_checkpoint(cfg), name == "int8"
    settings = dataclasses.replace(SETTINGS, prompt_logprobs=name == "probe")
    if is_rounded:
        checkpoint = dataclasses.replace(checkpoint, params=quantize_params(checkpoint.params))
    prompts = [dataclasses.replace(prompt, temperature=is_sampled * (prompt.id % 2) * 1.0) for prompt in PROMPTS]
    several = Decoder(split(checkpoint, *sizes), source)
    answers = list(several.run(prompts, settings))
    if is_rounded:
        model = reference.Model(dequantize_params(checkpoint.params), dataclasses.replace(cfg, is_tied=False))
    else:
        model = reference.Model(checkpoint.params, cfg)
    case = {
        "got": [[answer.token_ids, answer.calls, answer.accepted_by_depth] for answer in answers],
        "expected": [decode_slowly(model, source, decode_again, prompt) for prompt in prompts],
        "programs": [len(programs) for programs in several.groups.programs],
        "own program": read_program(several.groups.programs[-1]),
    }
    if name == "probe":
        alone = Decoder(checkpoint, source).run(prompts, settings)
        case["logprobs"] = [list(map(logprobs_of, each)) for each in (answers, alone)]
    return case


def logprobs_of(a):
    return [a.prompt_logprobs[1:] + a.logprobs, a.prompt_top_logprobs[1:] + a.top_logprobs]


def measure_warm():
    """Decodes four prompts, then four more, in two groups of devices, each of which has its own tables and weights."""
    checkpoint = random_checkpoint(BASE)
    model, source = reference.Model(checkpoint.params, BASE), Merged(rows=16, mask_init="mean", warm=True)
    several = Decoder(split(checkpoint, 2, 1), source)
    longest = PROMPTS[2:]
    for first in range(len(longest)):  # the first order in which no rank is left to rounding
        chosen = longest[first:] + longest[:first]
        prompts = [dataclasses.replace(prompt, temperature=0.0, max_new_tokens=12) for prompt in chosen]
        expected, gap = decode_warm_slowly(model, prompts)
        if gap > 1e-5:
            break
    assert gap > 1e-5, "give other prompts: in every order rounding could decide a rank"
    answers = [a for batch in (prompts[:4], prompts[4:]) for a in several.run(batch, SETTINGS)]
    return {"got": [[a.token_ids, a.calls, sum(a.accepted_by_depth)] for a in answers], "expected": expected}


def decode_warm_slowly(model, prompts):
    """Tokens, calls and accepted drafts of each prompt, and the smallest gap that decided something."""
    sizes = Sizes.of_all(BASE.vocab_size)
    learned = [
        reference.Learned(merged.WEIGHTS, tokens=sizes.tokens, pairs=sizes.pairs, ngrams=sizes.ngrams) for _ in "ab"
    ]
    of_prompt, gaps = {}, []
    for batch in (prompts[:4], prompts[4:]):
        for group, of_group in enumerate(learned):  # every other prompt goes to the same group
            mine = batch[group::2]
            rows, gap = reference.merged_batch(
                model,
                [prompt.token_ids for prompt in mine],
                [of_group] * 2,
                [{}] * 2,
                num_rows=16,
                mask_owners=2,
                max_new_tokens=12,
                eos=(EOS,),
            )
            gaps.append(gap)
            for prompt, (tokens, trees, accepted) in zip(mine, rows, strict=True):
                of_prompt[prompt.id] = [tokens, len(trees), sum(accepted)]
    return [of_prompt[prompt.id] for prompt in prompts], min(gaps)


def measure_tuned():
    """Decodes with masks that the caller brings: on one device, and twice in two groups."""
    checkpoint, source = random_checkpoint(BASE), Probe(widths=(7, 3), mask_init="tuned")
    masks = np.random.default_rng(0).standard_normal((2, BASE.width), np.float32)
    several, alone = (Decoder(c, source, shared=masks) for c in (split(checkpoint, 2, 1), checkpoint))
    return [[[a.token_ids, a.calls] for a in d.run(PROMPTS[:4], SETTINGS)] for d in (alone, several, several)]


def measure_exact(dtype):
    """Decodes in the exact mode, without and with accepted drafts: tokens, log-probabilities and calls."""
    checkpoint = random_checkpoint(BASE)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), checkpoint.params)
    decoder = Decoder(split(dataclasses.replace(checkpoint, params=params), 2, 2), Probe(widths=(7, 3)))
    measured = []
    for limit in (0, None):
        settings = dataclasses.replace(SETTINGS, is_exact=True, max_accept=limit)
        answers = list(decoder.run(PROMPTS, settings))
        measured.append([[[a.token_ids, a.logprobs] for a in answers], sum(a.calls for a in answers)])
    return measured


def decode_slowly(model, source, decode_again, prompt):
    how = {"max_new_tokens": prompt.max_new_tokens, "eos": (EOS,), "temperature": prompt.temperature}
    how |= {"seed": prompt.seed, "top_p": SETTINGS.top_p}
    tokens, _, accepted, *_ = decode_again(model, prompt.token_ids, **how)
    by_depth = [sum(count >= depth for count in accepted) for depth in range(1, source.max_depth + 1)]
    return tokens, len(accepted), by_depth


def random_checkpoint(cfg):
    """Makes a model like those of `random_params`, its numbers NumPy's: compiling that takes as long as all else of a case."""
    draw, ups = np.random.default_rng(3), []

    def leaf(path, wanted):
        name = path[-1].key
        if name == "up":  # drawn with its gate
            noise = ups.pop()
        elif name == "gate":
            noise, up = np.moveaxis(draw.standard_normal((cfg.width, 2, cfg.mlp_width), np.float32), 1, 0)
            ups.append(up)
        else:
            noise = draw.standard_normal(wanted.shape, np.float32)
        if name.endswith("norm"):
            return jax.device_put(1 + 0.1 * noise)
        fan_in = {"embed": cfg.width, "head": cfg.width, "qkv_bias": 100}
        return jax.device_put(noise * fan_in.get(name, wanted.shape[0]) ** -0.5)

    params = jax.tree_util.tree_map_with_path(leaf, abstract_params(cfg))
    return make_checkpoint(SimpleNamespace(params=params, cfg=cfg))


def measure_program():
    """Decodes as several processes do, all devices in one program; lists what that exchanges, and the shapes that it knows."""
    checkpoint, source = split(random_checkpoint(BASE), 4, 2), CASES["probe"][1]
    programs, settings = (
        Programs(checkpoint, source),
        dataclasses.replace(SETTINGS, top_logprobs=0, prompt_logprobs=True),
    )
    how = {"is_sampled": True, "is_penalized": True}  # by penalties that change nothing, but are split as rows are
    decoder = ContinuousDecoder(checkpoint, source, settings, capacity=64, programs=programs, **how)
    prompts = [dataclasses.replace(prompt, temperature=(prompt.id % 2) * 1.0) for prompt in PROMPTS]
    ended = dict(item for update in decoder.run(enumerate(prompts)) for item in update.finished)
    return read_program(programs) | {
        "got": [[ended[i].token_ids, ended[i].calls, ended[i].accepted_by_depth] for i in range(len(prompts))]
    }


def measure_weights(model):
    """Loads a folder onto a mesh: the shape of each device's part of the weights, and whether the parts are the whole's."""
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
    sizes = (1, 1), (2, 1), (1, 2), (4, 2)
    programs = [program_of(load_checkpoint(model, mesh=make_mesh(*size)).params) for size in sizes] + [
        program_of(whole)
    ]
    return {"shapes": shapes, "are_parts": are_parts, "is_on_mesh": is_on_mesh, "programs": programs}


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
        "rows": message(lambda: list(plain.run(PROMPTS, dataclasses.replace(SETTINGS, batch_size=3)))),
        "fewer prompts": message(lambda: plain.stream(PROMPTS[:3], SETTINGS)),
    }


def measure_commands(model):
    """Runs `generate --prompt` on several meshes: exit code, stdout and stderr of each."""
    from jax_probe_mtp.commands.main import main

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
