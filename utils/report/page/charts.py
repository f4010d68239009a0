"""What a chart shows, however it is drawn: in the page (utils/report/page/svg.py) or as files (files.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Okabe and Ito (2008), which colour-blind readers can distinguish, without yellow: too light on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ((), (6, 3), (2, 2), (8, 3, 2, 3), (1, 3))  # lengths of strokes and gaps
SHAPES = ("circle", "square", "triangle", "diamond", "cross")

Values = Sequence[float | None]


@dataclass(frozen=True)
class Look:
    """Colour, marker and stroke of a series; 35 series differ in colour or marker (without markers: stroke)."""

    colour: str
    shape: str  # "": no marker
    dash: tuple[int, ...]

    @staticmethod
    def of(number: int, stroke: int = 0, has_marker: bool = True) -> Look:
        """That of the row with this number; several series of a row differ in the stroke.

        >>> len({(Look.of(i).colour, Look.of(i).shape) for i in range(35)})
        35
        """
        stroke += number // len(PALETTE) if has_marker else number
        shape = SHAPES[number % len(SHAPES)] if has_marker else ""
        return Look(PALETTE[number % len(PALETTE)], shape, DASHES[stroke % len(DASHES)])


@dataclass(frozen=True)
class Series:
    """Points of one row; None: not measured, and no line passes there."""

    name: str
    look: Look
    x: Values
    y: Values
    spread: Values = ()  # half the height of the band, where there is one
    hints: Sequence[str] = ()  # shown for each point; default: the values

    def pieces(self) -> list[list[int]]:
        """Numbers of the points that are joined: neighbours that were all measured.

        >>> Series("a", Look.of(0), [1, 2, 3, 4], [0.5, None, 0.25, 1.0]).pieces()
        [[0], [2, 3]]
        """
        found: list[list[int]] = [[]]
        for number, pair in enumerate(zip(self.x, self.y, strict=True)):
            if None in pair:
                found.append([])
            else:
                found[-1].append(number)
        return [piece for piece in found if piece]

    def half(self, number: int) -> float | None:
        """Half the height of the band at a point; None: there is none."""
        return self.spread[number] if number < len(self.spread) else None


@dataclass(frozen=True)
class Chart:
    """Lines or points over two axes."""

    key: str  # of its files
    title: str
    x_label: str  # with its unit, as y_label
    y_label: str
    series: list[Series]
    note: str = ""
    is_joined: bool = True  # lines between neighbours
    whole_x: bool = False  # x counts something
    percent_y: bool = False  # the axis is 0 to 100, wider where there is more
    log_x: bool = False
    log_y: bool = False

    def limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Smallest and largest value of both axes."""
        xs = [x for one in self.series for piece in one.pieces() for n in piece if (x := one.x[n]) is not None]
        ys = [y for one in self.series for piece in one.pieces() for n in piece for y in _reach(one, n)]
        return _widened(xs, self.log_x), _widened(ys + [0.0, 100.0] * self.percent_y, self.log_y)


def _reach(series: Series, number: int) -> list[float]:
    y, half = series.y[number], series.half(number)
    return [] if y is None else [y] if half is None else [y - half, y + half]


def _widened(values: Sequence[float], is_log: bool) -> tuple[float, float]:
    known = [value for value in values if value > 0] if is_log else values
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if low == high:
        return (low / 2, high * 2) if is_log else (low - 0.5, high + 0.5)
    return low, high


def needs_log(values: Values, ratio: float = 30) -> bool:
    """True if the values are spread over so many orders of magnitude that a plain axis would hide the small ones.

    >>> needs_log([1.0, None, 100.0]), needs_log([0.0, 100.0]), needs_log([])
    (True, False, False)
    """
    known = [value for value in values if value is not None]
    return bool(known) and min(known) > 0 and max(known) / min(known) > ratio


def ticks(low: float, high: float, is_log: bool = False, is_whole: bool = False) -> list[float]:
    """About five round numbers between two values.

    >>> ticks(0, 100), ticks(1, 6, is_whole=True), ticks(0.02, 30, is_log=True)
    ([0.0, 20.0, 40.0, 60.0, 80.0, 100.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.1, 1.0, 10.0])
    """
    if is_log:
        powers = [10.0**k for k in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
        if len(powers) > 1:
            return powers[:: math.ceil(len(powers) / 6)]
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = [m * 10.0**k for k in decades for m in (1, 2, 5) if low <= m * 10.0**k <= high]
        return steps if len(steps) > 1 else ticks(low, high)
    step = _step((high - low) / 5)
    step = max(1.0, round(step)) if is_whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _step(width: float) -> float:
    """The round number nearest above: 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= width * (1 - 1e-9))


def number(value: float) -> str:
    """A value on an axis or in a table of a chart.

    >>> number(20.0), number(0.05), number(12345.678), number(0.00012)
    ('20', '0.05', '12,346', '0.00012')
    """
    if value and abs(value) < 0.001:
        return f"{value:.2g}"
    digits = 0 if abs(value) >= 1000 else 3 if abs(value) < 1 else 2
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
