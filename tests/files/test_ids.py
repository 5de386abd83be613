"""Ids of records: which are the same, and which are in a set."""

from array import array

import pytest

from jax_probe_mtp.files import ids
from jax_probe_mtp.files.ids import Keys, id_key


def test_finds_each_id_among_many():
    ids = [*range(3000), *(f"name {i}" for i in range(3000))]
    found = Keys(array("Q", map(id_key, ids)))
    assert len(found) == 6000
    assert all(name in found for name in ids)
    assert not any(f"other {i}" in found for i in range(3000))
    assert "17" in found  # 17 and "17" are one id
    assert found.repeated() == []
    assert Keys(array("Q", [9, 2**64 - 1, 5, 9, 2**64 - 1, 9])).repeated() == [9, 2**64 - 1]
    assert len(Keys(array("Q"))) == 0
    assert "x" not in Keys(array("Q"))


@pytest.mark.parametrize("base", [2**62, 2**63])
def test_neighbouring_digests_are_told_apart(monkeypatch, base):
    digests = {"low": base + 1, "high": base + 3, "top": 2**64 - 1}  # low and high are one number as float64
    monkeypatch.setattr(ids, "id_key", lambda name: digests.get(name, base + 2))
    found = Keys(array("Q", digests.values()))
    assert [name in found for name in ("low", "high", "top", "between")] == [True, True, True, False]


def test_a_digest_does_not_change():
    # b2sum -l 64 of the character "a", from the last byte to the first
    assert id_key(1) == id_key("1")
    assert f"{id_key('a'):016x}" == "2f42665b399ef840"  # 40f89e395b66422f
