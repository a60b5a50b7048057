"""Small pieces of SVG, as text: axes, marks, and labels that do not cover each other.

Lengths are in units of the drawing, which a page scales as a whole; a character of its text is about CHAR wide. Colours
and strokes are classes of the page's style sheet, so that a drawing follows a light or a dark page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CHAR, LINE = 7.0, 14.0
Box = tuple[float, float, float, float]


def drawing(width: float, height: float, title: str, body: Iterable[str]) -> str:
    """An <svg>. title: for screen readers."""
    name = escape(title)
    head = f'<svg viewBox="0 0 {length(width)} {length(height)}" role="img" aria-label="{name}">'
    return f"{head}{''.join(body)}</svg>"


def escape(text: str) -> str:
    return html.escape(text, quote=True)


def length(value: float) -> str:
    """A number rounded to a tenth, in few characters."""
    return f"{value + 0.0:.1f}".removesuffix(".0")


def text(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> str:
    """One line of text whose middle is at y. anchor: start, middle or end."""
    how = f' class="{style}"' if style else ""
    side = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{length(x)}" y="{length(y + 4)}"{side}{how}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<path class="{style}" d="M{length(x1)} {length(y1)}L{length(x2)} {length(y2)}"/>'


def polyline(points: Iterable[tuple[float, float]], style: str) -> str:
    return f'<path class="{style}" d="M{"L".join(f"{length(x)} {length(y)}" for x, y in points)}"/>'


def rect(x: float, y: float, width: float, height: float, style: str, tip: str = "") -> str:
    """A bar. tip: the text that a pointer on it shows."""
    shape = f'x="{length(x)}" y="{length(y)}" width="{length(max(width, 0))}" height="{length(height)}"'
    return f'<rect class="{style}" {shape}>{_tip(tip)}</rect>' if tip else f'<rect class="{style}" {shape}/>'


def dots(points: Iterable[tuple[float, float]], style: str) -> str:
    """Many dots in one path: strokes without length, so that only their round caps are seen."""
    return f'<path class="{style}" d="{"".join(f"M{length(x)} {length(y)}h0" for x, y in points)}"/>'


def marker(x: float, y: float, shape: str, style: str, tip: str = "", size: float = 5.0) -> str:
    """circle, square, triangle or diamond, of about the same area."""
    corners = {
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "triangle": ((0, -1.15), (1.1, 0.8), (-1.1, 0.8)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    }
    if shape not in corners:
        return f'<circle class="{style}" cx="{length(x)}" cy="{length(y)}" r="{length(size)}">{_tip(tip)}</circle>'
    path = "L".join(f"{length(x + size * dx)} {length(y + size * dy)}" for dx, dy in corners[shape])
    return f'<path class="{style}" d="M{path}Z">{_tip(tip)}</path>'


def _tip(tip: str) -> str:
    return f"<title>{escape(tip)}</title>" if tip else ""


def short(content: str, most: int = 15) -> str:
    """At most `most` characters, with an ellipsis for the rest."""
    return content if len(content) <= most else f"{content[: most - 1]}…"


def width(content: str) -> float:
    """The approximate width of a text."""
    return CHAR * len(content)


@dataclass(frozen=True)
class Axis:
    """Maps values from low to high to positions from start to end. Values outside are drawn at the nearer end."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (_log(v) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values between low and high."""
        if not self.high > self.low:
            return [self.low]
        if self.log:
            return self._decades(count)
        step = round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _decades(self, count: int) -> list[float]:
        exponents = range(math.floor(_log(self.low)), math.ceil(_log(self.high)) + 1)
        decades = _log(self.high) - _log(self.low)
        digits = (1, 2, 3, 5, 7) if decades * 5 <= count else (1, 2, 5) if decades * 3 <= count else (1,)
        found = (digit * 10.0**exponent for exponent in exponents for digit in digits)
        return [tick for tick in found if self.low * 0.999 <= tick <= self.high * 1.001]


def _log(value: float) -> float:
    return math.log10(max(value, 1e-9))


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20 … (and their tenths) that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= least * 0.999)


