"""The charts as PDF, SVG and PNG, for papers and slides."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.report.page.charts import Chart, Series
from utils.report.page.panels import Panel
from utils.report.plots import EMPTY, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")
SHAPES = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "x"}
MOST_NUMBERS = 10  # tasks of a matrix whose cells show numbers
ACROSS = 4  # panels side by side
# Text stays text; the same input gives the same bytes.
SETTINGS: Any = {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "report", "font.size": 9}


def write(charts: Sequence[Chart], panels: Sequence[Panel], folder: Path, prefix: str = "") -> list[str]:
    """Draw every chart, the tasks together in one figure, and the matrices; returns the names without ending.

    Args:
        charts: Of `utils.report.page.curves.charts`.
        panels: Mean matrices.
        folder: Made if it is not there.
        prefix: First part of the names.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    tasks = [chart for chart in charts if chart.key.startswith("task-")]
    drawn = {chart.key: [chart] for chart in charts if chart not in tasks} | ({"tasks": tasks} if tasks else {})
    with matplotlib.rc_context(SETTINGS):
        for key, together in drawn.items():
            _save(_grid(together), folder / f"{prefix}{key}")
        if panels:
            _save(_matrices(panels), folder / f"{prefix}R")
    return [f"{prefix}{key}" for key in [*drawn, *(["R"] if panels else [])]]


def _save(figure: Figure, path: Path) -> None:
    """Write a figure in all formats; its layout is computed once."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ending in FORMATS:
        dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}[ending]
        figure.savefig(path.with_name(f"{path.name}.{ending}"), dpi=150, metadata=dates)


def _figure(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """So many axes with one scale, in rows of four; those left over are hidden."""
    from matplotlib.figure import Figure

    across = min(ACROSS, count)
    down = math.ceil(count / across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    for lowest in axes[max(0, count - across) : count]:  # of their columns
        lowest.tick_params(labelbottom=True)
    return figure, axes[:count]


def _grid(charts: Sequence[Chart]) -> Figure:
    """Charts of the same rows, with one legend below."""
    many = len(charts) > 1
    figure, axes = _figure(len(charts), 3.2 if many else 5.6, 2.5 if many else 3.8)
    for chart, one in zip(charts, axes, strict=True):
        _draw(chart, one)
    handles, labels = axes[0].get_legend_handles_labels()
    across = max(1, int(figure.get_figwidth() * 12 / (8 + max(map(len, labels), default=1))))
    legend = figure.legend(handles, labels, loc="outside lower left", ncols=across, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw(chart: Chart, axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    for one in chart.series:
        _series(chart, one, axes)
    axes.set_xscale("log" if chart.log_x else "linear")
    axes.set_yscale("log" if chart.log_y else "linear")
    if chart.percent_y:
        (_, _), (low, high) = chart.limits()
        axes.set_ylim(low - 2, high + 2)
    if chart.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(textwrap.fill(chart.title, 42), fontsize=10, loc="left", color=INK, parse_math=False)
    axes.set_xlabel(chart.x_label, parse_math=False)
    axes.set_ylabel(textwrap.fill(chart.y_label, 40), parse_math=False)
    axes.grid(axis="y", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _series(chart: Chart, series: Series, axes: Axes) -> None:
    look = series.look
    dash: Any = (0, look.dash) if look.dash else "-"
    x, y, half = (_floats(part) for part in (series.x, series.y, series.spread))
    marker = SHAPES.get(look.shape, "")
    line = dash if chart.is_joined else ""
    axes.plot(x, y, color=look.colour, linestyle=line, marker=marker, ms=4.5, lw=1.6, label=series.name)
    if not len(half) or np.isnan(half).all():
        return
    if chart.is_joined:
        axes.fill_between(x, y - half, y + half, color=look.colour, alpha=0.15, linewidth=0)
    else:
        axes.errorbar(x, y, half, color=look.colour, lw=1, linestyle="")


def _floats(values: Any) -> Any:
    return np.array([np.nan if value is None else value for value in values], float)


def _matrices(panels: Sequence[Panel]) -> Figure:
    """Mean R of each row: rows are evaluation points, columns tasks."""
    from matplotlib import colormaps

    tasks = len(panels[0].names)
    figure, axes = _figure(
        len(panels), *((3.0, 2.6) if tasks > MOST_NUMBERS else (max(2.6, 0.42 * tasks), max(2.4, 0.36 * tasks + 0.7)))
    )
    colours = colormaps["Blues"].with_extremes(bad=EMPTY)
    for panel, one in zip(panels, axes, strict=True):
        scores = panel.scores.mean[1:]
        image = one.imshow(np.ma.masked_invalid(scores), cmap=colours, vmin=0, vmax=160, aspect="auto")
        ticks = np.unique(np.linspace(0, tasks - 1, min(tasks, 6)).round().astype(int))
        one.set_xticks(ticks, ticks + 1)
        one.set_yticks(ticks, ticks + 1)
        one.set_title(textwrap.fill(panel.title, 34), fontsize=9, loc="left", color=INK, parse_math=False)
        one.tick_params(length=0)
        one.spines[:].set_visible(False)
        if tasks <= MOST_NUMBERS:
            for (i, j), value in np.ndenumerate(scores):
                text, colour = ("–", MUTED) if np.isnan(value) else (f"{value:.0f}", INK)
                one.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(image, ax=axes, boundaries=np.linspace(0, 100, 101), ticks=range(0, 101, 20), shrink=0.7)
    bar.set_label("score, percent")
    figure.supxlabel("task", fontsize=9)
    figure.supylabel("tasks learned", fontsize=9)
    return figure
