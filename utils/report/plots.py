"""Figures of a run: the results matrix as a heat map, the score of each task over time, and probing accuracy.

Input is the dict of `utils.report.results.build`; scores are drawn in percent. matplotlib is imported only when a
figure is drawn, and without pyplot: no window, no display, no global state.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = NDArray[np.float64]  # (4,): red, green, blue, opacity

INK = "#222222"
MUTED = "#777777"
EMPTY = "#f1f1f1"
MOST_NUMBERS = 25  # tasks of a heat map whose cells show numbers


def shorten(name: str, width: int) -> str:
    """A name of at most `width` characters: a long one loses its middle.

    >>> shorten("relation_extraction_task_12", 13)
    'relati…ask_12'
    """
    half = (width - 1) // 2
    return name if len(name) <= width else f"{name[: width - 1 - half]}…{name[len(name) - half :]}"


def moments(results: dict[str, Any]) -> tuple[list[str], NDArray[np.float64]]:
    """Names of the moments of evaluation and the scores there, in percent.

    Returns:
        M names and an (M, K) array; NaN where a task was not evaluated. The moment before training is there
        only if something was evaluated then.
    """
    base, R = np.array([results["base"]], float), np.array(results["R"], float)
    after = [f"after {shorten(name, 14)}" for name in results["task_names"]]
    if np.isnan(base).all():
        return after, 100 * R
    return ["before training", *after], 100 * np.concatenate([base, R])


def heat_map(results: dict[str, Any], path: Path) -> None:
    """Draw the results matrix: each row is an evaluation point, each column a task; cells show the scores.

    More than `MOST_NUMBERS` tasks have small cells without numbers, and a colour bar: ten thousand numbers, too small
    to read, take half a minute to draw.
    """
    from matplotlib import colormaps

    names, scores = moments(results)
    tasks = len(results["task_names"])
    is_small = tasks <= MOST_NUMBERS
    if is_small:
        figure, axes = _figure(max(4.6, 2.1 + (1.1 if tasks <= 5 else 0.7) * tasks), 1.9 + 0.42 * len(names))
    else:
        figure, axes = _figure(3.2 + 0.12 * tasks, 2.4 + 0.12 * len(names))
    higher = np.array(results["higher_is_better"])
    colours = colormaps["Blues"].with_extremes(bad=EMPTY)
    good = np.where(higher, scores, 100 - scores)  # dark is better in every column
    shown = np.ma.masked_invalid(good)
    image = axes.imshow(shown, cmap=colours, vmin=0, vmax=115, aspect="auto", interpolation="nearest")
    if is_small:
        _numbers(axes, scores, good)
        _grid_of_cells(axes, len(names), tasks)
    else:
        bar = figure.colorbar(image, boundaries=np.linspace(0, 100, 101), ticks=range(0, 101, 20), shrink=0.5, pad=0.01)
        bar.set_label("score, percent" if higher.all() else "score, percent; ↓: 100 - score", size=9)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    _cell_titles(axes, results, names, is_small)
    _title(figure, results, "dark is good")
    _save(figure, path)


def _numbers(axes: Axes, scores: NDArray[np.float64], good: NDArray[np.float64]) -> None:
    for (i, j), value in np.ndenumerate(scores):
        text, colour = ("–", MUTED) if np.isnan(value) else (f"{value:.1f}", INK)
        axes.text(j, i, text, ha="center", va="center", color="white" if good[i, j] > 65 else colour)


def _cell_titles(axes: Axes, results: dict[str, Any], names: list[str], is_small: bool) -> None:
    """Tasks above the columns, moments before the rows."""
    tasks = len(results["task_names"])
    if is_small:
        titles = [_column_title(results, j) for j in range(tasks)]
    else:
        titles = [shorten(results["task_names"][j], 14) + _arrow(results, j) for j in range(tasks)]
    axes.set_xticks(range(tasks), titles, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.tick_params(labelsize=9 if is_small else 6)
    axes.xaxis.tick_top()
    if tasks > 5:
        axes.tick_params(axis="x", labelrotation=40 if is_small else 90)
        for label in axes.get_xticklabels() if is_small else ():
            label.set(ha="left", rotation_mode="anchor")


def curves(results: dict[str, Any], path: Path) -> None:
    """Draw the score of each task over the evaluation points, with a dotted chance level and a ring when learned."""
    names, scores = moments(results)
    tasks = len(results["task_names"])
    figure, axes = _figure(max(6.4, 4.4 + 0.45 * len(names)), 4.6)
    for j, colour in enumerate(_colours(tasks)):
        label = shorten(results["task_names"][j], 24).lstrip("_") + _arrow(results, j)
        _curve(axes, scores[:, j], len(names) - tasks + j, label, colour)
    if results["recovery"]:
        ends = np.array([results["recovery"]["before"], results["recovery"]["after"]], float)
        axes.plot([len(names) - 1, len(names)], 100 * ends, "o--", ms=4, color=_colours(tasks)[0], clip_on=False)
        names = [*names, "after recovery"]
    _chance(axes, results)
    axes.set(xlim=(-0.2, len(names) - 0.8), ylim=(0, 100), ylabel="score, percent", axisbelow=True)
    axes.set_xticks(range(len(names)), names, parse_math=False)
    for tick in axes.get_xticklabels():
        tick.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.tick_params(labelsize=9)
    axes.grid(axis="y", color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)
    _legend(axes, tasks)
    _title(figure, results, "ring: just learned")
    _save(figure, path)


def probing_curves(results: dict[str, Any], lines: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw observed and probing accuracy over the run: left the mean over the tasks seen so far, right task 0.

    Args:
        results: Results of a run.
        lines: Title -> "base" and "R", as in the results.
        path: File of the figure.
    """
    from matplotlib.figure import Figure

    names = ["before training", *(f"after {shorten(name, 14)}" for name in results["task_names"])]
    figure = Figure(figsize=(max(9.0, 5 + 0.5 * len(names)), 4.6), layout="constrained")
    for axes, title, tasks in zip(figure.subplots(1, 2, sharey=True), ("seen tasks", "task 0"), (None, 1), strict=True):
        for (name, matrix), colour in zip(lines.items(), [INK, *_colours(len(lines) - 1)], strict=True):
            rows = np.array([matrix["base"], *matrix["R"]], float)
            shown = [np.mean(row[: tasks or max(i, 1)]) for i, row in enumerate(rows)]  # NaN if any is missing
            axes.plot(100 * np.array(shown[1:] if tasks is None else shown), "o-", ms=4, color=colour, label=name)
        ticks = names[1:] if tasks is None else names
        axes.set(title=title, ylim=(0, 102), axisbelow=True)
        axes.set_xticks(range(len(ticks)), ticks, rotation=30, ha="right", fontsize=9, parse_math=False)
        axes.grid(axis="y", color="#e4e4e4")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    figure.axes[0].set_ylabel("accuracy, percent")
    _title(figure, results, "the gap between observed and probing accuracy is forgetting in the head")
    _save(figure, path)


