"""`cahqp relabel --soft`: ask a teacher once for its soft answers to M views of every frame."""

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

from cahqp.data.datasets import as_tensor
from cahqp.data.images import BrokenImageError
from cahqp.data.sources import FrameSource
from cahqp.data.transforms import strong
from cahqp.detectors.base import Detector
from cahqp.frame import View
from cahqp.inference.frames import fixed_batches
from cahqp.relabel.options import RelabelOptions, SoftStoreSettings
from cahqp.relabel.output_names import OutputNames
from cahqp.structures import Batch, Targets, collate
from cahqp.training.distillation.loss import SoftTargets, answers
from cahqp.training.distillation.records import RecordLayout, SoftView
from cahqp.training.distillation.store import SoftLabelWriter, StoreKey
from cahqp.training.distillation.views import view_seed


@dataclass
class ViewBatch:
    """One view of each of several frames.

    Attributes:
        batch: As the teacher sees them; `None` where all images are broken.
        positions: Place of each frame in the input.
        number: Number of the view.
        seeds: Of each view.
        visible: What each view shows.
    """

    batch: Batch | None
    positions: list[int]
    number: int
    seeds: list[int]
    visible: list[View]

    def to(self, device: torch.device | str, **_: object) -> ViewBatch:
        """Return the same on another device."""
        return replace(self, batch=None if self.batch is None else self.batch.to(device))


class ViewsToAsk(Dataset[list[ViewBatch]]):
    """Batches of frames, each in all its views: an image is decoded once for all of them.

    Args:
        source: The frames.
        detector: The teacher, whose size the views have.
        batches: Positions of each batch's frames.
        views: Number of views.
        seed: Decides the views.
    """

    def __init__(
        self, source: FrameSource, detector: Detector, batches: list[list[int]], views: int, seed: int
    ) -> None:
        self._source, self._batches, self._views, self._seed = source, batches, views, seed
        self._augmentation = strong(detector.preprocessing)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __getitem__(self, number: int) -> list[ViewBatch]:
        """Return the views of a batch's healthy frames; what is broken is known from the labelling before."""
        images: dict[int, Any] = {}
        for position in self._batches[number]:
            try:
                images[position] = self._source.read(position)
            except BrokenImageError:
                continue
        return [self._view(images, view) for view in range(self._views)]

    def _view(self, images: dict[int, Any], number: int) -> ViewBatch:
        samples, seeds, visible = [], [], []
        for position, image in images.items():
            frame = self._source.frames[position]
            seed = view_seed(self._seed, frame.name, number)
            seen = self._augmentation.views(image, Targets.empty(), seed)[0]
            samples.append((as_tensor(seen), Targets.empty(), frame))
            seeds.append(seed)
            visible.append(self._augmentation.view(image.shape[0], image.shape[1], seed))
        return ViewBatch(collate(samples) if samples else None, list(images), number, seeds, visible)


class SoftAnswers(LightningModule):
    """A teacher that fills a store.

    Args:
        detector: The teacher.
        writer: Of the store.
    """

    def __init__(self, detector: Detector, writer: SoftLabelWriter) -> None:
        super().__init__()
        self.detector = detector.eval()
        self.writer = writer

    def predict_step(self, batch: list[ViewBatch], batch_idx: int) -> None:
        """Ask for each view, and write the answers."""
        for views in batch:
            if views.batch is None:
                continue
            images = self.detector.preprocessing.normalise(views.batch.images, views.batch.padding_mask)
            soft = answers(self.detector(images, views.batch.padding_mask))
            record(self.writer, soft, views)


class _Loader:
    """Batches in order. No `DataLoader` itself: Lightning would put a sampler of its own around ours."""

    def __init__(self, views: ViewsToAsk, workers: int) -> None:
        self._loader: DataLoader[list[ViewBatch]] = DataLoader(views, batch_size=None, num_workers=workers)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[ViewBatch]]:
        return iter(self._loader)


def record(writer: SoftLabelWriter, soft: SoftTargets, views: ViewBatch) -> None:
    """Write a teacher's answers to a batch of views."""
    probs, boxes = soft.probs.cpu().numpy(), soft.boxes.cpu().numpy()
    for row, position in enumerate(views.positions):
        writer.write(position, views.number, SoftView(views.visible[row], views.seeds[row], probs[row], boxes[row]))


def store_key(detector: Detector, settings: SoftStoreSettings, seed: int) -> StoreKey:
    """Return what a teacher's answers depend on."""
    classes, queries = len(detector.classes), int(getattr(detector, "queries", detector.max_detections))
    kept = classes if settings.classes is None else min(settings.classes, classes)
    asked = queries if settings.queries is None else min(settings.queries, queries)
    return StoreKey(
        teacher=detector.provenance["hash"],
        prompt=prompt_hash(detector),
        classes=detector.classes,
        views=settings.views,
        seed=seed,
        augmentation="strong",
        layout=RecordLayout(asked, kept, classes, settings.precision),
    )


def prompt_hash(detector: Detector) -> str | None:
    """Return the SHA-256 of a teacher's prompt weights, sorted by name; `None` where it has none."""
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
    views = ViewsToAsk(source, detector, remaining, options.soft_store.views, options.seed)
    loader = _Loader(views, options.workers)
    trainer.predict(SoftAnswers(detector, writer), dataloaders=loader, return_predictions=False)
    return writer.finish()
