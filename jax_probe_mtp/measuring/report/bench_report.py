"""Writes reports of bench records: a page for a browser, the same in Markdown, and the figures beside them."""

from collections.abc import Sequence
from pathlib import Path

from jax_probe_mtp.files.markdown import cell, printable, table
from jax_probe_mtp.files.whole_files import write_files
from jax_probe_mtp.measuring.bench_record import read_record
from jax_probe_mtp.measuring.report import bench_figures, bench_page
from jax_probe_mtp.measuring.report.bench_figures import Figure
from jax_probe_mtp.measuring.report.bench_section import LEGEND, Section, make_section
from jax_probe_mtp.measuring.report.figures import require_matplotlib


def write_report(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Writes `report.html` and `report.md`, a section a record in the order given, and the figures of the latter beside it.

    Figures are numbered as the records are, `record1_tau.svg`, so that files of one name in two folders do not meet.
    The same records give the same bytes. Nothing is written before every record is read and every figure drawn.

    Returns:
      The files written, `report.html` and `report.md` first.

    Raises:
      ValueError: a file that is not a bench record, a folder that is a file, or no matplotlib.
      OSError: if a file cannot be read or written.
    """
    if not paths:
        raise ValueError("a report needs at least one bench record; name the files.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and a report is several files; name a folder.")
    require_matplotlib()
    records = [read_record(path) for path in paths]
    sections = [make_section(record, path.name) for path, record in zip(paths, records, strict=True)]
    drawn = [bench_figures.draw(record) for record in records]
    texts = {
        "report.html": bench_page.render(sections, drawn),
        "report.md": "\n".join(
            [
                f"# Bench report\n\n{LEGEND}\n",
                *(_markdown(i, *both) for i, both in enumerate(zip(sections, drawn, strict=True), start=1)),
            ]
        ),
        **{_file_name(i, figure): figure.svg for i, figures in enumerate(drawn, start=1) for figure in figures},
    }
    written = {(folder / name).resolve() for name in texts}
    for path in paths:
        if path.resolve() in written:
            raise ValueError(f"{path} is a record that the report would overwrite; name another folder.")
    return write_files(folder, texts)


def _file_name(number: int, figure: Figure) -> str:
    return f"record{number}_{figure.name}.svg"


def _markdown(number: int, section: Section, figures: Sequence[Figure]) -> str:
    paragraphs = [f"## {number}. {cell(section.title)}", f"**{cell(section.answer)}**"]
    if section.warning:
        paragraphs.append(f"**{section.warning}**")
    for each in section.tables:
        paragraphs += [f"{each.heading}:", table(each.columns, each.rows)]
    for heading, items in section.lists.items():
        paragraphs += [f"{heading}:", "\n".join(f"- {cell(item)}" for item in items)]
    for figure in figures:
        paragraphs += [f"![{figure.caption}]({_file_name(number, figure)})", figure.caption]
    paragraphs += [cell(fact) for fact in section.facts]
    paragraphs += ["To run it again:", "\n".join(f"    {printable(command)}" for command in section.commands)]
    return "\n\n".join(paragraphs) + "\n"
