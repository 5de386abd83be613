"""What the texts of a mesh's programs say: what devices exchange, and what XLA would crash at."""

import re
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jax_probe_mtp import Settings
from jax_probe_mtp.decoding.rows import run_calls
from jax_probe_mtp.drafting.spec import parse_draft
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.model.mesh import make_mesh


def read_program(programs):
    """Lists what the decode program exchanges, between which devices, and the shapes that it knows."""
    text = next(program.as_text() for key, program in programs._compiled.items() if key[0] is run_calls)
    summed = re.findall(r" = (\(.*?\)|\S+) all-reduce\(", text)  # several at a time, in parentheses
    return {
        "all-gather": sorted(re.findall(r" = (\S+?\])\S* all-gather\(", text)),
        "all-reduce": sorted({shape for line in summed for shape in re.findall(r"\w+\[[\d,]*\]", line)}),
        "summed between": sorted({groups(line) for line in text.splitlines() if " all-reduce(" in line}),
        "others": re.findall(r" (all-to-all|collective-permute|reduce-scatter)\S*\(", text),
        "shapes": sorted(set(re.findall(r"\b\w+\[[\d,]*\]", text))),
    }


def groups(line):
    """Reads which devices an exchange is between: {{0,1},{2,3}}, or since JAX 0.12 mesh['data'=2,'tensor'=2] {'tensor'}."""
    listed, sizes, axes = re.search(r"replica_groups=(?:\{(\{.*?\})\}|mesh\[(.*?)\] \{(.*?)\})", line).groups()
    if listed:
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{(.*?)\}", listed))
    names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", sizes), strict=True)
    number = np.arange(np.prod([int(size) for size in sizes])).reshape([int(size) for size in sizes])
    summed = [names.index(axis) for axis in re.findall(r"'(\w+)'", axes)]
    rest = [axis for axis in range(number.ndim) if axis not in summed]
    together = number.transpose(*rest, *summed).reshape(-1, np.prod([number.shape[axis] for axis in summed]))
    return tuple(map(tuple, together.tolist()))


def count_empty(text):
    """Counts the constants without elements, and arrays without elements that cross the border of a `shard_map`."""
    borders = re.findall(r"sdy\.manual_computation.*?\n    \} : (.*?)\n", text, re.DOTALL)
    assert len(borders) == text.count("sdy.manual_computation(") > 0
    return text.count("dense<>") + sum(len(re.findall(r"<(?:\d+x)*0x", types)) for types in borders)


def count_empty_constants(checkpoint, prompt):
    """Counts, for each way of drafting, the constants without elements in the programs of a mesh, as they are lowered."""
    counts, compile_as_ever = {}, jax.stages.Lowered.compile

    def look(lowered, *args, **options):
        counts[name] += count_empty(lowered.as_text())
        return compile_as_ever(lowered, *args, **options)

    with unittest.mock.patch.object(jax.stages.Lowered, "compile", look):
        for name in ("plain", "probe:3", "probe:2+2", "dynamic:12@num_masks=2", "ngram:4", "recycle:12", "merged:16"):
            counts[name] = 0
            decoder = Decoder(checkpoint, parse_draft(name))
            list(decoder.run([prompt], Settings(max_new_tokens=2)))
    return counts


def measure_bad_border():
    """Counts what `count_empty` must see: an array without elements that goes in and out, and a constant of that kind."""
    mesh, rows = make_mesh(1, 2), PartitionSpec("data")
    counts = []
    for function in (lambda x: x, lambda x: jnp.sum(jnp.asarray(np.zeros((1, 0)))) + jnp.zeros((1, 1)) + jnp.sum(x)):
        bound = jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
        counts.append(count_empty(jax.jit(bound).lower(np.zeros((1, 0), np.float32)).as_text()))
    return counts
