"""Converts a checkpoint into a folder of ours."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from checkpoints_convert.gguf.model import open_gguf
from checkpoints_convert.huggingface.hub import folder_of
from checkpoints_convert.huggingface.model import open_hf
from checkpoints_convert.mapping.tensor_source import OpenedModel
from checkpoints_convert.params.fill import read_leaves
from checkpoints_convert.params.folder import METADATA, Metadata, written_whole
from checkpoints_convert.params.stored_params import save_params
from jax_probe_mtp.model.params import format_name

Q8_0 = "Q8_0"  # GGUF's eight bits

Note = Callable[[str], None]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def convert_hf(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    weights: str | None = None,
    revision: str | None = None,
    eos_token_ids: Sequence[int] | None = None,
    note: Note = _to_stderr,
) -> None:
    """Converts a Hugging Face model.

    Args:
      source: a folder, or a hub id `org/name`.
      destination: the folder to make; it must not exist.
      dtype: "float32" or "bfloat16"; None keeps the file's (float16 and mixtures become float32).
      weights: "int8" rounds the layers' matrices and the head to eight bits; None keeps them.
      revision: branch, tag or commit of a hub id.
      eos_token_ids: ids that end a text, kept in the folder; None for those that the model names.
      note: takes progress lines.

    Raises:
      CheckpointError: if anything of the source is missing, damaged or not supported; nothing is left behind.
    """
    _convert(open_hf(folder_of(source, revision=revision), eos_token_ids), Path(destination), dtype, weights, note)


def convert_gguf(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    weights: str | None = None,
    eos_token_ids: Sequence[int] | None = None,
    note: Note = _to_stderr,
) -> None:
    """Converts a GGUF file; arguments and errors as `convert_hf`. Quantized becomes float32 unless asked."""
    _convert(open_gguf(Path(source), eos_token_ids), Path(destination), dtype, weights, note)


def _convert(model: OpenedModel, destination: Path, dtype: str | None, weights: str | None, note: Note) -> None:
    dtype = dtype or model.dtype
    leaves = read_leaves(model, dtype, weights)
    with written_whole(destination) as folder:
        note(f"writing the tokenizer of {model.where}")
        model.load_tokenizer().save_pretrained(str(folder))
        note(f"reading {len(jax.tree.leaves(leaves))} parameters as {format_name(dtype, weights)}")
        if weights and Q8_0 in model.description["types"]:
            note(f"the groups of 32 of {Q8_0} are rounded again: here a column has one scale")
        save_params(folder, jax.tree.map(lambda read: read(None), leaves))
        metadata = Metadata(
            config=model.config,
            dtype=dtype,
            weights=weights,
            eos_token_ids=model.eos_token_ids,
            source=model.description,
            generation_defaults=dict(model.generation_defaults),
        )
        (folder / METADATA).write_text(json.dumps(metadata.as_json(), indent=2) + "\n", encoding="utf-8")
    note(f"wrote {destination}")
