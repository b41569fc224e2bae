"""Sets of frames that a loader asks by key, for training, for adaptation and for measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cahqp.coco.reader import CocoFile, class_indices
from cahqp.data.images import BrokenImageError, Quarantine, read_image
from cahqp.data.samplers import Key
from cahqp.data.seeding import seed_of
from cahqp.data.sources import FrameSource, unique_ids
from cahqp.data.splits import Located
from cahqp.data.transforms import Augmentation, Image
from cahqp.frame import Frame
from cahqp.structures import Targets

Sample = tuple[Tensor, Targets, Frame]


class LabelledFrames(Dataset[Sample]):
    """The frames of several COCO files with their boxes as a detector's classes.

    Args:
        files: The files; ids are made unique across them where they collide.
        classes: The detector's class names.
        augmentation: Ends with the detector's size.
        seed: Decides everything random, with the pass and the name of the frame.
        max_invalid_share: Share of broken images, 0..1, that is put up with.
        ignore_categories: Names of categories whose boxes are left out.

    Attributes:
        augmentation: As given.

    Raises:
        DataError: A box has a category that the detector does not know.
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
    ) -> None:
        self.frames = unique_ids([frame for file in files for frame in file.frames])
        self.paths = [path for file in files for path in file.files]
        self._files = files
        self._classes = [class_indices(file, classes, ignore_categories) for file in files]
        self._starts = np.cumsum([0, *(len(file) for file in files)])
        self.augmentation = augmentation
        self._seed = seed
        self.quarantine = Quarantine([f.name for f in self.frames], max_invalid_share, self._reason)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def __getitem__(self, key: Key) -> Sample:
        """Return a frame as it is trained on; the next healthy one where its image is broken."""
        position, image = self.quarantine.healthy(key[1], self._read)
        return self._sample(position, image, key[0])

    @property
    def boxes(self) -> int:
        """Number of boxes of the detector's classes."""
        return sum(
            int((file.table.categories == category).sum() - file.table.crowd[file.table.categories == category].sum())
            for file, classes in zip(self._files, self._classes, strict=True)
            for category, index in classes.items()
            if index >= 0
        )

    def located(self) -> list[Located]:
        """Return each frame with its image file."""
        return list(zip(self.frames, self.paths, strict=True))

    def exact(self, position: int) -> Sample | None:
        """Return the frame at a position as it is measured on; `None` where its image is broken."""
        try:
            return self._sample(position, self._read(position), 0)
        except BrokenImageError:
            self.quarantine.add(position)
            return None

    def targets(self, position: int) -> Targets:
        """Return the boxes of the frame at a position in pixels of its original image."""
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        found = self._files[number].annotations(position - int(self._starts[number]))
        labels = np.array([self._classes[number][c] for c in found.categories.tolist()], np.int64)
        targets = Targets(
            boxes=torch.from_numpy(found.boxes),
            labels=torch.from_numpy(labels),
            weights=torch.from_numpy(found.weights),
            ignore=torch.from_numpy(found.ignore),
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

    def _reason(self, position: int) -> str:
        return _reason(self._read, position)


class UnlabelledFrames(Dataset[tuple[Sample, Sample]]):
    """Frames of any source in two views of one geometry: a weak one to label and a strong one to learn from.

    Args:
        source: The frames; it hands out no labels.
        augmentation: Makes the views.
        seed: Decides everything random, with the pass and the name of the frame.
        max_invalid_share: Share of broken images, 0..1, that is put up with.
    """

    def __init__(
        self, source: FrameSource, augmentation: Augmentation, *, seed: int = 0, max_invalid_share: float = 0.05
    ) -> None:
        self.source = source
        self.frames = source.frames
        self._augmentation = augmentation
        self._seed = seed
        self.quarantine = Quarantine([f.name for f in self.frames], max_invalid_share, self._reason)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def __getitem__(self, key: Key) -> tuple[Sample, Sample]:
        """Return the weak and the strong view of a frame; of the next healthy one where its image is broken."""
        position, image = self.quarantine.healthy(key[1], self.source.read)
        frame = replace(self.frames[position], size=image.shape[:2])
        seed = seed_of(self._seed, key[0], frame.name)
        frame = replace(frame, view=self._augmentation.view(*frame.size, seed))
        weak, strong, targets = self._augmentation.views(image, Targets.empty(), seed)
        targets = replace(targets, seed=seed)
        return (as_tensor(weak), targets, frame), (as_tensor(strong), targets, frame)

    def located(self) -> list[Located]:
        """Return each frame with its image file, where it has one."""
        return [(frame, self.source.path(position)) for position, frame in enumerate(self.frames)]

    def look(self, position: int) -> Image:
        """Return the image at a position as (H, W, 3) uint8 RGB; the next healthy one where it is broken."""
        return self.quarantine.healthy(position, self.source.read)[1]

    def brightness(self) -> list[float]:
        """Return the mean luminance of every frame, 0..255; -1 for broken ones, which are marked."""
        return [self._brightness(position) for position in range(len(self))]

    def _brightness(self, position: int) -> float:
        try:
            return self.source.brightness(position)
        except BrokenImageError:
            self.quarantine.add(position)
            return -1.0

    def _reason(self, position: int) -> str:
        return _reason(self.source.read, position)


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    """Return (3, H, W) from an (H, W, 3) image."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _reason(read: Callable[[int], Image], position: int) -> str:
    try:
        read(position)
    except BrokenImageError as error:
        return str(error)
    return "could not be decoded at first, and could when it was tried again"
