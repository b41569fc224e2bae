"""Line charts: data of the inline SVG that the templates draw."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Points = Sequence[tuple[float, float]]
Range = tuple[float, float]

COLOURS = ("#0b62c4", "#d1495b", "#2a9d5c", "#c77d0a", "#7d4fc4", "#0f8b8d", "#8a5a44", "#6b7280")
MAIN_CURVES = ("train/loss", "val/ap50")
"""Training curves that are visible at once. The others are folded away."""

_DATA_SETS = {"train/": "training frames", "val/": "source validation"}
"""Data set of a training curve, by the start of its name."""

_MAX_POINTS = 240
_MAX_MARKED_POINTS = 30
# Width and height of the SVG; left, right, upper and lower edge of the plot area.
_CHART_SIZE, _CHART_AREA = (640, 220), (44, 628, 10, 196)
_PANEL_SIZE, _PANEL_AREA = (320, 130), (40, 312, 8, 112)


def line_chart(lines: Mapping[str, Points], factor: float = 1.0) -> dict[str, Any]:
    """Return the template's `line_chart`: several lines over one pair of axes; empty without points.

    Args:
        lines: Points by the line's name. Lines without points are left out.
        factor: Multiplier of the displayed values, such as 100 for percent.
    """
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return {}
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    x, (low, high) = _range(xs, (0.0, 1.0)), _range((0.0, *ys), (0.0, 1.0))
    colours = dict(zip(lines, itertools.cycle(COLOURS), strict=False))
    ticks = [(x[0], low + share * (high - low)) for share in (0.0, 0.5, 1.0)]

    def place(points: Points) -> list[tuple[float, float, str]]:
        placed = _place(points, x, (low, high), _CHART_AREA)
        return [(*at, f"{factor * value:.3g}") for at, (_, value) in zip(placed, points, strict=True)]

    return {
        "size": _CHART_SIZE,
        "area": _CHART_AREA,
        "last": f"{x[1]:.0f}",
        "ticks": place(ticks),
        "colours": colours,
        "lines": [(name, colour, place(lines[name])) for name, colour in colours.items()],
    }


def read_log(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Read a log of Lightning's CSVLogger. A row contains the values that were logged together and empty cells.

    Returns:
        Steps and values of each column with a number, except `epoch` and `step`. Values may be NaN or infinite.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for number, row in enumerate(csv.DictReader(file)):
            logged = _number(row.get("step"))
            step = float(number) if logged is None or not math.isfinite(logged) else logged
            for name, text in row.items():
                value = _number(text)
                if value is not None and name and name not in ("epoch", "step"):
                    curves.setdefault(name, []).append((step, value))
    return curves


def training_panels(curves: Mapping[str, Points]) -> dict[str, list[dict[str, Any]]]:
    """Return the panels of the `main` curves (loss and AP50) and of the `others`."""
    main = [name for name in MAIN_CURVES if name in curves] or list(curves)[:2]
    others = [name for name in curves if name not in main]
    return {key: [_panel(name, curves[name]) for name in names] for key, names in (("main", main), ("others", others))}


def _panel(name: str, curve: Points) -> dict[str, Any]:
    name += "".join(f" ({title})" for start, title in _DATA_SETS.items() if name.startswith(start))
    finite = [point for point in curve if math.isfinite(point[1])]
    gaps = f", {len(curve) - len(finite)} not finite" if len(curve) > len(finite) else ""
    if not finite:
        return {"name": name, "summary": "no finite value" + gaps, "points": []}
    points = _thin(finite)
    steps, values = zip(*points, strict=True)
    y = _range(values, (-0.5, 0.5))
    placed = _place(points, _range(steps, (-0.5, 0.5)), y, _PANEL_AREA)
    return {
        "name": name,
        "summary": f"last {_short(finite[-1][1])}" + gaps,
        "size": _PANEL_SIZE,
        "area": _PANEL_AREA,
        "values": [_short(value) for value in y],
        "steps": [_short(step) for step in (min(steps), max(steps))],
        "points": placed,
        "marks": placed if len(placed) <= _MAX_MARKED_POINTS else placed[-1:],
    }


def _place(points: Points, x: Range, y: Range, area: tuple[int, int, int, int]) -> list[tuple[float, float]]:
    """Return data points in SVG coordinates, rounded to one decimal. The ranges fill the plot area."""
    left, right, top, bottom = area
    return [
        (
            round(left + (across - x[0]) / (x[1] - x[0]) * (right - left), 1),
            round(bottom - (up - y[0]) / (y[1] - y[0]) * (bottom - top), 1),
        )
        for across, up in points
    ]


def _thin(points: Points) -> Points:
    """Return at most `_MAX_POINTS` points, each the mean of its neighbours."""
    size = math.ceil(len(points) / _MAX_POINTS)
    if size <= 1:
        return points
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(s for s, _ in c) / len(c), sum(v for _, v in c) / len(c)) for c in chunks]


def _range(values: Sequence[float], margin: Range) -> Range:
    """Return the smallest and largest value; with a margin if they are equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low + margin[0], high + margin[1])


def _short(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, str) and text.strip() else None
    except ValueError:
        return None
