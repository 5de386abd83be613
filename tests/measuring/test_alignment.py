"""Cosines of masks with the text that came: against NumPy in float64, and the trees that the masks really made."""

import copy
import dataclasses
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checkpoints import make_checkpoint
from conftest import FAMILIES, make_tiny

from jax_probe_mtp.decoding.batch import make_batch
from jax_probe_mtp.decoding.settings import Prompt, Settings, record_seed
from jax_probe_mtp.decoding.trace import trace
from jax_probe_mtp.drafting import Plain, Probe
from jax_probe_mtp.measuring import alignment
from jax_probe_mtp.measuring.report import alignment_report
from jax_probe_mtp.model import layers, transformer

PROMPTS = [Prompt(id="a", token_ids=[5, 9, 2, 44, 17, 3, 3]), Prompt(id=7, token_ids=[60, 1, 33, 8])]
SETTINGS = Settings(max_new_tokens=24, batch_size=5)
PROBE = Probe(widths=(9, 4, 2), mask_ema=0.3, prune=False)
SLOW_PROBE = {
    "tree": (9, 4, 2),
    "num_masks": 3,
    "block_complexity": None,
    "prune": False,
    "mask_init": "mean",
    "mask_offset": 5.0,
}
NEVER = (49,)  # an end that no text here has


def checkpoint_of(tiny, eos=NEVER):
    return dataclasses.replace(make_checkpoint(tiny), eos_token_ids=eos)


def batch_of(checkpoint, prompt, settings=SETTINGS):
    return make_batch(checkpoint.config, PROBE, [prompt], settings, eos_token_ids=checkpoint.eos_token_ids)


def calls_of(checkpoint, prompt):
    return alignment.decode_calls(checkpoint, PROBE, batch_of(checkpoint, prompt))


def reference_decode(tiny, prompt, eos=NEVER):
    new, _, accepted = reference.probe_decode(
        tiny.reference,
        prompt.token_ids,
        SLOW_PROBE,
        max_new_tokens=SETTINGS.max_new_tokens,
        mask_ema=PROBE.mask_ema,
        eos=eos,
    )
    return new, accepted


def slow_residuals(slow, x_TD):
    """The residual stream [T, D] after each layer, each row scaled: without a head, a shallower model's logits."""
    found = []
    for depth in range(len(slow.p["layers"]) + 1):
        cut = copy.copy(slow)
        cut.p = slow.p | {"layers": slow.p["layers"][:depth], "final_norm": 1.0, "head": np.eye(x_TD.shape[1])}
        found.append(cut.logits(x_TD))
    return found


def slow_alignment(tiny, checkpoint, eos=NEVER):
    """Cosines [layer] of each draft by (class, kind, mask), from the reference's tokens and accepted drafts.

    Only which rows are random is asked of the code under test; `test_compared_rows` looks at those.
    """
    slow, k = tiny.reference, PROBE.num_masks
    cosines = {(c, j, i): [] for c in alignment.CLASSES for j in alignment.KINDS for i in range(k)}
    for prompt in PROMPTS:
        new, accepted = reference_decode(tiny, prompt, eos)
        text = [*prompt.token_ids, *new]
        rows = slow_residuals(slow, slow.embed(text))
        calls = calls_of(checkpoint, prompt)
        random_QM = alignment.compared_rows(calls, record_seed(SETTINGS.seed, prompt))[..., 3]
        masks = np.repeat(slow.embed(prompt.token_ids).mean(0)[None], k, 0)
        end, learned = len(prompt.token_ids), len(prompt.token_ids)
        for q, num_accepted in enumerate(accepted):  # the masks of the call before this one
            asked = slow_residuals(slow, np.concatenate([slow.embed(text[:end]), masks]))
            for i in range(k):
                place = end + i
                others = {"true": place, "before": place - 1, "after": place + 1, "random": random_QM[q, i]}
                for kind, other in others.items():
                    if place < len(text) and other < len(text):
                        name = "accepted" if num_accepted > i else "rejected"
                        pairs = [(x[place], y[other]) for x, y in zip(asked, rows, strict=True)]
                        cosine = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in pairs]
                        cosines[name, kind, i].append(cosine)
            for token in text[learned : end + 1]:  # what the call before this one committed
                masks = masks + PROBE.mask_ema * (slow.embed([token]) - masks)
            learned, end = end + 1, end + num_accepted + 1
    return cosines


