"""Opens a Hugging Face folder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.huggingface.config import read_hf_config
from checkpoints_convert.huggingface.generation import read_generation_defaults
from checkpoints_convert.huggingface.safetensors import BUFFERS, SafetensorsSource
from checkpoints_convert.huggingface.tokenizer import load_hf_tokenizer
from checkpoints_convert.mapping.fields import read_json
from checkpoints_convert.mapping.names import HF_EMBED, HF_HEAD, hf_rows
from checkpoints_convert.mapping.tensor_source import OpenedModel
from checkpoints_convert.params.fill import tensors_are_equal

ADAPTER = "adapter_config.json"
_PREFIX = "model."  # before all names but the head's; not where the model was saved without its head's class
_BUFFERS = rf"(model\.)?{BUFFERS}"


def open_hf(folder: Path, eos_token_ids: Sequence[int] | None = None) -> OpenedModel:
    """Reads a folder's config and the headers of its safetensors.

    `eos_token_ids` end a text in place of those of the folder.

    Raises:
      CheckpointError: if a file is missing or damaged, or asks for something not supported.
    """
    _refuse_other_kinds(folder)
    cfg, eos_token_ids = read_hf_config(folder, eos_token_ids)
    source = SafetensorsSource(folder)
    rows, embed = hf_rows(cfg), HF_EMBED
    if HF_EMBED not in source.tensors and HF_EMBED.removeprefix(_PREFIX) in source.tensors:
        rows = tuple(dataclasses.replace(row, source=row.source.removeprefix(_PREFIX)) for row in rows)
        embed = HF_EMBED.removeprefix(_PREFIX)
    kinds = {source.tensors[name].dtype for name in source.tensors if not name.endswith("inv_freq")}
    return OpenedModel(
        config=cfg,
        eos_token_ids=eos_token_ids,
        source=source,
        rows=rows,
        ignored=(_BUFFERS, HF_HEAD.replace(".", r"\.")) if cfg.is_tied else (_BUFFERS,),
        dtype="bfloat16" if kinds == {"BF16"} else "float32",  # float16 and mixtures lose nothing in float32
        where=str(folder),
        description={
            "kind": "hf",
            "files": [path.relative_to(folder).as_posix() for path in source.files],
            "types": sorted(kinds),
        },
        generation_defaults=read_generation_defaults(folder),
        load_tokenizer=lambda: load_hf_tokenizer(folder),
        check_weights=lambda: _check_tied_head(source, embed) if cfg.is_tied else None,
    )


def _refuse_other_kinds(folder: Path) -> None:
    """Refuses a folder without a config.json that holds something else by its name."""
    if (folder / "config.json").exists():
        return
    if (folder / ADAPTER).is_file():
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
        raise CheckpointError(
            f"{folder} holds an adapter of {base!r:.80}, not a model; merge it with peft's merge_and_unload(), and save that."
        )
    if ggufs := sorted(path.name for path in folder.glob("*.gguf")):
        raise CheckpointError(f"{folder} is no Hugging Face folder, but holds {ggufs[0]!r:.80}; give that file.")


def _check_tied_head(source: SafetensorsSource, embed: str) -> None:
    if HF_HEAD in source.tensors and not tensors_are_equal(source, embed, HF_HEAD):
        raise CheckpointError(
            f"{source.tensors[HF_HEAD].file}: {HF_HEAD!r} differs from {embed!r}, though config.json ties them; "
            "set tie_word_embeddings to false there if the head is to be used."
        )
