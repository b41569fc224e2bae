"""Training curves from a CSV log."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cahqp.reports.charts import Axes, Points

MAIN_CURVES = ("train/loss", "val/ap50")
"""Columns that are visible at once. The other curves are folded away."""

_MAX_POINTS = 240
_MAX_MARKED_POINTS = 30


@dataclass
class Curve:
    """One column of a log.

    Attributes:
        points: Steps and values, in the order of the file.
        gaps: Number of NaN or infinite values, which are not drawn.
    """

    points: list[tuple[float, float]] = field(default_factory=list)
    gaps: int = 0

    @property
    def summary(self) -> str:
        """Last value and number of gaps."""
        last = f"last {_short(self.points[-1][1])}" if self.points else "no finite value"
        return last + (f", {self.gaps} not finite" if self.gaps else "")


def read_curves(path: Path) -> dict[str, Curve]:
    """Read a log of Lightning's CSVLogger. A row contains the values that were logged together and empty cells.

    Returns:
        One curve for each column with a number, except `epoch` and `step`.
    """
    curves: dict[str, Curve] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for number, row in enumerate(csv.DictReader(file)):
            logged = _number(row.get("step"))
            step = float(number) if logged is None or not math.isfinite(logged) else logged
            for name, text in row.items():
                value = _number(text)
                if value is None or not name or name in ("epoch", "step"):
                    continue
                curve = curves.setdefault(name, Curve())
                if math.isfinite(value):
                    curve.points.append((step, value))
                else:
                    curve.gaps += 1
    return curves


def training_panels(curves: Mapping[str, Curve]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the panels of the main curves (loss and AP50) and of all others."""
    main = [name for name in MAIN_CURVES if name in curves] or list(curves)[:2]
    others = [name for name in curves if name not in main]
    return [_panel(name, curves[name]) for name in main], [_panel(name, curves[name]) for name in others]


def _panel(name: str, curve: Curve) -> dict[str, Any]:
    return {"name": name, "summary": curve.summary, "chart": _draw(curve.points) if curve.points else None}


def _draw(points: Points) -> dict[str, Any]:
    points = _thinned(points)
    steps, values = zip(*points, strict=True)
    x, y = _widened(min(steps), max(steps)), _widened(min(values), max(values))
    axes = Axes(x, y, width=320, height=130, left=40, right=312, top=8, bottom=112)
    placed = [axes.place(point) for point in points]
    return {
        "axes": axes,
        "low": _short(y[0]),
        "high": _short(y[1]),
        "first": _short(min(steps)),
        "last": _short(max(steps)),
        "points": placed,
        "marks": placed if len(placed) <= _MAX_MARKED_POINTS else placed[-1:],
    }


def _thinned(points: Points) -> Points:
    """Return at most `_MAX_POINTS` points, each the mean of its neighbours."""
    size = math.ceil(len(points) / _MAX_POINTS)
    if size <= 1:
        return points
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(s for s, _ in c) / len(c), sum(v for _, v in c) / len(c)) for c in chunks]


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _short(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, str) and text.strip() else None
    except ValueError:
        return None
