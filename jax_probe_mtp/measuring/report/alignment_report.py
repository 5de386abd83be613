"""Writes an alignment: its numbers as JSON and in Markdown tables, and the figure."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

from jax_probe_mtp.drafting.spec import draft_name
from jax_probe_mtp.files.markdown import number, table
from jax_probe_mtp.files.whole_files import write_files
from jax_probe_mtp.measuring.alignment import CLASSES, KINDS, Alignment
from jax_probe_mtp.measuring.report import figures
from jax_probe_mtp.measuring.report.figures import Line, Panel

_FORMAT = 1
_LINE_STYLES = {"accepted": "-", "rejected": "--"}
_COLOURS = {"true": "#0072B2", "before": "#E69F00", "after": "#009E73", "random": "0.6"}


def write_alignment(alignment: Alignment, environment: dict[str, Any], folder: Path) -> list[Path]:
    """Writes `alignment.json`, `.svg` and `.md` when all are made; see `check_output`. Equal values, equal bytes."""
    check_output(folder)
    values = dataclasses.asdict(alignment)
    values["probe"] = {"draft": draft_name(alignment.source), **values.pop("source")}
    record = {"format": _FORMAT, "environment": environment, **values}
    texts = {
        "alignment.json": json.dumps(record, allow_nan=False) + "\n",
        "alignment.svg": _figure(alignment),
        "alignment.md": _markdown(alignment, environment),
    }
    return write_files(folder, texts)


def check_output(folder: Path) -> None:
    """Finds out before anything runs whether the files can be made; raises a ValueError where not."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and an alignment is three files; name a folder.")
    figures.require_matplotlib()


def _figure(alignment: Alignment) -> str:
    """Draws a panel a mask: cosine by layer, a colour a kind of row, accepted drafts solid and rejected ones dashed."""
    panels = []
    for i in range(alignment.source.num_masks):
        lines = []
        for name, kind in itertools.product(CLASSES, KINDS):
            width = 2.2 if kind == "true" else 1.1
            style = {"linestyle": _LINE_STYLES[name], "color": _COLOURS[kind], "linewidth": width}
            lines.append(Line(f"{kind}, {name}", alignment.cosines[name][kind][i], style))
        panels.append(Panel(_title(alignment, i), lines))
    return figures.line_panels(panels, x_label="layer (0: input embeddings)", y_label="mean cosine")


def _markdown(alignment: Alignment, environment: dict[str, Any]) -> str:
    """Writes what was run, then a table a mask: a row a layer, a column a kind of row of each class of drafts."""
    settings, columns = alignment.settings, list(itertools.product(CLASSES, KINDS))
    run = [
        alignment.model,
        f"drafts {draft_name(alignment.source)}",
        f"{len(alignment.prompts)} prompts",
        f"at most {settings.max_new_tokens} new tokens",
        f"temperature {settings.temperature}",
        *(f"{key} {value}" for key, value in environment.items() if isinstance(value, str)),  # the rest: in the JSON
    ]
    paragraphs = ["# Mean cosine of masks with text rows", f"{', '.join(run)}. Layer 0 is the input embeddings."]
    for i in range(alignment.source.num_masks):
        means_by_layer = zip(*(alignment.cosines[name][kind][i] for name, kind in columns), strict=True)
        rows = [[str(layer), *(number(mean, ".4f") for mean in means)] for layer, means in enumerate(means_by_layer)]
        counts = ["drafts", *(str(alignment.counts[name][kind][i]) for name, kind in columns)]
        header = ["layer", *(f"{name}: {kind}" for name, kind in columns)]
        paragraphs += [f"## {_title(alignment, i)}", table(header, [*rows, counts])]
    return "\n\n".join(paragraphs) + "\n"


def _title(alignment: Alignment, i: int) -> str:
    return f"Mask {i + 1}: " + ", ".join(f"{alignment.counts[name]['true'][i]} {name}" for name in CLASSES)
