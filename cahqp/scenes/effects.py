"""Conversion of layers to a photograph: headlights, glare, fog, rain, exposure, blur and sensor noise."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.scenes.background import Background, fixed
from cahqp.scenes.conditions import Conditions
from cahqp.scenes.geometry import Camera
from cahqp.scenes.models import Lamp
from cahqp.scenes.randomness import generator
from cahqp.scenes.render import Canvas, Drawable, window

Array = NDArray[np.float32]
Image = NDArray[np.uint8]

BEAM = np.array([1.0, 0.94, 0.8], np.float32)
# Light on the road before a vehicle: metres ahead of its front and half width, near and far; strength.
_BEAMS = (((0.5, 0.7), (13.0, 3.0), 0.35), ((0.8, 0.7), (8.0, 2.1), 0.8), ((1.2, 0.6), (5.0, 1.4), 1.1))
GLOW_SCALE = 4  # glare is blurred at a quarter of the size


@lru_cache(maxsize=4)
def _noise(size: tuple[int, int]) -> Array:
    """Return sensor noise (2H, 2W, 3) of deviation 1, partly shared by the three colours and slightly smooth."""
    rng = generator(0, "sensor")
    height, width = size[0] * 2, size[1] * 2
    common = rng.normal(size=(height, width, 1)).astype(np.float32)
    single = rng.normal(size=(height, width, 3)).astype(np.float32)
    grain: Array = common * 0.8 + single * 0.6
    grain = 0.7 * grain + 0.6 * cv2.GaussianBlur(grain, (0, 0), 0.9)
    return np.ascontiguousarray(grain / grain.std(), np.float32)


@lru_cache(maxsize=4)
def _streaks(size: tuple[int, int]) -> Array:
    """Return streaks of rain (2H, 2W) in 0..1."""
    rng = generator(0, "rain")
    height, width = size[0] * 2, size[1] * 2
    layer = np.zeros((height, width), np.uint8)
    length = size[0] / 12
    for _ in range(int(height * width / 420)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        reach = length * rng.uniform(0.5, 1.4)
        ends = fixed(np.array([[x, y], [x + reach * 0.12, y + reach]], np.float32))
        cv2.line(layer, ends[0].tolist(), ends[1].tolist(), int(rng.uniform(50, 200)), 1, cv2.LINE_AA, 4)
    return np.asarray(cv2.GaussianBlur(layer, (0, 0), 0.6), np.float32) / np.float32(255)


def _window(tile: Array, size: tuple[int, int], rng: np.random.Generator) -> Array:
    row, column = int(rng.integers(size[0])), int(rng.integers(size[1]))
    return tile[row : row + size[0], column : column + size[1]]


def _beams(drawables: list[Drawable], camera: Camera) -> Array:
    """Return the light of the headlights on the road (H, W)."""
    height, width = camera.size
    pool = np.zeros((height // 2, width // 2), np.float32)
    for near, far, strength in _BEAMS:
        for drawable in drawables:
            if not drawable.model.lamps:
                continue
            front = drawable.model.half_length
            corners = [(front + near[0], near[1]), (front + near[0], -near[1])]
            corners += [(front + far[0], -far[1]), (front + far[0], far[1])]
            flat = np.array([(x, y, 0) for x, y in corners], np.float32)
            pixels, depth = camera.project(flat @ drawable.turn.T + drawable.place)
            if depth.min() > 0.8:
                points = cv2.convexHull(fixed(pixels / np.float32(2)))
                cv2.fillConvexPoly(pool, points, strength, cv2.LINE_8, 4)
    soft = cv2.GaussianBlur(pool, (0, 0), width / 100)
    return np.asarray(cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _lights(canvas: Canvas, camera: Camera, conditions: Conditions) -> tuple[Array, Array]:
    """Return the discs of the lamps (H, W, 3) and the glare around them, both in 0..255."""
    height, width = camera.size
    discs = np.zeros((height, width, 3), np.uint8)
    glare = np.zeros((height // GLOW_SCALE, width // GLOW_SCALE, 3), np.float32)
    power = conditions.headlights
    for lamp, pixels, depth, owner, squarely in canvas.lamps:
        column, row = int(pixels[0, 0]), int(pixels[0, 1])
        if not (0 <= row < height and 0 <= column < width) or canvas.owner[row, column] != owner:
            continue
        radius = max(camera.focal_pixels * lamp.radius / depth, 0.7 * width / 320)
        if lamp.panel is None:
            bright = power * min(1.0, 0.45 + squarely) * min(1.0, 0.4 + lamp.strength * 2)
            colour = [255 * bright * channel for channel in lamp.colour]
            cv2.circle(discs, fixed(pixels[0]).tolist(), int(radius * 16), colour, -1, cv2.LINE_AA, 4)
        else:
            _panel(discs, canvas, lamp, pixels[1:], owner, power)
        spot = glare[min(row // GLOW_SCALE, len(glare) - 1), min(column // GLOW_SCALE, glare.shape[1] - 1)]
        spot += np.array(lamp.colour, np.float32) * (power * lamp.strength * squarely**1.5 * radius**1.3)
    return discs.astype(np.float32), _spread(glare, conditions, (height, width))


def _panel(discs: Image, canvas: Canvas, lamp: Lamp, corners: Array, owner: int, power: float) -> None:
    """Draw a lit window where no other road user hides it."""
    rows, columns = window(np.concatenate([corners.min(0), corners.max(0)]), canvas.owner.shape)
    region = canvas.owner[rows, columns]
    mask = np.zeros(region.shape, np.uint8)
    cv2.fillConvexPoly(mask, fixed(corners - (columns.start, rows.start)), 1, cv2.LINE_8, 4)
    discs[rows, columns][(mask > 0) & (region == owner)] = [255 * power * channel for channel in lamp.colour]


def _spread(glare: Array, conditions: Conditions, size: tuple[int, int]) -> Array:
    """Blur points of light into halos; fog widens them, and a wet road extends them downwards."""
    unit = size[1] / 320
    wide = 1 + 1.2 * conditions.fog + 0.4 * conditions.rain
    near = cv2.GaussianBlur(glare, (0, 0), 0.8 * unit)
    middle = cv2.GaussianBlur(glare, (0, 0), 2.0 * unit * wide)
    far = cv2.GaussianBlur(glare, (0, 0), 6.0 * unit * wide)
    total = 330 * near + 560 * middle + 1500 * far
    if conditions.rain > 0:
        streak = cv2.GaussianBlur(glare, (0, 0), sigmaX=0.6 * unit, sigmaY=5 * unit)
        down = int(6 * unit)
        total[down:] += 700 * conditions.rain * streak[:-down]
    share = 0.25 + 0.75 * conditions.darkness
    return np.asarray(cv2.resize(total * (share * unit**-0.7), size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def develop(
    canvas: Canvas,
    background: Background,
    drawables: list[Drawable],
    camera: Camera,
    conditions: Conditions,
    rng: np.random.Generator,
) -> Image:
    """Apply light, weather and camera to the layers.

    Args:
        canvas: Layers with road users.
        background: Layers of the empty scene.
        drawables: Road users.
        camera: The camera.
        conditions: Light and weather.
        rng: Random generator of the frame.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    light = background.light
    free = (canvas.owner == 0)[..., None]
    lit = conditions.headlights * (0.15 + 0.85 * conditions.darkness)
    if lit > 0.01:
        beams = _beams(drawables, camera) * (0.62 * lit)
        beams[canvas.owner > 0] *= 0.3
        light = light + beams[..., None] * BEAM
    picture = canvas.colours * light
    if conditions.lamps > 0:
        picture += background.emission * free
    if conditions.headlights > 0.01:
        discs, glare = _lights(canvas, camera, conditions)
        picture = np.maximum(picture, discs)
    picture = _fog(picture, canvas, conditions)
    if conditions.headlights > 0.01:
        picture += glare
    return _expose(picture, camera.size, conditions, rng)


