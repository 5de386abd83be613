"""The examples of docs/extending.md run as they stand there; links lead somewhere; the site has every page."""

import re
from pathlib import Path

import numpy as np
import pytest
import reference
import yaml
from checkpoints import EOS, make_checkpoint

DOCS = Path(__file__).parent.parent / "docs"
EXTENDING = (DOCS / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", EXTENDING, flags=re.DOTALL)


@pytest.fixture(scope="module")
def said(tiny):
    """What is defined after all of the page's examples, and what they print."""
    printed = []
    namespace = {"checkpoint": make_checkpoint(tiny), "print": lambda *values: printed.append(values)}
    for block in BLOCKS:
        exec(block, namespace)
    return namespace, printed


def test_an_own_source_drafts_and_the_text_is_plain_decoding_s(said, tiny):
    namespace, printed = said
    [answer] = namespace["answers"]
    plain, _ = reference.plain_decode(tiny.reference, [1, 17, 4], max_new_tokens=24, eos=(EOS,))
    assert answer.token_ids == plain
    assert printed[0][0].endswith(":Repeat@num_candidates=3")
    # The drafts of each call by hand: the newest token, up to three times again.
    calls, accepted, place = 0, [0, 0, 0], 0
    while place < len(plain) - 1:
        run = next((n for n in range(4) if plain[place + 1 + n : place + 2 + n] != [plain[place]]), 3)
        run = min(run, 3)
        for depth in range(run):
            accepted[depth] += 1
        calls, place = calls + 1, place + run + 1
    assert printed[0][1:] == (calls, accepted)
    assert sum(accepted) > 0, "choose a model that repeats itself"


def test_parameters_of_ones_own_decode(said):
    namespace, printed = said
    emitted, calls = printed[1]
    model = reference.Model(namespace["params"], namespace["cfg"])
    plain, gap = reference.plain_decode(model, [1, 17, 4], max_new_tokens=16, eos=(2,))
    assert gap > 1e-3
    assert np.asarray(namespace["result"].token_BT)[0, 3 : 3 + len(plain)].tolist() == plain
    assert emitted.tolist() == [len(plain)]
    assert calls[0] <= len(plain) - 1


def test_a_trace_shows_every_call(said):
    namespace, printed = said
    of_calls = printed[2:]
    assert [number for number, *_ in of_calls] == list(range(len(of_calls)))
    new = [np.asarray(tokens)[: int(num) + 1].tolist() for *_, num, tokens in of_calls]
    text = [token for tokens in new for token in tokens]
    emitted = int(printed[1][0][0])
    assert text[:emitted] == np.asarray(namespace["result"].token_BT)[0, 3 : 3 + emitted].tolist()
    assert len(of_calls) == int(printed[1][1][0]) + 1  # and the prefill's


def test_the_source_is_a_dozen_lines():
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 12


def anchors(page):
    """Those of a page's headings, as GitHub and the site agree on them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading.lower()) for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)]
    return {heading.replace(" ", "-") for heading in plain} & {re.sub(r"[\s-]+", "-", heading) for heading in plain}


def test_links_lead_somewhere():
    pages = [DOCS.parent / "README.md", *DOCS.rglob("*.md")]
    for page in pages:
        for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                target = page.parent / link if link else page
                assert target.exists(), f"{page}: {link}"
                assert not anchor or anchor in anchors(target), f"{page}: {link}#{anchor}"


def entries(nav):
    """The files of a navigation of lists and titles."""
    if isinstance(nav, str):
        return [nav]
    return [file for each in nav for file in entries(each.values() if isinstance(each, dict) else each)]


def test_the_site_has_every_page():
    settings = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"))
    left_out = tuple(settings["exclude_docs"].split())
    pages = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    assert sorted(entries(settings["nav"])) == sorted(page for page in pages if not page.startswith(left_out))
