"""Detections on labelled frames, and latency, of a package on the runtime that will run it. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from cahqp.edge.capture import EdgeFrame, read_valid_frames
from cahqp.edge.runtime import Runtime
from cahqp.errors import DataError
from cahqp.evaluation.ground_truth import ImagePredictions, Predictions


def predict(runtime: Runtime, path: Path) -> Predictions:
    """Return a package's predictions for the frames of a COCO file. The annotations are not read.

    Raises:
        DataError: A frame cannot be decoded or does not have the size given in the file.
    """
    images: dict[int, ImagePredictions] = {}
    for frames in batched(read_valid_frames(str(path)), runtime.batch):
        for frame in frames:
            _check_size(path, frame)
        found = runtime.detect([frame.pixels() for frame in frames], bgr=True)
        images |= {frame.id: ImagePredictions(*one) for frame, one in zip(frames, found, strict=True)}
    return Predictions(runtime.classes, images)


def _check_size(path: Path, frame: EdgeFrame) -> None:
    height, width = frame.pixels().shape[:2]
    if frame.labelled_size is not None and frame.labelled_size != (height, width):
        message = (
            f"{frame.name} has {width} x {height} pixels, but {path} contains {frame.labelled_size[1]} x "
            f"{frame.labelled_size[0]}, so its boxes do not fit. Give the labelled frames, or scale the boxes too."
        )
        raise DataError(message)


def batched(frames: Iterator[EdgeFrame], size: int) -> Iterator[list[EdgeFrame]]:
    """Return an iterator of lists of `size` frames. The last list may be shorter."""
    return iter(lambda: list(islice(frames, size)), [])


def measure_milliseconds(runtimes: Sequence[Runtime], seed: int = 0, rounds: int = 30) -> list[float]:
    """Return the median time of one run of each model. The models run in turn, so a busy machine slows all alike.

    Args:
        runtimes: Packages to compare.
        seed: Seed of the noise image.
        rounds: Number of runs of each model.

    Raises:
        WeightsError: Inference fails.
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
            runtime.infer(images)
            times[row].append(1000 * (time.perf_counter() - start))
    return [median(found[2:]) for found in times]  # the first two warm up
