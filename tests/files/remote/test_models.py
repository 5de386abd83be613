"""Models at addresses: copied once, again where they have changed, and never in parts."""

import errno
import logging
import shutil

import pytest
from support.files.stores import Store, fill

from jax_probe_mtp.files.remote.address import Address
from jax_probe_mtp.files.remote.models import copied_model

FILES = {"config.json": b"{}", "weights/a/0": b"abc", "weights/b": b""}


@pytest.fixture
def model(store):
    for name, data in FILES.items():
        fill(f"store://b/m/{name}", data)
    fill("store://b/m2/other", b"not the model's")
    return Address("store://b/m")


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_copied_once_and_again_where_it_has_changed(model, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "jax_probe_mtp")
    copy = copied_model(model, tmp_path / "kept")
    assert (copy.name, files_of(copy)) == ("m", FILES)
    assert caplog.messages == [f"store://b/m: copying 0.00 GB to {copy}"]
    with monkeypatch.context() as patch:
        patch.setattr(Store, "get_file", None)  # nothing is copied
        assert copied_model(model, tmp_path / "kept") == copy
        assert copied_model(Address("store://b/m/"), tmp_path / "kept") == copy
    fill("store://b/m/weights/b", b"new")
    again = copied_model(model, tmp_path / "kept")
    assert files_of(again) == FILES | {"weights/b": b"new"}
    assert files_of(copy) == FILES
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.parametrize("begins", ["store://b", "memory://b", "file://{}"])
def test_a_file_is_copied_under_its_name(store, tmp_path, begins):
    (tmp_path / "there").mkdir()
    there = f"{begins.format(tmp_path / 'there')}/m.gguf"
    fill(there, b"GGUF")
    fill(f"{there}.other", b"")
    copy = copied_model(Address(there), tmp_path / "kept")
    assert (copy.name, copy.read_bytes(), copied_model(Address(there), tmp_path / "kept")) == ("m.gguf", b"GGUF", copy)


def test_what_a_store_finds_beside_the_folder_is_left_out(model, tmp_path, monkeypatch):
    honest = Store.find

    def find(
        self, path, **how
    ):  # by the letters that names begin with, as keys of objects are; a key ending in / marks a folder
        marks = {"/b/m/": {"size": 0}, "/b/m/weights/": {"size": 0}}
        return honest(self, path, **how) | honest(self, "/b/m2", **how) | marks

    monkeypatch.setattr(Store, "find", find)
    assert files_of(copied_model(model, tmp_path / "kept")) == FILES


def refusal(address, kept):
    with pytest.raises((ValueError, OSError)) as raised:
        copied_model(address, kept)
    assert not kept.exists() or list(kept.iterdir()) == []  # nothing in parts
    return str(raised.value)


def test_what_cannot_be_copied(model, tmp_path, monkeypatch):
    kept, honest = tmp_path / "kept", Store.get_file
    says = "store://b/none is not there, or its bucket or folder is not; check the address."
    assert refusal(Address("store://b/none"), kept) == says

    def full(self, there, here):
        raise OSError(errno.ENOSPC, "No space left on device", here)

    def changes(self, there, here):
        honest(self, there, here)
        fill("store://b/m/config.json", b"[]")

    monkeypatch.setattr(Store, "get_file", full)
    assert refusal(model, kept).endswith("; free some space, or have XDG_CACHE_HOME name another folder.")
    monkeypatch.setattr(Store, "get_file", changes)
    assert refusal(model, kept) == "store://b/m has changed while it was copied; give the same command again."
    monkeypatch.setattr(Store, "get_file", honest)
    fill("store://b/m/a/../../x", b"")
    says = "store://b/m holds 'a/../../x', which leads out of the folder; remove it there."
    assert refusal(model, kept) == says


def test_of_two_processes_the_first_one_s_copy_is_kept(model, tmp_path, monkeypatch):
    kept, honest = tmp_path / "kept", Store.get_file
    first = copied_model(model, kept)
    inode = first.stat().st_ino
    shutil.move(first.parent, tmp_path / "meanwhile")

    def other_is_first(self, there, here):
        honest(self, there, here)
        if (tmp_path / "meanwhile").exists():
            shutil.move(tmp_path / "meanwhile", first.parent)

    monkeypatch.setattr(Store, "get_file", other_is_first)
    assert copied_model(model, kept) == first
    assert (first.stat().st_ino, list(kept.iterdir())) == (inode, [first.parent])
