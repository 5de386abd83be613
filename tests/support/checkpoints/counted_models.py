"""Opens random models in files of each kind, with a count of what is read, for tests."""

import itertools

import gguf
import jax
import numpy as np
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file

from checkpoints_convert.gguf.header import read_header
from checkpoints_convert.gguf.reader import GGUFSource
from checkpoints_convert.huggingface.safetensors import SafetensorsSource
from checkpoints_convert.mapping.names import gguf_rows, hf_rows
from checkpoints_convert.mapping.tensor_source import OpenedModel
from checkpoints_convert.mapping.transforms import LAYOUTS
from jax_probe_mtp.model.params import by_head, random_params


class Counting:
    """A source that keeps how many numbers each read gave, and how many the file's rows hold of which they are."""

    def __init__(self, source):
        self.source, self.tensors, self.readable = source, source.tensors, source.readable
        self.numbers, self.in_rows = [], []

    def read(self, name, start, stop, *columns):
        block = self.source.read(name, start, stop, *columns)
        self.numbers.append(block.size)
        self.in_rows.append((stop - start) * int(np.prod(self.tensors[name].shape[1:])))
        return block


def opened(cfg, source, rows):
    """Opens the model in a file whose tensors alone matter."""
    return OpenedModel(
        config=cfg,
        eos_token_ids=(0,),
        source=Counting(source),
        rows=rows,
        ignored=(),
        dtype="float32",
        where="here",
        description={},
        load_tokenizer=lambda: None,
    )


def write_models(folder, cfg):
    """Writes a random model as safetensors, and as GGUF with types in turn."""
    params, apart = jax.tree.map(np.asarray, random_params(cfg, jax.random.key(1))), by_head(cfg)

    def tensors(rows):
        for row in rows:
            for i in range(cfg.num_layers) if "{}" in row.source else [None]:
                leaf = params[row.target] if i is None else params["layers"][i][row.target]
                yield row.source.format(i), LAYOUTS[row.layout].export(leaf.reshape(apart.get(row.target, leaf.shape)))

    folder.mkdir()
    save_file(dict(tensors(hf_rows(cfg))), folder / "model.safetensors")
    yield "safetensors", opened(cfg, SafetensorsSource(folder), hf_rows(cfg))

    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, cfg.family)
    kinds = itertools.cycle([Kind.F32, Kind.Q8_0, Kind.BF16, Kind.F16, Kind.Q4_1])
    for name, values in tensors(gguf_rows(cfg)):
        kind = next(kinds) if values.ndim == 2 else Kind.F32
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    yield "gguf", opened(cfg, GGUFSource(path, read_header(path)[1]), gguf_rows(cfg))
