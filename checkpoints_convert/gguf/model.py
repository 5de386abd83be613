"""Opens a GGUF file."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.gguf.config import read_gguf_config
from checkpoints_convert.gguf.header import read_header
from checkpoints_convert.gguf.reader import GGUFSource
from checkpoints_convert.gguf.tokenizer import build_tokenizer
from checkpoints_convert.mapping.fields import shortest_float, writable
from checkpoints_convert.mapping.names import GGUF_ROPE_DIVISORS, gguf_rows
from checkpoints_convert.mapping.tensor_source import OpenedModel

_SAMPLING = {  # fields of `general.sampling.`, which llama.cpp applies by itself
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
    "mirostat": "mirostat",
    "xtc_probability": "xtc_probability",
}


def open_gguf(path: Path, eos_token_ids: Sequence[int] | None = None) -> OpenedModel:
    """Reads a file's header; a quantized file becomes float32 unless asked otherwise.

    `eos_token_ids` end a text in place of those of the file.

    Raises:
      CheckpointError: if it is damaged or asks for something not supported.
    """
    if part := re.search(r"-(\d{5})-of-(\d{5})\.gguf\Z", path.name):
        raise CheckpointError(
            f"{path} is part {int(part[1])} of {int(part[2])}; join them with llama.cpp's llama-gguf-split --merge."
        )
    fields, header = read_header(path)
    source = GGUFSource(path, header)
    cfg, eos_token_ids = read_gguf_config(fields, source, str(path), eos_token_ids)
    kinds = {tensor.kind.name for name, tensor in header.items() if name != GGUF_ROPE_DIVISORS}
    return OpenedModel(
        config=cfg,
        eos_token_ids=eos_token_ids,
        source=source,
        rows=gguf_rows(cfg),
        ignored=(GGUF_ROPE_DIVISORS.replace(".", r"\."),),
        dtype="bfloat16" if kinds == {"BF16"} else "float32",
        where=str(path),
        description={"kind": "gguf", "files": [path.name], "types": sorted(kinds)},
        generation_defaults=_generation_defaults(fields),
        load_tokenizer=functools.partial(
            build_tokenizer, fields, str(path), vocab_size=cfg.vocab_size, context_length=cfg.context_length
        ),
    )


def _generation_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """Gives what a file asks for of sampling and penalties, by transformers' names; what is no number is left out."""
    asked = {ours: fields.get(f"general.sampling.{name}") for name, ours in _SAMPLING.items()}
    numbers = {name: value for name, value in asked.items() if isinstance(value, int | float)}
    return writable({n: shortest_float(x) if isinstance(x, float) else x for n, x in numbers.items()})
