"""Plot of a benchmark as SVG: target AP50 of each arm, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, ROW, TOP = 720, 190, 60, 24, 40
STEP = 10  # points of AP50 between grid lines
_STYLE = (
    "<style>text{font:13px sans-serif;fill:#24292f}.grid{stroke:#d0d7de}.seed{fill:#54aeff;fill-opacity:.6}"
    ".mean{stroke:#0a3069;stroke-width:3}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#30363d}"
    ".mean{stroke:#cae8ff}}</style>"
)


def plot(figures: Mapping[str, Any]) -> str:
    """Return the plot: a dot for each seed and a bar at the mean, in percent.

    Args:
        figures: Content of a benchmark's `results.json`.
    """
    arms = {name: figures["arms"][name]["target_ap50"] for name in figures["order"]}
    values = [100 * value for arm in arms.values() for value in arm["each"] if value is not None]
    top = max(STEP, STEP * math.ceil(max(values, default=0) / STEP))
    scale, bottom = (WIDTH - LEFT - RIGHT) / top, TOP + ROW * len(arms)
    title = f"{figures['name']}: AP50 on the target's test frames in %, one dot per seed"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 30}" role="img">',
        f"<title>{escape(title)}</title>{_STYLE}",
        f'<text x="10" y="20">{escape(title)}</text>',
    ]
    for tick in range(0, top + 1, STEP):
        across = LEFT + tick * scale
        lines.append(f'<path class="grid" d="M{across:.1f} {TOP - 8}V{bottom}"/>')
        lines.append(f'<text x="{across:.1f}" y="{bottom + 18}" text-anchor="middle">{tick}</text>')
    for row, (name, arm) in enumerate(arms.items()):
        lines += _arm(name, arm, TOP + ROW * (row + 0.5), scale)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _arm(name: str, arm: Mapping[str, Any], middle: float, scale: float) -> list[str]:
    """Return one row: the arm's name, its seeds, its mean."""
    lines = [f'<text x="{LEFT - 10}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>']
    known = [LEFT + 100 * value * scale for value in arm["each"] if value is not None]
    lines += [f'<circle class="seed" cx="{across:.1f}" cy="{middle:.1f}" r="4.5"/>' for across in known]
    if arm["mean"] is not None:
        across = LEFT + 100 * arm["mean"] * scale
        lines.append(f'<path class="mean" d="M{across:.1f} {middle - 8:.1f}V{middle + 8:.1f}"/>')
        lines.append(f'<text x="{WIDTH - RIGHT + 10}" y="{middle + 4:.1f}">{100 * arm["mean"]:.1f}</text>')
    return lines
