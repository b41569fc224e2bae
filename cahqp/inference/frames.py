"""Detectors over frames: batches of fixed composition, detection, and accuracy on labelled batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cahqp.data.datasets import as_tensor
from cahqp.data.images import Quarantine
from cahqp.data.shared_memory import check_shared_memory
from cahqp.data.sources import FrameSource
from cahqp.data.transforms import plain
from cahqp.detectors.base import Detector, Output
from cahqp.evaluation.ground_truth import GroundTruth, GroundTruthImage, ImagePredictions, Predictions
from cahqp.evaluation.metrics import average_precision, best_f1
from cahqp.frame import Frame
from cahqp.structures import Batch, Detections, Preprocessing, Targets, collate


@dataclass
class FrameBatch:
    """Consecutive frames of an input, without unreadable ones.

    Attributes:
        batch: The images; `None` if all are unreadable.
        positions: Position of each image in the input.
    """

    batch: Batch | None
    positions: list[int]

    def to(self, device: torch.device | str, **_: object) -> FrameBatch:
        """Return the batch on another device."""
        return replace(self, batch=None if self.batch is None else self.batch.to(device))


class FrameSet(Dataset[tuple[int, torch.Tensor, Frame] | None]):
    """Frames resized for a detector, without labels.

    Args:
        source: The frames.
        preprocessing: Preprocessing of the detector.
        max_invalid_share: Largest accepted share of unreadable images, 0..1.
    """

    def __init__(self, source: FrameSource, preprocessing: Preprocessing, max_invalid_share: float = 0.05) -> None:
        self.source = source
        self._resize = plain(preprocessing)
        names = [frame.name for frame in source.frames]
        self.quarantine = Quarantine(names, max_invalid_share, source.read)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int) -> tuple[int, torch.Tensor, Frame] | None:
        """Return position, (3, h, w) uint8 image and frame; `None` if the image is unreadable."""
        image = self.quarantine.read(position)
        if image is None:
            return None
        frame = replace(self.source.frames[position], size=(image.shape[0], image.shape[1]))
        return position, as_tensor(self._resize(image, Targets.empty(), 0)[0]), frame


class FrameLoader:
    """Loader of fixed batches. Not a `DataLoader` subclass: Lightning would wrap its sampler in one that keeps batches.

    Args:
        frames: The frames.
        batches: Positions of each batch. The composition of a batch affects the last digits of a result, so a resumed
            run must form the same batches as an uninterrupted one.
        workers: Number of processes that load images; 0 loads in this process.
        collate_fn: Function that joins samples of `frames` into a batch. Default: for samples of `FrameSet`.
    """

    def __init__(
        self,
        frames: FrameSet,
        batches: Sequence[Sequence[int]],
        workers: int = 0,
        collate_fn: Callable[[list[Any]], FrameBatch] | None = None,
    ) -> None:
        check_shared_memory(workers)
        self._loader: DataLoader[FrameBatch] = DataLoader(
            frames,  # type: ignore[arg-type]
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=collate_fn or _collate,
            num_workers=workers,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[FrameBatch]:
        return iter(self._loader)


def _collate(samples: list[tuple[int, torch.Tensor, Frame] | None]) -> FrameBatch:
    readable = [sample for sample in samples if sample is not None]
    images = [(image, Targets.empty(), frame) for _, image, frame in readable]
    return FrameBatch(collate(images) if images else None, [position for position, _, _ in readable])


def fixed_batches(count: int, batch_size: int) -> list[list[int]]:
    """Return the positions 0..count - 1 in batches of `batch_size`; the last batch may be shorter."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]


@torch.no_grad()
def detect(detector: Detector, batch: Batch) -> list[Detections]:
    """Return detections in pixels of the original images.

    Args:
        detector: The detector in eval mode.
        batch: Images, with the original sizes in its frames.
    """
    images = detector.preprocessing.normalise(batch.images, batch.padding_mask)
    sizes = torch.tensor([frame.size for frame in batch.frames], device=images.device)
    return detector.decode(detector(images, batch.padding_mask), sizes)


def as_arrays(detections: Detections) -> ImagePredictions:
    """Return detections as NumPy arrays."""
    return ImagePredictions(*(x.cpu().numpy() for x in (detections.boxes, detections.scores, detections.labels)))


@dataclass(frozen=True)
class DetectorMetrics:
    """Accuracy of a detector on labelled frames.

    Attributes:
        ap50: Average precision at IoU 0.5; `None` without objects.
        map: Average precision over IoU 0.5 to 0.95; `None` without objects.
        thresholds: Score of the best F1 by class; 0.5 for a class without a true positive.
    """

    ap50: float | None
    map: float | None
    thresholds: dict[str, float]


@torch.no_grad()
def measure_detector(detector: Detector, batches: Iterable[Batch]) -> DetectorMetrics:
    """Measure a detector on labelled batches, in pixels of the batch images.

    Args:
        detector: The detector in eval mode.
        batches: Batches with targets.
    """
    device = next(detector.parameters()).device
    images: list[GroundTruthImage] = []
    predictions: dict[int, ImagePredictions] = {}
    for batch in batches:
        on_device = batch.to(device)
        pixels = detector.preprocessing.normalise(on_device.images, on_device.padding_mask)
        output: Output = detector(pixels, on_device.padding_mask)
        decoded = detector.decode(output, output.sizes)
        for frame, targets, detections in zip(batch.frames, batch.targets, decoded, strict=True):
            number = len(images)
            images.append(_ground_truth(number, frame, targets, len(detector.classes)))
            predictions[number] = as_arrays(detections)
    ground_truth = GroundTruth(detector.classes, tuple(images))
    metrics = average_precision(ground_truth, Predictions(detector.classes, predictions))
    points = best_f1(metrics.matches)
    thresholds = {name: round(points[name].threshold, 4) if name in points else 0.5 for name in detector.classes}
    return DetectorMetrics(metrics.ap50, metrics.map, thresholds)


def _ground_truth(number: int, frame: Frame, targets: Targets, classes: int) -> GroundTruthImage:
    """Return the ground truth of an image. An ignored region counts for every class, as in training."""
    regions = targets.ignore.repeat(classes, 1)
    boxes = torch.cat([targets.boxes, regions]).double().cpu().numpy()
    region_labels = np.repeat(np.arange(classes), len(targets.ignore))
    labels = np.concatenate([targets.labels.cpu().numpy(), region_labels])
    ignore = np.arange(len(boxes)) >= len(targets)
    return GroundTruthImage(number, frame.name, frame.recording, frame.index, boxes, labels, ignore)
