"""How the commands say that something is wrong, and read arguments: one line on stderr, exit status 2."""

import argparse
import difflib
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax

PACKED = (".gz", ".tgz", ".zst", ".bz2", ".bz", ".xz", ".lz4", ".zip", ".7z")  # by their names


def one_line(error: object) -> str:
    """Joins a message's lines, whatever an error or a file put into it."""
    return " ".join(str(error).split()) or type(error).__name__


def exit_status(run: Callable[[], int]) -> int:
    """Runs a command and gives its status: with one line on stderr, 2 for bad input or a lost device, 130 if interrupted."""
    try:
        return int(run())
    except BrokenPipeError:  # the reader of stdout has gone: say nothing, and let nothing be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except FileNotFoundError as error:
        print(f"error: {_missing(error)}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: out of memory ({one_line(error)}); try a smaller --batch-size", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        is_memory = re.search("RESOURCE_EXHAUSTED|out.of.memory|ALLOC_FAILED", str(error), re.IGNORECASE)
        way_out = "try a smaller --batch-size" if is_memory else "run it again, and report it if that does not help"
        print(f"error: the device gave up ({one_line(error)[:200]}); {way_out}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except Exception:
        if wrong := _wrong_with_device():
            print(f"error: {wrong}", file=sys.stderr)
            return 2
        raise


def _missing(error: FileNotFoundError) -> str:
    """Says which file or folder is not there."""
    if not isinstance(error.filename, str):
        return one_line(error)
    folder = "" if Path(error.filename).parent.exists() else ", nor is its folder"
    return f"{one_line(error.filename)} is not there{folder}; look at its name"


def _wrong_with_device() -> str | None:
    """Looks for devices, after an error alone: several processes must not look before they have found each other."""
    try:
        jax.devices()
    except Exception as error:  # JAX raises several kinds, an AssertionError without a word among them
        asked = os.environ.get("JAX_PLATFORMS")
        return (
            f"JAX finds no device ({one_line(error)[:200]}); JAX_PLATFORMS is {asked!r}: unset it, or install for it."
        )
    return None


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, without the usage text around it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses a flag that there is not, before one that is missing for it, and names the one that was meant."""
        flags = list(self._option_string_actions)
        for arg in sys.argv[1:] if args is None else args:
            name = arg.partition("=")[0]
            if arg == "--" or (self._subparsers and not arg.startswith("-")):  # what follows is a command's
                break
            if not name.startswith("--") or " " in arg:  # a value: argparse, too, takes what has a space for one
                continue
            if name not in flags and not (self.allow_abbrev and any(flag.startswith(name) for flag in flags)):
                near = difflib.get_close_matches(name, flags, 1)
                self.error(f"there is no flag {name}{f'; did you mean {near[0]}?' if near else ''}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message)} (see {self.prog} --help)\n")

    def add_version(self) -> None:
        """Adds `--version`, which prints the program's name and the version of the installed package."""
        try:
            version = importlib.metadata.version("jax-probe-mtp")
        except importlib.metadata.PackageNotFoundError:  # run from a folder that is not installed
            version = "unknown"
        self.add_argument("--version", action="version", version=f"%(prog)s {version}")


def local_file(text: str) -> Path:
    """Reads an argument that names a file of this machine, as it is.

    Raises:
      argparse.ArgumentTypeError: one line with the value and a way out.
    """
    path = local_path(text)
    if path.suffix.lower() in PACKED:
        raise argparse.ArgumentTypeError(
            f"{text} is packed, by its name, and no such file is read or written; unpack it"
        )
    return path


def local_path(text: str) -> Path:
    """Reads an argument that names a file or a folder of this machine; raises as `local_file` does."""
    if match := re.match(r"([a-z][a-z0-9+.-]+)://", text, re.IGNORECASE):
        way_out = "leave file:// out" if match[1].lower() == "file" else "give a path on this machine"
        raise argparse.ArgumentTypeError(f"{text} is an address, and none is read or written; {way_out}")
    if text in ("", "-"):
        raise argparse.ArgumentTypeError(f"{text!r} is no file; name one")
    return Path(text)


def count(text: str) -> int:
    """Reads an argument that is a whole number, at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text}")
    return int(text)


def positive(text: str) -> int:
    """Reads an argument that is a whole number, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def positives(text: str) -> list[int]:
    """Reads an argument that is several of them, such as 1,8."""
    return [positive(part) for part in text.split(",")]
