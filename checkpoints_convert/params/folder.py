"""Writes the folder of a conversion, whole or not at all, and reads it back."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.mapping.families import MAX_LAYERS
from checkpoints_convert.mapping.fields import Fields, read_json, writable
from checkpoints_convert.params.fill import DTYPES
from checkpoints_convert.params.stored_params import PARAMS
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import WEIGHTS

METADATA = "jax_probe_mtp.json"
FORMAT_VERSION = 3  # of what is written; those before are read too. 3 may hold matrices of eight bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """The contents of jax_probe_mtp.json.

    Attributes:
      config: the model.
      dtype: dtype of every leaf, but of what `weights` changes.
      weights: "int8" where the matrices are `Int8`; None in folders of earlier versions.
      eos_token_ids: ids that end a text.
      source: what it was converted from.
      generation_defaults: sampling and penalties that the source asked for; empty in folders of earlier versions.
      version: of the format.
    """

    config: ModelConfig
    dtype: str
    eos_token_ids: tuple[int, ...]
    source: dict[str, Any]
    generation_defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    version: int = FORMAT_VERSION

    def as_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        for later in ("rope_scale", "no_rope_layers", "has_mailboxes"):  # so that earlier versions read what they can
            if getattr(self.config, later) == getattr(ModelConfig, later):
                del values["config"][later]
        return {"format_version": values.pop("version"), **values}


def is_converted(folder: Path) -> bool:
    """Says whether a folder is a conversion's, which is whole once it has its name."""
    return (folder / METADATA).is_file()


def read_metadata(folder: Path) -> Metadata:
    """Reads jax_probe_mtp.json.

    Raises:
      CheckpointError: if it is missing, malformed, or of another format version.
    """
    fields = Fields(read_json(folder / METADATA), str(folder / METADATA))
    version = fields.integer("format_version")
    if not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(f"{fields.where} has format version {version}, this program reads 1 to {FORMAT_VERSION}.")
    if not (folder / PARAMS).is_dir():
        raise CheckpointError(f"{folder / PARAMS} is missing; convert again.")
    cfg = _model_config(Fields(fields.get("config", dict, "an object"), f"{fields.where}: config"))
    if cfg.num_layers > MAX_LAYERS:  # before a tree of as many layers as a damaged config may claim
        raise CheckpointError(f"{fields.where}: {cfg.num_layers} layers are above {MAX_LAYERS}; convert again.")
    dtype = fields.text("dtype")
    ids = fields.items("eos_token_ids")
    if dtype not in DTYPES or not ids or not all(type(i) is int and 0 <= i < cfg.vocab_size for i in ids):
        raise CheckpointError(f"{fields.where}: dtype {dtype!r} or eos_token_ids {ids!r} is not valid; convert again.")
    weights = fields.text("weights", None)
    if weights not in (None, *WEIGHTS):
        raise CheckpointError(
            f"{fields.where}: weights {weights!r} are not known, only {', '.join(WEIGHTS)}; convert again."
        )
    return Metadata(
        config=cfg,
        dtype=dtype,
        weights=weights,
        eos_token_ids=tuple(ids),
        source=fields.get("source", dict, "an object"),
        generation_defaults=writable(fields.get("generation_defaults", dict, "an object", {})),
        version=version,
    )


def _model_config(config: Fields) -> ModelConfig:
    for field in dataclasses.fields(ModelConfig):
        if field.name in config and field.type in (int, float):
            (config.integer if field.type is int else config.number)(field.name)
    for of_device in ("is_sharded", "has_mailboxes"):  # no model has them
        if config.flag(of_device, False):
            raise CheckpointError(f"{config.where}: {of_device} must be false; convert again.")
    try:
        divisors = [float(x) if isinstance(x, int) else x for x in config.items("rope_divisors", [])]
        lists = {"rope_divisors": tuple(divisors), "no_rope_layers": tuple(config.items("no_rope_layers", []))}
        return ModelConfig(**{**config.values, **lists})
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{config.where}: {one_line(error)}; convert again.") from None


@contextlib.contextmanager
def written_whole(destination: Path) -> Iterator[Path]:
    """Gives a folder to write in, which becomes `destination` in one rename when the block ends without an error.

    Until then it lies beside `destination` under another name; on an error it is removed, and if the process dies what
    is left of it has no jax_probe_mtp.json of its own name to be mistaken for.

    Raises:
      CheckpointError: if `destination` exists, or cannot be written.
    """
    _refuse_taken(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}.unfinished-", dir=destination.parent))
    except OSError as error:
        raise CheckpointError(f"{destination} cannot be written ({one_line(error)}).") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        try:
            os.rename(temporary, destination)
        except OSError:
            _refuse_taken(destination)  # another process was faster
            raise
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError):
            raise CheckpointError(f"{destination} cannot be written ({one_line(error)}).") from None
        raise


def _refuse_taken(destination: Path) -> None:
    if is_converted(destination):
        raise CheckpointError(f"{destination} holds a converted model; use it, or choose another destination.")
    if destination.exists() or destination.is_symlink():
        raise CheckpointError(f"{destination} exists; remove it or choose another destination.")


def _remove(folder: Path) -> None:
    """Removes a folder that orbax's threads may still be writing into."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
