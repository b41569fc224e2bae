"""Solid models of the road users: convex parts with coloured faces, and lamps.

A model stands on the ground at its own origin and faces along its x axis; y points to its left, z up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Colour = tuple[float, float, float]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Lamp:
    """Light on a vehicle.

    Attributes:
        position: Metres in the model.
        ahead: 1 for light to the front, -1 to the rear, 0 to all sides.
        colour: RGB in 0..1.
        radius: Metres.
        strength: Strength of its glare; 1 for a headlight.
        panel: Half the length and half the height in metres of a lit window; `None` for a round lamp.
    """

    position: tuple[float, float, float]
    ahead: int
    colour: Colour
    radius: float
    strength: float
    panel: tuple[float, float] | None = None

    def outline(self) -> Array:
        """Return the (N, 3) points to project: the middle and, for a panel, its corners."""
        x, y, z = self.position
        if self.panel is None:
            return np.array([self.position], np.float32)
        length, height = self.panel
        corners = [(x - length, y, z - height), (x + length, y, z - height)]
        corners += [(x + length, y, z + height), (x - length, y, z + height)]
        return np.array([self.position, *corners], np.float32)


@dataclass
class Part:
    """Convex solid. Faces are in drawing order; a decal follows the face below it and shares its normal."""

    level: int
    polygons: list[Array] = field(default_factory=list)
    normals: list[Array] = field(default_factory=list)
    colours: list[Colour] = field(default_factory=list)

    def add(self, polygon: Array, normal: Array, colour: Colour) -> None:
        """Add a face or a decal."""
        self.polygons.append(np.asarray(polygon, np.float32))
        self.normals.append(normal)
        self.colours.append(colour)


@dataclass(frozen=True)
class RoadUserModel:
    """All parts in flat arrays, so that one projection covers all.

    Attributes:
        vertices: (V, 3) corners of all faces, face by face.
        faces: Start and end in `vertices` of each face.
        normals: (F, 3) outward normals.
        centres: (F, 3) one point on each face.
        colours: (F, 3) RGB in 0..255.
        parts: Faces (start, end), level and index of the first and last vertex per part.
        part_centres: (P, 3) mean vertex of each part.
        lamps: Lights.
        half_length: Half the length of the footprint in metres.
        half_width: Half the width of the footprint in metres.
    """

    vertices: Array
    faces: list[tuple[int, int]]
    normals: Array
    centres: Array
    colours: Array
    parts: list[tuple[int, int, int, int, int]]
    part_centres: Array
    lamps: list[Lamp]
    half_length: float
    half_width: float


def assemble(parts: list[Part], lamps: list[Lamp]) -> RoadUserModel:
    """Flatten parts into a model."""
    faces: list[tuple[int, int]] = []
    rows: list[tuple[int, int, int, int, int]] = []
    count = 0
    for part in parts:
        first_face, first_vertex = len(faces), count
        for polygon in part.polygons:
            faces.append((count, count + len(polygon)))
            count += len(polygon)
        rows.append((first_face, len(faces), part.level, first_vertex, count))
    vertices = np.concatenate([polygon for part in parts for polygon in part.polygons])
    return RoadUserModel(
        vertices=vertices,
        faces=faces,
        normals=np.array([normal for part in parts for normal in part.normals], np.float32),
        centres=np.array([polygon.mean(0) for part in parts for polygon in part.polygons], np.float32),
        colours=np.array([colour for part in parts for colour in part.colours], np.float32),
        parts=rows,
        part_centres=np.array([vertices[row[3] : row[4]].mean(0) for row in rows], np.float32),
        lamps=lamps,
        half_length=float(np.abs(vertices[:, 0]).max()),
        half_width=float(np.abs(vertices[:, 1]).max()),
    )


def _normal(polygon: Array, inside: Array) -> Array:
    # Plain floats: a polygon has few corners, and NumPy would take 30 times as long.
    corners = polygon.tolist()
    normal = [0.0, 0.0, 0.0]
    for (ax, ay, az), (bx, by, bz) in zip(corners, corners[1:] + corners[:1], strict=True):
        normal[0] += ay * bz - az * by
        normal[1] += az * bx - ax * bz
        normal[2] += ax * by - ay * bx
    middle = [
        sum(axis) / len(corners) - at for axis, at in zip(zip(*corners, strict=True), inside.tolist(), strict=True)
    ]
    outward = sum(a * b for a, b in zip(middle, normal, strict=True)) >= 0
    length = math.hypot(*normal) + 1e-9
    return np.array([(a if outward else -a) / length for a in normal], np.float32)


def extrude(
    profile: Points,
    half_width: float,
    colour: Colour,
    *,
    level: int = 0,
    top_width: float | None = None,
    centre: float = 0.0,
    strips: dict[int, Colour] | None = None,
    decals: Sequence[tuple[Points, Colour]] = (),
) -> Part:
    """Make a solid from a convex side view.

    Args:
        profile: Corners (x, z) of the side view, in order.
        half_width: Half the width at the lowest corner.
        colour: RGB in 0..255.
        level: Parts of a higher level are drawn after those below.
        top_width: Half the width at the highest corner; by default that at the lowest.
        centre: Shift to the left in metres.
        strips: Colours of windows in the face between corner k and the next one.
        decals: Polygons (x, z) and colours painted on both sides.
    """
    flat = np.array(profile, np.float32)
    low, high = float(flat[:, 1].min()), float(flat[:, 1].max())
    top = half_width if top_width is None else top_width

    def side(points: Array, sign: int) -> Array:
        share = (points[:, 1] - low) / (high - low)
        y = centre + sign * (half_width * (1 - share) + top * share)
        return np.stack([points[:, 0], y, points[:, 1]], 1).astype(np.float32)

    left, right = side(flat, 1), side(flat, -1)
    inside = np.concatenate([left, right]).mean(0)
    part = Part(level)
    for wall, sign in ((left, 1), (right, -1)):
        normal = _normal(wall, inside)
        part.add(wall, normal, colour)
        for points, paint in decals:
            part.add(side(np.array(points, np.float32), sign), normal, paint)
    for k in range(len(flat)):
        after = (k + 1) % len(flat)
        quad = np.stack([left[k], left[after], right[after], right[k]])
        normal = _normal(quad, inside)
        part.add(quad, normal, colour)
        if strips and k in strips:
            part.add(patch(quad, 0.1, 0.9, 0.09, 0.91), normal, strips[k])
    return part


def patch(quad: Array, a: float, b: float, c: float, d: float) -> Array:
    """Return the part of a quad (4, 3) between shares a..b along its first side and c..d across."""
    rows = [quad[0] + (quad[1] - quad[0]) * s for s in (a, b)]
    other = [quad[3] + (quad[2] - quad[3]) * s for s in (a, b)]
    corners = [(0, c), (1, c), (1, d), (0, d)]
    return np.stack([rows[i] + (other[i] - rows[i]) * share for i, share in corners]).astype(np.float32)


def box(x0: float, x1: float, z0: float, z1: float) -> list[tuple[float, float]]:
    """Return the side view of a box: rear bottom, front bottom, front top, rear top."""
    return [(x0, z0), (x1, z0), (x1, z1), (x0, z1)]


def disc(x: float, z: float, radius: float, corners: int = 8) -> list[tuple[float, float]]:
    """Return the side view of a wheel."""
    turns = np.arange(corners) * (2 * np.pi / corners)
    return [(float(x + radius * np.cos(t)), float(z + radius * np.sin(t))) for t in turns]
