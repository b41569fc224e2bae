"""`cahqp relabel --soft`: soft labels of several views of every frame, written to a store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cahqp.coco.decoding import BrokenImageError
from cahqp.data.datasets import as_tensor
from cahqp.data.sources import FrameSource
from cahqp.data.transforms import strong
from cahqp.detectors.base import Detector
from cahqp.frame import View
from cahqp.inference.frames import fixed_batches
from cahqp.relabelling.options import RelabelOptions, SoftStoreSettings
from cahqp.relabelling.output_names import OutputNames
from cahqp.structures import Batch, Targets, collate
from cahqp.training.distillation.loss import soft_targets
from cahqp.training.distillation.records import RecordLayout, SoftView
from cahqp.training.distillation.store import SoftLabelWriter, StoreKey
from cahqp.training.distillation.views import view_seed


@dataclass
class SoftViewBatch:
    """One view of each of several frames.

    Attributes:
        batch: Views for the teacher; `None` if all images are broken.
        positions: Position of each frame in the input.
        number: Number of the view.
        seeds: Seed of each view.
        windows: Part of the original image in each view.
    """

    batch: Batch | None
    positions: list[int]
    number: int
    seeds: list[int]
    windows: list[View]

    def to(self, device: torch.device | str, **_: object) -> SoftViewBatch:
        """Return the same on another device."""
        return replace(self, batch=None if self.batch is None else self.batch.to(device))


class TeacherViews(Dataset[list[SoftViewBatch]]):
    """Batches of frames in all their views. An image is decoded once for all of its views.

    Args:
        source: Frames of the input.
        detector: The teacher.
        batches: Positions of the frames of each batch.
        views: Number of views.
        seed: Seed of the views.
    """

    def __init__(
        self, source: FrameSource, detector: Detector, batches: list[list[int]], views: int, seed: int
    ) -> None:
        self._source, self._batches, self._views, self._seed = source, batches, views, seed
        self._augmentation = strong(detector.preprocessing)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __getitem__(self, number: int) -> list[SoftViewBatch]:
        """Return the views of the healthy frames of a batch; labelling has reported broken ones before."""
        images: dict[int, Any] = {}
        for position in self._batches[number]:
            try:
                images[position] = self._source.read(position)
            except BrokenImageError:
                continue
        return [self._view(images, view) for view in range(self._views)]

    def _view(self, images: dict[int, Any], number: int) -> SoftViewBatch:
        samples, seeds, windows = [], [], []
        for position, image in images.items():
            frame = self._source.frames[position]
            seed = view_seed(self._seed, frame.name, number)
            view = self._augmentation.views(image, Targets.empty(), seed)[0]
            samples.append((as_tensor(view), Targets.empty(), frame))
            seeds.append(seed)
            windows.append(self._augmentation.view(image.shape[0], image.shape[1], seed))
        return SoftViewBatch(collate(samples) if samples else None, list(images), number, seeds, windows)


class SoftTeacher(LightningModule):
    """Teacher that fills a store.

    Args:
        detector: The teacher.
        writer: Writer of the store.
    """

    def __init__(self, detector: Detector, writer: SoftLabelWriter) -> None:
        super().__init__()
        self.detector = detector.eval()
        self.writer = writer

    def predict_step(self, batch: list[SoftViewBatch], batch_idx: int) -> None:
        """Write the soft labels of each view."""
        for views in batch:
            if views.batch is None:
                continue
            soft = soft_targets(self.detector, views.batch)
            probs, boxes = soft.probs.cpu().numpy(), soft.boxes.cpu().numpy()
            for row, position in enumerate(views.positions):
                view = SoftView(views.windows[row], views.seeds[row], probs[row], boxes[row])
                self.writer.write(position, views.number, view)


class _Loader:
    """Batches in order. It is not a `DataLoader`, because Lightning would replace the sampler of one."""

    def __init__(self, views: TeacherViews, workers: int) -> None:
        self._loader: DataLoader[list[SoftViewBatch]] = DataLoader(views, batch_size=None, num_workers=workers)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[SoftViewBatch]]:
        return iter(self._loader)


def store_key(detector: Detector, settings: SoftStoreSettings, seed: int) -> StoreKey:
    """Return the conditions of a teacher's soft labels."""
    classes, queries = len(detector.classes), int(getattr(detector, "queries", detector.max_detections))
    kept = classes if settings.classes is None else min(settings.classes, classes)
    stored = queries if settings.queries is None else min(settings.queries, queries)
    return StoreKey(
        teacher=detector.provenance["hash"],
        prompt=prompt_hash(detector),
        classes=detector.classes,
        views=settings.views,
        seed=seed,
        augmentation="strong",
        layout=RecordLayout(stored, kept, classes, settings.precision),
    )


def prompt_hash(detector: Detector) -> str | None:
    """Return the SHA-256 of a teacher's prompt weights, sorted by name; `None` without prompts."""
    if detector.prompt is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(detector.prompt.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return digest.hexdigest()


def write_store(trainer: Trainer, detector: Detector, names: OutputNames, work: Path, options: RelabelOptions) -> int:
    """Write a soft-label store into the folder `soft` of a run directory, and return its number of frames.

    Args:
        trainer: Trainer with one device.
        detector: Teacher that was loaded from a model file.
        names: Frames of the input, with the file names of their images.
        work: Directory of the run. The store of an interrupted run is completed.
        options: Options of the command.
    """
    source, folder = names.source, work / "soft"
    root = Path(os.path.relpath(names.image_folder(work).resolve(), folder.resolve())).as_posix()
    frames = [names.rename(position, frame) for position, frame in enumerate(source.frames)]
    writer = SoftLabelWriter(folder, store_key(detector, options.soft_store, options.seed), root, frames)
    done: NDArray[np.bool_] = np.asarray(writer.done().all(1))
    batches = fixed_batches(len(source), options.batch_size)
    remaining = [batch for batch in batches if not done[batch].all()]
    views = TeacherViews(source, detector, remaining, options.soft_store.views, options.seed)
    loader = _Loader(views, options.workers)
    trainer.predict(SoftTeacher(detector, writer), dataloaders=loader, return_predictions=False)
    return writer.finish()
