"""What the texts of a mesh's programs say: what devices exchange, and what XLA would crash at."""

import re
import unittest.mock

import jax

from jax_probe_mtp import Settings
from jax_probe_mtp.decoding.rows import run_calls
from jax_probe_mtp.drafting.spec import parse_draft
from jax_probe_mtp.generation.decoder import Decoder


def read_program(programs):
    """Lists what the decode program exchanges, between which devices, and the shapes that it knows."""
    text = next(program.as_text() for key, program in programs._compiled.items() if key[0] is run_calls)
    summed = re.findall(r" = (\(.*?\)|\S+) all-reduce\(", text)  # several at a time, in parentheses
    return {
        "all-gather": sorted(re.findall(r" = (\S+?\])\S* all-gather\(", text)),
        "all-reduce": sorted({shape for line in summed for shape in re.findall(r"\w+\[[\d,]*\]", line)}),
        "summed between": sorted(set(re.findall(r" all-reduce\(.*?replica_groups=(\S+?),? ", text))),
        "others": re.findall(r" (all-to-all|collective-permute|reduce-scatter)\S*\(", text),
        "shapes": sorted(set(re.findall(r"\b\w+\[[\d,]*\]", text))),
    }


def count_empty_constants(checkpoint, prompt):
    """Counts, for each way of drafting, the constants without elements in the programs of a mesh, as they are lowered."""
    counts, compile_as_ever = {}, jax.stages.Lowered.compile

    def look(lowered, *args, **options):
        text = lowered.as_text()
        at_border = re.search(r"manual_computation\((.*?)\).*?: \((.*?)\) ->", text, re.DOTALL)
        counts[name] += text.count("dense<>") + len(re.findall(r"<(?:\d+x)*0x", at_border[2] if at_border else text))
        return compile_as_ever(lowered, *args, **options)

    with unittest.mock.patch.object(jax.stages.Lowered, "compile", look):
        for name in ("plain", "probe:3", "probe:2+2", "dynamic:12@num_masks=2", "ngram:4", "recycle:12", "merged:16"):
            counts[name] = 0
            decoder = Decoder(checkpoint, parse_draft(name))
            list(decoder.run([prompt], Settings(max_new_tokens=2)))
    return counts
