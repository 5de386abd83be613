"""Bench records by hand, and what their reports and figures say."""

import json
import xml.etree.ElementTree as ElementTree

from jax_probe_mtp.measuring.report import bench_report

NAMES = ["record1_tau.svg", "record1_speedup.svg", "record1_rows.svg", "record1_depth.svg"]


def make_run(name, rows=1, tau=1.0, speedup=1.0, **changed):
    """A run over the questions of `make_record`; by category tau and speed-up are 0.1 more, then 0.1 less."""
    offset = 0.1 * (name != "plain")
    return {
        "run": name,
        "rows_per_call": rows,
        "tau": tau,
        "tau_by_category": {"writing": tau + offset, "math": tau - offset},
        "call_reduction": 1 - 1 / tau,
        "calls": 100,
        "committed": round(100 * tau),
        "accepted_by_depth": [],
        "accepted_by_source": {},
        "exact_match": 1.0,
        "ties": 0,
        "differences": {},
        "seconds": 2 / speedup,
        "prefill_seconds": 0.1,
        "tokens_per_second": 50.0,
        "seconds_by_category": {"writing": 1.0, "math": 1.0},
        "speedup_vs_ar": speedup,
        "speedup_vs_ar_by_category": {"writing": speedup + offset, "math": speedup - offset},
        "speedup_quartiles": [speedup - offset, speedup, speedup + offset],
        "ms_per_call_quartiles": [9.5, 10.0, 10.256],
        "by_question": {},
        **changed,
    }


def make_record(*runs, **changed):
    drafting = make_run("probe:15+4", 60, 1.25, 1.5, accepted_by_depth=[25, 4], accepted_by_source={"probe": 29})
    return {
        "format": 2,
        "environment": {
            "jax_probe_mtp": "0.2.0",
            "git_commit": "abc123",
            "jax": "0.11.2",
            "jaxlib": "0.11.1",
            "numpy": "2.4.6",
            "python": "3.11.9",
            "backend": "gpu",
            "device": "NVIDIA H200",
            "dtype": "float32",
        },
        "model": {"name": "tiny_model.gguf", "fingerprint": "f"},
        "settings": {
            "questions": "spec_bench.jsonl",
            "questions_sha256": "0",
            "per_category": 2,
            "max_new_tokens": 100,
            "runs": ["plain", "probe:15+4"],
            "temperature": 0.0,
            "top_k": 0,
            "top_p": 1.0,
            "seed": 0,
            "batch_size": 4,
            "capacity": None,
            "eos_token_ids": None,
            "use_chat_template": True,
        },
        "is_complete": True,
        "questions": [81, 82, "x"],
        "categories": {"81": "writing", "x": "math", "82": "writing"},
        "skipped": {},
        "runs": list(runs or (make_run("plain"), drafting)),
        **changed,
    }


def write(path, record):
    path.parent.mkdir(exist_ok=True)
    path.write_text(record if isinstance(record, str) else json.dumps(record), encoding="utf-8")
    return path


def make_report(folder, *records):
    """Makes the report of records; gives its text and the folder it is in."""
    paths = [write(folder / f"r{i}.json", record) for i, record in enumerate(records)]
    bench_report.write_report(paths, folder / "out")
    return (folder / "out" / "report.md").read_text(encoding="utf-8"), folder / "out"


def texts(path):
    """What a figure says, in the order it is drawn; fails when it is not XML."""
    return [node.text for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def fills(path):
    """The colours of the cells, row by row, as (red, green, blue)."""
    group = next(node for node in ElementTree.parse(path).iter() if node.get("id") == "PathCollection_1")
    styles = [node.get("style", "") for node in group.iter()]
    return [tuple(bytes.fromhex(style.split("fill: #")[1][:6])) for style in styles if "fill: #" in style]
