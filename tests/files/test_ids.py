"""Ids of records: which are the same, and which are in a set."""

from array import array

import pytest

from jax_probe_mtp.files import ids
from jax_probe_mtp.files.ids import Keys, KeySet, answer_key, content_digest, id_key, nameless_key, occurrence_of


def test_finds_each_id_among_many():
    ids = [*range(3000), *(f"name {i}" for i in range(3000))]
    found = KeySet(array("Q", map(id_key, ids)))
    assert len(found) == 6000
    assert all(name in found for name in ids)
    assert not any(f"other {i}" in found for i in range(3000))
    assert "17" in found  # 17 and "17" are one id
    assert found.repeated() == []
    assert KeySet(array("Q", [9, 2**64 - 1, 5, 9, 2**64 - 1, 9])).repeated() == [9, 2**64 - 1]
    assert len(KeySet(array("Q"))) == 0
    assert "x" not in KeySet(array("Q"))


@pytest.mark.parametrize("base", [2**62, 2**63])
def test_neighbouring_digests_are_told_apart(monkeypatch, base):
    digests = {"low": base + 1, "high": base + 3, "top": 2**64 - 1}  # low and high are one number as float64
    monkeypatch.setattr(ids, "id_key", lambda name: digests.get(name, base + 2))
    found = KeySet(array("Q", digests.values()))
    assert [name in found for name in ("low", "high", "top", "between")] == [True, True, True, False]


@pytest.mark.parametrize("base", [2**62, 2**63])
def test_places_are_those_of_the_file(base):
    keys = [base + step for step in (5, 1, 2**61, 3, 0)]
    found = Keys(array("Q", keys))
    assert (len(found), [found[place] for place in range(5)]) == (5, keys)
    assert [found.find(key) for key in keys] == [0, 1, 2, 3, 4]
    assert [found.find(base + step) for step in (-1, 2, 4, 2**61 + 1)] == [None] * 4
    assert Keys(array("Q")).find(base) is None
    assert found == Keys(array("Q", keys))
    assert found != Keys(array("Q", keys[::-1]))


def test_records_without_ids_are_told_apart_by_what_they_ask_for():
    asked = content_digest({"prompt": "x", "top_k": 3})
    assert asked == content_digest({"top_k": 3, "prompt": "x"})
    assert asked != content_digest({"prompt": "x", "top_k": 4})
    keys = [nameless_key(asked, occurrence) for occurrence in range(1, 4)]
    assert len({asked, *keys}) == 4
    assert max(keys) < 2**64
    assert [occurrence_of(key, asked) for key in keys] == [1, 2, 3]
    answers = [{"id": 1, "content": f"{asked:016x}", "occurrence": occurrence} for occurrence in range(1, 4)]
    assert list(map(answer_key, answers)) == keys
    assert answer_key({"id": 1, "content": f"{asked:016x}"}) == id_key(1)  # it has an id


def test_a_digest_does_not_change():
    # b2sum -l 64 of the character "a", from the last byte to the first
    assert id_key(1) == id_key("1")
    assert f"{id_key('a'):016x}" == "2f42665b399ef840"  # 40f89e395b66422f


@pytest.mark.parametrize("occurrence", ["x", [1], {}, None, 1.5, True])
@pytest.mark.parametrize("content", ["00000000000000ff", 7, None])
def test_an_answer_that_somebody_edited_names_no_record(content, occurrence):
    with pytest.raises((TypeError, ValueError)):
        answer_key({"id": 1, "content": content, "occurrence": occurrence})
