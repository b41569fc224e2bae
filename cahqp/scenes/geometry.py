"""Cameras above a flat ground, and curved paths on it.

World coordinates are in metres, with the camera above the origin: x to the right, y ahead, z up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

NEAREST = 0.4  # metres; nearer points, and points behind, are projected from here, far outside the frame
FARTHEST_GROUND = 2000.0  # metres, where textures end
FARTHEST_PIXEL = 6000.0  # keeps fixed-point coordinates inside int32


@dataclass(frozen=True)
class Camera:
    """Pinhole camera.

    Attributes:
        height: Metres above the ground.
        pitch: Radians below the horizontal.
        roll: Radians, clockwise.
        heading: Compass direction of the view in radians; decides the direction of the sun.
        focal: Focal length as a multiple of the image width.
        size: Height and width in pixels.
    """

    height: float
    pitch: float
    roll: float
    heading: float
    focal: float
    size: tuple[int, int]

    @property
    def focal_pixels(self) -> float:
        """Focal length in pixels."""
        return self.focal * self.size[1]

    @property
    def position(self) -> Array:
        """(3,) position in the world."""
        return np.array([0, 0, self.height], dtype=np.float32)

    @cached_property
    def rotation(self) -> Array:
        """(3, 3) matrix whose rows are the image's right, its down and the view, in the world."""
        sine, cosine = math.sin(self.pitch), math.cos(self.pitch)
        level = np.array([[1, 0, 0], [0, -sine, -cosine], [0, cosine, -sine]])
        sine, cosine = math.sin(self.roll), math.cos(self.roll)
        rolled = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]]) @ level
        return np.asarray(rolled, np.float32)

    def project(self, points: Array) -> tuple[Array, Array]:
        """Return pixels (N, 2) and depths (N,) of world points (N, 3). Pixel (0, 0) is the frame's outer corner."""
        seen: Array = np.asarray((points - self.position) @ self.rotation.T, np.float32)
        depth = seen[:, 2]
        height, width = self.size
        scale = self.focal_pixels / np.maximum(depth, NEAREST)
        pixels = seen[:, :2] * scale[:, None] + np.array([width / 2, height / 2], dtype=np.float32)
        return np.clip(pixels, -FARTHEST_PIXEL, FARTHEST_PIXEL).astype(np.float32), depth

    def ground(self, scale: int = 1) -> tuple[Array, Array, Array]:
        """Return x, y and distance of the ground at each pixel; the distance is infinite above the horizon.

        Args:
            scale: Samples per pixel and axis.
        """
        height, width = self.size
        u = (np.arange(width * scale, dtype=np.float32) + 0.5) / scale - width / 2
        v = (np.arange(height * scale, dtype=np.float32) + 0.5) / scale - height / 2
        right, down, view = self.rotation
        rays = u[None, :, None] * right + v[:, None, None] * down + self.focal_pixels * view
        falling = -rays[..., 2]
        reach = np.where(falling > 1e-3, self.height / np.maximum(falling, 1e-3), np.inf).astype(np.float32)
        distance = reach * np.linalg.norm(rays, axis=-1)
        reach = np.minimum(reach, FARTHEST_GROUND / self.focal_pixels)
        return rays[..., 0] * reach, rays[..., 1] * reach, distance


@dataclass(frozen=True)
class Path:
    """Arc on the ground.

    Attributes:
        x: Point at position 0 of the arc.
        y: Point at position 0 of the arc.
        angle: Direction at position 0 in radians, from straight ahead (0) to the right.
        curvature: One over the radius in metres; positive turns right, never zero.
    """

    x: float
    y: float
    angle: float
    curvature: float

    def at(self, along: Array | float, offset: Array | float) -> tuple[Array, Array, Array]:
        """Return x, y and direction of the points `along` metres on the arc, `offset` metres to its right."""
        turned = self.angle + self.curvature * np.asarray(along, dtype=np.float32)
        x = self.x + (math.cos(self.angle) - np.cos(turned)) / self.curvature + np.cos(turned) * offset
        y = self.y + (np.sin(turned) - math.sin(self.angle)) / self.curvature - np.sin(turned) * offset
        return np.asarray(x, np.float32), np.asarray(y, np.float32), np.asarray(turned, np.float32)

    def locate(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return the position of points along the arc and to its right, in metres; the inverse of `at`."""
        radius = 1 / self.curvature
        dx = x - (self.x + math.cos(self.angle) * radius)
        dy = y - (self.y - math.sin(self.angle) * radius)
        sign = math.copysign(1, radius)
        offset = radius - sign * np.hypot(dx, dy)
        turned = np.arctan2(sign * dy, -sign * dx) - self.angle
        along = (np.mod(turned + np.pi, 2 * np.pi) - np.pi) * radius
        return along.astype(np.float32), offset.astype(np.float32)


def rectangle(x: float, y: float, angle: float, half_length: float, half_width: float) -> Array:
    """Return the (4, 2) corners of a rectangle on the ground whose length has the direction `angle`."""
    ahead = np.array([math.sin(angle), math.cos(angle)]) * half_length
    right = np.array([math.cos(angle), -math.sin(angle)]) * half_width
    corners = [ahead + right, ahead - right, -ahead - right, -ahead + right]
    return (np.array([x, y]) + np.array(corners)).astype(np.float32)


def in_front(first: Array, second: Array) -> bool:
    """Return whether the first of two convex footprints (4, 2) hides the second from a camera above the origin.

    The line through a side of one footprint separates two that do not touch. The footprint on the camera's side of the
    line is in front.
    """
    for near, far, answer in ((first, second, True), (second, first, False)):
        side = np.roll(near, -1, 0) - near
        normal = np.stack([side[:, 1], -side[:, 0]], 1)
        normal *= np.sign(((near - near.mean(0)) * normal).sum(1, keepdims=True))
        beyond = ((far[None] - near[:, None]) * normal[:, None]).sum(2).min(1) >= 0
        camera_beyond = (-near * normal).sum(1) > 0
        if beyond.any():
            return answer if not camera_beyond[beyond].any() else not answer
    return bool(np.linalg.norm(first.mean(0)) < np.linalg.norm(second.mean(0)))
