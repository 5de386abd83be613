"""Opens a Hugging Face folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints_convert.errors import CheckpointError, is_failure
from checkpoints_convert.huggingface.config import read_hf_config
from checkpoints_convert.huggingface.generation import read_generation_defaults
from checkpoints_convert.huggingface.safetensors import SafetensorsSource
from checkpoints_convert.mapping.fields import read_json
from checkpoints_convert.mapping.names import HF, HF_EMBED, HF_HEAD, rows_for
from checkpoints_convert.mapping.tensor_source import OpenedModel
from checkpoints_convert.params.fill import tensors_are_equal
from jax_probe_mtp.errors import one_line

_BUFFERS = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"  # saved by old versions, computed from the config


def open_hf(folder: Path, eos_token_ids: Sequence[int] | None = None) -> OpenedModel:
    """Reads a folder's config and the headers of its safetensors.

    `eos_token_ids` end a text in place of those of the folder.

    Raises:
      CheckpointError: if a file is missing or damaged, or asks for something not supported.
    """
    cfg, eos_token_ids = read_hf_config(folder, eos_token_ids)
    source = SafetensorsSource(folder)
    rows = rows_for(HF, cfg)
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
        check_weights=lambda: _check_tied_head(source) if cfg.is_tied else None,
    )


def _check_tied_head(source: SafetensorsSource) -> None:
    if HF_HEAD in source.tensors and not tensors_are_equal(source, HF_EMBED, HF_HEAD):
        raise CheckpointError(
            f"{source.tensors[HF_HEAD].file}: {HF_HEAD!r} differs from {HF_EMBED!r}, though config.json ties them; "
            "set tie_word_embeddings to false there if the head is to be used."
        )


def load_hf_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer in a folder, ours or Hugging Face's; its own code is never run.

    Raises:
      CheckpointError: if there is no tokenizer.json, or transformers cannot load it.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import, and `info` does without

    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; make one with transformers' AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(...) and put it beside the weights."
        )
    settings = folder / "tokenizer_config.json"
    if settings.exists() and read_json(settings).get("fast_tokenizer_files"):
        # transformers would read the one for its version, wherever its name leads to.
        raise CheckpointError(f"{settings} names other files under 'fast_tokenizer_files'; remove that entry.")
    try:
        # Not AutoTokenizer: the classes it chooses rebuild parts of the tokenizer, in some versions not as tokenizer.json
        # has them, and that file alone says all.
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except BaseException as error:  # tokenizers raises plain Exception, transformers many kinds
        if not is_failure(error):
            raise
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({one_line(error)[:300]}).") from None
