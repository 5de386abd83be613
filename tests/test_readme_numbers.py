"""Every number of the README that says what the method gives is in a record."""

import pytest
from readme_numbers import IN_DOCS, ROOT, claims, is_as_said, main, unclaimed

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_number_is_what_its_record_says(capsys):
    assert main() == 0, capsys.readouterr().out
    for claim, (record, said) in IN_DOCS.items():
        assert claim in " ".join(TEXT.split())
        assert said in (ROOT / record).read_text(encoding="utf-8")


def test_no_number_is_without_a_record():
    assert unclaimed(TEXT) == []
    assert unclaimed(TEXT.replace("## Use it", "It is 1.61 times as fast.\n\n## Use it")) == ["1.61"]


def test_another_number_is_noticed():
    assert "1.24, 1.07" in TEXT
    wrong = TEXT.replace("1.24, 1.07", "1.24, 1.08")
    assert [number for _, number, _, value in claims(wrong) if not is_as_said(number, value)] == ["1.08"]
    with pytest.raises(ValueError, match="the README has 0 times: plain decoding is #"):
        list(claims(TEXT.replace("plain decoding is 1.10", "plain decoding was 1.10")))


def test_it_has_at_most_a_thousand_words():
    assert len(TEXT.split()) <= 1000
