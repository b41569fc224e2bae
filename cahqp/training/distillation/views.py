"""Views of frames to distil on: from a soft-label store, or made anew for a teacher that answers while training."""

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
    """Return what decides a view's crop, mirroring and colours.

    Args:
        seed: Of the store, or of the run.
        name: Of the frame in its input.
        view: Number of the view.
    """
    return seed_of(seed, "soft view", name, view)


@dataclass(frozen=True)
class SoftSample:
    """One view of one frame.

    Attributes:
        sample: What the student sees.
        probs: (N, C) what the teacher said of it, from the store; `None` where the teacher is to be asked.
        boxes: (N, 4) cxcywh in 0..1 of the view.
        asked: What the teacher is to see: the same view without its change of colours, in the teacher's size.
    """

    sample: Sample
    probs: Tensor | None = None
    boxes: Tensor | None = None
    asked: Tensor | None = None


@dataclass
class SoftBatch:
    """Labelled images, then views to distil on.

    Attributes:
        batch: All images as the student sees them; the views have no targets.
        views: How many of the last images are views.
        soft: The teacher's answers to the views, from a store.
        asked: The views as the teacher is to see them, where there is no store.
    """

    batch: Batch
    views: int
    soft: SoftTargets | None
    asked: Batch | None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.batch)

    def to(self, device: torch.device | str, **_: object) -> SoftBatch:
        """Return the same on another device."""
        return SoftBatch(
            self.batch.to(device),
            self.views,
            None if self.soft is None else self.soft.to(device),
            None if self.asked is None else self.asked.to(device),
        )


class SoftFrames(Dataset[SoftSample]):
    """The views of every frame in turn: the first time a frame comes its view 0, the next time view 1, and round again.

    Args:
        source: The frames; those of the store where there is one.
        augmentation: Ends with the student's size.
        views: Number of views of each frame.
        seed: Decides the views where there is no store.
        max_invalid_share: Share of broken images, 0..1, that is put up with.
        store: Holds the views and the answers.
        asked: Ends with the teacher's size, where the teacher is to be asked.
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
        asked: Augmentation | None = None,
    ) -> None:
        self.source, self.frames, self.views = source, source.frames, views
        self._augmentation, self._asked = augmentation, asked
        self._seed, self._store = seed, store
        self.quarantine = Quarantine([f.name for f in self.frames], max_invalid_share, source.read)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def __getitem__(self, key: Key) -> SoftSample:
        """Return the view whose turn it is; of the next healthy frame where the image is broken."""
        position, image = self.quarantine.healthy(key[1])
        number = key[0] % self.views
        frame = replace(self.frames[position], size=image.shape[:2])
        kept = None if self._store is None else self._store.read(position, number)
        seed = view_seed(self._seed, frame.name, number) if kept is None else kept.seed
        frame = replace(frame, view=self._augmentation.view(*frame.size, seed))
        if kept is not None and frame.view != kept.view:
            message = (
                f"{frame.name} is {frame.size[1]}x{frame.size[0]} pixels now, and its view in the store is another "
                "than the one that its seed makes. The image changed, or the store is of another version: make it anew."
            )
            raise DataError(message)
        targets = replace(Targets.empty(), seed=seed)
        seen = self._augmentation.views(image, targets, seed)[1]
        sample = (as_tensor(seen), targets, frame)
        if kept is not None:
            return SoftSample(sample, torch.from_numpy(kept.probs), torch.from_numpy(kept.boxes))
        if self._asked is None:
            return SoftSample(sample)
        return SoftSample(sample, asked=as_tensor(self._asked.views(image, targets, seed)[0]))

    def located(self) -> list[Located]:
        """Return each frame with its image file, where it has one."""
        return [(frame, self.source.path(position)) for position, frame in enumerate(self.frames)]


def stored_frames(store: SoftLabelStore) -> FrameSource:
    """Return the images of a store's frames."""
    return ImageFrames(store.root, store.frames)


def join(labelled: list[Sample], views: list[SoftSample]) -> SoftBatch:
    """Make a batch of labelled images and views."""
    batch = collate([*labelled, *(view.sample for view in views)])
    soft = asked = None
    probs = [view.probs for view in views if view.probs is not None]
    boxes = [view.boxes for view in views if view.boxes is not None]
    if probs:
        soft = SoftTargets(torch.stack(probs), torch.stack(boxes))
    visible = [(view.asked, *view.sample[1:]) for view in views if view.asked is not None]
    if visible:
        asked = collate(visible)
    return SoftBatch(batch, len(views), soft, asked)
