"""Frames of fetched videos, and the COCO entries of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.coco.naming import Origin
from cahqp.coco.sources import is_image
from cahqp.coco.subset import Image
from cahqp.coco.video import Video
from cahqp.edge.capture import read_bgr
from cahqp.files import atomic_write

_JPEG_QUALITY = 95


def video_folders(names: list[str]) -> dict[str, str]:
    """Return the folder of each video's frames: its name without the suffix, unless another file has that name."""
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in names if not is_image(name)}
    counts = Counter([*stems.values(), *names])
    return {name: stem if counts[stem] == 1 else name for name, stem in stems.items()}


def extract_frames(
    video: Path, folder: str, taken: set[str], work: Path, frame_interval: float | None
) -> list[Image]:  # fmt: skip
    """Extract the first frame at or after each multiple of `frame_interval` seconds from a video.

    Args:
        video: Local copy of the video.
        folder: Folder of its frames, which is also their recording.
        taken: File names in use. The names of the frames are added.
        work: Directory of the fetch.
        frame_interval: Interval in seconds; `None` extracts all frames.
    """
    images: list[Image] = []
    due = 0.0
    with Video(video, str(video.relative_to(work / "checkpoints/videos"))) as frames:
        for frame in frames:
            if frame_interval is not None and frame.seconds < due - 1e-6:
                continue
            due = (frame.seconds // frame_interval + 1) * frame_interval if frame_interval is not None else 0.0
            name = _free_name(f"{folder}/{round(1000 * frame.seconds):09d}", taken)
            taken.add(name)
            if not (work / "images" / name).is_file():
                with atomic_write(work / "images" / name, "wb") as file:
                    file.write(encode_jpeg(frame.pixels()))
            images.append(image_entry(work / "images" / name, name, folder, round(frame.seconds, 6)))
    return images


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return (H, W, 3) uint8 BGR pixels as a JPEG file."""
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def _free_name(stem: str, taken: set[str]) -> str:
    """Return an unused name of a frame: two frames of a video may have the same millisecond."""
    name, number = f"{stem}.jpg", 2
    while name in taken:
        name, number = f"{stem}-{number}.jpg", number + 1
    return name


def image_entry(path: Path, name: str, recording: str, seconds: float | None) -> Image:
    """Return the COCO entry of an image as stored. A broken image is kept, because drift counts it as a fault."""
    pixels = read_bgr(path)
    height, width = (1, 1) if pixels is None else (int(side) for side in pixels.shape[:2])
    recording = "" if recording == "." else recording
    camera = PurePosixPath(recording).parts[0] if recording else "camera"
    return {
        "file_name": name,
        "height": height,
        "width": width,
        "camera": camera,
        "recording": recording or camera,
        **({} if seconds is None else {"timestamp": seconds}),
    }


def set_origin(images: Sequence[Image], origin: Origin) -> None:
    """Enter camera, recording and time of a file in the COCO entries of its images."""
    for image in images:
        if origin.camera:
            image["camera"] = origin.camera
        if origin.recording or (origin.camera and "timestamp" not in image):
            image["recording"] = origin.recording or origin.camera
        if origin.number is not None and "timestamp" not in image:
            image["frame"] = origin.number
        if origin.seconds is not None:
            image["timestamp"] = round(origin.seconds + image.get("timestamp", 0.0), 6)