def _fog(picture: Array, canvas: Canvas, conditions: Conditions) -> Array:
    thickness = conditions.fog * 0.045 + conditions.rain * 0.006
    if thickness == 0 or canvas.distance is None:
        return picture
    through = np.exp(-thickness * canvas.distance)[..., None]
    veil = 205 * conditions.ambient / conditions.ambient.max() * (0.2 + 0.75 * conditions.daylight)
    return np.asarray(veil + (picture - veil) * through, np.float32)


def _expose(picture: Array, size: tuple[int, int], conditions: Conditions, rng: np.random.Generator) -> Image:
    unit = size[1] / 320
    if conditions.rain > 0:
        drops = _window(_streaks(size), size, rng)[..., None]
        picture = picture * (1 - 0.1 * conditions.rain)
        picture += drops * (conditions.rain * (30 + 60 * conditions.daylight))
    gain = 1 + 1.3 * conditions.overexposure + float(rng.normal(0, 0.012))
    picture *= gain
    if conditions.overexposure > 0:
        bright = cv2.resize(np.maximum(picture - 200, 0), (size[1] // 4, size[0] // 4), interpolation=cv2.INTER_AREA)
        halo = cv2.resize(cv2.GaussianBlur(bright, (0, 0), 3 * unit), size[::-1])
        picture += halo * 0.6 * conditions.overexposure + 28 * conditions.overexposure
    blur = (0.35 + 0.35 * conditions.darkness + 0.25 * conditions.rain) * unit
    picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), blur), np.float32)
    grain = _window(_noise(size), size, rng)
    picture += grain * (1.8 + 5.2 * conditions.darkness)
    return np.asarray(np.clip(picture + 0.5, 0, 255), np.uint8)
