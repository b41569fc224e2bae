"""DataModule of distillation: views of unlabelled frames with soft labels, mixed with labelled frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from cahqp.data.base import DetectionData, TrainingSet
from cahqp.data.frames import open_frames
from cahqp.data.loaders import Loader
from cahqp.data.transforms import strong
from cahqp.detectors.model_file import read_metadata
from cahqp.errors import ConfigError, check_numbers
from cahqp.structures import Preprocessing
from cahqp.training.distillation.records import Rest
from cahqp.training.distillation.store import SoftLabelStore
from cahqp.training.distillation.views import SoftBatch, SoftFrames, join_soft_views, stored_frames


class DistillationData(DetectionData):
    """Views of frames with a teacher's soft labels, mixed with labelled source frames.

    Soft labels come from a `store` that `cahqp relabel --soft` wrote. For `frames` without a store, the teacher runs in
    every step.

    Args:
        val: COCO files to select the best model on.
        store: Folder `soft` of a relabelling.
        frames: Instead of a store: folders of images, videos or COCO files, whose labels are not read.
        source: COCO files with checked labels.
        soft_share: Share of a batch that are views; without `source` all are.
        views: Views of each frame if there is no store.
        rest: Probability of classes that the store left out: `smooth` takes their mean, `drop` takes zero.
        teacher: Model file of the teacher; the command line passes that of `StudentTraining`.
        **kwargs: Further options of `DetectionData`. `batch_size` counts labelled images and views together; by
            default an epoch is one pass over the frames to distil on.
    """

    def __init__(
        self,
        val: Sequence[Path],
        store: Path | None = None,
        frames: Sequence[Path] = (),
        source: Sequence[Path] = (),
        soft_share: float = 0.5,
        views: int = 4,
        rest: Rest = "smooth",
        teacher: Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(val=val, **kwargs)
        check_numbers(shares={"data.soft_share": soft_share}, counts={"data.views": views})
        if (store is None) == (not frames):
            message = "Give either data.store, a folder of soft labels, or data.frames for a teacher in every step."
            raise ConfigError(message)
        self.store, self.frames, self.source, self.teacher = store, frames, source, teacher
        self.soft_share, self.views, self.rest = soft_share, views, rest

    def training_sets(self) -> list[TrainingSet]:
        """Return the labelled source frames, if there are any, and the views."""
        sets = [self.with_boxes(self.source)] if self.source else []
        return [*sets, cast("TrainingSet", self._views())]  # only length, location and quarantine are used

    def _views(self) -> SoftFrames:
        augmentation = self.augmentation_of("strong")
        if self.store is not None:
            store = SoftLabelStore(self.store, self.rest)
            if self.teacher is not None:
                store.check_teacher(read_metadata(self.teacher)["hash"])
            self._check_classes(store.key.classes, str(self.store))
            return SoftFrames(
                stored_frames(store),
                augmentation,
                views=store.key.views,
                max_invalid_share=self.max_invalid_share,
                store=store,
            )
        if self.teacher is None:
            message = "Without data.store the teacher runs in every step: give its model file as --model.teacher."
            raise ConfigError(message)
        metadata = read_metadata(self.teacher)
        self._check_classes(metadata["classes"], str(self.teacher))
        return SoftFrames(
            open_frames(self.frames),
            augmentation,
            views=self.views,
            seed=self.seed,
            max_invalid_share=self.max_invalid_share,
            teacher_augmentation=strong(Preprocessing(**metadata["preprocessing"])),
        )

    def _check_classes(self, found: Sequence[str], where: str) -> None:
        classes = self.given_classes()
        if list(found) != list(classes):
            message = (
                f"{where} has the classes {', '.join(found)}, the student has {', '.join(classes)}. "
                "Distil from a teacher with the student's classes, in their order."
            )
            raise ConfigError(message)

    def train_dataloader(self) -> Loader:
        """Return batches of labelled frames and views, each a `SoftBatch`."""
        views = round(self.soft_share * self.batch_size) if self.source else self.batch_size
        if not 0 < views < self.batch_size + (not self.source):
            message = (
                f"data.soft_share {self.soft_share} of a batch of {self.batch_size} leaves no image of one kind. "
                "Choose another share or a larger batch_size; without data.source all are views."
            )
            raise ConfigError(message)
        _, world_size = self._ranks()
        frames = len(self._training[-1])
        batches = self.batches_per_epoch or max(1, frames // (views * world_size))
        sizes = [self.batch_size - views, views] if self.source else [views]
        return self.training_loader(self.orders(sizes, batches), _join_parts)


def _join_parts(parts: list[list[Any]]) -> SoftBatch:
    return join_soft_views(parts[0] if len(parts) > 1 else [], parts[-1])
