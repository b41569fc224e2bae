"""What feeds a distillation: views of unlabelled frames with a teacher's soft answers, mixed with labelled frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from cahqp.data.base import DetectionData, Strength, TrainingSet
from cahqp.data.frames import open_frames
from cahqp.data.loaders import Loader
from cahqp.data.transforms import strong
from cahqp.detectors.model_file import describe
from cahqp.errors import ConfigError, check_numbers
from cahqp.structures import Preprocessing
from cahqp.training.distillation.records import Rest
from cahqp.training.distillation.store import SoftLabelStore
from cahqp.training.distillation.views import SoftBatch, SoftFrames, join, stored_frames


class DistillationData(DetectionData):
    """Views of frames with a teacher's soft answers, mixed with labelled source frames.

    The answers come from a `store` that `cahqp relabel --soft` wrote, and the teacher does not run; or, for `frames`
    without a store, from the teacher itself, which is asked in every step.

    Args:
        val: COCO files to select the best model on.
        store: Folder `soft` of a relabelling.
        frames: Instead of a store: folders of images, videos or COCO files, whose labels are not read.
        source: COCO files with labels that were checked.
        test: COCO files to measure the final model on.
        batch_size: Images in a batch of one device, labelled ones and views together.
        soft_share: Share of a batch that are views; 1 where no source is given.
        views: Views of each frame where there is no store.
        rest: What classes that the store left out are given: `smooth`, the mean of what they had; `drop`, zero.
        augmentation: How labelled frames are changed.
        batches_per_epoch: Batches in an epoch; as many as go once through the frames to distil on where not given.
        workers: Processes that load images; 0 loads in the training process.
        seed: Decides the order of the frames, and the views where there is no store.
        max_invalid_share: Share of broken images, 0..1, that is put up with; more stop the run.
        ignore_categories: Names of categories whose boxes are left out.
        later_block: Recordings may be both trained on and held out if the held-out frames come after all others.
        classes: Class names of the detector; the command line passes them.
        preprocessing: Size rule of the detector; the command line passes it.
        teacher: Model file of the teacher; the command line passes that of `StudentTraining`.
    """

    def __init__(
        self,
        val: Sequence[Path],
        store: Path | None = None,
        frames: Sequence[Path] = (),
        source: Sequence[Path] = (),
        test: Sequence[Path] = (),
        batch_size: int = 8,
        soft_share: float = 0.5,
        views: int = 4,
        rest: Rest = "smooth",
        augmentation: Strength = "strong",
        batches_per_epoch: int | None = None,
        workers: int = 0,
        seed: int = 0,
        max_invalid_share: float = 0.05,
        ignore_categories: Sequence[str] = (),
        later_block: bool = False,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        teacher: Path | None = None,
    ) -> None:
        super().__init__(
            val=val,
            test=test,
            batch_size=batch_size,
            batches_per_epoch=batches_per_epoch,
            workers=workers,
            seed=seed,
            max_invalid_share=max_invalid_share,
            ignore_categories=ignore_categories,
            later_block=later_block,
            classes=classes,
            preprocessing=preprocessing,
        )
        check_numbers(shares={"data.soft_share": soft_share}, counts={"data.views": views})
        if (store is None) == (not frames):
            message = "Give either data.store, a folder of soft labels, or data.frames for a teacher that is asked."
            raise ConfigError(message)
        self.store, self.frames, self.source, self.teacher = store, frames, source, teacher
        self.soft_share, self.views, self.rest = soft_share, views, rest
        self.augmentation: Strength = augmentation

    def training_sets(self) -> list[TrainingSet]:
        """Return the labelled source frames, if there are any, and the views."""
        sets = [self.to_train_on(self.source, self.augmentation)] if self.source else []
        return [*sets, cast("TrainingSet", self._views())]  # of which nothing is asked but length, place and health

    def _views(self) -> SoftFrames:
        seen = self.augmentation_of("strong")
        if self.store is not None:
            store = SoftLabelStore(self.store, self.rest)
            if self.teacher is not None:
                store.check_teacher(describe(self.teacher)["hash"])
            self._check_classes(store.key.classes, str(self.store))
            return SoftFrames(
                stored_frames(store), seen, views=store.key.views, max_invalid_share=self.max_invalid_share, store=store
            )
        if self.teacher is None:
            message = "Without data.store the teacher has to be asked: give its model file as --model.teacher."
            raise ConfigError(message)
        described = describe(self.teacher)
        self._check_classes(described["classes"], str(self.teacher))
        return SoftFrames(
            open_frames(self.frames),
            seen,
            views=self.views,
            seed=self.seed,
            max_invalid_share=self.max_invalid_share,
            asked=strong(Preprocessing(**described["preprocessing"])),
        )

    def _check_classes(self, found: Sequence[str], where: str) -> None:
        wanted = self.given_classes()
        if list(found) != list(wanted):
            message = (
                f"{where} answers for the classes {', '.join(found)}, the student has {', '.join(wanted)}. "
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
        _, world_size = self._place()
        frames = len(self._training[-1])
        batches = self.batches_per_epoch or max(1, frames // (views * world_size))
        sizes = [self.batch_size - views, views] if self.source else [views]
        orders = [self.order(len(part), size, batches) for part, size in zip(self._training, sizes, strict=True)]
        return self.training_loader(orders, _joined)


def _joined(parts: list[list[Any]]) -> SoftBatch:
    return join(parts[0] if len(parts) > 1 else [], parts[-1])
