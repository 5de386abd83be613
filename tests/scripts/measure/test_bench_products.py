"""bench_products.py: every way of making a product is compared with float32, and tiles that fail stop nothing."""

import json

import bench_products
import pytest

from jax_probe_mtp.errors import exit_status

FLAGS = ["--shape", "tiny", "--gigabytes", "1e-6", "--calls", "1", "--repeats", "2"]


def run(path, *flags):
    code = bench_products.main([*FLAGS, *flags, "--output", str(path / "r.json")])
    return code, json.loads((path / "r.json").read_text(encoding="utf-8"))


def test_each_product_is_made_each_way(tmp_path, capsys):
    code, record = run(tmp_path, "--rows", "6", "--products", "gate_up", "down")
    assert code == 0
    runs = record["runs"]
    assert [(r["product"], r["rows"], r["how"]) for r in runs] == [
        (product, 6, how) for how in ("xla", "kernel") for product in ("gate_up", "down")
    ]
    assert [r["tiles"] and list(r["tiles"]) for r in runs[1::2]] == [
        None,
        ["columns", "parts", "num_warps", "num_stages", "step"],
    ]
    for each in runs:
        assert each["refused"] is None
        assert (
            0 <= each["error"] < (bench_products.MAX_ERROR["bfloat16"] if each["how"] == "xla" else 3e-3)
        )  # ours round once
        assert each["us"] == pytest.approx(sum(each["us_repeats"]) / 2)
        # By hand: D 64, F 128 of the shape "tiny"; bfloat16.
        num_bytes = {"gate_up": 64 * 2 * 128 * 2, "down": 128 * 64 * 2}[each["product"]]
        assert each["bytes_per_second"] == pytest.approx(num_bytes / each["us"] * 1e6)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(runs)


def test_products_in_eight_bits(tmp_path):
    """Up to 32 rows by Triton's kernels, here interpreted; the error is that of the kernel, not of the rounding of weights."""
    code, record = run(tmp_path, "--rows", "1", "20", "60", "--products", "gate_up", "down", "--how", "int8")
    assert code == 0
    assert {(r["product"], r["rows"]) for r in record["runs"]} == {(p, n) for p in ("gate_up", "down") for n in (1, 20)}
    for each in record["runs"]:
        assert each["refused"] is None
        assert 0 <= each["error"] < 3e-3
        num_bytes = {"gate_up": 2 * 128 * (64 + 4), "down": 64 * (128 + 4)}[each["product"]]  # and a scale of 4 bytes
        assert each["bytes_per_second"] == pytest.approx(num_bytes / each["us"] * 1e6)


def test_a_wrong_product_is_seen(tmp_path, monkeypatch):
    honest = bench_products.product_parts
    monkeypatch.setattr(bench_products, "product_parts", lambda *args, **how: 1.02 * honest(*args, **how))
    code, record = run(tmp_path, "--rows", "3", "--products", "qkv", "--how", "xla", "kernel")
    assert code == 1
    assert [each["error"] > bench_products.MAX_ERROR["bfloat16"] for each in record["runs"]] == [False, True]


def test_tiles_that_fail_are_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    def fail(*args, **how):
        raise ValueError("too much\nmemory")

    monkeypatch.setattr(bench_products, "product_parts", fail)
    code, record = run(tmp_path, "--rows", "3", "--products", "out", "--how", "kernel", "xla")
    assert code == 1
    assert [(each["refused"], each["us"] is None) for each in record["runs"]] == [
        ("too much memory", True),
        (None, False),
    ]


def test_a_search_tries_other_tiles_of_an_8b_model():
    tiles = bench_products._tilings("kernel", "out", (4096, 4096), 5, "bfloat16")
    assert len(set(tiles)) == 6
    assert all(4096 % t.columns == 0 and 64 % t.parts == 0 and 60 <= 4096 // t.columns * t.parts <= 400 for t in tiles)
    assert len(set(bench_products._tilings("kernel", "gate_up", (4096, 14336), 10_000, "bfloat16"))) > 10
    assert bench_products._tilings("kernel", "out", (100, 4096), 5, "bfloat16") == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows", "0"], "--rows are at least 1, got [0]."),
        (["--search", "-1"], "got -1 and 1e-06."),
        (["--gigabytes", "nan"], "got 0 and nan."),
    ],
)
def test_refuses(capsys, flags, message):
    assert exit_status(lambda: bench_products.main([*FLAGS, *flags])) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: --")
    assert err.endswith(message + "\n")
