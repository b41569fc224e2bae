"""Synthetic recordings on disk: images and COCO annotations. Also the command `cahqp scenes`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.errors import ConfigError, RunError
from cahqp.files import atomic_write, write_json
from cahqp.scenes.conditions import Conditions
from cahqp.scenes.recording import Recording
from cahqp.scenes.road_users import CLASSES

CATEGORIES = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]


@dataclass(frozen=True)
class ScenesSettings:
    """What is written; the same settings give the same files.

    Attributes:
        seed: Zero or more.
        recordings: How many cameras.
        frames: Per recording.
        first_recording: Number of the first camera.
        hour: From and to; recordings are spread evenly between.
        rain: 0..1.
        fog: 0..1.
        overexposure: 0..1.
        width: Pixels.
        height: Pixels.
        interval: Seconds between frames.
        image_format: Kind of file.
        quality: Of JPEG files.
    """

    seed: int = 0
    recordings: int = 4
    frames: int = 40
    first_recording: int = 0
    hour: Sequence[float] = (12.0, 15.0)
    rain: float = 0.0
    fog: float = 0.0
    overexposure: float = 0.0
    width: int = 320
    height: int = 192
    interval: float = 1.0
    image_format: Literal["jpg", "png"] = "jpg"
    quality: int = 92

    def __post_init__(self) -> None:
        """Check everything; all faults are told together.

        Raises:
            ConfigError: Some setting is outside its range.
        """
        object.__setattr__(self, "hour", tuple(self.hour))
        ranges: dict[str, tuple[float, float]] = {
            "seed": (0, 2**63 - 1),
            "recordings": (1, 100_000),
            "frames": (1, 1_000_000),
            "first_recording": (0, 2**31),
            "rain": (0, 1),
            "fog": (0, 1),
            "overexposure": (0, 1),
            "width": (64, 4096),
            "height": (48, 4096),
            "interval": (0.01, 3600),
            "quality": (30, 100),
        }
        faults = [
            f"--{name} must be between {low:g} and {high:g}, got {getattr(self, name)}."
            for name, (low, high) in ranges.items()
            if not low <= getattr(self, name) <= high
        ]
        if len(self.hour) != 2 or not 12 <= self.hour[0] <= self.hour[-1] <= 24:
            given = list(self.hour)
            faults.append(f"--hour must be two times [from, to] with 12 <= from <= to <= 24, got {given}.")
        if self.image_format not in ("jpg", "png"):
            faults.append(f"--image_format must be jpg or png, got {self.image_format}.")
        if faults:
            raise ConfigError("\n".join(faults))

    def each(self) -> Iterator[Recording]:
        """Make the recordings one after the other; a single one is at the middle of the range of hours."""
        low, high = self.hour
        hours = np.linspace(low, high, self.recordings) if self.recordings > 1 else [(low + high) / 2]
        for number, hour in enumerate(hours):
            yield self._recording(number, float(hour))

    def _recording(self, number: int, hour: float) -> Recording:
        conditions = Conditions(hour, self.rain, self.fog, self.overexposure)
        return Recording(self.seed, self.first_recording + number, conditions, (self.height, self.width), self.interval)


def write_scenes(folder: Path, settings: ScenesSettings) -> dict[str, Any]:
    """Write recordings as `images/<recording>/<frame>.jpg` and one `annotations.json`.

    Images that are there already, whole, are kept: every file is either whole or absent.

    Args:
        folder: Made if it is not there.
        settings: What to write.

    Returns:
        Counts: recordings, images, annotations and boxes of each class.

    Raises:
        RunError: An image cannot be written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, recording in enumerate(settings.each()):
        for index in range(settings.frames):
            _write_frame(folder, settings, recording, index, images, annotations)
            _show_progress(number, index, settings)
    coco = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    write_json(folder / "annotations.json", coco)
    boxes = {str(c["name"]): sum(a["category_id"] == c["id"] for a in annotations) for c in CATEGORIES}
    return {"recordings": settings.recordings, "images": len(images), "annotations": len(annotations), "boxes": boxes}


