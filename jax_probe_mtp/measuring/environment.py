"""Says what a measurement was made with: versions, device, dtype, commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax


def environment(dtype: str) -> dict[str, Any]:
    """Says what a measurement depends on besides its settings: versions, device, dtype, and the code's commit if known."""
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {
        "jax_probe_mtp": _own_version(),
        "git_commit": _git_commit(),
        **versions,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "device": f"{platform.machine()}, {os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind,
        "dtype": dtype,
    }


def _own_version() -> str | None:
    try:
        return importlib.metadata.version("jax-probe-mtp")
    except importlib.metadata.PackageNotFoundError:  # run from a folder that is not installed
        return None


def _git_commit() -> str | None:
    """Gives the commit of the checkout this file is tracked in, "-dirty" where the package was changed; None if installed."""
    package = Path(__file__).parents[1]

    def git(*args: str) -> str:
        command = ["git", "-C", str(package), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__).relative_to(package)))
        return git("rev-parse", "HEAD") + (
            "-dirty" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
