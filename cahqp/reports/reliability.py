"""Reliability diagrams: how often boxes of a score are right, against what the score says."""

from __future__ import annotations

from collections.abc import Sequence

from cahqp.labels.calibration.curves import Bin
from cahqp.reports.html import Markup, element

_SIDE = 200


def diagram(bars: Sequence[Bin], title: str, error: float) -> Markup:
    """Return a reliability diagram; bars on the diagonal mean what they say.

    Args:
        bars: Of `reliability`.
        title: What it shows.
        error: Expected calibration error, 0..1.
    """
    drawn = [
        element(
            "rect",
            element("title", f"{bar.low:.2f} to {bar.high:.2f}: {bar.count} boxes, {bar.precision:.0%} right"),
            class_="bar",
            x=round(bar.low * _SIDE, 1),
            y=round((1 - bar.precision) * _SIDE, 1),
            width=round((bar.high - bar.low) * _SIDE - 1, 1),
            height=round(bar.precision * _SIDE, 1),
        )
        for bar in bars
    ]
    diagonal = element("line", class_="grid", x1=0, y1=_SIDE, x2=_SIDE, y2=0)
    frame = element("rect", class_="bar-back", width=_SIDE, height=_SIDE)
    svg = element("svg", frame, *drawn, diagonal, viewBox=f"0 0 {_SIDE} {_SIDE}", role="img", aria_label=title)
    said = f"{title}: calibration error {100 * error:.1f} %"
    return element("figure", svg, element("figcaption", said), class_="panel")