def test_means_and_counts_equal_a_slow_computation(tiny):
    got = alignment.measure(checkpoint_of(tiny), PROMPTS, PROBE, SETTINGS)
    expected = slow_alignment(tiny, checkpoint_of(tiny))
    _assert_equal(got, expected)
    assert min(map(len, expected.values())) > 0


def test_a_text_that_ends_inside_an_accepted_path(tiny):
    """The end comes with drafts accepted before and behind it; the third mask's place is then behind the text."""
    new, accepted = reference_decode(tiny, PROMPTS[0])
    ended = 1 + sum(count + 1 for count in accepted[:2])  # tokens before the third call
    assert accepted[2] == 2
    assert new[ended] not in new[:ended]
    eos = (new[ended],)
    checkpoint = checkpoint_of(tiny, eos)
    got = alignment.measure(checkpoint, PROMPTS, PROBE, SETTINGS)
    _assert_equal(got, slow_alignment(tiny, checkpoint, eos))
    totals = [sum(got.counts[name]["true"][i] for name in alignment.CLASSES) for i in range(3)]
    assert totals[0] == totals[1] > totals[2]


def _assert_equal(got, expected):
    for (name, kind, i), values in expected.items():
        assert got.counts[name][kind][i] == len(values), (name, kind, i)
        if values:
            np.testing.assert_allclose(got.cosines[name][kind][i], np.mean(values, axis=0), atol=2e-5)
        else:
            assert set(got.cosines[name][kind][i]) == {None}


def test_counts_are_those_of_the_references_calls(tiny):
    got = alignment.measure(checkpoint_of(tiny), PROMPTS, PROBE, SETTINGS)
    accepted = [count for prompt in PROMPTS for count in reference_decode(tiny, prompt)[1]]
    num_accepted = [sum(count > i for count in accepted) for i in range(3)]
    assert got.counts["accepted"]["true"] == num_accepted
    assert got.counts["rejected"]["true"][:2] == [len(accepted) - count for count in num_accepted[:2]]
    assert 0 < num_accepted[2] < num_accepted[1] < num_accepted[0] < len(accepted)


def test_the_masks_run_again_propose_the_trees_that_the_calls_had(tiny):
    checkpoint = checkpoint_of(tiny)
    for prompt in PROMPTS:
        calls = calls_of(checkpoint, prompt)
        logits_RV = _last_logits(tiny.params, tiny.cfg, calls.token_T, calls.masks_QMD, calls.end_Q)
        logits_QMV = np.asarray(logits_RV)[calls.token_T.size :].reshape(len(calls.end_Q), 3, -1)
        best_QMV = np.argsort(-logits_QMV, axis=-1)
        trees = _trees(checkpoint, prompt)
        assert len(trees) > 5
        assert [[*m[0, :9], *m[1, :4], *m[2, :2]] for m in best_QMV] == trees


@functools.partial(jax.jit, static_argnums=1)
def _last_logits(params, cfg, *arrays):
    *_, hidden_RD = alignment.residuals(params, cfg, *arrays)
    return transformer.logits(params, cfg, layers.rms_norm(hidden_RD, params["final_norm"], cfg.norm_eps)[None])[0]


