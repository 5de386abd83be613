"""Finds a model's folder: a local one, or a snapshot of a hub repository."""

import re
from pathlib import Path

from checkpoints_convert.errors import CheckpointError
from jax_probe_mtp.errors import one_line

# Weights as safetensors, configuration and tokenizer; never code or pickled weights.
_WANTED = [
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
]
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def folder_of(model: str | Path, *, revision: str | None = None, endpoint: str | None = None) -> Path:
    """Gives the folder of a model, fetched from the hub if `model` is no path here.

    Args:
      model: a folder, or a hub id `org/name`.
      revision: branch, tag or commit; only for a hub id.
      endpoint: address of the hub; None for huggingface_hub's own.

    Returns:
      A folder.

    Raises:
      CheckpointError: if there is neither a folder nor a repository of that name.
    """
    path = Path(model)
    if path.exists():
        if not path.is_dir():
            raise CheckpointError(f"{model} is not a folder; give a folder with config.json and safetensors.")
        if revision is not None:
            raise CheckpointError(f"{model} is a folder here, which has no revisions; leave {revision!r} out.")
        return path
    if not isinstance(model, str) or not _ID.fullmatch(model):
        raise CheckpointError(f"{model} does not exist, and is no hub id of the form org/name.")
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(model, revision=revision, endpoint=endpoint, allow_patterns=_WANTED)
        )
    except Exception as error:  # the network's, the hub's and the cache's errors have no common class
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{model}{at} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}: {one_line(error)[:300]}); check the name, the revision and the connection."
        ) from None
