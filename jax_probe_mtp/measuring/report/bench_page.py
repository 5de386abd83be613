"""Renders bench reports as one page of HTML: nothing in it comes from elsewhere, and no text in it is read as HTML."""

import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from jax_probe_mtp.files.markdown import printable
from jax_probe_mtp.measuring.report.bench_figures import Figure
from jax_probe_mtp.measuring.report.bench_section import LEGEND, Section


def render(sections: Sequence[Section], figures: Sequence[Sequence[Figure]]) -> str:
    """Makes the page of these records, each with its figures; see `bench_page.html`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else printable(value),
    )
    inline = [
        [(figure.caption, _inline(figure, f"record{i}_{figure.name}_")) for figure in drawn]
        for i, drawn in enumerate(figures, start=1)
    ]
    page = environment.get_template("bench_page.html")
    return page.render(sections=list(zip(sections, inline, strict=True)), legend=LEGEND)


def _inline(figure: Figure, prefix: str) -> Markup:
    """Gives a figure as an element of a page: its names and its style stay its own, and a screen reader says its caption.

    matplotlib has escaped the texts in it, so that a "<" begins a tag.
    """
    svg = figure.svg[figure.svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    names = re.compile(r'(\bid="|href="#|url\(#)')
    svg = re.sub(r"<[^>]+>", lambda tag: names.sub(rf"\g<1>{prefix}", tag[0]), svg)
    svg = svg.replace("*{", f"#{prefix}svg *{{", 1)
    return Markup(svg.replace("<svg ", f'<svg id="{prefix}svg" role="img" aria-label="{escape(figure.caption)}" ', 1))
