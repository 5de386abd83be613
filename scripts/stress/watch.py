"""Sees what this process touches outside a folder, for scripts/stress/loaders.py. Linux only."""

import collections
import contextlib
import ctypes
import os
import site
import struct
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints_convert
import jax_probe_mtp

ELSEWHERE = {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.system"}
ELSEWHERE |= {"os.exec", "os.posix_spawn", "os.fork"}
READ_ONLY = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY


class Watch:
    """Collects what is touched outside a folder while it is on."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.found: list[str] | None = None
        places = [*site.getsitepackages(), *sysconfig.get_paths().values(), sys.prefix, sys.base_prefix]
        places += [str(Path(package.__file__ or "").parent) for package in (checkpoints_convert, jax_probe_mtp)]
        places.append(str(Path(__file__).parent))  # for the lines of a traceback
        self.own = tuple(os.path.realpath(place) + os.sep for place in [*places, "/dev", "/proc", "/sys"])
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.around = self.libc.inotify_init1(os.O_NONBLOCK)
        everything = 0xFFF  # opened, read, written, made, moved, removed
        self.libc.inotify_add_watch(self.around, os.fsencode(Path(self.folder).parent), everything)
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if self.found is None:
            return
        if event == "open":
            self._path(event, args[0], is_reading=not args[2] & ~READ_ONLY)
        elif event in ("os.listdir", "os.scandir"):
            self._path(event, args[0], is_reading=True)
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._path(event, args[0], is_reading=False)
            self._path(event, args[1], is_reading=False)
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime"):
            self._path(event, args[0], is_reading=False)
        elif event in ELSEWHERE:
            self._add(f"{event} {args}")

    def _path(self, event: str, path: Any, *, is_reading: bool) -> None:
        if path is None or isinstance(path, int):
            return
        real = os.path.realpath(os.fsdecode(path))
        is_inside = real == self.folder or real.startswith(self.folder + os.sep)
        if not is_inside and not (is_reading and real.startswith(self.own)):
            self._add(f"{event} {real}")

    def _add(self, text: str) -> None:
        if self.found is not None:
            self.found.append(text)

    def _around(self) -> Iterator[str]:
        """Tells what happened beside the folder since the last call."""
        with contextlib.suppress(BlockingIOError):
            while raw := os.read(self.around, 1 << 16):
                at = 0
                while at < len(raw):
                    _, mask, _, size = struct.unpack_from("iIII", raw, at)
                    name = os.fsdecode(raw[at + 16 : at + 16 + size].rstrip(b"\0"))
                    at += 16 + size
                    if name not in ("", os.path.basename(self.folder)):
                        yield f"inotify {mask:#x} {name}"

    @contextlib.contextmanager
    def listening(self, found: list[str]) -> Iterator[None]:
        collections.deque(self._around(), 0)  # what was made for the case
        self.found = found
        try:
            yield
        finally:
            self.found = None
            found += self._around()
