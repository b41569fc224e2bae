"""Views of frames for distillation: from a soft-label store, or for a teacher that runs during training."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cahqp.data.datasets import Sample, as_tensor
from cahqp.data.images import Quarantine
from cahqp.data.samplers import Key
from cahqp.data.seeding import seed_of
from cahqp.data.sources import FrameSource, ImageFrames
from cahqp.data.splits import Located
from cahqp.data.transforms import Augmentation
from cahqp.errors import DataError
from cahqp.structures import Batch, Targets, collate
from cahqp.training.distillation.loss import SoftTargets
from cahqp.training.distillation.store import SoftLabelStore


def view_seed(seed: int, name: str, view: int) -> int:
    """Return the seed of the crop, flip and colours of a view.

    Args:
        seed: Seed of the store, or of the run.
        name: Name of the frame in the input.
        view: Number of the view.
    """
    return seed_of(seed, "soft view", name, view)


@dataclass(frozen=True)
class SoftSample:
    """One view of one frame.

    Attributes:
        sample: The view for the student.
        probs: (N, C) class probabilities from the store; `None` without a store.
        boxes: (N, 4) cxcywh in 0..1 of the view; `None` without a store.
        teacher_view: Without a store, the same view in its original colours and the teacher's size.
    """

    sample: Sample
    probs: Tensor | None = None
    boxes: Tensor | None = None
    teacher_view: Tensor | None = None


@dataclass
class SoftBatch:
    """Labelled images, followed by views for distillation.

    Attributes:
        batch: All images for the student; the views have no targets.
        views: Number of views at the end of the batch.
        soft: Soft labels of the views, from a store.
        teacher_views: Views for the teacher, without a store.
    """

    batch: Batch
    views: int
    soft: SoftTargets | None
    teacher_views: Batch | None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.batch)

    def to(self, device: torch.device | str, **_: object) -> SoftBatch:
        """Return the same on another device."""
        return SoftBatch(
            self.batch.to(device),
            self.views,
            None if self.soft is None else self.soft.to(device),
            None if self.teacher_views is None else self.teacher_views.to(device),
        )


class SoftFrames(Dataset[SoftSample]):
    """Views of every frame in turn: view 0 in the first epoch, then view 1; view 0 follows the last.

    Args:
        source: Frames; those of the store if there is one.
        augmentation: Augmentation that ends with the student's size.
        views: Number of views of each frame.
        seed: Seed of the views without a store.
        max_invalid_share: Largest share of broken images, 0..1; more of them raise an error.
        store: Store with the soft labels.
        teacher_augmentation: Augmentation that ends with the teacher's size, without a store.
    """

    def __init__(
        self,
        source: FrameSource,
        augmentation: Augmentation,
        *,
        views: int,
        seed: int = 0,
        max_invalid_share: float = 0.05,
        store: SoftLabelStore | None = None,
        teacher_augmentation: Augmentation | None = None,
    ) -> None:
        self.source, self.frames, self.views = source, source.frames, views
        self._augmentation, self._teacher_augmentation = augmentation, teacher_augmentation
        self._seed, self._store = seed, store
        self.quarantine = Quarantine([f.name for f in self.frames], max_invalid_share, source.read)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def __getitem__(self, key: Key) -> SoftSample:
        """Return the view of the epoch, of the next healthy frame if the image is broken."""
        position, image = self.quarantine.healthy(key[1])
        number = key[0] % self.views
        frame = replace(self.frames[position], size=image.shape[:2])
        kept = None if self._store is None else self._store.read(position, number)
        seed = view_seed(self._seed, frame.name, number) if kept is None else kept.seed
        frame = replace(frame, view=self._augmentation.view(*frame.size, seed))
        if kept is not None and frame.view != kept.view:
            message = (
                f"{frame.name} has {frame.size[1]}x{frame.size[0]} pixels, which do not give the view in the store. "
                "The image or the version of cahqp changed. Make the store again with `cahqp relabel --soft`."
            )
            raise DataError(message)
        targets = replace(Targets.empty(), seed=seed)
        sample = (as_tensor(self._augmentation.views(image, targets, seed)[1]), targets, frame)
        if kept is not None:
            return SoftSample(sample, torch.from_numpy(kept.probs), torch.from_numpy(kept.boxes))
        if self._teacher_augmentation is None:
            return SoftSample(sample)
        return SoftSample(sample, teacher_view=as_tensor(self._teacher_augmentation.views(image, targets, seed)[0]))

    def located(self) -> list[Located]:
        """Return each frame with its image file, `None` if it has none."""
        return [(frame, self.source.path(position)) for position, frame in enumerate(self.frames)]


def stored_frames(store: SoftLabelStore) -> FrameSource:
    """Return the images of a store's frames."""
    return ImageFrames(store.root, store.frames)


def join_soft_views(labelled: list[Sample], views: list[SoftSample]) -> SoftBatch:
    """Make a batch of labelled images and views."""
    batch = collate([*labelled, *(view.sample for view in views)])
    probs = [view.probs for view in views if view.probs is not None]
    boxes = [view.boxes for view in views if view.boxes is not None]
    soft = SoftTargets(torch.stack(probs), torch.stack(boxes)) if probs else None
    teacher = [(view.teacher_view, *view.sample[1:]) for view in views if view.teacher_view is not None]
    return SoftBatch(batch, len(views), soft, collate(teacher) if teacher else None)
