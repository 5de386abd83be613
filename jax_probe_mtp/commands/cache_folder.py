"""The folder of the user's in which the commands keep files."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Says where the commands keep what they fetch and compile: in the user's cache folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jax_probe_mtp"
    except RuntimeError:  # a user without a home folder, as in some containers
        raise ValueError("there is no home folder to keep files in; set XDG_CACHE_HOME to a folder.") from None
