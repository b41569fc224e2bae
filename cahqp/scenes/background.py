"""Empty scene: colour, emission, lamp light and distance of every pixel, made once per recording."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.scenes.conditions import Conditions
from cahqp.scenes.layout import KERB, LANE_WIDTH, PAVEMENT, Building, Layout, StreetLamp, Tree, farthest_first
from cahqp.scenes.randomness import generator

Array = NDArray[np.float32]
Image = NDArray[np.uint8]
Colour = NDArray[np.float64]

SAMPLES = 2  # per pixel and axis, while the background is drawn
WALLS = ((158, 96, 78.0), (182, 168, 146.0), (140, 142, 146.0), (204, 198, 184.0), (120, 104, 92.0))
LAMP_REACH = 6.0  # metres; the spread of a street lamp's light on the ground


@dataclass(frozen=True)
class Background:
    """Layers of the empty scene, in the frame's size.

    Attributes:
        colours: (H, W, 3) uint8 under white light of strength 1, with the shadows of static objects.
        emission: (H, W, 3) float32 in 0..255, light of windows and street lamps.
        light: (H, W, 3) float32 factor on `colours` and on the road users before them.
        distance: (H, W) float32 metres, large in the sky.
    """

    colours: Image
    emission: Array
    light: Array
    distance: Array


def fixed(points: Array, scale: int = 1) -> NDArray[np.int32]:
    """Return pixels in OpenCV's fixed-point numbers (4 fractional bits), whose pixel centres are whole numbers."""
    return np.round((points * scale - 0.5) * 16).astype(np.int32)


