"""Surroundings of a camera: roads, pavements, buildings, trees and street lamps, from the seed alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cahqp.scenes.geometry import Camera, Path, rectangle
from cahqp.scenes.randomness import choose_one, generator

Array = NDArray[np.float32]

LANE_WIDTH = 3.3
KERB = 0.25
PAVEMENT = 2.4


@dataclass(frozen=True)
class Lane:
    """Line that road users follow.

    Attributes:
        offset: Metres to the right of the road's centre.
        direction: 1 along the road's path, -1 against it.
        start: Position on the path, in metres, at which it enters the view.
        end: Position on the path at which it leaves the view; beyond `start`.
        pavement: Whether it is for people.
        speed: Metres per second.
    """

    offset: float
    direction: int
    start: float
    end: float
    pavement: bool
    speed: float


@dataclass(frozen=True)
class Static:
    """Static object on the ground; lengths of all objects are in metres.

    Attributes:
        x: Position of its middle.
        y: Position of its middle.
    """

    x: float
    y: float

    @property
    def distance(self) -> float:
        """Distance from the camera along the ground."""
        return math.hypot(self.x, self.y)


def farthest_first(item: Static) -> float:
    """Return a sort key."""
    return -item.distance


@dataclass(frozen=True)
class Building(Static):
    """Box with windows.

    Attributes:
        angle: Direction of its length in radians.
        half_length: Half the length.
        half_width: Half the width.
        height: Height.
        number: Name of the random generator of its walls and windows.
    """

    angle: float
    half_length: float
    half_width: float
    height: float
    number: int

    @property
    def corners(self) -> Array:
        """(4, 2) corners on the ground."""
        return rectangle(self.x, self.y, self.angle, self.half_length, self.half_width)


@dataclass(frozen=True)
class Tree(Static):
    """Trunk and crown.

    Attributes:
        height: Height.
        radius: Radius of the crown.
        number: Name of the random generator of its leaves.
    """

    height: float
    radius: float
    number: int


@dataclass(frozen=True)
class StreetLamp(Static):
    """Pole with an arm over the road.

    Attributes:
        head_x: Position below the lamp.
        head_y: Position below the lamp.
        height: Height of the lamp.
    """

    head_x: float
    head_y: float
    height: float


@dataclass(frozen=True)
class Layout:
    """View of a camera, apart from road users, weather and light.

    Attributes:
        camera: The camera.
        road: Middle of the road.
        half_road: Half the width of the carriageway in metres.
        lanes_each_way: Lanes per direction.
        lanes: Lines that road users follow.
        crossing: Position of a zebra crossing on the path; `None` if there is none.
        buildings: Farthest first.
        trees: Farthest first.
        lamps: Street lamps.
    """

    camera: Camera
    road: Path
    half_road: float
    lanes_each_way: int
    lanes: tuple[Lane, ...]
    crossing: float | None
    buildings: tuple[Building, ...]
    trees: tuple[Tree, ...]
    lamps: tuple[StreetLamp, ...]


def build_layout(seed: int, index: int, size: tuple[int, int]) -> Layout:
    """Generate the surroundings of camera `index`; they depend only on the seed, the index and the size."""
    rng = generator(seed, "layout", index)
    camera, road = _viewpoint(rng, size)
    each_way = 1 if rng.random() < 0.45 else 2
    half_road = each_way * LANE_WIDTH + 0.4
    lanes = _lanes(rng, camera, road, each_way, half_road)
    crossing = float(rng.uniform(-6, 6)) if rng.random() < 0.5 else None
    points = _traffic_points(road, lanes)
    buildings = _buildings(rng, camera, road, half_road, points)
    trees = _trees(rng, camera, road, half_road, points, buildings)
    lamps = _street_lamps(rng, road, half_road)
    return Layout(camera, road, half_road, each_way, lanes, crossing, buildings, trees, lamps)


def _viewpoint(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Camera, Path]:
    """Return a camera that looks along a road, across it or in between, and the road."""
    kind = choose_one(rng, {"along": 0.4, "oblique": 0.35, "across": 0.25})
    side = 1 if rng.random() < 0.5 else -1
    if kind == "along":
        height, ahead, angle, x = rng.uniform(5, 7.5), rng.uniform(16, 20), rng.uniform(3, 20), rng.uniform(-4, 4)
    elif kind == "oblique":
        height, ahead, angle, x = rng.uniform(4.8, 7.5), rng.uniform(17, 22), rng.uniform(28, 55), rng.uniform(-2, 2)
    else:
        height, ahead, angle, x = rng.uniform(4.8, 7), rng.uniform(20, 26), rng.uniform(65, 88), rng.uniform(-2, 2)
    focal = 0.5 / math.tan(math.radians(rng.uniform(43, 58)) / 2)
    drop = math.radians(rng.uniform(1.5, 5)) * size[0] / size[1] / 0.6
    camera = Camera(
        height=float(height),
        pitch=float(math.atan2(height, ahead) - drop),
        roll=float(math.radians(rng.normal(0, 1.2))),
        heading=float(rng.uniform(0, 2 * math.pi)),
        focal=float(focal),
        size=size,
    )
    curvature = float(rng.uniform(1e-4, 6e-3) * (1 if rng.random() < 0.5 else -1))
    return camera, Path(float(x), float(ahead), side * math.radians(angle), curvature)


def _seen_range(camera: Camera, road: Path, offset: float) -> tuple[float, float] | None:
    """Return the first and last position on the road that is inside the frame; `None` if too little is."""
    along = np.arange(-70, 90, 0.5, dtype=np.float32)
    x, y, _ = road.at(along, offset)
    pixels, depth = camera.project(np.stack([x, y, np.full_like(x, 0.6)], 1))
    height, width = camera.size
    inside = (pixels[:, 0] > 0) & (pixels[:, 0] < width) & (pixels[:, 1] > 0) & (pixels[:, 1] < height) & (depth > 1)
    inside &= depth < 62
    seen = along[inside]
    return (float(seen[0]), float(seen[-1])) if len(seen) > 8 else None


def _lanes(rng: np.random.Generator, camera: Camera, road: Path, each_way: int, half_road: float) -> tuple[Lane, ...]:
    speed = rng.uniform(7, 12)
    candidates = [
        (direction * LANE_WIDTH * (k + 0.5), direction, False, float(speed * rng.uniform(0.85, 1.15)))
        for direction in (1, -1)
        for k in range(each_way)
    ]
    for side in (1, -1):
        for direction, shift in ((1, 0.55), (-1, 1.65)):
            candidates.append((side * (half_road + KERB + shift), direction, True, float(rng.uniform(1.0, 1.6))))
    lanes = []
    for offset, direction, pavement, pace in candidates:
        seen = _seen_range(camera, road, offset)
        if seen is not None:
            lanes.append(Lane(offset, direction, seen[0], seen[1], pavement, pace))
    return tuple(lanes)


def _traffic_points(road: Path, lanes: tuple[Lane, ...]) -> Array:
    """Return points (N, 3) in the space of the traffic, which buildings and trees must not hide."""
    points: list[Array] = []
    for lane in lanes:
        along = np.arange(lane.start, lane.end, 1.5, dtype=np.float32)
        x, y, _ = road.at(along, lane.offset)
        points.extend(np.stack([x, y, np.full_like(x, z)], 1) for z in (0.0, 1.8))
    return np.concatenate(points) if points else np.zeros((0, 3), np.float32)


def _hides(camera: Camera, solid: Array, points: Array) -> bool:
    """Return whether the bounding rectangle of a solid's corners (N, 3) covers points behind it."""
    pixels, depth = camera.project(solid)
    seen, far = camera.project(points)
    low, high = pixels.min(0), pixels.max(0)
    inside = ((seen > low) & (seen < high)).all(1) & (far > max(float(depth.min()), 0.5))
    return bool(inside.any())