def span(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis for marks without bars: from 0 unless all values lie close together."""
    low, high = min(values), max(values)
    if low < 0.45 * high or high <= low:
        low = min(low, 0.0)
    step = round_step((high - low) / 5) if high > low else 1.0
    return Axis(math.floor(low / step) * step, high if high > low else low + 1, start, end)


def grid_x(axis: Axis, top: float, bottom: float, unit: str, count: int = 5) -> list[str]:
    """Vertical lines with their values below, the unit after the last."""
    ticks = axis.ticks(count)
    parts = [line(axis(tick), top, axis(tick), bottom, "grid") for tick in ticks]
    parts += [text(axis(tick), bottom + 11, f"{tick:g}", "tick", "middle") for tick in ticks]
    return [*parts, text(axis.end, bottom + 26, unit, "tick", "end")]


def grid_y(axis: Axis, left: float, right: float, unit: str, count: int = 5) -> list[str]:
    """Horizontal lines with their values on the left, the unit above."""
    ticks = axis.ticks(count)
    parts = [line(left, axis(tick), right, axis(tick), "grid") for tick in ticks]
    parts += [text(left - 6, axis(tick), f"{tick:g}", "tick", "end") for tick in ticks]
    return [*parts, text(0, axis.end - 15, unit, "tick")]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as close as possible to the wanted ones, at least `gap` apart if there is room, in the same order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    # Groups that touch move as one, to the mean of their members' wanted positions.
    groups: list[tuple[list[int], float]] = []
    for i in order:
        members, middle = [i], wanted[i]
        while groups and middle - gap * (len(members) - 1) / 2 < groups[-1][1] + gap * (len(groups[-1][0]) + 1) / 2:
            members = groups.pop()[0] + members
            middle = sum(wanted[m] for m in members) / len(members)
        half = gap * (len(members) - 1) / 2
        groups.append((members, min(max(middle, low + half), high - half)))
    positions = [0.0] * len(wanted)
    for members, middle in groups:
        for rank, member in enumerate(members):
            positions[member] = middle + gap * (rank - (len(members) - 1) / 2)
    return positions


def labels(points: Sequence[tuple[float, float]], names: Sequence[str], frame: Box, size: float = 7.0) -> list[str]:
    """A name beside each point. It avoids points and other names; if it is further away, a thin line joins it."""
    taken: list[Box] = [(x - size, y - size, x + size, y + size) for x, y in points]
    parts = []
    for (x, y), name in sorted(zip(points, names, strict=True)):
        wide = width(name)
        best = min(_positions(x, y, wide, size), key=lambda option: _cost(option[0], taken, frame) + option[1])
        left, top, right, bottom = best[0]
        taken.append(best[0])
        if best[1] >= FAR:
            near = min(max(x, left), right), top if top > y else bottom
            parts.append(
                line(x, y, *(near if left < x < right else (left if left > x else right, (top + bottom) / 2)), "lead")
            )
        parts.append(text(left, (top + bottom) / 2, name, "name"))
    return parts


FAR = 4.0


def _positions(x: float, y: float, wide: float, size: float) -> Iterable[tuple[Box, float]]:
    """Boxes for a name around a point, each with its penalty; the first has none."""
    for rank, step in enumerate((0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7, -7, 8, -8)):
        cost = rank if abs(step) <= 1 else FAR + rank
        middle = y + step * (LINE - 1)
        for far, extra in ((0, 0.0), (18, FAR + 0.5)):
            for left, price in ((x + size + 2 + far, 0.0), (x - size - 2 - far - wide, 0.6)):
                yield (left, middle - LINE / 2 + 1, left + wide, middle + LINE / 2 - 1), cost + price + extra


def _cost(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """The penalty for the part of a box that lies over others or outside the frame; 0 if there is none."""
    outside = (
        max(frame[0] - box[0], 0) + max(box[2] - frame[2], 0) + max(frame[1] - box[1], 0) + max(box[3] - frame[3], 0)
    )
    over = sum(
        max(min(box[2], other[2]) - max(box[0], other[0]), 0) * max(min(box[3], other[3]) - max(box[1], other[1]), 0)
        for other in taken
    )
    return 10 * outside + over
