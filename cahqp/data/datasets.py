"""Datasets of frames for training, adaptation and evaluation, indexed by keys of `cahqp.data.samplers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cahqp.coco.decoding import BrokenImageError, read_image
from cahqp.coco.reader import CocoFile, class_indices
from cahqp.data.images import Quarantine
from cahqp.data.samplers import Key
from cahqp.data.seeding import seed_of
from cahqp.data.sources import FrameSource, unique_ids
from cahqp.data.splits import Located
from cahqp.data.transforms import Augmentation, Image
from cahqp.frame import Frame
from cahqp.structures import Targets

Sample = tuple[Tensor, Targets, Frame]
"""(3, h, w) uint8 RGB image, its boxes in pixels of it, and its origin."""


class LabelledFrames(Dataset[Sample]):
    """Frames of several COCO files, with boxes labelled by a detector's classes.

    Args:
        files: The files; ids that occur in several become unique.
        classes: Class names of the detector.
        augmentation: Ends with the detector's size.
        seed: Seed of the augmentation, together with the pass and the name of the frame.
        max_invalid_share: Largest allowed share of broken images, 0..1.
        ignore_categories: Names of categories whose boxes are left out.
        count_ignored: Set the expected number of objects in an ignored region to its score; otherwise to 0.

    Attributes:
        augmentation: As given.

    Raises:
        DataError: A box has a category that is not a class of the detector.
    """

    def __init__(
        self,
        files: Sequence[CocoFile],
        classes: Sequence[str],
        augmentation: Augmentation,
        *,
        seed: int = 0,
        max_invalid_share: float = 0.05,
        ignore_categories: Sequence[str] = (),
        count_ignored: bool = False,
    ) -> None:
        self._count_ignored = count_ignored
        self.frames = unique_ids([frame for file in files for frame in file.frames])
        self.paths = [path for file in files for path in file.files]
        self._files = files
        self._classes = [class_indices(file, classes, ignore_categories) for file in files]
        self._starts = np.cumsum([0, *(len(file) for file in files)])
        self.augmentation = augmentation
        self._seed = seed
        self.quarantine = Quarantine([f.name for f in self.frames], max_invalid_share, self._read)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def __getitem__(self, key: Key) -> Sample:
        """Return a frame for training, or the next healthy one if its image is broken."""
        position, image = self.quarantine.healthy(key[1])
        return self._sample(position, image, key[0])

    @property
    def boxes(self) -> int:
        """Number of boxes of the detector's classes."""
        return sum(
            int(((file.table.categories == category) & ~file.table.crowd).sum())
            for file, classes in zip(self._files, self._classes, strict=True)
            for category, index in classes.items()
            if index >= 0
        )

    def located(self) -> list[Located]:
        """Return each frame with its image file."""
        return list(zip(self.frames, self.paths, strict=True))

    def exact(self, position: int) -> Sample | None:
        """Return the frame at a position for evaluation, `None` if its image is broken."""
        image = self.quarantine.read(position)
        return None if image is None else self._sample(position, image, 0)

    def targets(self, position: int) -> Targets:
        """Return the boxes of the frame at a position in pixels of its original image."""
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        annotations = self._files[number].annotations(position - int(self._starts[number]))
        labels = np.array([self._classes[number][c] for c in annotations.categories.tolist()], np.int64)
        targets = Targets(
            boxes=torch.from_numpy(annotations.boxes),
            labels=torch.from_numpy(labels),
            weights=torch.from_numpy(annotations.weights),
            ignore=torch.from_numpy(annotations.ignore),
            ignore_weights=torch.from_numpy(annotations.ignore_scores * np.float32(self._count_ignored)),
        )
        return targets[targets.labels >= 0]

    def _sample(self, position: int, image: Image, passes: int) -> Sample:
        frame = self.frames[position]
        seed = seed_of(self._seed, passes, frame.name)
        view, targets = self.augmentation(image, self.targets(position), seed)
        frame = replace(frame, view=self.augmentation.view(image.shape[0], image.shape[1], seed))
        return as_tensor(view), replace(targets, seed=seed), frame

    def _read(self, position: int) -> Image:
        return read_image(self.paths[position], self.frames[position].size)


class UnlabelledFrames(Dataset[tuple[Sample, Sample]]):
    """Frames in two views of the same geometry: a weak one to label and a strong one to train on.

    Args:
        source: The frames; it has no labels.
        augmentation: Makes the views.
        seed: Seed of the views, together with the pass and the name of the frame.
        max_invalid_share: Largest allowed share of broken images, 0..1.
    """

    def __init__(
        self, source: FrameSource, augmentation: Augmentation, *, seed: int = 0, max_invalid_share: float = 0.05
    ) -> None:
        self.source = source
        self.frames = source.frames
        self._augmentation = augmentation
        self._seed = seed
        self.quarantine = Quarantine([f.name for f in self.frames], max_invalid_share, source.read)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def __getitem__(self, key: Key) -> tuple[Sample, Sample]:
        """Return the weak and the strong view of a frame, or of the next healthy one if its image is broken."""
        position, image = self.quarantine.healthy(key[1])
        frame = replace(self.frames[position], size=image.shape[:2])
        seed = seed_of(self._seed, key[0], frame.name)
        frame = replace(frame, view=self._augmentation.view(*frame.size, seed))
        weak, strong, targets = self._augmentation.views(image, Targets.empty(), seed)
        targets = replace(targets, seed=seed)
        return (as_tensor(weak), targets, frame), (as_tensor(strong), targets, frame)

    def located(self) -> list[Located]:
        """Return each frame with its image file, if it has one."""
        return [(frame, self.source.path(position)) for position, frame in enumerate(self.frames)]

    def image(self, position: int) -> Image:
        """Return the image at a position as (H, W, 3) uint8 RGB, or the next healthy one if it is broken."""
        image: Image = self.quarantine.healthy(position)[1]
        return image

    def brightness(self) -> list[float]:
        """Return the mean luminance of every frame, 0..255; -1 for broken ones, which are marked."""
        return [self._brightness(position) for position in range(len(self))]

    def _brightness(self, position: int) -> float:
        try:
            return self.source.brightness(position)
        except BrokenImageError:
            self.quarantine.add(position)
            return -1.0


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    """Return (3, H, W) from an (H, W, 3) image."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
