"""Synthetic recording of one fixed camera: renders its frames and the boxes of the road users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cahqp.scenes.background import paint_background
from cahqp.scenes.conditions import Conditions
from cahqp.scenes.effects import develop
from cahqp.scenes.layout import build_layout
from cahqp.scenes.randomness import generator
from cahqp.scenes.render import Canvas, Drawable, cast_shadows, draw, prepare, window
from cahqp.scenes.traffic import Stops, Traffic

MIN_AREA = 25.0  # square pixels; smaller boxes are not annotated
MIN_VISIBLE_SHARE = 0.3  # objects of which less is visible are not annotated
# Visible pixels, in a frame 320 wide, above which an object is annotated although most of it is outside the frame.
LARGE_PART = 500.0


@dataclass(frozen=True)
class SceneObject:
    """One annotated road user in one frame.

    Attributes:
        box: (4,) float32 xyxy in pixels, tight on the visible part inside the frame.
        label: Index in `CLASSES`.
        track_id: Constant over all frames of the recording.
    """

    box: NDArray[np.float32]
    label: int
    track_id: int


class Recording:
    """Synthetic recording. Equal arguments give equal frames, in any order of rendering.

    Args:
        seed: Zero or more.
        index: Number of the camera. Its position, surroundings and view depend only on the seed and this number.
        conditions: Light and weather.
        size: Height and width in pixels.
        interval: Seconds between frames.
        stops: Waiting and parked vehicles; by default all road users move.
    """

    def __init__(
        self,
        seed: int,
        index: int,
        conditions: Conditions,
        size: tuple[int, int] = (192, 320),
        interval: float = 1.0,
        stops: Stops | None = None,
    ) -> None:
        self.seed, self.index, self.conditions, self.size, self.interval = seed, index, conditions, size, interval
        self.layout = build_layout(seed, index, size)
        weather = (conditions.hour, conditions.rain, conditions.fog, conditions.overexposure)
        self.identity = (index, *(round(value * 10_000) for value in weather))
        self.traffic = Traffic(seed, self.identity, self.layout, stops)
        self.background = paint_background(seed, index, self.layout, conditions)

    @property
    def camera_name(self) -> str:
        """Name of the camera, independent of the time of day."""
        return f"camera-{self.seed}-{self.index:03d}"

    @property
    def name(self) -> str:
        """Name of the recording: camera, time of day, and rain, fog and overexposure above 0."""
        minutes = round(self.conditions.hour * 60)
        parts = [self.camera_name, f"{minutes // 60:02d}h{minutes % 60:02d}"]
        for word in ("rain", "fog", "overexposure"):
            share = getattr(self.conditions, word)
            parts += [f"{word}{round(share * 100)}"] if share > 0 else []
        return "_".join(parts)

    def frame(self, index: int) -> tuple[NDArray[np.uint8], list[SceneObject]]:
        """Render one frame.

        Args:
            index: Zero or more.

        Returns:
            (H, W, 3) uint8 RGB image, and its road users, farthest first.
        """
        image, objects, _ = self.frame_with_owners(index)
        return image, objects

    def frame_with_owners(self, index: int) -> tuple[NDArray[np.uint8], list[SceneObject], NDArray[np.uint8]]:
        """Render one frame, with the owner of each pixel.

        Returns:
            Image and objects as in `frame`, and (H, W) uint8 owners: 0 background, k the k-th drawn road user.
        """
        camera, conditions = self.layout.camera, self.conditions
        drawables = prepare(self.traffic.at(index * self.interval), camera)
        foggy = conditions.fog > 0 or conditions.rain > 0
        distance = self.background.distance.copy() if foggy else None
        canvas = Canvas(self.background.colours.copy(), np.zeros(self.size, np.uint8), distance)
        cast_shadows(canvas, drawables, camera, conditions)
        whole = draw(canvas, drawables, camera, conditions, self.layout.lamps)
        rng = generator(self.seed, "frame", *self.identity, index)
        image = develop(canvas, self.background, drawables, camera, conditions, rng)
        return image, self._objects(drawables, canvas.owner, whole), canvas.owner

    def _objects(
        self, drawables: list[Drawable], owner: NDArray[np.uint8], whole: NDArray[np.float32]
    ) -> list[SceneObject]:
        boxes = [self._visible_box(d, owner, n, float(whole[n - 1])) for n, d in enumerate(drawables, 1)]
        return [
            SceneObject(box, drawable.user.label, drawable.user.track_id)
            for drawable, box in zip(drawables, boxes, strict=True)
            if box is not None
        ]

    def _visible_box(
        self, drawable: Drawable, owner: NDArray[np.uint8], number: int, whole: float
    ) -> NDArray[np.float32] | None:
        """Return the outline's bounds, clipped to the visible part; `None` if too little is visible."""
        rows, columns = window(drawable.bounds, self.size)
        own = owner[rows, columns] == number
        visible = int(np.count_nonzero(own))
        if visible == 0 or visible < MIN_VISIBLE_SHARE * whole:
            return None
        across, down = np.flatnonzero(own.any(0)), np.flatnonzero(own.any(1))
        seen = [columns.start + across[0], rows.start + down[0], columns.start + across[-1] + 1]
        seen.append(rows.start + down[-1] + 1)
        # Outlines are exact to a fraction of a pixel; the mask shows where other objects hide them.
        box = np.concatenate([np.maximum(drawable.bounds[:2], seen[:2]), np.minimum(drawable.bounds[2:], seen[2:])])
        width, height = box[2:] - box[:2]
        full = np.prod(drawable.bounds[2:] - drawable.bounds[:2])
        inside = np.clip(drawable.bounds, 0, [self.size[1], self.size[0]] * 2)
        share = np.prod(inside[2:] - inside[:2]) / full
        large = visible >= LARGE_PART * (self.size[1] / 320) ** 2
        if width * height < MIN_AREA or min(width, height) < 2 or (share < MIN_VISIBLE_SHARE and not large):
            return None
        return box.astype(np.float32)