def test_layers_whose_rows_are_not_turned():
    scaled, text = make_tiny(FAMILIES["smollm3"]), PROMPTS[0].token_ids
    masks_QMD = jnp.zeros((1, 1, scaled.cfg.width))
    got_RV = _last_logits(scaled.params, scaled.cfg, jnp.asarray(text), masks_QMD, jnp.asarray([3]))
    expected_TV = scaled.reference.logits(scaled.reference.embed(text))
    np.testing.assert_allclose(got_RV[: len(text)], expected_TV, atol=2e-5)


def test_masks_enter_in_the_models_dtype(tiny):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params)
    arrays = [jnp.zeros(5, jnp.int32), jnp.zeros((2, 3, tiny.cfg.width)), jnp.ones(2, jnp.int32)]
    shapes = jax.eval_shape(lambda *arrays: list(alignment.residuals(params, tiny.cfg, *arrays)), *arrays)
    assert [(x.shape, x.dtype) for x in shapes] == [((5 + 2 * 3, 24), jnp.bfloat16)] * 3


def _trees(checkpoint, prompt):
    """Drafts of each decode call."""
    traced = trace(checkpoint.params, batch_of(checkpoint, prompt), checkpoint.config, PROBE)
    return [each.call.tree.token_BN[0, 1:].tolist() for each in traced][1:]  # the first call is the prefill's


def test_compared_rows():
    ends = np.array([3, 6, 7], np.int32)
    calls = alignment.Calls(np.arange(9), np.zeros((3, 3, 4), np.float32), ends, np.zeros(3, np.int32))
    rows = alignment.compared_rows(calls, seed=5)
    gone = alignment.ABSENT
    expected = [
        [[3, 2, 4], [4, 3, 5], [5, 4, 6]],
        [[6, 5, 7], [7, 6, 8], [8, 7, gone]],
        [[7, 6, 8], [8, 7, gone], [gone, gone, gone]],  # place 9 is behind the text
    ]
    assert rows[..., :3].tolist() == expected
    assert rows[2, 2, 3] == gone
    np.testing.assert_array_equal(rows, alignment.compared_rows(calls, seed=5))
    drawn = np.stack([alignment.compared_rows(calls, seed)[..., 3] for seed in range(300)])
    for q, i in np.ndindex(3, 3):
        if (q, i) != (2, 2):
            place = ends[q] + i
            values, counts = np.unique(drawn[:, q, i], return_counts=True)
            assert values.tolist() == [row for row in range(9) if abs(row - place) >= 2]
            assert counts.min() > 300 / len(values) / 2  # 5 deviations and more below 300 / 7
    short = alignment.Calls(np.arange(3), np.zeros((1, 1, 4), np.float32), np.array([1]), np.array([0]))
    assert alignment.compared_rows(short, seed=0).tolist() == [[[1, 0, 2, gone]]]


def test_padding_and_other_prompts_change_nothing_and_a_rerun_gives_the_same(tiny, monkeypatch):
    checkpoint = checkpoint_of(tiny)
    whole = alignment.measure(checkpoint, PROMPTS, PROBE, SETTINGS)
    assert alignment.measure(checkpoint, PROMPTS, PROBE, SETTINGS) == whole
    other_seed = alignment.measure(checkpoint, PROMPTS, PROBE, dataclasses.replace(SETTINGS, seed=1))
    for kind in alignment.KINDS:
        assert (other_seed.cosines["accepted"][kind] == whole.cosines["accepted"][kind]) == (kind != "random")
    monkeypatch.setattr(alignment, "bucket", lambda size: size + 3)
    for name, kinds in alignment.measure(checkpoint, PROMPTS, PROBE, SETTINGS).cosines.items():
        for kind, means in kinds.items():
            np.testing.assert_allclose(means, whole.cosines[name][kind], atol=1e-5)


def test_progress_passes_the_prompts_one_by_one(tiny):
    seen = []

    def watch(prompts):
        for prompt in prompts:
            seen.append(prompt.id)
            yield prompt

    got = alignment.measure(checkpoint_of(tiny), PROMPTS, PROBE, SETTINGS, progress=watch)
    assert seen == got.prompts == ["a", 7]
    assert (got.model, got.source, got.settings) == ("tiny", PROBE, dataclasses.replace(SETTINGS, batch_size=1))


