"""Several curves in one inline SVG, with a legend: no script, so that the page opens anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cahqp.reports.html import Markup, element, join

COLOURS = ("#0b62c4", "#d1495b", "#2a9d5c", "#c77d0a", "#7d4fc4", "#0f8b8d", "#8a5a44", "#6b7280")

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 220, 44, 24, 10


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: For the legend.
        points: Each its place and its value.
    """

    name: str
    points: Sequence[tuple[float, float]]


def lines(curves: Sequence[Line], across: str, up: str, factor: float) -> Markup:
    """Return the curves over one pair of axes.

    Args:
        curves: Those without points are left out.
        across: What the horizontal axis is.
        up: What the vertical axis is.
        factor: That values are shown times, such as 100 for a share in percent.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return Markup("")
    places = [place for curve in curves for place, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    low, high = _range(min(0.0, *values), max(values))
    first, last = _range(min(places), max(places))
    floor = _HEIGHT - _BOTTOM

    def at(place: float, value: float) -> tuple[float, float]:
        x = _LEFT + (place - first) / (last - first) * (_WIDTH - _LEFT - 12)
        return round(x, 1), round(floor - (value - low) / (high - low) * (floor - _TOP), 1)

    drawn: list[Markup] = []
    for share in (0.0, 0.5, 1.0):
        y = round(floor - share * (floor - _TOP), 1)
        drawn.append(element("line", class_="grid", x1=_LEFT, x2=_WIDTH - 12, y1=y, y2=y))
        drawn.append(
            element("text", f"{factor * (low + share * (high - low)):.3g}", x=_LEFT - 6, y=y + 3, text_anchor="end")
        )
    drawn.append(element("text", f"{across} {last:.0f}", x=_WIDTH - 12, y=_HEIGHT - 6, text_anchor="end"))
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        placed = [at(*point) for point in curve.points]
        points = " ".join(f"{x},{y}" for x, y in placed)
        drawn.append(element("polyline", points=points, fill="none", stroke=colour, stroke_width=2))
        drawn += [
            element("circle", element("title", f"{curve.name}: {factor * value:.3g}"), cx=x, cy=y, r=3, fill=colour)
            for (x, y), (_, value) in zip(placed, curve.points, strict=True)
        ]
    view = f"0 0 {_WIDTH} {_HEIGHT}"
    chart = element("svg", *drawn, viewBox=view, role="img", aria_label=f"{up} by {across}")
    title = element("div", element("span", up), class_="name")
    return join([element("div", title, chart, class_="panel"), _legend([curve.name for curve in curves])])


def _legend(names: Sequence[str]) -> Markup:
    marks = [
        element("svg", element("rect", width=1, height=1, fill=COLOURS[number % len(COLOURS)]), viewBox="0 0 1 1")
        for number in range(len(names))
    ]
    pairs = zip(marks, names, strict=True)
    return element("div", *(element("span", mark, name) for mark, name in pairs), class_="legend")


def _range(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low, low + 1.0)