def _curve(axes: Axes, scores: NDArray[np.float64], learned: int, label: str, colour: Colour) -> None:
    """One task: a line through adjacent evaluation points, a faint one across points that were not evaluated."""
    known = np.flatnonzero(~np.isnan(scores))
    axes.plot(known, scores[known], color=colour, linewidth=0.8, alpha=0.4, clip_on=False)
    axes.plot(scores, "o-", color=colour, ms=4, label=label, clip_on=False)
    axes.plot([learned], [scores[learned]], "o", color=colour, mfc="white", ms=8, mew=2, clip_on=False)


def _legend(axes: Axes, tasks: int) -> None:
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), ncols=1 + tasks // 20, frameon=False)
    for text in legend.get_texts():
        text.set(fontsize=9, parse_math=False)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _grid_of_cells(axes: Axes, rows: int, columns: int) -> None:
    """White lines between the cells; no frame, no tick marks."""
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _chance(axes: Axes, results: dict[str, Any]) -> None:
    """One dotted line per task, or a single grey one where all tasks share a level."""
    levels = results["chance"]
    if None not in levels and len(set(levels)) == 1:
        axes.axhline(100 * levels[0], color=MUTED, linestyle=":", label="chance")
        return
    for level, colour in zip(levels, _colours(len(levels)), strict=True):
        if level is not None:
            axes.axhline(100 * level, color=colour, linestyle=":")
    if any(level is not None for level in levels):
        axes.plot([], [], ":", color=MUTED, label="chance, per task")


def _colours(tasks: int) -> list[Colour]:
    """Distinct colours for up to ten tasks, a scale from early to late for more."""
    from matplotlib import colormaps

    scale = colormaps["tab10"](np.arange(10)) if tasks <= 10 else colormaps["viridis"](np.linspace(0, 0.92, tasks))
    return list(scale[:tasks])


def _column_title(results: dict[str, Any], j: int) -> str:
    chance = results["chance"][j]
    name = shorten(results["task_names"][j], 14) + _arrow(results, j)
    return name if chance is None else f"{name}\nchance {100 * chance:.1f}"


def _arrow(results: dict[str, Any], j: int) -> str:
    return "" if results["higher_is_better"][j] else " ↓"


def _unit(results: dict[str, Any]) -> str:
    metrics = ", ".join(dict.fromkeys(results["metrics"]))
    return f"{metrics}, percent" + ("" if all(results["higher_is_better"]) else "; ↓ lower is better")


def _title(figure: Figure, results: dict[str, Any], note: str) -> None:
    """Two lines of title, wrapped to the width of the figure (about 12 characters per inch)."""
    lines = [
        f"{results['method']} on {results['stream']}, seed {results['seed']}",
        f"{_unit(results)}; {note}",
    ]
    width = int(12 * figure.get_figwidth())
    text = "\n".join(textwrap.fill(line, width) for line in lines)
    figure.suptitle(text, x=0.01, ha="left", fontsize=10, color=INK, parse_math=False)
