"""The report as one HTML file that needs no network, with its tables and figures as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from utils.report import differences, published
from utils.report.compare import COST_NOTE, cost_rows, remarks, score_rows
from utils.report.page import curves, exports, figures, svg
from utils.report.page.charts import Chart, Series, number
from utils.report.page.forgotten import RULE, Lost, lost
from utils.report.page.panels import Panel, best, first_run, panels
from utils.report.page.provenance import Provenance, provenance
from utils.report.tables import headline
from utils.storage.files import write_text

HERE = Path(__file__).parent / "template"
MOST_LINES = 12  # rows in a chart
TILES = 8_000  # cells of all matrices of a section
POINTS = 8_000  # of all charts of tasks of a section
EXAMPLES = 1_500  # forgotten examples of a section
MOST_EXAMPLES = 20  # of one task and row


@dataclass(frozen=True)
class Part:
    """What the page shows of one stream."""

    section: dict[str, Any]
    charts: list[Chart]
    tasks: list[Chart]
    panels: list[Panel]
    where: Provenance
    task_rows: list[list[str]]
    forgotten: list[tuple[str, str, list[Lost]]]  # title of a row, its first run, what it forgot
    is_cut: bool  # charts and examples show the best rows only


def write(
    folder: Path, sections: Sequence[dict[str, Any]], runs: Mapping[str, dict[str, Any]], chosen: Sequence[str] = ()
) -> None:
    """Write report.html, table.tex, table.csv and figures/.

    Args:
        folder: Made if it is not there.
        sections: Of `utils.report.results.group`, with intervals.
        runs: Path of a run -> its results.
        chosen: Columns of the tables; empty: those that the runs have numbers for.
    """
    parts = [part_of(section, runs) for section in sections]
    names = []
    for place, part in enumerate(parts):
        prefix = f"{place + 1}-" if len(parts) > 1 else ""
        names += figures.write([*part.charts, *part.tasks], part.panels, folder / "figures", prefix)
    write_text(folder / "report.html", html(parts, chosen, names))
    write_text(folder / "table.tex", exports.latex(sections, chosen))
    write_text(folder / "table.csv", exports.table_csv(sections, runs, chosen))


def part_of(section: dict[str, Any], runs: Mapping[str, dict[str, Any]]) -> Part:
    """Everything that the page shows of one stream."""
    tasks = len(section["task_names"])
    rows = best(section, MOST_LINES)
    shown = panels(section, rows, runs)
    drawn = curves.charts(section, rows, shown[: max(1, POINTS // (tasks * (tasks + 1)))], runs)
    most = max(1, min(MOST_EXAMPLES, EXAMPLES // max(1, len(rows) * (tasks - 1))))
    return Part(
        section,
        [chart for chart in drawn if not chart.key.startswith("task-")],
        [chart for chart in drawn if chart.key.startswith("task-")],
        shown[: max(1, TILES // (tasks * (tasks + 1)))],
        provenance(section, runs),
        exports.task_rows(section, runs),
        [_forgotten(section["rows"][i], runs, most) for i in rows],
        len(rows) < len(section["rows"]),
    )


def _forgotten(row: dict[str, Any], runs: Mapping[str, dict[str, Any]], most: int) -> tuple[str, str, list[Lost]]:
    run = first_run(row)
    return differences.title_of(row), run, lost(Path(run), row["version"], runs[run], most)


def html(parts: Sequence[Part], chosen: Sequence[str], files: Sequence[str]) -> str:
    """The page; all texts are escaped: by jinja, those in charts by utils/report/page/svg.py."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "draw": svg.draw,
        "swatch": lambda one, has_line: svg.swatch(one.look, has_line),
        "tile": tile,
        "values": values,
        "zip_dict": lambda names, each: dict(zip(names, each, strict=True)),
    }
    template = environment.get_template("report.html.jinja")
    return visible(
        template.render(
            parts=parts,
            chosen=chosen,
            files=files,
            formats=figures.FORMATS,
            markers=svg.markers(),
            style=(HERE / "report.css").read_text(encoding="utf-8"),
            script=(HERE / "report.js").read_text(encoding="utf-8"),
            headline=headline,
            scores=scores,
            cost_rows=cost_rows,
            cost_note=COST_NOTE,
            remarks=remarks,
            differences=differences,
            published=published.text,
            rule=RULE,
            band=curves.BAND,
            most_lines=MOST_LINES,
        )
    )


def visible(text: str) -> str:
    """A text that a file of HTML can hold: control characters become signs, halves of characters question marks.

    >>> visible("a\\x00b")
    'a␀b'
    """
    signs = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
    return text.translate(signs).encode("utf-8", "replace").decode("utf-8")


def scores(section: dict[str, Any], chosen: Sequence[str]) -> list[list[str]]:
    """The table of scores with the interval of the average; empty if no column is shown."""
    rows = score_rows(section, chosen)
    intervals = [f"{differences.LEVEL} % interval of the average", *map(exports.interval_text, section["rows"]), ""]
    return [[*row, cell] for row, cell in zip(rows, intervals, strict=True)] if rows else []


def values(chart: Chart) -> list[list[str]]:
    """The numbers of a chart as a table, titles first: a row for each x, a column for each series."""
    if not chart.is_joined:
        return [["row", chart.x_label, chart.y_label], *(_point(one) for one in chart.series)]
    places = sorted({x for one in chart.series for x in one.x if x is not None})
    if len(places) > 2 * max(len(one.x) for one in chart.series):  # every series has places that the others lack
        rows = [[one.name, number(x), y] for one in chart.series for x, y in zip(one.x, _texts(one), strict=True) if x]
        return [["row", chart.x_label, chart.y_label], *rows]
    columns = [dict(zip(one.x, _texts(one), strict=True)) for one in chart.series]
    names = [one.name for one in chart.series]
    return [[chart.x_label, *names], *([number(x), *(column.get(x, "") for column in columns)] for x in places)]


def _point(one: Series) -> list[str]:
    return [one.name, *("-" if value is None else number(value) for value in one.x), *_texts(one)]


def _texts(one: Series) -> list[str]:
    halves = [one.half(n) for n in range(len(one.y))]
    return [
        "-" if y is None else number(y) + ("" if half is None else f" ± {number(half)}")
        for y, half in zip(one.y, halves, strict=True)
    ]


def tile(score: float) -> int:
    """Shade of a cell, 0 to 10; -1: not evaluated.

    >>> tile(0.0), tile(100.0), tile(float("nan"))
    (0, 10, -1)
    """
    return -1 if score != score else max(0, min(10, round(score / 10)))
