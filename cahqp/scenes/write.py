"""Synthetic recordings on disk: images and COCO annotations. Implements `cahqp scenes`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.errors import RunError
from cahqp.files import atomic_write, write_json
from cahqp.runs.directory import open_run
from cahqp.scenes.conditions import Conditions
from cahqp.scenes.options import ScenesOptions
from cahqp.scenes.recording import Recording, SceneObject
from cahqp.scenes.road_users import CLASSES
from cahqp.scenes.traffic import Stops

CATEGORIES = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]


def scenes(options: ScenesOptions) -> None:
    """Write synthetic traffic with its ground truth: images, `annotations.json` (COCO) and `manifest.json`.

    Raises:
        RunError: The directory belongs to another run, or cannot be written.
    """
    cv2.setNumThreads(1)  # the images are too small for more threads to help
    settings = asdict(options)
    output = settings.pop("output")
    with open_run(output, "scenes", settings, {}, options.seed, resumable=True) as run:
        if run is not None:
            run.metrics |= write_scenes(run.work, options)


def write_scenes(folder: Path, options: ScenesOptions) -> dict[str, Any]:
    """Write recordings as `images/<recording>/<frame>.jpg` and one `annotations.json`. Existing images are kept.

    Args:
        folder: Created if missing.
        options: Content of the recordings; `output` is not read.

    Returns:
        Counts: recordings, images, annotations and boxes of each class.

    Raises:
        RunError: An image cannot be written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, recording in enumerate(_recordings(options)):
        for index in range(options.frames):
            pixels, objects = recording.frame(index)
            image = _image_entry(len(images) + 1, recording, index, options)
            _write_image(folder / "images" / image["file_name"], pixels, options.quality)
            images.append(image)
            annotations += [_annotation(len(annotations) + n, image["id"], o) for n, o in enumerate(objects, 1)]
            _show_progress(number, index, options)
    write_json(folder / "annotations.json", {"images": images, "annotations": annotations, "categories": CATEGORIES})
    boxes = {str(c["name"]): sum(a["category_id"] == c["id"] for a in annotations) for c in CATEGORIES}
    return {"recordings": options.recordings, "images": len(images), "annotations": len(annotations), "boxes": boxes}


def _recordings(options: ScenesOptions) -> Iterator[Recording]:
    """Yield the recordings; a single one is at the middle of the range of hours."""
    stops = Stops(options.waiting, options.parked)
    low, high = options.hour
    hours = np.linspace(low, high, options.recordings) if options.recordings > 1 else [(low + high) / 2]
    for camera, hour in enumerate(hours, options.first_recording):
        conditions = Conditions(float(hour), options.rain, options.fog, options.overexposure)
        yield Recording(options.seed, camera, conditions, (options.height, options.width), options.interval, stops)


def _image_entry(image_id: int, recording: Recording, index: int, options: ScenesOptions) -> dict[str, Any]:
    return {
        "id": image_id,
        "file_name": f"{recording.name}/{index:06d}.{options.image_format}",
        "width": options.width,
        "height": options.height,
        "camera": recording.camera_name,
        "recording": recording.name,
        "frame": index,
        "timestamp": round(index * options.interval, 6),
    }


def _annotation(identifier: int, image_id: int, scene_object: SceneObject) -> dict[str, Any]:
    left, top, right, bottom = (round(float(value), 2) for value in scene_object.box)
    width, height = round(right - left, 2), round(bottom - top, 2)
    return {
        "id": identifier,
        "image_id": image_id,
        "category_id": scene_object.label + 1,
        "bbox": [left, top, width, height],
        "area": round(width * height, 2),
        "iscrowd": 0,
        "track_id": scene_object.track_id,
    }


def _write_image(path: Path, pixels: NDArray[np.uint8], quality: int) -> None:
    if path.exists():
        return
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    encoded, data = cv2.imencode(path.suffix, pixels[..., ::-1], settings)
    if not encoded:
        message = f"{path} could not be encoded as {path.suffix}. Choose the other --image-format."
        raise RunError(message)
    with atomic_write(path, "wb") as file:
        file.write(data.tobytes())


def _show_progress(number: int, index: int, options: ScenesOptions) -> None:
    last, terminal = index + 1 == options.frames, sys.stderr.isatty()
    if last or (terminal and index % 10 == 0):
        text = f"scenes: recording {number + 1}/{options.recordings}, frame {index + 1}/{options.frames}"
        ending = "\n" if last and (not terminal or number + 1 == options.recordings) else "\r"
        print(text, end=ending, file=sys.stderr, flush=True)
