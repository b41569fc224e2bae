"""What a package reaches on labelled frames, on the runtime that will run it. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.edge.frames import EdgeFrame, read_frames
from cahqp.edge.runtime import Found, Runtime
from cahqp.errors import DataError
from cahqp.evaluation.ground_truth import ImagePredictions, Predictions


def answers(runtime: Runtime, path: Path) -> Predictions:
    """Return a package's answers for the frames of a COCO file; its labels are not read here.

    Raises:
        DataError: A frame cannot be decoded, or is not of the size that its boxes were drawn on.
    """
    images: dict[int, ImagePredictions] = {}
    for frames in batched(readable(str(path)), runtime.batch):
        for frame in frames:
            _check_size(path, frame)
        found = detect(runtime, frames)
        images |= {frame.id: ImagePredictions(*one) for frame, one in zip(frames, found, strict=True)}
    return Predictions(runtime.classes, images)


def _check_size(path: Path, frame: EdgeFrame) -> None:
    height, width = picture(frame).shape[:2]
    if frame.told is not None and frame.told != (height, width):
        message = (
            f"{frame.name} has {width} x {height} pixels, {path} says {frame.told[1]} x {frame.told[0]}: its boxes lie "
            "elsewhere. Give the frames that were labelled, or scale the boxes with them."
        )
        raise DataError(message)


def detect(runtime: Runtime, frames: Sequence[EdgeFrame]) -> list[Found]:
    """Return what a package finds on readable frames, no more than its batch."""
    images = [picture(frame) for frame in frames]
    prepared = [runtime.prepare(image, bgr=True) for image in images]
    return runtime.run(prepared, [(image.shape[0], image.shape[1]) for image in images])


def readable(source: str) -> Iterator[EdgeFrame]:
    """Yield the frames of a source.

    Raises:
        DataError: One of them cannot be decoded.
    """
    for frame in read_frames(source):
        picture(frame)
        yield frame


def picture(frame: EdgeFrame) -> NDArray[np.uint8]:
    """Return a frame's pixels.

    Raises:
        DataError: It cannot be decoded.
    """
    if frame.image is None:
        message = f"{frame.name} cannot be decoded. Restore it, or take it out of the frames."
        raise DataError(message)
    return frame.image


def batched(frames: Iterator[EdgeFrame], size: int) -> Iterator[list[EdgeFrame]]:
    """Yield lists of `size` frames; the last may be shorter."""
    batch: list[EdgeFrame] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def milliseconds(runtimes: Sequence[Runtime], seed: int = 0, rounds: int = 30) -> list[float]:
    """Return the median time of one run of each model, measured in turn so that a busy machine hits all alike.

    Args:
        runtimes: To be compared.
        seed: Of the noise that they look at.
        rounds: How often each is run.

    Raises:
        WeightsError: A model fails.
    """
    random = np.random.default_rng(seed)
    inputs = []
    for runtime in runtimes:
        rule = runtime.package.manifest["input"]
        small = random.integers(0, 256, (24, 32, 3)).astype(np.uint8)
        view = np.asarray(cv2.resize(small, (rule["width"], rule["height"])), np.float32) / np.float32(255)
        inputs.append(np.stack([view.transpose(2, 0, 1)] * runtime.batch))
    times: list[list[float]] = [[] for _ in runtimes]
    for _ in range(rounds + 2):
        for row, (runtime, images) in enumerate(zip(runtimes, inputs, strict=True)):
            start = time.perf_counter()
            runtime.answer(images)
            times[row].append(1000 * (time.perf_counter() - start))
    return [median(found[2:]) for found in times]  # the first two warm up
