"""Drawing of road users into the layers of a frame, nearest last, and the size of their visible parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.scenes.background import fixed, shadow_factor
from cahqp.scenes.conditions import Conditions
from cahqp.scenes.geometry import Camera, in_front, rectangle
from cahqp.scenes.layout import StreetLamp, farthest_first
from cahqp.scenes.models import Lamp, RoadUserModel
from cahqp.scenes.road_users import CLASSES
from cahqp.scenes.traffic import RoadUser

Array = NDArray[np.float32]
Image = NDArray[np.uint8]

# Smallest width of a road user from the front, in pixels of a frame 320 wide; smaller ones are not drawn.
SMALLEST = {"car": 13.0, "bus": 16.0, "truck": 15.0, "motorcycle": 9.5, "person": 9.0}
POLE_COLOUR = (96, 98, 100)


@dataclass
class Drawable:
    """Road user, projected into the frame.

    Attributes:
        user: The road user.
        pixels: (V, 2) projected corners.
        fixed: `pixels` as fixed-point numbers.
        depth: (V,) metres.
        turn: (3, 3) rotation from the model to the world.
        place: (3,) position of its middle on the ground.
        footprint: (4, 2) corners on the ground.
        bounds: (4,) xyxy of its outline, not clipped to the frame.
    """

    user: RoadUser
    pixels: Array
    fixed: NDArray[np.int32]
    depth: Array
    turn: Array
    place: Array
    footprint: Array
    bounds: Array

    @property
    def model(self) -> RoadUserModel:
        """Shape."""
        return self.user.model


@dataclass
class Canvas:
    """Layers that road users are drawn into.

    Attributes:
        colours: (H, W, 3) uint8 under white light.
        owner: (H, W) uint8, 0 for the background and k for the k-th drawn road user.
        distance: (H, W) float32 metres; `None` if not needed.
        lamps: Lights with the pixels of their outline, depth, owner, and cosine of the angle to the camera (0..1).
    """

    colours: Image
    owner: Image
    distance: Array | None
    lamps: list[tuple[Lamp, Array, float, int, float]] = field(default_factory=list)


def prepare(users: list[RoadUser], camera: Camera) -> list[Drawable]:
    """Project the road users that are inside the frame and large enough, and sort them farthest first."""
    return _in_order([drawable for user in users if (drawable := _project(user, camera)) is not None])


def _project(user: RoadUser, camera: Camera) -> Drawable | None:
    sine, cosine = math.sin(user.angle), math.cos(user.angle)
    turn = np.array([[sine, -cosine, 0], [cosine, sine, 0], [0, 0, 1]], np.float32)
    place = np.array([user.x, user.y, 0], np.float32)
    height, width = camera.size
    middle = float(camera.rotation[2] @ (place - camera.position))
    smallest = SMALLEST[CLASSES[user.label]] * width / 320
    if middle < 1 or camera.focal_pixels * 2 * user.model.half_width / middle < smallest:
        return None
    pixels, depth = camera.project(user.model.vertices @ turn.T + place)
    low, high = pixels.min(0), pixels.max(0)
    if low[0] >= width or low[1] >= height or high[0] <= 0 or high[1] <= 0:
        return None
    footprint = rectangle(user.x, user.y, user.angle, user.model.half_length, user.model.half_width)
    return Drawable(user, pixels, fixed(pixels), depth, turn, place, footprint, np.concatenate([low, high]))


def _in_order(drawables: list[Drawable]) -> list[Drawable]:
    """Sort so that a road user is drawn after those that it hides."""
    drawables = sorted(drawables, key=lambda drawable: -float(np.linalg.norm(drawable.place)))
    count = len(drawables)
    hides = np.zeros((count, count), bool)
    for i in range(count):
        for j in range(i + 1, count):
            first, second = drawables[i].bounds, drawables[j].bounds
            if (first[:2] < second[2:]).all() and (second[:2] < first[2:]).all():
                nearer = in_front(drawables[i].footprint, drawables[j].footprint)
                hides[i, j], hides[j, i] = nearer, not nearer
    left, ordered = list(range(count)), []
    while left:
        # The farthest that hides none of the rest comes first; cycles are broken at the farthest.
        chosen = next((k for k in left if not hides[k, left].any()), left[0])
        left.remove(chosen)
        ordered.append(drawables[chosen])
    return ordered


def cast_shadows(canvas: Canvas, drawables: list[Drawable], camera: Camera, conditions: Conditions) -> None:
    """Darken the ground under the road users and in their shadows."""
    factor = np.full_like(canvas.colours, 255)
    sun = conditions.sun_direction(camera.heading)
    lean = -sun[:2] / sun[2]
    dark = int(255 * shadow_factor(conditions))
    for drawable in drawables if conditions.sun > 0.02 else []:
        world = drawable.model.vertices @ drawable.turn.T + drawable.place
        world[:, :2] += world[:, 2:] * lean
        world[:, 2] = 0
        pixels, _ = camera.project(world)
        points = fixed(pixels)
        for _, _, _, start, end in drawable.model.parts:
            _hull(factor, points[start:end], (dark, dark, min(dark + 8, 255)))
    for drawable in drawables:
        corners = np.hstack([(drawable.footprint - drawable.place[:2]) * 0.96 + drawable.place[:2], np.zeros((4, 1))])
        pixels, _ = camera.project(corners.astype(np.float32))
        under = min(110, int(dark * 0.7))
        _hull(factor, fixed(pixels), (under, under, under))
    cv2.multiply(canvas.colours, factor, canvas.colours, scale=1 / 255)


def _hull(layer: NDArray[np.generic], points: NDArray[np.int32], value: tuple[float, ...] | float) -> None:
    smooth = cv2.LINE_AA if layer.ndim == 3 else cv2.LINE_8
    cv2.fillConvexPoly(layer, cv2.convexHull(points), value, smooth, 4)  # type: ignore[arg-type]


def draw(
    canvas: Canvas, drawables: list[Drawable], camera: Camera, conditions: Conditions, lamps: tuple[StreetLamp, ...]
) -> Array:
    """Draw road users and poles.

    Returns:
        (N,) pixels of each road user inside the frame, including those hidden by others.
    """
    sun = conditions.sun_direction(camera.heading)
    strength = conditions.sun
    whole = np.zeros(len(drawables), np.float32)
    poles = sorted(lamps, key=farthest_first)
    for number, drawable in enumerate(drawables, 1):
        while poles and poles[0].distance > math.hypot(*drawable.place[:2]):
            _draw_pole(canvas, poles.pop(0), camera)
        _draw_user(canvas, drawable, number, camera, sun, strength)
        region = canvas.owner[window(drawable.bounds, camera.size)]
        whole[number - 1] = np.count_nonzero(region == number)
    for pole in poles:
        _draw_pole(canvas, pole, camera)
    return whole


def window(bounds: Array, size: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the rows and columns of the frame that a box touches, with a margin of one pixel."""
    left, top = max(int(bounds[0]) - 1, 0), max(int(bounds[1]) - 1, 0)
    right, bottom = min(int(bounds[2]) + 2, size[1]), min(int(bounds[3]) + 2, size[0])
    return slice(top, max(bottom, top)), slice(left, max(right, left))


