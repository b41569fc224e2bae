"""`cahqp recompose`: frames of fixed cameras rebuilt from an empty background and their labelled objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.coco.decoding import read_image
from cahqp.coco.image_folder import ImageFolder
from cahqp.data.seeding import seed_of
from cahqp.errors import DataError
from cahqp.files import atomic_write, path_inside
from cahqp.labels.formats.coco import LabelBox, LabelImage, read_label_file, write_coco
from cahqp.labels.ground_truth import corners
from cahqp.labels.tracking.temporal import FILLED
from cahqp.motion import MAX_FRAMES, MIN_FRAMES, Motion, reduce, thumbnail_size
from cahqp.relabelling.recompose_options import RecomposeOptions
from cahqp.runs.directory import open_run
from cahqp.runs.evidence import analysis_mark

Image = NDArray[np.uint8]

BLOCK = 48
"""Largest number of consecutive frames with one background, because the light changes."""

_STRIP = 64
"""Rows of the background that are computed together, to bound the memory."""


@dataclass(frozen=True)
class Scene:
    """Background of a block of frames.

    Attributes:
        background: (H, W, 3) uint8 RGB.
        min_steady: As in `RecomposeOptions`.
    """

    background: Image
    min_steady: float

    def recompose(self, frame: Image, image: LabelImage) -> tuple[Image, LabelImage]:
        """Return a frame with its labelled objects alone, and its labels.

        Ignored regions that do not move belong to the background and stay ignored. Labels of interpolated boxes and of
        unsteady tracks are left out together with their objects.
        """
        labels = [box for box in image.boxes if not box.ignored and self._confident(box)]
        ignored = [box for box in image.boxes if box.ignored]
        size = (frame.shape[0], frame.shape[1])
        small = thumbnail_size(*size)
        motion = Motion(reduce(frame, small), reduce(self.background, small).astype(np.float32), size)
        moving = motion.moving(corners(ignored))
        still = [box for box, moves in zip(ignored, moving.tolist(), strict=True) if not moves]
        noisy = add_noise(self.background, frame, seed_of(image.name))
        return paste(frame, noisy, corners(labels)), replace(image, boxes=(*labels, *still))

    def _confident(self, box: LabelBox) -> bool:
        return box.more.get("reason") != FILLED and float(box.more.get("steady", 1.0)) >= self.min_steady


def add_noise(background: Image, frame: Image, seed: int) -> Image:
    """Return the background with noise as strong as in a frame, so that noise does not mark the pasted objects.

    The standard deviation per channel is that of the differences within three robust deviations (from the median
    absolute deviation), because moving objects are no noise.
    """
    residual = frame.astype(np.float32) - background
    residual -= np.median(residual, (0, 1))
    robust = 1.4826 * np.median(np.abs(residual), (0, 1))
    deviation = np.std(residual, (0, 1), where=np.abs(residual) <= 3 * np.maximum(robust, 1))
    noise = np.random.default_rng(seed).normal(0, 1, background.shape).astype(np.float32)
    noisy: Image = np.rint(background + deviation * noise).clip(0, 255).astype(np.uint8)
    return noisy


def paste(frame: Image, background: Image, boxes: NDArray[np.float64]) -> Image:
    """Return the background with the pixels of a frame inside (N, 4) xyxy boxes, with soft borders."""
    height, width = frame.shape[:2]
    alpha = np.zeros((height, width), np.float32)
    for x1, y1, x2, y2 in _whole_pixels(boxes):
        margin = max(2, round(0.05 * max(x2 - x1, y2 - y1)))
        around = slice(max(0, y1 - 2 * margin), y2 + 2 * margin), slice(max(0, x1 - 2 * margin), x2 + 2 * margin)
        part = np.zeros((height, width), np.float32)[around]
        top, left = around[0].start, around[1].start
        part[max(0, y1 - margin - top) : y2 + margin - top, max(0, x1 - margin - left) : x2 + margin - left] = 1
        soft = cv2.blur(part, (2 * margin + 1, 2 * margin + 1), borderType=cv2.BORDER_REPLICATE)
        alpha[around] = np.maximum(alpha[around], soft)
        alpha[y1:y2, x1:x2] = 1
    mixed = alpha[..., None] * frame + (1 - alpha[..., None]) * background
    return np.rint(mixed).astype(np.uint8)


def _whole_pixels(boxes: NDArray[np.float64]) -> list[list[int]]:
    """Return (N, 4) boxes rounded outwards, without negative corners."""
    rounded = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], 1)
    whole: list[list[int]] = rounded.clip(0).astype(np.int64).tolist()
    return whole


def empty_background(frames: Sequence[Image], boxes: Sequence[NDArray[np.float64]]) -> Image:
    """Return the (H, W, 3) median of frames without the pixels in their boxes.

    Pixels that fewer than `MIN_FRAMES` frames show outside boxes are the median of all frames.
    """
    height, width = frames[0].shape[:2]
    shown = np.ones((len(frames), height, width), np.bool_)
    for mask, own in zip(shown, boxes, strict=True):
        for x1, y1, x2, y2 in _whole_pixels(own):
            mask[y1:y2, x1:x2] = False
    shown |= shown.sum(0) < MIN_FRAMES
    background = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _STRIP):
        rows = slice(top, top + _STRIP)
        strip = np.stack([frame[rows] for frame in frames]).astype(np.float32)
        strip[~shown[:, rows]] = np.nan
        background[rows] = np.rint(np.nanmedian(strip, 0))
    return background


def recompose(options: RecomposeOptions) -> None:
    """Write `labels.json` and the recomposed frames. Frames of recordings with few frames are left out.

    Raises:
        CahqpError: Files cannot be read, or no recording has enough frames.
    """
    settings = {"min_steady": options.min_steady}
    with open_run(options.output, "recompose", settings, {"labels": options.labels}) as run:
        if run is None:
            return
        labels = read_label_file(options.labels)
        root = ImageFolder(options.labels / "labels.json" if options.labels.is_dir() else options.labels).root
        images = []
        for block in blocks(labels.images):
            images += _write_block(block, root, run.work / "images", options.min_steady)
        if not images:
            message = (
                f"No recording of {options.labels} has {MIN_FRAMES} frames of one size. Give `recording` or `camera`."
            )
            raise DataError(message)
        write_coco(replace(labels, images=tuple(images)), run.work / "labels.json")
        boxes = sum(not box.ignored for image in images for box in image.boxes)
        left_out = len(labels.images) - len(images)
        run.metrics = {"images": len(images), "left_out": left_out, "boxes": boxes, **analysis_mark([options.labels])}
    print(f"{options.output}: {len(images)} frames with {boxes} objects; {left_out} frames left out.")


def blocks(images: Sequence[LabelImage]) -> Iterator[list[LabelImage]]:
    """Yield consecutive frames of one recording and size, `MIN_FRAMES` to `BLOCK` of them."""
    groups: dict[tuple[str, str, int, int], list[LabelImage]] = {}
    for image in images:
        entry = image.entry
        camera, recording = str(entry.get("camera", "")), str(entry.get("recording", ""))
        if camera or recording:
            groups.setdefault((camera, recording, entry["height"], entry["width"]), []).append(image)
    for group in groups.values():
        ordered = sorted(group, key=lambda image: (image.entry.get("timestamp") or 0.0, image.entry.get("frame", 0)))
        if len(ordered) >= MIN_FRAMES:
            count = -(-len(ordered) // BLOCK)
            edges = [len(ordered) * number // count for number in range(count + 1)]
            yield from (ordered[start:end] for start, end in pairwise(edges))


def _write_block(block: Sequence[LabelImage], root: Path, output: Path, min_steady: float) -> list[LabelImage]:
    """Write the recomposed frames of a block as JPEG, and return their labels."""
    rows = np.unique(np.linspace(0, len(block) - 1, min(MAX_FRAMES, len(block))).round().astype(int)).tolist()
    probes = [block[row] for row in rows]
    frames = [_read(root, image) for image in probes]
    scene = Scene(empty_background(frames, [corners(image.boxes) for image in probes]), min_steady)
    written = []
    for image in block:
        pixels, labelled = scene.recompose(_read(root, image), image)
        name = PurePosixPath(image.name)
        name = name if name.suffix.lower() in (".jpg", ".jpeg") else name.with_name(f"{name.name}.jpg")
        path = path_inside(output, name.as_posix())
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        with atomic_write(path, "wb") as file:
            file.write(encoded.tobytes())
        written.append(replace(labelled, entry={**image.entry, "file_name": name.as_posix()}))
    return written


def _read(root: Path, image: LabelImage) -> Image:
    return read_image(path_inside(root, image.name), (image.entry["height"], image.entry["width"]))