def _upright(corners: Array, height: float) -> Array:
    low, high = np.zeros((len(corners), 1), np.float32), np.full((len(corners), 1), height, np.float32)
    return np.concatenate([np.hstack([corners, low]), np.hstack([corners, high])])


def _buildings(
    rng: np.random.Generator, camera: Camera, road: Path, half_road: float, points: Array
) -> tuple[Building, ...]:
    buildings = []
    for number in range(16):
        side = 1 if number % 2 else -1
        along = (number // 2) * 15.0 - 30 + rng.uniform(-3, 3)
        half_length, half_width = rng.uniform(4, 7.2), rng.uniform(4, 6)
        offset = side * (half_road + KERB + PAVEMENT + half_width + rng.uniform(1.5, 9))
        x, y, angle = road.at(along, offset)
        kept = rng.random() < 0.85
        height = rng.uniform(4, 16)
        building = Building(float(x), float(y), float(angle), half_length, half_width, height, number)
        corners = building.corners
        if kept and corners[:, 1].min() > 4 and not _hides(camera, _upright(corners, height), points):
            buildings.append(building)
    return tuple(sorted(buildings, key=farthest_first))


def _trees(
    rng: np.random.Generator,
    camera: Camera,
    road: Path,
    half_road: float,
    points: Array,
    buildings: tuple[Building, ...],
) -> tuple[Tree, ...]:
    trees = []
    for number in range(int(rng.integers(6, 26))):
        side = 1 if rng.random() < 0.5 else -1
        height, radius = rng.uniform(3, 7.5), rng.uniform(1.0, 2.2)
        x, y, _ = road.at(rng.uniform(-35, 60), side * (half_road + KERB + PAVEMENT + radius + rng.uniform(0.3, 12)))
        tree = Tree(float(x), float(y), height, radius, number)
        corners = rectangle(tree.x, tree.y, 0, radius, radius)
        crowded = any(
            math.hypot(tree.x - b.x, tree.y - b.y) < radius + math.hypot(b.half_length, b.half_width) for b in buildings
        )
        if tree.y > 5 and not crowded and not _hides(camera, _upright(corners, height), points):
            trees.append(tree)
    return tuple(sorted(trees, key=farthest_first))


def _street_lamps(rng: np.random.Generator, road: Path, half_road: float) -> tuple[StreetLamp, ...]:
    height, spacing, start = rng.uniform(6.5, 8.5), rng.uniform(20, 28), rng.uniform(-45, -25)
    lamps = []
    for k in range(6):
        side = 1 if k % 2 else -1
        foot, head = side * (half_road + KERB + 0.35), side * (half_road - 1.6)
        x, y, _ = road.at(start + k * spacing * 0.75, foot)
        head_x, head_y, _ = road.at(start + k * spacing * 0.75, head)
        if y > 4:
            lamps.append(StreetLamp(float(x), float(y), float(head_x), float(head_y), float(height)))
    return tuple(lamps)