def _draw_user(canvas: Canvas, drawable: Drawable, number: int, camera: Camera, sun: Array, strength: float) -> None:
    model, turn = drawable.model, drawable.turn
    eye = turn.T @ (camera.position - drawable.place)  # camera and sun in the coordinates of the model
    to_sun = turn.T @ sun
    facing = ((eye - model.centres) * model.normals).sum(1) > 0
    shade = 0.8 + 0.12 * model.normals[:, 2] - 0.12 * strength
    shade += 0.34 * strength * np.maximum(model.normals @ to_sun, 0)
    colours = np.minimum(model.colours * shade[:, None], 255).tolist()
    away = np.linalg.norm(model.part_centres - eye, axis=1)
    order = sorted(range(len(model.parts)), key=lambda k: (model.parts[k][2], -away[k]))
    nearest = float(np.median(drawable.depth))
    for k in order:
        first, last, _, start, end = model.parts[k]
        hull = cv2.convexHull(drawable.fixed[start:end])
        base = [channel * 0.6 for channel in colours[first]]
        cv2.fillConvexPoly(canvas.colours, hull, base, cv2.LINE_AA, 4)
        cv2.fillConvexPoly(canvas.owner, hull, number, cv2.LINE_8, 4)
        if canvas.distance is not None:
            cv2.fillConvexPoly(canvas.distance, hull, nearest, cv2.LINE_8, 4)
        for face in range(first, last):
            if facing[face]:
                begin, stop = model.faces[face]
                cv2.fillConvexPoly(canvas.colours, drawable.fixed[begin:stop], colours[face], cv2.LINE_AA, 4)
    _note_lamps(canvas, drawable, number, eye, camera)


def _note_lamps(canvas: Canvas, drawable: Drawable, number: int, eye: Array, camera: Camera) -> None:
    lamps = drawable.model.lamps
    if not lamps:
        return
    outlines = [lamp.outline() for lamp in lamps]
    pixels, depth = camera.project(np.concatenate(outlines) @ drawable.turn.T + drawable.place)
    start = 0
    for lamp, outline in zip(lamps, outlines, strict=True):
        stop = start + len(outline)
        view = eye - outline[0]
        view /= np.linalg.norm(view)
        squarely = float(view[0]) * lamp.ahead if lamp.ahead else float(view[1]) * math.copysign(1, outline[0, 1])
        if squarely > 0.05 and depth[start:stop].min() > 1:
            canvas.lamps.append((lamp, pixels[start:stop], float(depth[start]), number, squarely))
        start = stop


def _draw_pole(canvas: Canvas, lamp: StreetLamp, camera: Camera) -> None:
    top, arm = (lamp.x, lamp.y, lamp.height), (lamp.head_x, lamp.head_y, lamp.height)
    points = np.array([(lamp.x, lamp.y, 0), top, arm], np.float32)
    pixels, depth = camera.project(points)
    if depth.min() < 1:
        return
    thick = camera.focal_pixels * 0.08 / float(depth[0])
    across = np.array([thick, 0], np.float32)
    upright = np.stack([pixels[0] - across, pixels[0] + across, pixels[1] + across * 0.7, pixels[1] - across * 0.7])
    cv2.fillConvexPoly(canvas.colours, fixed(upright), POLE_COLOUR, cv2.LINE_AA, 4)
    cv2.fillConvexPoly(canvas.owner, fixed(upright), 0, cv2.LINE_8, 4)
    down = np.array([0, thick * 0.5], np.float32)
    boom = np.stack([pixels[1] - down, pixels[2] - down, pixels[2] + down, pixels[1] + down])
    cv2.fillConvexPoly(canvas.colours, fixed(boom), POLE_COLOUR, cv2.LINE_AA, 4)
    cv2.fillConvexPoly(canvas.owner, fixed(boom), 0, cv2.LINE_8, 4)
