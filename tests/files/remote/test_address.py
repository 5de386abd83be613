"""Addresses: which arguments are some, what is fetched and put there, and one line for what cannot be."""

import argparse
import os
import re
import sys
from pathlib import Path

import pytest
from support.files.stores import Store, StoreError, content, fill

from jax_probe_mtp.files.remote.address import STREAM, Address, file_address_or_stream, file_or_address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "gs://b/f.jsonl.gz",
            "gs://b/f.jsonl.gz is packed, by its name, and no such file is read or written; unpack it",
        ),
        ("S3://b/f.ZST", "S3://b/f.ZST is packed, by its name, and no such file is read or written; unpack it"),
        ("gs://b/f/", "gs://b/f/ names a folder; name a file"),
        ("zip://f::gs://b/a", "zip://f::gs://b/a is a chain of addresses, which none follows; give one address"),
        ("f.jsonl.gz", "f.jsonl.gz is packed, by its name, and no such file is read or written; unpack it"),
        ("", "'' is no file; name one"),
    ],
)
def test_arguments_that_name_no_file_anywhere(text, says):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{re.escape(says)}$"):
        file_address_or_stream(text)


def test_a_dash_is_a_stream_only_where_one_is_read():
    assert file_address_or_stream("-") == STREAM
    with pytest.raises(argparse.ArgumentTypeError, match=r"^'-' is no file; name one$"):
        file_or_address("-")


@pytest.mark.parametrize("text", ["a/f.jsonl", "c:/f", "./-", "a::b", "x:y"])
def test_paths_stay_paths(text):
    assert file_address_or_stream(text) == Path(text)


@pytest.mark.parametrize("begins", ["memory://b", "store://b", "file://{}", "local://{}"])
def test_what_is_put_is_fetched_and_a_change_is_seen(store, tmp_path, begins):
    address = Address(f"{begins.format(tmp_path / 'there')}/f.jsonl")
    (tmp_path / "there").mkdir()
    here, back = tmp_path / "here", tmp_path / "back"
    here.write_bytes(b"first\n")
    address.remove()
    assert (address.state(), address.get(back), back.exists()) == (None, None, False)
    first = address.put(here)
    assert (content(address.text), address.state(), first[0]) == (b"first\n", first, 6)
    assert address.get(back) == first
    assert back.read_bytes() == b"first\n"
    here.write_bytes(b"other\n")  # of the same size
    second = address.put(here)
    assert second != first
    assert (content(address.text), address.state()) == (b"other\n", second)
    assert os.listdir(tmp_path / "there") == (["f.jsonl"] if "{}" in begins else [])
    address.remove()
    assert address.state() is None


def test_a_copy_has_the_time_of_what_was_copied(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    os.utime(tmp_path / "f", (1e9, 1e9))
    Address(f"file://{tmp_path}/f").get(tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mtime == 1e9


def test_a_put_that_is_cut_off_leaves_a_local_file_as_it_was(tmp_path, monkeypatch):
    address = Address(f"file://{tmp_path}/there")
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "here").write_bytes(b"new")

    def replace(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        address.put(tmp_path / "here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]
    assert (tmp_path / "there").read_bytes() == b"old"


def test_two_ways_of_writing_one_address_are_one_place():
    assert Address("memory://a/f").place() == Address("memory:///a/f").place() != Address("memory:///a/g").place()
    assert Address("memory://a/f").place()[0] != Address("file:///a/f").place()[0]


def refusal(do):
    with pytest.raises((ValueError, OSError)) as raised:
        do()
    return str(raised.value)


def test_a_backend_that_is_missing_is_named_with_what_installs_it(monkeypatch):
    for kind, package in {"gs": "gcsfs", "s3": "s3fs", "abfs": "adlfs", "smb": "smbprotocol"}.items():
        module = {"smb": "smbclient"}.get(kind, package)
        monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, kind, raising=False)
        says = f"{kind}://b/f needs {package}, which is not installed: pip install {package}."
        assert refusal(Address(f"{kind}://b/f").state) == says
    says = "nope://b/f: nothing knows addresses that begin with nope://; give a path or another address."
    assert refusal(Address("nope://b/f").state) == says


def test_without_fsspec_an_address_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    says = "gs://b/f is an address, which fsspec reads and writes: pip install fsspec."
    assert refusal(Address("gs://b/f").state) == says


def test_errors_of_a_store_s_own_kinds_are_one_line(store, tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"abc")
    address = Address("store://b/f")

    def fail(*_, **__):
        raise StoreError("403:\n no access")

    way_out = "check the address, and your access to it."
    store.at_put = staticmethod(fail)
    says = "store://b/f cannot be {} (StoreError: 403: no access); " + way_out
    assert refusal(lambda: address.put(tmp_path / "f")) == says.format("written")
    fill(address.text, b"abc")
    monkeypatch.setattr(Store, "get_file", fail)
    assert refusal(lambda: address.get(tmp_path / "g")) == says.format("read")
    monkeypatch.setattr(Store, "info", fail)  # never taken for a file that is missing
    assert refusal(address.state) == says.format("read")


def test_what_comes_or_stays_in_parts_is_refused(store, tmp_path, monkeypatch):
    address = Address("store://b/f")
    fill(address.text, b"abcdef")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "get_file", lambda self, there, here: Path(here).write_bytes(b"abc"))
        assert refusal(lambda: address.get(tmp_path / "g")).startswith("store://b/f gave 3 of its 6 bytes; ")
    (tmp_path / "f").write_bytes(b"12345678")
    monkeypatch.setattr(Store, "put_file", lambda self, here, there: None)
    says = "store://b/f holds 6 bytes after 8 bytes were written; give the same command again."
    assert refusal(lambda: address.put(tmp_path / "f")) == says


def test_folders_and_what_is_in_none(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert refusal(Address(f"file://{tmp_path}").state).endswith(
        " is not a file but a folder or a device; name a file."
    )
    address = Address(f"file://{tmp_path}/none/f")
    says = f"{address} is in a bucket or folder that is not there; make it first."
    assert refusal(lambda: address.put(tmp_path / "f")) == says
