"""Copies of files that lie elsewhere: whole, removed at the end, and messages that name the address."""

import errno
import logging
import sys

import pytest
from support.files.stores import Store, fill

from jax_probe_mtp.files.remote.address import STREAM, Address
from jax_probe_mtp.files.remote.places import Places

LOGGER = logging.getLogger("jax_probe_mtp")


def test_a_file_here_is_read_where_it_lies(tmp_path):
    with Places() as here:
        assert (here.read(tmp_path / "f"), here.read(None)) == (tmp_path / "f", None)


def test_what_lies_elsewhere_is_copied_and_the_copies_go(store, at_stdin):
    fill("store://b/f", b"text")
    at_stdin(b"\xff line\n")
    with Places() as here:
        copies = [here.read(Address("store://b/f")), here.read(STREAM)]
        assert [copy.read_bytes() for copy in copies] == [b"text", b"\xff line\n"]
        assert here.read(Address("store:///b/f")) == copies[0]  # one file, one path: it would be written over
        assert copies[0].name == "f"
    assert not any(copy.parent.exists() for copy in copies)
    assert LOGGER.filters == []


def test_messages_name_the_address(store, at_stdin, caplog):
    fill("store://b/c/f", b"")
    at_stdin(b"")
    here = Places()
    with here:
        copy, stdin = here.read(Address("store://b/c/f")), here.read(STREAM)
        LOGGER.warning("%s and %d%%", copy, 5)
        LOGGER.warning("other")
    with pytest.raises(ValueError, match=r"^store://b/c/f.run.json: not as stdin, line 3$"), here:
        raise ValueError(f"{copy}.run.json: not as {stdin}, line 3")
    assert caplog.messages == ["store://b/c/f and 5%", "other"]
    with pytest.raises(OSError, match="No such file or directory: 'store://b/c/g'"), Places() as here:
        here.read(Address("store://b/c/f")).with_name("g").read_bytes()


def test_errors_that_name_no_copy_are_left_alone(store):
    for error in (KeyError("k"), FileNotFoundError(2, "none", "/f"), BrokenPipeError(32, "gone")):
        with pytest.raises(type(error)) as raised, Places():
            raise error
        assert raised.value is error


def test_what_cannot_be_read_is_refused(store, monkeypatch):
    with (
        pytest.raises(OSError, match=r"^store://b/f is not there, or its bucket or folder is not; check the address.$"),
        Places() as here,
    ):
        here.read(Address("store://b/f"))
    fill("store://b/f", b"text")

    def full(self, there, here):
        raise OSError(errno.ENOSPC, "No space left on device", here)

    monkeypatch.setattr(Store, "get_file", full)
    says = "^store://b/f: there is no room for a copy of it in /.*; .* have TMPDIR name another folder.$"
    with pytest.raises(OSError, match=says), Places() as here:
        here.read(Address("store://b/f"))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match=r"^- is stdin, which is closed; name a file.$"), Places() as here:
        here.read(STREAM)
