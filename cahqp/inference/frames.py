"""Detectors over frames: batches of fixed composition, and what is measured on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cahqp.data.datasets import as_tensor
from cahqp.data.images import BrokenImageError, Quarantine
from cahqp.data.sources import FrameSource
from cahqp.data.transforms import plain
from cahqp.detectors.base import Detector, Output
from cahqp.evaluation.ground_truth import GroundTruth, GroundTruthImage, ImagePredictions, Predictions
from cahqp.evaluation.metrics import average_precision, best_f1
from cahqp.frame import Frame
from cahqp.structures import Batch, Detections, Preprocessing, Targets, collate


@dataclass
class FrameBatch:
    """Consecutive frames of an input, broken ones left out.

    Attributes:
        batch: The images; `None` where all were broken.
        positions: Place of each image in the input.
    """

    batch: Batch | None
    positions: list[int]

    def to(self, device: torch.device | str, **_: object) -> FrameBatch:
        """Return the same on another device."""
        return replace(self, batch=None if self.batch is None else self.batch.to(device))


class FrameSet(Dataset[tuple[int, torch.Tensor, Frame] | None]):
    """Frames as a detector wants them, without labels.

    Args:
        source: The frames.
        preprocessing: The detector's.
        max_invalid_share: Share of broken images, 0..1, that is put up with.
    """

    def __init__(self, source: FrameSource, preprocessing: Preprocessing, max_invalid_share: float = 0.05) -> None:
        self.source = source
        self._resize = plain(preprocessing)
        names = [frame.name for frame in source.frames]
        self.quarantine = Quarantine(names, max_invalid_share, self._reason)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.source)

    def __getitem__(self, position: int) -> tuple[int, torch.Tensor, Frame] | None:
        """Return position, (3, h, w) uint8 image and frame; `None` where the image is broken."""
        try:
            image = self.source.read(position)
        except BrokenImageError:
            self.quarantine.add(position)
            return None
        frame = replace(self.source.frames[position], size=(image.shape[0], image.shape[1]))
        return position, as_tensor(self._resize(image, Targets.empty(), 0)[0]), frame

    def _reason(self, position: int) -> str:
        try:
            self.source.read(position)
        except BrokenImageError as error:
            return str(error)
        return "was unreadable when it was labelled"


class FrameLoader:
    """Batches of positions. No `DataLoader` itself: Lightning would put a sampler that keeps every batch around ours.

    Args:
        frames: The frames.
        batches: Positions of each batch. Which frames share a batch decides the last digits of a result, so callers
            cut the input into the same batches however much of it is left to do.
        workers: Processes that load images; 0 loads in this one.
        collate_fn: Puts what `frames` gives together; plain frames where not given.
    """

    def __init__(
        self,
        frames: FrameSet,
        batches: Sequence[Sequence[int]],
        workers: int = 0,
        collate_fn: Callable[[list[Any]], FrameBatch] | None = None,
    ) -> None:
        self._loader: DataLoader[FrameBatch] = DataLoader(
            frames,  # type: ignore[arg-type]
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=collate_fn or _collate,
            num_workers=workers,
        )

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[FrameBatch]:
        """Go through the batches."""
        return iter(self._loader)


def _collate(samples: list[tuple[int, torch.Tensor, Frame] | None]) -> FrameBatch:
    healthy = [sample for sample in samples if sample is not None]
    images = [(image, Targets.empty(), frame) for _, image, frame in healthy]
    return FrameBatch(collate(images) if images else None, [position for position, _, _ in healthy])


def fixed_batches(count: int, batch_size: int) -> list[list[int]]:
    """Return positions 0..count cut into batches of `batch_size`; the last may be shorter."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]


@torch.no_grad()
def detect(detector: Detector, batch: Batch) -> list[Detections]:
    """Return detections in pixels of the original images.

    Args:
        detector: In eval mode.
        batch: Its frames say the sizes of the originals.
    """
    images = detector.preprocessing.normalise(batch.images, batch.padding_mask)
    output: Output = detector(images, batch.padding_mask)
    return detector.decode(output, torch.tensor([frame.size for frame in batch.frames], device=images.device))


def as_arrays(detections: Detections) -> ImagePredictions:
    """Return the same as NumPy arrays."""
    return ImagePredictions(*(x.cpu().numpy() for x in (detections.boxes, detections.scores, detections.labels)))


@dataclass(frozen=True)
class Measured:
    """What a detector reaches on labelled frames.

    Attributes:
        ap50: Average precision at IoU 0.5; `None` where there was nothing to find.
        map: Average precision over IoU 0.5 to 0.95.
        thresholds: Score of the best F1 by class; 0.5 for a class without a hit.
    """

    ap50: float | None
    map: float | None
    thresholds: dict[str, float]


@torch.no_grad()
def measure(detector: Detector, batches: Iterable[Batch]) -> Measured:
    """Measure a detector on labelled batches, in their pixels.

    Args:
        detector: In eval mode.
        batches: With targets.
    """
    device = next(detector.parameters()).device
    images: list[GroundTruthImage] = []
    answers: dict[int, ImagePredictions] = {}
    for batch in batches:
        on_device = batch.to(device)
        pixels = detector.preprocessing.normalise(on_device.images, on_device.padding_mask)
        output: Output = detector(pixels, on_device.padding_mask)
        found = detector.decode(output, output.sizes)
        for frame, targets, detections in zip(batch.frames, batch.targets, found, strict=True):
            number = len(images)
            images.append(_ground_truth(number, frame, targets, len(detector.classes)))
            answers[number] = as_arrays(detections)
    ground_truth = GroundTruth(detector.classes, tuple(images))
    metrics = average_precision(ground_truth, Predictions(detector.classes, answers))
    points = best_f1(metrics.matches)
    thresholds = {name: points[name].threshold if name in points else 0.5 for name in detector.classes}
    return Measured(metrics.ap50, metrics.map, {name: round(value, 4) for name, value in thresholds.items()})


def _ground_truth(number: int, frame: Frame, targets: Targets, classes: int) -> GroundTruthImage:
    """Return what is there; a region to ignore is one for every class, as in training."""
    regions = targets.ignore.repeat(classes, 1)
    boxes = torch.cat([targets.boxes, regions]).double().cpu().numpy()
    of_regions = np.repeat(np.arange(classes), len(targets.ignore))
    labels = np.concatenate([targets.labels.cpu().numpy(), of_regions])
    ignore = np.arange(len(boxes)) >= len(targets)
    return GroundTruthImage(number, frame.name, frame.recording, frame.index, boxes, labels, ignore)
