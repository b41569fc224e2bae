"""Geometry of line charts, which the templates draw as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Points = Sequence[tuple[float, float]]

COLOURS = ("#0b62c4", "#d1495b", "#2a9d5c", "#c77d0a", "#7d4fc4", "#0f8b8d", "#8a5a44", "#6b7280")


@dataclass(frozen=True)
class Axes:
    """Map from data to SVG coordinates.

    Attributes:
        x: Range of the data along the horizontal axis.
        y: Range of the data along the vertical axis.
        width: Width of the SVG.
        height: Height of the SVG.
        left: Left edge of the plot area.
        right: Right edge of the plot area.
        top: Upper edge of the plot area.
        bottom: Lower edge of the plot area.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        """Return a data point in SVG coordinates, rounded to one decimal."""
        across, up = ((v - low) / (high - low) for v, (low, high) in zip(point, (self.x, self.y), strict=True))
        x = self.left + across * (self.right - self.left)
        return round(x, 1), round(self.bottom - up * (self.bottom - self.top), 1)


def line_chart(lines: Mapping[str, Points], x_title: str, y_title: str, factor: float) -> dict[str, Any]:
    """Return the template's `line_chart`: several lines over one pair of axes, with a legend.

    Args:
        lines: Points by the line's name. Lines without points are left out.
        x_title: Title of the horizontal axis.
        y_title: Title of the vertical axis.
        factor: Multiplier of the displayed values, such as 100 for percent.

    Returns:
        Axes, ticks and lines; empty without points.
    """
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return {}
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    x_range, (low, high) = _widened(min(xs), max(xs)), _widened(min(0.0, *ys), max(ys))
    axes = Axes(x_range, (low, high), width=640, height=220, left=44, right=628, top=10, bottom=196)
    return {
        "axes": axes,
        "x_title": x_title,
        "y_title": y_title,
        "last": f"{x_range[1]:.0f}",
        "ticks": [
            (axes.place((x_range[0], low + share * (high - low)))[1], f"{factor * (low + share * (high - low)):.3g}")
            for share in (0.0, 0.5, 1.0)
        ],
        "lines": [
            {
                "name": name,
                "colour": COLOURS[number % len(COLOURS)],
                "points": [(*axes.place(point), f"{factor * point[1]:.3g}") for point in points],
            }
            for number, (name, points) in enumerate(lines.items())
        ],
    }


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low, low + 1.0)
