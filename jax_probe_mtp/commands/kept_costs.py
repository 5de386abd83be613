"""What calls cost, as the commands keep it for `--draft auto`: in the user's cache folder, and beside a job's answers."""

import contextlib
import hashlib
import json
import logging
import os
import platform
from pathlib import Path
from typing import Any

from jax_probe_mtp.commands.cache_folder import cache_folder
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.drafting.merged.costs import Costs
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.files.whole_files import write_json
from jax_probe_mtp.generation.groups import program_of
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.fingerprint import model_identity

_logger = logging.getLogger("jax_probe_mtp")


def kept_costs(
    checkpoint: Checkpoint,
    settings: Settings,
    *,
    is_sampled: bool,
    is_penalized: bool = False,
    beside: tuple[Path, Any] | None = None,
) -> Costs:
    """Reads what is known of calls on this device, and has what is measured kept.

    Args:
      checkpoint: the model.
      settings: of the run.
      is_sampled, is_penalized: whether a record has a temperature above 0, or penalties.
      beside: a file of answers that is gone on with, and what its run file says of costs; those come first.
    """
    made_with = environment(checkpoint.number_format)
    names = ("jax_probe_mtp", "jax", "jaxlib", "backend", "device", "dtype")
    depends_on = {name: made_with[name] for name in names} | {
        "model": model_identity(checkpoint)["fingerprint"],
        "exact": settings.is_exact,
        "sampled": is_sampled,
        "penalized": is_penalized or settings.is_penalized,
        "logprobs": settings.logprobs and [settings.top_logprobs],
        "calls_per_chunk": settings.calls_per_chunk,
        "mesh": program_of(checkpoint.params)[0],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "host": platform.node() if made_with["backend"] == "cpu" else None,  # a CPU's name says little
    }
    costs = Costs(depends_on)
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]
    try:
        path = cache_folder() / "call_costs" / f"{digest}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        _logger.info("what a call costs is not kept: %s", one_line(error))
    else:
        costs.take(_read(path))
        costs.keepers.append(lambda costs: _write(path, costs))
    if beside is not None and not costs.take(beside[1]):
        _logger.info(
            "%s: what its calls cost was measured on another device, model or version, or with other settings: left out",
            beside[0],
        )
    return costs


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # none yet, or another program's file
        return None


def _write(path: Path, costs: Costs) -> None:
    """Adds what is known now to what the file holds, maybe of another run."""
    joined = Costs(costs.depends_on)
    joined.take(_read(path))
    joined.take(costs.as_json())
    with contextlib.suppress(OSError):  # no reason to end a run
        write_json(path, joined.as_json())
