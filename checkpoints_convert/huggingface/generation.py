"""Reads how a folder asks to be decoded. It is told, not applied: transformers applies it unless it is told otherwise."""

from pathlib import Path
from typing import Any

from checkpoints_convert.mapping.fields import read_json, writable

_NAMES = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "length_penalty",
    "penalty_alpha",
    "guidance_scale",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
)


def read_generation_defaults(folder: Path) -> dict[str, Any]:
    """Reads sampling and penalties of generation_config.json, or where there is none of config.json, as transformers does.

    Limits of the length are not among them: every run has its own.

    Raises:
      CheckpointError: if the file is no JSON object.
    """
    path = folder / "generation_config.json"
    values = read_json(path if path.exists() else folder / "config.json")
    asked = {name: values[name] for name in _NAMES if isinstance(values.get(name), bool | int | float | list | dict)}
    return writable(asked)
