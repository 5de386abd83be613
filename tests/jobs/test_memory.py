"""What a run takes on each device, counted by hand and by what arrays really take, and what is said where it does not fit."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import psutil
import pytest
from checkpoints import make_checkpoint, write_folder
from conftest import BASE

from jax_probe_mtp.drafting import DynamicProbe, Merged, Ngram, Plain, Probe, Recycle, recycle
from jax_probe_mtp.jobs import memory
from jax_probe_mtp.jobs.memory import Estimate, check, estimate
from jax_probe_mtp.model import cache
from jax_probe_mtp.model.params import random_params

# BASE: 61 tokens, 24 wide, 2 layers of 2 kv heads with 3 queries each, heads of 8, MLP of 40.
LAYER = 24 * 2 * 5 * 8 + 2 * 3 * 8 * 24 + 24 * 2 * 40 + 40 * 24  # q, k and v; out; gate and up; down
NORMS = 2 * 2 * 24 + 24
WEIGHTS = 2 * LAYER + 2 * 61 * 24 + NORMS
HALF = LAYER + 61 * 24 + NORMS  # of two devices that share the weights; norms are whole on each
ROW = 2 * 2 * 2 * 8  # numbers of a cache slot: keys and values of 2 layers, 2 heads of 8
# 2 masks of 24 numbers; of each the 8 best tokens (7, and one more for pruning), an id and a score; lambda.
MASKS = 4 * 2 * 24 + 2 * 8 * (4 + 4) + 4
# Of 64 slots as of 1,024: 64 tokens, as few as there are, and 32,768 pairs of 9 numbers, 6 times 2,048 n-grams of 4; 231
# weights and their squares; nine tokens; a mask, lambda, and the 25 tokens that the mask last proposed, an id and a score.
MERGED_ROW = 4 * (9 * (64 + 32768) + 4 * 6 * 2048 + 2 * 231 + 9) + 4 * (24 + 1 + 2 * 25)
# Of 61 tokens: 64 entries, 16 times as many for pairs, 4 times as many for n-grams of each length.
MERGED_SHARED = 4 * (9 * (64 + 1024) + 4 * 6 * 256 + 2 * 231)
TABLE = 61 * 8 * (4 + 4)  # of each token 8 successors, an id and a score


@pytest.mark.parametrize(
    ("draft", "more", "weights", "per_row", "rows", "shared"),
    [
        # A tree of 7 + 3 drafts and a root, each with 2 masks: 33 rows a call.
        (Probe(widths=(7, 3)), {}, 4 * WEIGHTS, 4 * ROW * (64 + 33) + 4 * 33 * 61 + MASKS, 6, 0),
        (Probe(widths=(7, 3)), {"data": 3}, 4 * WEIGHTS, 4 * ROW * (64 + 33) + 4 * 33 * 61 + MASKS, 2, 0),
        (Probe(widths=(7, 3)), {"tensor": 2}, 4 * HALF, 2 * ROW * (64 + 33) + 4 * 33 * 31 + MASKS, 6, 0),
        (Probe(widths=(7, 3)), {"tensor": 2, "data": 6}, 4 * HALF, 2 * ROW * (64 + 33) + 4 * 33 * 31 + MASKS, 1, 0),
        # Masks stay in float32.
        (Probe(widths=(7, 3)), {"dtype": "bfloat16"}, 2 * WEIGHTS, 2 * ROW * (64 + 33) + 4 * 33 * 61 + MASKS, 6, 0),
        (Probe(widths=(7, 3)), {"capacity": 100}, 4 * WEIGHTS, 4 * ROW * (100 + 33) + 4 * 33 * 61 + MASKS, 6, 0),
        # 15 rows hold 5 nodes with 2 masks each: at most 4 drafts, and one more for pruning.
        (
            DynamicProbe(rows=15, num_masks=2),
            {},
            4 * WEIGHTS,
            4 * ROW * (64 + 15) + 4 * 15 * 61 + 4 * 2 * 24 + 2 * 5 * (4 + 4) + 4,
            6,
            0,
        ),
        (Plain(), {}, 4 * WEIGHTS, 4 * ROW * (64 + 1) + 4 * 61, 6, 0),
        (Ngram(num_drafts=4), {}, 4 * WEIGHTS, 4 * ROW * (64 + 5) + 4 * 5 * 61, 6, 0),
        (Recycle(tree=12), {}, 4 * WEIGHTS, 4 * ROW * (64 + 12) + 4 * 12 * 61 + TABLE, 6, 0),
        (Recycle(tree=12, warm=True), {}, 4 * WEIGHTS, 4 * ROW * (64 + 12) + 4 * 12 * 61, 6, TABLE),
        (Merged(rows=12), {}, 4 * WEIGHTS, 4 * ROW * (64 + 12) + 4 * 12 * 61 + MERGED_ROW, 6, 0),
        (
            Merged(rows=12, mask_owners=0, warm=True),
            {},
            4 * WEIGHTS,
            4 * ROW * (64 + 12) + 4 * 12 * 61 + 4 * 9,
            6,
            MERGED_SHARED,
        ),
    ],
)
def test_counts_weights_cache_logits_and_what_the_source_keeps(draft, more, weights, per_row, rows, shared):
    needed = estimate(BASE, draft, **{"dtype": "float32", "batch_size": 6, "capacity": 64} | more)
    assert needed == Estimate(weights=weights, per_row=per_row, rows=rows, shared=shared)
    assert needed.total == weights + shared + rows * per_row


def test_likely_tokens_that_are_kept_take_an_id_and_a_number_a_place():
    settings = {"dtype": "float32", "batch_size": 6, "capacity": 64}
    without, kept = (estimate(BASE, Plain(), num_top=num_top, **settings) for num_top in (0, 5))
    assert kept.per_row - without.per_row == 65 * 5 * (4 + 4)
    assert kept.total - without.total == 6 * 65 * 5 * 8


def test_counts_weights_of_eight_bits():
    """A byte a number of each matrix and of the head, and four for each number out: 80 of q, k and v, 24, two of 40, 24."""
    weights = 2 * (LAYER + 4 * (80 + 24 + 2 * 40 + 24)) + 61 * 24 + 4 * 61 + 2 * 61 * 24 + 2 * NORMS
    needed = estimate(BASE, Plain(), dtype="bfloat16", weights="int8", batch_size=6, capacity=64)
    assert needed == Estimate(weights=weights, per_row=2 * ROW * (64 + 1) + 4 * 61, rows=6, shared=0)
    assert needed.weights == num_bytes(random_params(BASE, jax.random.key(0), jnp.bfloat16, "int8"))
    # Half of each, but of out and down, whose numbers in are split: there each device has all 24 scales.
    half = LAYER + 2 * 4 * (40 + 24 + 2 * 20 + 24) + 31 * 24 + 4 * 31 + 2 * 31 * 24 + 2 * NORMS
    split = estimate(BASE, Plain(), dtype="bfloat16", weights="int8", batch_size=6, capacity=64, tensor=2)
    assert split.weights in range(half - 4 * 24, half + 1)  # 61 tokens are counted as 30 and a half


def num_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_counts_what_the_arrays_take(dtype):
    draft = Recycle(tree=12)
    needed = estimate(BASE, draft, dtype=dtype, batch_size=3, capacity=64)
    params = jax.eval_shape(lambda: random_params(BASE, jax.random.key(0), jnp.dtype(dtype)))
    assert needed.weights == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    slots = cache.allocate(BASE, batch_size=3, capacity=64, scratch=draft.num_rows, dtype=jnp.dtype(dtype))
    logits = jnp.zeros((3, draft.num_rows, 61), jnp.float32)
    table = recycle.empty_table(3, 61)
    assert needed.per_row * 3 == num_bytes(slots) + num_bytes(logits) + num_bytes(table)


def limit_to(monkeypatch, limit):
    monkeypatch.setattr(memory, "device_limit", lambda: limit)


@pytest.mark.parametrize("data", [1, 2])
@pytest.mark.parametrize(("spare", "rows"), [(0, 3), (1, 3), (-1, 2)], ids=["exactly", "a byte more", "a byte less"])
def test_names_the_largest_batch_that_fits(monkeypatch, data, spare, rows):
    def needs(batch_size):
        return estimate(BASE, Plain(), dtype="float32", batch_size=batch_size, capacity=64, data=data)

    limit_to(monkeypatch, 4 * WEIGHTS + 3 * (4 * ROW * 65 + 4 * 61) + spare)
    with pytest.raises(ValueError, match="a device") as error:
        check(needs(100 * data), data)
    named = int(re.search(r"; the largest --batch-size that fits is (\d+)\.\Z", str(error.value))[1])
    assert named == rows * data
    check(needs(named), data)
    with pytest.raises(ValueError, match=f"the largest --batch-size that fits is {named}"):
        check(needs(named + data), data)


def test_a_warm_table_is_there_once_whatever_the_batch(monkeypatch):
    def needs(batch_size):
        draft = Recycle(tree=12, warm=True)
        return estimate(BASE, draft, dtype="float32", batch_size=batch_size, capacity=64)

    limit_to(monkeypatch, 4 * WEIGHTS + TABLE + 3 * (4 * ROW * 76 + 4 * 12 * 61))
    with pytest.raises(ValueError, match=r"shared .* \+ 100 rows of .*; the largest --batch-size that fits is 3\.\Z"):
        check(needs(100))
    check(needs(3))


def test_says_the_sizes_in_full(monkeypatch):
    needed = Estimate(weights=3 * 2**30, per_row=2**29, rows=4)
    limit_to(monkeypatch, 4 * 2**30)
    with pytest.raises(ValueError, match="that fits is 2") as error:
        check(needed)
    assert str(error.value) == (
        "weights 3.00 GiB + 4 rows of 0.50 GiB = 5.00 GiB a device, but it has 4.00 GiB; "
        "the largest --batch-size that fits is 2."
    )


@pytest.mark.parametrize("limit", [0, 2**30, 3 * 2**30, 3 * 2**30 + 2**29 - 1])
def test_names_another_way_out_where_not_one_row_fits(monkeypatch, limit):
    limit_to(monkeypatch, limit)
    with pytest.raises(
        ValueError, match="not one row fits: lower --capacity, use --dtype bfloat16 or split the weights"
    ):
        check(Estimate(weights=3 * 2**30, per_row=2**29, rows=4))


def test_passes_where_nothing_is_known(monkeypatch):
    limit_to(monkeypatch, None)
    check(Estimate(weights=2**60, per_row=2**50, rows=4))


@pytest.mark.parametrize(
    ("platform", "stats", "limit"),
    [
        ("gpu", {"bytes_limit": 123, "bytes_in_use": 100}, 123),
        ("cpu", {"bytes_limit": 123}, 123),
        ("cpu", None, 2_048_000),  # of what is available, each of two devices
        ("cpu", {}, 2_048_000),
        ("tpu", None, None),
        ("gpu", {}, None),
    ],
)
def test_the_limit_is_what_the_device_says_or_a_share_of_available_memory(monkeypatch, platform, stats, limit):
    devices = [SimpleNamespace(platform=platform, memory_stats=lambda: stats)] * 2
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4_096_001, free=1, total=2**40))
    assert memory.device_limit() == limit


def test_the_command_refuses_before_it_reads_weights(run, tiny, tmp_path, monkeypatch):
    from checkpoints_convert import OpenedCheckpoint

    reads = []

    def load(self, mesh=None):
        reads.append(mesh)
        raise ValueError("the weights are read")

    monkeypatch.setattr(OpenedCheckpoint, "load", load)
    model = write_folder(tmp_path / "tiny", make_checkpoint(tiny))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": i, "prompt_ids": [i + 1] * 30}) + "\n" for i in range(9)))
    limit_to(monkeypatch, 4 * WEIGHTS + 2 * (4 * ROW * (128 + 33) + 4 * 33 * 61 + MASKS) + 9)
    command = ["--model", model, "--input", prompts, "--output", tmp_path / "answers.jsonl", "--tree", "7,3"]
    code, out, err = run("generate", *command, "--max-new-tokens", "40", "--batch-size", "4")
    assert (code, out, reads) == (2, "", [])
    assert re.fullmatch(r"error: weights .* \+ 4 rows of .* the largest --batch-size that fits is 2\.\n", err)
    assert not (tmp_path / "answers.jsonl").exists()
    code, _, err = run("generate", *command, "--max-new-tokens", "40", "--batch-size", "2")
    assert (code, err, reads) == (2, "error: the weights are read\n", [None])


def test_a_merged_drafts_tables_are_small():
    """Two MB a row at 1,024 slots, 64 MB for all rows of a model of 152,000 tokens."""
    large = dataclasses.replace(BASE, vocab_size=152_064, context_length=4096)
    small = {"dtype": "bfloat16", "batch_size": 1, "capacity": 1024}
    plain = estimate(large, Plain(), **small)
    cold, warm = (estimate(large, Merged(rows=4, mask_owners=0, warm=is_warm), **small) for is_warm in (False, True))
    logits_and_slots = 3 * (4 * 152_064 + 2 * ROW)
    assert 0 < cold.per_row - plain.per_row - logits_and_slots <= 2 << 20
    assert 0 < warm.shared <= 64 << 20