def noise_tile(rng: np.random.Generator, octaves: int = 5, size: int = 256) -> Array:
    """Return a seamless (size, size) texture of mean 0 and deviation 1 that is rough at all scales."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        cells = 8 * 2**octave
        grid = np.pad(rng.normal(size=(cells, cells)).astype(np.float32), 2, mode="wrap")
        step = size // cells
        wide = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
        total += np.asarray(wide, np.float32)[2 * step : 2 * step + size, 2 * step : 2 * step + size] / 1.5**octave
    return np.asarray((total - total.mean()) / total.std(), np.float32)


def _sample(tile: Array, x: Array, y: Array, per_metre: float) -> Array:
    size = len(tile)
    u, v = np.mod(x * per_metre, size - 1), np.mod(y * per_metre, size - 1)
    places = u.astype(np.float32), v.astype(np.float32)
    return np.asarray(cv2.remap(tile, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), np.float32)


class _Painter:
    """Drawing of the empty scene at `SAMPLES` times the size, farthest objects first."""

    def __init__(self, seed: int, index: int, layout: Layout, conditions: Conditions) -> None:
        self.seed, self.index, self.layout, self.conditions = seed, index, layout, conditions
        self.rng = generator(seed, "background", index)
        self.x, self.y, self.distance = layout.camera.ground(SAMPLES)
        self.ground = np.isfinite(self.distance)
        self.sky = ~self.ground
        self.distance = np.where(self.ground, np.minimum(self.distance, 600), 600).astype(np.float32)
        self.tile = noise_tile(self.rng)
        self.canvas = np.zeros((*self.distance.shape, 3), np.uint8)
        self.glow = np.zeros_like(self.canvas)
        self.sun = conditions.sun_direction(layout.camera.heading)

    def paint(self) -> None:
        """Draw everything."""
        self._sky()
        self._ground()
        self._horizon()
        self._shadows()
        objects: list[Building | Tree] = [*self.layout.buildings, *self.layout.trees]
        for item in sorted(objects, key=farthest_first):
            if isinstance(item, Building):
                self._building(item)
            else:
                self._tree(item)
        for lamp in self.layout.lamps:
            self._lamp_head(lamp)

    def _project(self, points: Array) -> tuple[NDArray[np.int32], Array]:
        pixels, depth = self.layout.camera.project(points)
        return fixed(pixels, SAMPLES), depth

    def _fill(self, points: Array, colour: Colour, layer: Image | None = None) -> None:
        pixels, depth = self._project(points)
        if (depth > 1).all():
            target = self.canvas if layer is None else layer
            cv2.fillPoly(target, [pixels], colour.clip(0, 255).tolist(), cv2.LINE_AA, 4)

    def _sky(self) -> None:
        """Draw the sky, divided by the ambient light, with which it is multiplied later."""
        conditions = self.conditions
        height, width = self.sky.shape
        dusk = max(0.0, 1 - abs(conditions.hour - 19) / 1.6) * (1 - conditions.rain)
        day, night = np.array([150, 182, 218.0]), np.array([17, 19, 30.0])
        zenith = day * conditions.daylight + night * (1 - conditions.daylight)
        low = np.array([214, 222, 228.0]) * conditions.daylight + np.array([38, 33, 36.0]) * (1 - conditions.daylight)
        low += np.array([40, -10, -60.0]) * dusk
        grey = np.array([176, 180, 184.0]) * (0.12 + 0.88 * conditions.daylight)
        zenith, low = (colour * (1 - conditions.rain) + grey * conditions.rain for colour in (zenith, low))
        rows = np.linspace(0, 1, max(int(self.sky.sum(0).max()), 1)) ** 0.7
        rows = np.concatenate([rows, np.ones(height - len(rows))])
        sky = zenith + (low - zenith) * rows[:, None]
        clouds = cv2.resize(self.tile[:96, :128], (width, height), interpolation=cv2.INTER_CUBIC)
        sky = sky[:, None] * (1 + 0.07 * np.clip(clouds, -0.5, 2)[..., None])
        light = conditions.ambient + conditions.sunlight * 0.5
        self.canvas[self.sky] = np.clip(sky / light, 0, 255)[self.sky].astype(np.uint8)

    def _ground(self) -> None:
        """Draw road, markings, kerbs, pavements and the ground beyond."""
        along, offset = self.layout.road.locate(self.x, self.y)
        fine = _sample(self.tile, self.x, self.y, 24.0)
        coarse = _sample(self.tile, self.x, self.y, 2.3)
        across = np.abs(offset)
        half = self.layout.half_road
        colours = self._beyond(fine, coarse)
        pavement = across < half + KERB + PAVEMENT
        slabs = (np.mod(along, 1.2) < 0.07) | (np.mod(across - half, 1.2) < 0.07)
        stone = self.rng.uniform(128, 168) + 7 * fine + 8 * coarse - 22 * slabs
        colours = np.where(pavement[..., None], stone[..., None] * np.array([1.0, 0.98, 0.94]), colours)
        kerb = across < half + KERB
        colours = np.where(kerb[..., None], (172 + 8 * fine)[..., None] * np.ones(3), colours)
        road = across < half
        colours = np.where(road[..., None], self._asphalt(along, offset, fine, coarse), colours)
        self.canvas[self.ground] = np.clip(colours, 0, 255)[self.ground].astype(np.uint8)

    def _beyond(self, fine: Array, coarse: Array) -> Array:
        grass, plaza = np.array([88, 116, 62.0]), np.array([142, 138, 130.0])
        base = grass * self.rng.uniform(0.8, 1.1) if self.rng.random() < 0.65 else plaza * self.rng.uniform(0.8, 1.05)
        return np.asarray(base * (1 + 0.1 * fine + 0.12 * coarse)[..., None], np.float32)

    def _asphalt(self, along: Array, offset: Array, fine: Array, coarse: Array) -> Array:
        tone = self.rng.uniform(82, 116) * (1 - 0.3 * self.conditions.rain)
        lane = np.mod(np.abs(offset), LANE_WIDTH) - LANE_WIDTH / 2
        worn = np.exp(-(((np.abs(lane) - 0.8) / 0.35) ** 2))
        value = tone + 6 * fine + 7 * coarse - 7 * worn
        value = np.where((coarse > 1.6) & (fine > -1), value - 14, value)  # patches of newer tar
        road = value[..., None] * np.array([1.0, 1.0, 1.03])
        white, yellow = np.array([206, 206, 200.0]), np.array([204, 168, 64.0])
        wear = (fine < 1.1)[..., None]
        across = np.abs(offset)
        middle = yellow if self.rng.random() < 0.5 else white
        double = (np.abs(across - 0.14) < 0.07)[..., None]
        road = np.where(double & wear, middle, road)
        edge = np.abs(across - self.layout.half_road + 0.25) < 0.07
        dashes = np.zeros_like(edge)
        for k in range(1, self.layout.lanes_each_way):
            dashes |= (np.abs(across - k * LANE_WIDTH) < 0.08) & (np.mod(along, 6.0) < 3.0)
        road = np.where((edge | dashes)[..., None] & wear, white, road)
        if self.layout.crossing is not None:
            zebra = np.abs(along - self.layout.crossing) < 1.6
            bars = zebra & (np.mod(offset + 50, 1.0) < 0.5)
            road = np.where(zebra[..., None], value[..., None] * np.ones(3), road)
            road = np.where(bars[..., None] & wear, white, road)
        return np.asarray(road, np.float32)

    def _horizon(self) -> None:
        """Draw a row of far houses and trees where ground and sky meet."""
        far = 110.0
        for k in range(34):
            x = -95 + k * 5.8 + self.rng.uniform(-2, 2)
            tall, wide = self.rng.uniform(3, 15), self.rng.uniform(3, 7)
            tree = self.rng.random() < 0.5
            colour = np.array([70, 88, 62.0]) if tree else np.array([134, 124, 116.0])
            colour = colour * self.rng.uniform(0.7, 1.25) * 0.75 + np.array([42, 46, 52.0])
            quad = np.array([[x - wide, far, -1], [x + wide, far, -1], [x + wide, far, tall], [x - wide, far, tall]])
            if tree:
                quad[2:, 0] = x + np.array([0.45, -0.45]) * wide
            self._fill(quad.astype(np.float32), colour)
            for _ in range(0 if tree else 5):
                spot = np.array([x + self.rng.uniform(-wide, wide) * 0.8, far, self.rng.uniform(1, tall)], np.float32)
                square = spot + np.array([[-0.4, 0, 0], [0.4, 0, 0], [0.4, 0, 0.7], [-0.4, 0, 0.7]], np.float32)
                self._fill(square, np.array([190, 160, 110.0]), self.glow)

    def _shadows(self) -> None:
        """Darken the ground in the shadows of buildings, trees and poles."""
        mask = np.zeros(self.canvas.shape[:2], np.uint8)
        lean = -self.sun[:2] / self.sun[2]
        for building in self.layout.buildings:
            corners = building.corners
            self._shade(np.concatenate([corners, corners + lean * building.height]), mask)
        for tree in self.layout.trees:
            turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            ring = np.stack([np.cos(turns), np.sin(turns)], 1) * tree.radius
            self._shade(ring + (tree.x, tree.y) + lean * tree.height * 0.7, mask)
        for lamp in self.layout.lamps:
            foot = np.array([lamp.x, lamp.y])
            line = np.stack([foot, foot + lean * lamp.height])
            self._shade(np.concatenate([line - 0.06, line + 0.06]), mask)
        share = shadow_factor(self.conditions)
        dark = mask.astype(np.float32)[..., None] / 255 * (1 - share)
        self.canvas = np.where(self.ground[..., None], self.canvas * (1 - dark), self.canvas).astype(np.uint8)

    def _shade(self, points: NDArray[np.floating], mask: Image) -> None:
        flat = np.hstack([points, np.zeros((len(points), 1))]).astype(np.float32)
        pixels, depth = self._project(flat)
        if (depth > 0.5).all():
            cv2.fillConvexPoly(mask, cv2.convexHull(pixels), 255, cv2.LINE_AA, 4)

    def _building(self, building: Building) -> None:
        rng = generator(self.seed, "building", self.index, building.number)
        walls = np.array(WALLS[rng.integers(len(WALLS))])
        corners = building.corners
        order = sorted(range(4), key=lambda k: -float(np.linalg.norm(corners[k] + corners[(k + 1) % 4])))
        roof = np.hstack([corners, np.full((4, 1), building.height)]).astype(np.float32)
        for k in order:
            ends = np.stack([corners[k], corners[(k + 1) % 4]])
            side = ends[1] - ends[0]
            normal = np.array([-side[1], side[0]]) / np.linalg.norm(side)
            outward = normal if normal @ (ends.mean(0) - (building.x, building.y)) > 0 else -normal
            if outward @ -ends.mean(0) <= 0:
                continue
            lit = 0.74 + 0.3 * self.conditions.sun * max(0.0, float(outward @ self.sun[:2]))
            self._wall(ends, building.height, walls * lit, rng)
        if building.height < self.layout.camera.height:
            self._fill(roof, walls * 0.8)

    def _wall(self, ends: Array, height: float, colour: Colour, rng: np.random.Generator) -> None:
        def quad(a: float, b: float, low: float, high: float) -> Array:
            first, last = ends[0] + (ends[1] - ends[0]) * a, ends[0] + (ends[1] - ends[0]) * b
            return np.array([[*first, low], [*last, low], [*last, high], [*first, high]], np.float32)

        self._fill(quad(0, 1, 0, height), colour)
        self._fill(quad(0, 1, 0, height), np.zeros(3), self.glow)
        length = float(np.linalg.norm(ends[1] - ends[0]))
        columns, rows = max(int(length / 2.6), 1), max(int(height / 3), 1)
        for row in range(rows):
            for column in range(columns):
                a = (column + 0.25) / columns
                window = quad(a, a + 0.5 / columns, row * 3 + 0.9, min(row * 3 + 2.3, height))
                self._fill(window, np.array([66, 78, 92.0]) * rng.uniform(0.7, 1.3))
                if rng.random() < 0.3:
                    warm = np.array([[214, 168, 98.0], [176, 186, 190.0]][rng.integers(2)]) * rng.uniform(0.35, 0.9)
                    self._fill(window, warm, self.glow)

    def _tree(self, tree: Tree) -> None:
        rng = generator(self.seed, "tree", self.index, tree.number)
        foot = np.array([tree.x, tree.y, 0], np.float32)
        fork = tree.height * 0.6
        trunk = foot + np.array([[-0.12, 0, 0], [0.12, 0, 0], [0.1, 0, fork], [-0.1, 0, fork]])
        self._fill(trunk.astype(np.float32), np.array([82, 66, 52.0]))
        leaf = np.array([66, 98, 48.0]) * rng.uniform(0.75, 1.2)
        middle = np.array([tree.x, tree.y, tree.height * 0.72])
        for k in range(46):
            direction = rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            spot = middle + direction * tree.radius * np.array([0.75, 0.75, 0.7]) * rng.uniform(0.3, 1)
            pixels, depth = self.layout.camera.project(spot[None].astype(np.float32))
            if depth[0] < 2:
                continue
            sunny = 0.62 + 0.1 * direction[2] + 0.3 * self.conditions.sun * max(0.0, float(direction @ self.sun))
            radius = self.layout.camera.focal_pixels * tree.radius * rng.uniform(0.2, 0.36) / depth[0] * SAMPLES
            centre = fixed(pixels, SAMPLES)[0]
            shade = (leaf * (sunny + 0.004 * k)).clip(0, 255).tolist()
            cv2.circle(self.canvas, centre.tolist(), max(int(radius * 16), 16), shade, -1, cv2.LINE_AA, 4)
            cv2.circle(self.glow, centre.tolist(), max(int(radius * 16), 16), (0, 0, 0), -1, cv2.LINE_AA, 4)

    def _lamp_head(self, lamp: StreetLamp) -> None:
        head = np.array([[lamp.head_x, lamp.head_y, lamp.height]], np.float32)
        pixels, depth = self._project(head)
        if depth[0] < 3:
            return
        radius = max(self.layout.camera.focal_pixels * 0.2 / float(depth[0]) * SAMPLES, 1.5)
        cv2.circle(self.glow, pixels[0].tolist(), int(radius * 16), (255, 244, 214), -1, cv2.LINE_AA, 4)


def shadow_factor(conditions: Conditions) -> float:
    """Return the share of the light that remains in a shadow, 0..1."""
    ambient, sun = float(conditions.ambient.mean()), float(conditions.sunlight.mean())
    return (ambient * 0.82) / (ambient * 0.82 + sun * 1.35) if sun > 0 else 1.0


def _light(layout: Layout, conditions: Conditions, sky: NDArray[np.bool_], colour: Array) -> Array:
    x, y, _ = layout.camera.ground()
    light = np.empty((*sky.shape, 3), np.float32)
    light[:] = conditions.ambient + conditions.sunlight
    light[sky] = conditions.ambient + conditions.sunlight * 0.5
    pools = np.zeros(sky.shape, np.float32)
    for lamp in layout.lamps:
        away = (x - lamp.head_x) ** 2 + (y - lamp.head_y) ** 2
        pools += np.exp(-away / (2 * LAMP_REACH**2))
    pools[sky] = 0
    light += (conditions.lamps * 0.3 * np.minimum(pools, 1.3))[..., None] * colour
    return light


def paint_background(seed: int, index: int, layout: Layout, conditions: Conditions) -> Background:
    """Draw the empty scene of a camera.

    Args:
        seed: Seed of the world.
        index: Number of the camera.
        layout: Its surroundings.
        conditions: Light and weather.
    """
    painter = _Painter(seed, index, layout, conditions)
    painter.paint()
    height, width = layout.camera.size

    def shrink(layer: Image) -> Image:
        return np.asarray(cv2.resize(layer, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

    distance = cv2.resize(painter.distance, (width, height), interpolation=cv2.INTER_NEAREST)
    warm = generator(seed, "lamp", index).random() < 0.6
    colour = np.array([1.0, 0.74, 0.44] if warm else [0.9, 0.95, 1.0], np.float32)
    light = _light(layout, conditions, distance >= 600, colour)
    emission = shrink(painter.glow).astype(np.float32) * np.float32(conditions.lamps)
    return Background(shrink(painter.canvas), emission, light, np.asarray(distance, np.float32))
