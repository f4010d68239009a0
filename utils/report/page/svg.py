"""A chart as SVG for the page. The legend is HTML below it: names are whole, and wrap where the screen is narrow."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from itertools import pairwise

from utils.report.page.charts import SHAPES, Chart, Look, Series, number, ticks

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 48
PATHS = {  # markers around (0, 0)
    "circle": "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
    "square": "M-3.3-3.3h6.6v6.6h-6.6z",
    "triangle": "M0-4.4L4.2 3.2H-4.2z",
    "diamond": "M0-4.8L4.8 0L0 4.8L-4.8 0z",
    "cross": "M-3.8-3.8L3.8 3.8M-3.8 3.8L3.8-3.8",
}
Scale = Callable[[float], float]


def markers() -> str:
    """The shapes of all markers; the page holds them once."""
    return "".join(f'<path id="{shape}" d="{PATHS[shape]}"/>' for shape in SHAPES)


def draw(chart: Chart) -> str:
    """A chart as SVG; all texts are escaped."""
    (x_low, x_high), (y_low, y_high) = chart.limits()
    x = _scale(x_low, x_high, LEFT + 8, WIDTH - RIGHT - 8, chart.log_x)
    y = _scale(y_low, y_high, HEIGHT - BOTTOM - 6, TOP + 6, chart.log_y)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        *(
            _x_tick(x(value), number(value))
            for value in _places(x, ticks(x_low, x_high, chart.log_x, chart.whole_x), 44)
        ),
        *(_y_tick(y(value), number(value)) for value in ticks(y_low, y_high, chart.log_y)),
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">{escape(chart.x_label)}</text>',
        f'<text class="label" transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">'
        f"{escape(chart.y_label)}</text>",
        *(
            f'<g data-s="{place}">{_band(one, x, y)}{_line(one, x, y) if chart.is_joined else ""}'
            f"{_points(one, x, y)}</g>"
            for place, one in enumerate(chart.series)
        ),
        "</svg>",
    ]
    return "".join(parts)


def swatch(look: Look, has_line: bool = True) -> str:
    """Line and marker of a series, for the legend."""
    dash = f' stroke-dasharray="{_dash(look)}"' if look.dash else ""
    line = f'<path d="M1 6H29" stroke="{look.colour}" stroke-width="2"{dash}/>' if has_line else ""
    marker = f'<use href="#{look.shape}" x="15" y="6" {_paint(look)}/>' if look.shape else ""
    return f'<svg class="swatch" viewBox="0 0 30 12" aria-hidden="true">{line}{marker}</svg>'


def _scale(low: float, high: float, first: float, last: float, is_log: bool) -> Scale:
    """From values to places."""
    into: Scale = (lambda value: math.log10(max(value, 1e-300))) if is_log else (lambda value: value)
    begin, end = into(low), into(high)
    return lambda value: first + (into(value) - begin) / (end - begin) * (last - first)


def _places(x: Scale, values: list[float], gap: float) -> list[float]:
    """As many of the ticks as have room."""
    step = 1
    while any(abs(x(b) - x(a)) < gap for a, b in pairwise(values[::step])):
        step += 1
    return values[::step]


def _x_tick(place: float, text: str) -> str:
    foot = HEIGHT - BOTTOM
    return (
        f'<path class="tick" d="M{place:.1f} {foot}v4"/><text class="x" x="{place:.1f}" y="{foot + 18}">{text}</text>'
    )


def _y_tick(place: float, text: str) -> str:
    line = f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>'
    return f'{line}<text class="y" x="{LEFT - 6}" y="{place + 4.5:.1f}">{text}</text>'


def _band(series: Series, x: Scale, y: Scale) -> str:
    """Area around the line; a whisker at a point without neighbours."""
    parts = []
    for piece in series.pieces():
        ends = [(n, float(series.y[n] or 0), half) for n in piece if (half := series.half(n)) is not None]
        if not ends:
            continue
        upper = [(x(float(series.x[n] or 0)), y(value + half)) for n, value, half in ends]
        lower = [(x(float(series.x[n] or 0)), y(value - half)) for n, value, half in ends]
        if len(ends) == 1:
            parts.append(f'<path d="{_path(upper + lower)}" stroke="{series.look.colour}" stroke-width="1.4"/>')
        else:
            parts.append(f'<path d="{_path(upper + lower[::-1])}z" fill="{series.look.colour}" class="band"/>')
    return "".join(parts)


def _line(series: Series, x: Scale, y: Scale) -> str:
    pieces = [[(x(float(series.x[n] or 0)), y(float(series.y[n] or 0))) for n in piece] for piece in series.pieces()]
    path = "".join(_path(piece) for piece in pieces if len(piece) > 1)
    dash = f' stroke-dasharray="{_dash(series.look)}"' if series.look.dash else ""
    return f'<path class="line" d="{path}" stroke="{series.look.colour}"{dash}/>' if path else ""


def _points(series: Series, x: Scale, y: Scale) -> str:
    """Markers with their values as hints; without markers: a dot where no line shows a point."""
    shape, parts = series.look.shape, []
    for piece in series.pieces():
        for n in piece if shape or len(piece) == 1 else []:
            place = f'x="{x(float(series.x[n] or 0)):.1f}" y="{y(float(series.y[n] or 0)):.1f}"'
            hint = escape(series.hints[n] if n < len(series.hints) else _hint(series, n))
            parts.append(f'<use href="#{shape or "circle"}" {place}><title>{hint}</title></use>')
    return f"<g {_paint(series.look)}>{''.join(parts)}</g>" if parts else ""


def _hint(series: Series, n: int) -> str:
    half = series.half(n)
    around = "" if half is None else f" ± {number(half)}"
    return f"{series.name}: {number(float(series.x[n] or 0))}, {number(float(series.y[n] or 0))}{around}"


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _dash(look: Look) -> str:
    return " ".join(map(str, look.dash))


def _paint(look: Look) -> str:
    filled = "none" if look.shape == "cross" else look.colour
    return f'fill="{filled}" stroke="{look.colour}" stroke-width="{2 if look.shape == "cross" else 0}"'
