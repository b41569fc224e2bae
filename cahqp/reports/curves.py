"""Training curves from a CSV log, as inline SVG."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cahqp.reports.html import Markup, element, folded, join

FIRST = ("train/loss", "val/ap50")
"""Shown at once; every other column is folded away."""

_POINTS = 240
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 320, 130, 40, 18


@dataclass
class Curve:
    """One column of a log.

    Attributes:
        points: Steps and values, in the order of the file.
        gaps: Number of values that were NaN or infinite, which are not drawn.
    """

    points: list[tuple[float, float]] = field(default_factory=list)
    gaps: int = 0


def read_curves(path: Path) -> dict[str, Curve]:
    """Read a log of Lightning's CSVLogger: a row holds what was logged together, all else in it is empty.

    Returns:
        One curve for each column with a number in it, `epoch` and `step` left out.
    """
    curves: dict[str, Curve] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for number, row in enumerate(csv.DictReader(file)):
            step = _number(row.get("step"))
            at = float(number) if step is None or not math.isfinite(step) else step
            for name, text in row.items():
                value = _number(text)
                if value is None or not name or name in ("epoch", "step"):
                    continue
                curve = curves.setdefault(name, Curve())
                if math.isfinite(value):
                    curve.points.append((at, value))
                else:
                    curve.gaps += 1
    return curves


def panels(curves: Mapping[str, Curve]) -> Markup:
    """Return a panel for each curve: the loss and the measure first, the others to be opened."""
    first = [name for name in FIRST if name in curves] or list(curves)[:2]
    others = [name for name in curves if name not in first]
    more = folded(f"{len(others)} more curves", _grid(curves, others)) if others else Markup("")
    return join([_grid(curves, first), more])


def _grid(curves: Mapping[str, Curve], names: list[str]) -> Markup:
    return element("div", *(_panel(name, curves[name]) for name in names), class_="panels")


def _panel(name: str, curve: Curve) -> Markup:
    said = f"last {_short(curve.points[-1][1])}" if curve.points else "no finite value"
    gaps = f", {curve.gaps} not finite" if curve.gaps else ""
    title = element("div", element("span", name), element("span", said + gaps), class_="name")
    return element("div", title, *([_draw(curve.points)] if curve.points else []), class_="panel")


def _draw(points: list[tuple[float, float]]) -> Markup:
    points = _thinned(points)
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = _range(min(values), max(values))
    first, last = _range(min(steps), max(steps))
    top, floor = 8, _HEIGHT - _BOTTOM

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - 8)
        return round(x, 1), round(floor - (value - low) / (high - low) * (floor - top), 1)

    placed = [place(*point) for point in points]
    marks = [
        element("line", class_="grid", x1=_LEFT, x2=_WIDTH - 8, y1=y, y2=y) for y in (top, (top + floor) / 2, floor)
    ]
    texts = [
        element("text", _short(high), x=_LEFT - 6, y=top + 4, text_anchor="end"),
        element("text", _short(low), x=_LEFT - 6, y=floor + 3, text_anchor="end"),
        element("text", _short(min(steps)), x=_LEFT, y=_HEIGHT - 4),
        element("text", f"step {_short(max(steps))}", x=_WIDTH - 8, y=_HEIGHT - 4, text_anchor="end"),
    ]
    line = element("polyline", class_="curve", points=" ".join(f"{x},{y}" for x, y in placed))
    shown = placed if len(placed) <= 30 else placed[-1:]
    dots = [element("circle", class_="point", cx=x, cy=y, r=2.4) for x, y in shown]
    return element("svg", *marks, line, *dots, *texts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img")


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `_POINTS` points, each the mean of its neighbours."""
    size = math.ceil(len(points) / _POINTS)
    if size <= 1:
        return points
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(s for s, _ in c) / len(c), sum(v for _, v in c) / len(c)) for c in chunks]


def _range(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _short(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, str) and text.strip() else None
    except ValueError:
        return None
