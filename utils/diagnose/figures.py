"""The figures of the diagnosis, one for each analysis, from the rows of its table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.report.plots import EMPTY, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
MARKERS = "os^DvPX*"  # after ten methods the colours begin again with the next one
LEGEND_ROWS = 18


def recovery(rows: Rows, title: str, path: Path) -> None:
    """Scores over the optimizer steps of the run."""
    figure, (axes,) = _figure(7.5, 4.4, 1)
    steps = [row["step"] for row in rows]
    for name, label, colour in (("task_0_recovered", "recovered", "#2a78b5"), ("task_0", "observed", "#d1495b")):
        axes.plot(steps, [100 * row[name] for row in rows], "o-", ms=4, color=colour, label=f"task 0, {label}")
    later = sorted({row["task"] for row in rows} - {0})
    for task in later:  # a separate line for each
        own = [(row["step"], 100 * row["learned_task"]) for row in rows if row["task"] == task]
        title_of = "task being learned" if task == later[0] else None
        axes.plot(*zip(*own, strict=True), "o--", ms=4, color=MUTED, label=title_of)
    for row in rows:
        if "epoch" not in row["checkpoint"]:
            axes.axvline(row["step"], color="#dddddd", zorder=0)
    axes.set(xlabel="optimizer step (lines: ends of tasks)", ylabel="score, percent", ylim=(0, 102))
    axes.legend(loc="best", frameon=False, fontsize=9)
    _finish(figure, title, path)


def shift(rows: Rows, title: str, path: Path) -> None:
    """Size, shares and angle of the shift of each layer, side by side."""
    figure, panels = _figure(11.5, 4.2, 3)
    names = [row["layer"] for row in rows]
    groups = (
        ("|shift| / |state|", {"relative": "size"}, None),
        (
            "share of the shift, percent",
            {"common": "same for all", "first": "1st direction", "second": "2nd direction"},
            102,
        ),
        ("angle to the first component, degrees", {"angle": "mean shift"}, 92),
    )
    for axes, (unit, lines, top) in zip(panels, groups, strict=True):
        for (name, label), colour in zip(lines.items(), ("#2a78b5", "#d1495b", "#e9a23b"), strict=False):
            scale = 100 if "percent" in unit else 1
            values = [np.nan if row[name] is None else scale * row[name] for row in rows]
            axes.plot(values, "o-", ms=4, color=colour, label=label)
        axes.set(ylabel=unit, ylim=(0, top))
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.legend(loc="best", frameon=False, fontsize=9)
    _finish(figure, title, path)


def angles(rows: Rows, title: str, path: Path) -> None:
    """One bar for each weight matrix, with the angle of an independent space as a line."""
    figure, (axes,) = _figure(8.5, 1.6 + 0.28 * len(rows), 1)
    places = np.arange(len(rows))
    axes.barh(places, [row["angle"] for row in rows], color="#2a78b5", height=0.7, label="later to earlier update")
    for place, row in enumerate(rows):
        label = "independent space" if place == 0 else None
        axes.plot([row["random"]] * 2, [place - 0.45, place + 0.45], color=INK, linewidth=2, label=label)
    axes.set_yticks(places, [row["weight"] for row in rows], fontsize=9, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlim=(0, 92), xlabel="degrees")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    _finish(figure, title, path)


def surface(rows: Rows, title: str, path: Path) -> None:
    """Contours of the loss of both tasks, with the checkpoints and the path between them."""
    from matplotlib.colors import LogNorm

    figure, panels = _figure(11, 4.6, 2)
    x, y = (sorted({row[name] for row in rows}) for name in ("x", "y"))
    for k, axes in enumerate(panels):
        z = np.array([row[f"task_{k}"] for row in rows]).reshape(len(y), len(x)).clip(1e-4)
        levels = np.geomspace(z.min(), max(z.max(), 1.01 * z.min()), 16)
        filled = axes.contourf(x, y, z, levels=levels, norm=LogNorm(), cmap="viridis_r")
        axes.contour(x, y, z, levels=levels, colors="white", linewidths=0.4)
        figure.colorbar(filled, ax=axes, format="%.3g", label="nats per token")
        axes.plot([0, 1, 1], [0, 0, 1], "o-", color=INK, mfc=EMPTY, ms=6)
        for name, place in zip("ABC", ((0, 0), (1, 0), (1, 1)), strict=True):
            axes.annotate(name, place, xytext=(5, 5), textcoords="offset points", fontsize=10, color=INK)
        axes.set(title=f"loss of task {k}", xlabel="x: A to B", ylabel="y: B to C")
    _finish(figure, title, path)


def drift(rows: Rows, title: str, path: Path) -> None:
    """Forgetting over both divergences, a colour and shape for each method, with the fitted curves."""
    from matplotlib import colormaps

    from utils.diagnose.drift import fit  # slow to import: not for --help

    methods = list(dict.fromkeys(row["method"] for row in rows))
    columns = math.ceil(len(methods) / LEGEND_ROWS)
    figure, panels = _figure(8.5 + 2.5 * columns, 4.6, 2)
    titles = {"forward": "KL(before || after)", "reverse": "KL(after || before)"}
    for axes, (name, label) in zip(panels, titles.items(), strict=True):
        for number, method in enumerate(methods):
            own = [(row[name], 100 * row["forgetting"]) for row in rows if row["method"] == method]
            colour, marker = colormaps["tab10"](number % 10), MARKERS[number // 10 % len(MARKERS)]
            axes.plot(*zip(*own, strict=True), ls="", ms=5, label=method, color=colour, marker=marker)
        x = [row[name] for row in rows]
        if (found := fit(x, [100 * row["forgetting"] for row in rows])) is not None:
            at = np.linspace(min(x), max(x), 100)
            axes.plot(at, np.polynomial.Polynomial(found[0])(at), color=INK)
            axes.set_title(f"R² = {found[1]:.2f}", loc="right", fontsize=9)
        axes.set(xlabel=f"{label}, nats per answer", ylabel="forgetting, percentage points")
    named = panels[0].lines[: len(methods)]
    figure.legend(handles=named, loc="outside right upper", ncols=columns, frameon=False, fontsize=9)
    _finish(figure, title, path)


def _figure(width: float, height: float, panels: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _finish(figure: Figure, title: str, path: Path) -> None:
    for axes in figure.axes:
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK, parse_math=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