def _write_frame(
    folder: Path,
    settings: ScenesSettings,
    recording: Recording,
    index: int,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
) -> None:
    pixels, objects = recording.frame(index)
    name = f"{recording.name}/{index:06d}.{settings.image_format}"
    _write_image(folder / "images" / name, pixels, settings.quality)
    image_id = len(images) + 1
    images.append(
        {
            "id": image_id,
            "file_name": name,
            "width": settings.width,
            "height": settings.height,
            "camera": recording.camera_name,
            "recording": recording.name,
            "frame": index,
            "timestamp": round(index * settings.interval, 6),
        }
    )
    for scene_object in objects:
        left, top, right, bottom = (round(float(value), 2) for value in scene_object.box)
        bbox = [left, top, round(right - left, 2), round(bottom - top, 2)]
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": scene_object.label + 1,
                "bbox": bbox,
                "area": round(bbox[2] * bbox[3], 2),
                "iscrowd": 0,
                "track_id": scene_object.track_id,
            }
        )


def _write_image(path: Path, pixels: NDArray[np.uint8], quality: int) -> None:
    if path.exists():
        return
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    whole, data = cv2.imencode(path.suffix, pixels[..., ::-1], options)
    if not whole:
        message = f"{path} could not be encoded as {path.suffix}. Choose the other --image_format."
        raise RunError(message)
    with atomic_write(path, "wb") as file:
        file.write(data.tobytes())


def _show_progress(number: int, index: int, settings: ScenesSettings) -> None:
    last = index + 1 == settings.frames
    if not (last or (sys.stderr.isatty() and index % 10 == 0)):
        return
    text = f"scenes: recording {number + 1}/{settings.recordings}, frame {index + 1}/{settings.frames}"
    ending = "\n" if last and (not sys.stderr.isatty() or number + 1 == settings.recordings) else "\r"
    print(text, end=ending, file=sys.stderr, flush=True)


def scenes(
    output: Path,
    seed: int = 0,
    recordings: int = 4,
    frames: int = 40,
    first_recording: int = 0,
    hour: Sequence[float] = (12.0, 15.0),
    rain: float = 0.0,
    fog: float = 0.0,
    overexposure: float = 0.0,
    width: int = 320,
    height: int = 192,
    interval: float = 1.0,
    image_format: Literal["jpg", "png"] = "jpg",
    quality: int = 92,
) -> None:
    """Write synthetic traffic with its true boxes: images, annotations.json (COCO) and manifest.json.

    The same arguments give the same images. A camera is known by the seed and its number: render cameras 0..3 by day
    and the same, or others, by night.

    Args:
        output: Directory to write; must not exist, unless this very command wrote it or began to.
        seed: Names the world; zero or more.
        recordings: How many cameras, one recording each.
        frames: Frames per recording.
        first_recording: Number of the first camera; a held-out set begins where the others end.
        hour: From and to, between 12 (noon) and 24 (midnight); recordings are spread evenly. Dusk is about 19.
        rain: From 0 (dry) to 1 (pouring).
        fog: From 0 (clear) to 1 (dense).
        overexposure: From 0 (none) to 1 (bright parts lost in white).
        width: Of the images in pixels.
        height: Of the images in pixels.
        interval: Seconds between frames.
        image_format: Files are small as jpg and exact as png.
        quality: Of jpg files, 30 to 100.

    Raises:
        ConfigError: An argument is outside its range.
        RunError: The directory belongs to something else, or cannot be written.
    """
    from cahqp.runs.directory import RunDirectory

    settings = ScenesSettings(
        seed, recordings, frames, first_recording, hour, rain, fog,
        overexposure, width, height, interval, image_format, quality,
    )  # fmt: skip
    cv2.setNumThreads(1)  # the images are too small for more to help
    run = RunDirectory(output=output, command="scenes", settings=asdict(settings), inputs={}, seed=seed)
    if not run.begin():
        print(f"{output} is there already, made by the same command.", file=sys.stderr)
        return
    run.finish(write_scenes(run.work, settings))