def test_what_cannot_be_measured_is_refused(tiny):
    checkpoint = checkpoint_of(tiny)
    with pytest.raises(ValueError, match="got 2 and 0"):
        alignment.measure(checkpoint, PROMPTS, Plain(), SETTINGS)
    with pytest.raises(ValueError, match="got 0 and 3"):
        alignment.measure(checkpoint, [], PROBE, SETTINGS)
    with pytest.raises(ValueError, match=r"needs masks of every node, but .*FewOwners.* gives them to 2"):
        alignment.measure(checkpoint, PROMPTS, FewOwners(widths=(9, 4, 2)), SETTINGS)
    with pytest.raises(ValueError, match="prompt b holds token id 61"):
        alignment.measure(checkpoint, [*PROMPTS, Prompt(id="b", token_ids=[61])], PROBE, SETTINGS, progress=_never)


class FewOwners(Probe):
    num_owners = 2


def _never(prompts):
    raise AssertionError("a prompt ran before all were checked")


def test_files(tiny, tmp_path):
    got = alignment.measure(checkpoint_of(tiny), PROMPTS, PROBE, SETTINGS)
    environment = {"device": "cpu", "git_commit": None, "model": {"name": "tiny"}}
    paths = alignment_report.write_alignment(got, environment, tmp_path / "a" / "b")
    assert [path.name for path in paths] == ["alignment.json", "alignment.svg", "alignment.md"]
    record = json.loads(paths[0].read_text())
    assert record["environment"] == environment
    assert record["prompts"] == ["a", 7]
    assert record["probe"]["draft"] == "probe:9+4+2@mask_ema=0.3,prune=0"
    assert record["probe"]["widths"] == [9, 4, 2]
    assert record["settings"]["max_new_tokens"] == 24
    assert (record["counts"], record["cosines"]) == (got.counts, got.cosines)
    svg, table = paths[1].read_text(), paths[2].read_text()
    title = f"Mask 2: {got.counts['accepted']['true'][1]} accepted, {got.counts['rejected']['true'][1]} rejected"
    assert f">{title}<" in svg
    assert all(f">{kind}, {name}<" in svg for kind in alignment.KINDS for name in alignment.CLASSES)
    assert "temperature 0.0, device cpu. Layer 0" in table
    assert f"## {title}" in table
    means = [got.cosines[name][kind][1][2] for name in alignment.CLASSES for kind in alignment.KINDS]
    assert f"| 2 | {' | '.join(f'{mean:.4f}' for mean in means)} |" in table
    for first, second in zip(paths, alignment_report.write_alignment(got, environment, tmp_path / "c"), strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_where_no_draft_was_there_is_null_and_no_line(tiny, tmp_path):
    settings = dataclasses.replace(SETTINGS, max_new_tokens=1)  # the prefill's call alone
    got = alignment.measure(checkpoint_of(tiny), PROMPTS, PROBE, settings)
    assert got.counts["rejected"]["true"] == [0, 0, 0]
    json_path, _, table = alignment_report.write_alignment(got, {}, tmp_path)
    assert json.loads(json_path.read_text())["cosines"]["accepted"]["true"] == [[None] * 3] * 3
    assert f"| 0 {'| n/a ' * 8}|" in table.read_text()


def test_nothing_is_written_where_something_is_wrong(tiny, tmp_path, monkeypatch):
    got = alignment.measure(checkpoint_of(tiny), PROMPTS[:1], PROBE, SETTINGS)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="file is a file, and an alignment is three files; name a folder"):
        alignment_report.write_alignment(got, {}, file)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(ValueError, match=r"figures need matplotlib: pip install 'jax-probe-mtp\[report\]'"):
        alignment_report.write_alignment(got, {}, tmp_path / "new")
    assert list(tmp_path.iterdir()) == [file]
