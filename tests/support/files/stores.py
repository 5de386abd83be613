"""Stores that addresses lead to: one in memory that can be made to fail, and stdin."""

import io
import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem


class StoreError(Exception):
    """An error of a store's own kind, as several backends raise."""


class Store(MemoryFileSystem):
    """A store in memory, at store://. `at_put(path)` and `after_put(path)` may raise, as a kill or a lost network would.

    As in an object store, a file is there when it is whole, folders need not be made, and nothing can be appended.
    """

    protocol = ("store",)
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    puts = []  # noqa: RUF012
    cachable = False

    @staticmethod
    def at_put(path):
        pass

    @staticmethod
    def after_put(path):
        pass

    def put_file(self, lpath, rpath, **kwargs):
        Store.at_put(rpath)
        with open(lpath, "rb") as file:
            data = file.read()
        self.pipe_file(rpath, data)
        Store.puts.append((rpath, data))
        Store.after_put(rpath)

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("store://").strip("/")


def content(address):
    """The bytes at an address."""
    file_system, path = fsspec.core.url_to_fs(address)
    return file_system.cat_file(path)


def fill(address, data):
    """Writes to an address by other means than the package's."""
    file_system, path = fsspec.core.url_to_fs(address)
    file_system.pipe_file(path, data)


def names():
    """All files of the store."""
    return sorted(Store.store)


@pytest.fixture
def store(monkeypatch):
    fsspec.register_implementation("store", Store, clobber=True)
    for name in ("at_put", "after_put"):
        monkeypatch.setattr(Store, name, staticmethod(lambda path: None))
    Store.store.clear()
    Store.puts.clear()
    yield Store
    Store.store.clear()


@pytest.fixture
def at_stdin(monkeypatch):
    """Puts bytes on stdin."""

    def at_stdin(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return at_stdin
