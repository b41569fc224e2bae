"""LightningDataModules for training. The command line links the model's classes and size rule to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from cahqp.data.base import DetectionData, Strength, TrainingSet
from cahqp.data.datasets import Sample, UnlabelledFrames, as_tensor
from cahqp.data.frames import open_frames
from cahqp.data.images import BrokenImageError
from cahqp.data.loaders import Loader
from cahqp.data.transforms import Restyle
from cahqp.errors import ConfigError
from cahqp.structures import Batch, Preprocessing, Targets, collate


class LabelledData(DetectionData):
    """Labelled frames to train a detector on.

    Args:
        train: COCO files to train on.
        val: COCO files to select the best model on.
        test: COCO files to measure the final model on.
        batch_size: Frames in a batch of one device.
        augmentation: How training frames are changed.
        batches_per_epoch: Batches in an epoch; as many as the frames fill where not given.
        workers: Processes that load images; 0 loads in the training process.
        seed: Decides the order of the frames and their augmentation.
        max_invalid_share: Share of broken images, 0..1, that is put up with; more stop the run.
        ignore_categories: Names of categories whose boxes are left out.
        later_block: Recordings may be both trained on and held out if the held-out frames come after all others.
        classes: Class names of the detector; the command line passes them.
        preprocessing: Size rule of the detector; the command line passes it.
    """

    def __init__(
        self,
        train: Sequence[Path],
        val: Sequence[Path],
        test: Sequence[Path] = (),
        batch_size: int = 8,
        augmentation: Strength = "strong",
        batches_per_epoch: int | None = None,
        workers: int = 0,
        seed: int = 0,
        max_invalid_share: float = 0.05,
        ignore_categories: Sequence[str] = (),
        later_block: bool = False,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
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
        self.train = train
        self.augmentation: Strength = augmentation

    def training_sets(self) -> list[TrainingSet]:
        """Return the labelled frames."""
        return [self.to_train_on(self.train, self.augmentation)]

    def train_dataloader(self) -> Loader:
        """Return batches of labelled frames, each a `Batch`."""
        order = self.order(len(self._training[0]), self.batch_size, self.batches_per_epoch)
        return self.training_loader([order], _one_batch)


class AdaptationData(DetectionData):
    """Labelled source frames and unlabelled target frames, side by side.

    A batch is a dictionary of `source`, strongly augmented and labelled, and of `target_weak` and `target_strong`: the
    same target frames in the same geometry, one to label and one to learn from. Labels of target frames are never read.
    Without source files a batch has no `source`, and the adaptation is source-free.

    Args:
        target: Folders of images, videos or COCO files of the target domain.
        source: COCO files of the source domain, if there are any.
        val: COCO files to select the best model on.
        test: COCO files to measure the final model on.
        batch_size: Source frames in a batch of one device.
        target_batch_size: Target frames in a batch of one device; as many as source frames where not given.
        augmentation: How source frames are changed.
        restyle: Share of the source frames, 0..1, that take light and colours of a target frame (see `Restyle`);
            source-free there are none to change.
        frame_interval: Seconds between the frames taken from a target video; all of them where not given.
        curriculum: Share of the target frames, easiest first, used in epoch 0, 1, ...; the last holds from then on.
        easiness: What is easy: `brightness`, or the `confidence` of the teacher as it comes, its mean score in a frame.
        mixed: The control of a curriculum: the same frames as often, but in an order of chance.
        batches_per_epoch: Batches in an epoch; as many as the source frames fill where not given.
        workers: Processes that load images; 0 loads in the training process.
        seed: Decides the order of the frames and their augmentation.
        max_invalid_share: Share of broken images, 0..1, that is put up with; more stop the run.
        ignore_categories: Names of categories whose boxes are left out.
        later_block: Recordings may be both trained on and held out if the held-out frames come after all others.
        classes: Class names of the detector; the command line passes them.
        preprocessing: Size rule of the detector; the command line passes it.
        confidence: Function that returns one score per frame of a batch on the device, for `easiness: confidence`; the
            command line passes that of `TeacherAdaptation`.

    Raises:
        ConfigError: Settings are out of range, or `mixed` has no curriculum to be the control of.
    """

    def __init__(
        self,
        target: Sequence[Path],
        source: Sequence[Path] = (),
        val: Sequence[Path] = (),
        test: Sequence[Path] = (),
        batch_size: int = 8,
        target_batch_size: int | None = None,
        augmentation: Strength = "strong",
        restyle: float = 0.0,
        frame_interval: float | None = None,
        curriculum: Sequence[float] | None = None,
        easiness: Literal["brightness", "confidence"] = "brightness",
        mixed: bool = False,
        batches_per_epoch: int | None = None,
        workers: int = 0,
        seed: int = 0,
        max_invalid_share: float = 0.05,
        ignore_categories: Sequence[str] = (),
        later_block: bool = False,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        confidence: Callable[[Batch], list[float]] | None = None,
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
        self.source = source
        self.target = target
        self.confidence = confidence
        self.target_batch_size = target_batch_size
        _check_adaptation(restyle, target_batch_size, curriculum, mixed)
        self.augmentation: Strength = augmentation
        self.restyle = restyle
        self.frame_interval = frame_interval
        self.curriculum = curriculum
        self.easiness: Literal["brightness", "confidence"] = easiness
        self.mixed = mixed
        self._easiness: list[float] | None = None

    def training_sets(self) -> list[TrainingSet]:
        """Return the labelled source frames, if there are any, and the target frames."""
        target = UnlabelledFrames(
            open_frames(self.target, self.frame_interval),
            self.augmentation_of("strong"),
            seed=self.seed,
            max_invalid_share=self.max_invalid_share,
        )
        if self.curriculum:
            self._easiness = target.brightness() if self.easiness == "brightness" else self._confidence(target)
        source = [self.to_train_on(self.source, self.augmentation)] if self.source else []
        if self.restyle:
            for frames in source:
                frames.augmentation.restyle = Restyle(target.look, len(target), self.restyle)
        return [*source, target]

    def _confidence(self, target: UnlabelledFrames) -> list[float]:
        """Return how sure the teacher is of every frame, the same on all devices; -1 for broken ones.

        Raises:
            ConfigError: The model has no such measure.
        """
        trainer: Any = self.trainer
        if self.confidence is None:
            message = "data.easiness: confidence needs a TeacherAdaptation as the model. Use it, or choose brightness."
            raise ConfigError(message)
        plain, found = self.augmentation_of("none"), []
        for position, frame in enumerate(target.frames):
            try:
                image = target.source.read(position)
            except BrokenImageError:
                target.quarantine.add(position)
                found.append(-1.0)
                continue
            view, targets = plain(image, Targets.empty(), 0)
            batch = collate([(as_tensor(view), targets, frame)])
            found += self.confidence(batch.to(trainer.strategy.root_device))
        # Devices may differ in the last digit, and must not differ in the order of the frames.
        told: list[float] = trainer.strategy.broadcast(found)
        return told

    def train_dataloader(self) -> Loader:
        """Return batches of source and target frames, each a dictionary of `Batch`."""
        *source, target = self._training
        orders = [self.order(len(frames), self.batch_size, self.batches_per_epoch) for frames in source]
        second = self.order(
            len(target),
            self.target_batch_size or self.batch_size,
            len(orders[0]) if orders else self.batches_per_epoch,
            easiness=self._easiness,
            curriculum=self.curriculum,
            mixed=self.mixed,
        )
        return self.training_loader([*orders, second], _source_and_target)


class StudentData(DetectionData):
    """Pseudo-labelled frames mixed with labelled source frames, so that a student learns the new and keeps the old.

    Args:
        source: COCO files with labels that were checked.
        pseudo: COCO files that `cahqp relabel` wrote; a `weight` of a box says how far it counts.
        val: COCO files to select the best model on.
        test: COCO files to measure the final model on.
        batch_size: Frames in a batch of one device, of both kinds together.
        pseudo_share: Share of a batch, between 0 and 1, that is pseudo-labelled.
        augmentation: How training frames are changed.
        batches_per_epoch: Batches in an epoch; enough for the kind that takes longer where not given.
        workers: Processes that load images; 0 loads in the training process.
        seed: Decides the order of the frames and their augmentation.
        max_invalid_share: Share of broken images, 0..1, that is put up with; more stop the run.
        ignore_categories: Names of categories whose boxes are left out.
        later_block: Recordings may be both trained on and held out if the held-out frames come after all others.
        classes: Class names of the detector; the command line passes them.
        preprocessing: Size rule of the detector; the command line passes it.
        empty_pseudo: Whether pseudo-labelled files without one box are taken, as frames of nothing; else they are
            refused. A comparison says yes, to measure a teacher that finds nothing rather than end there.
    """

    def __init__(
        self,
        source: Sequence[Path],
        pseudo: Sequence[Path],
        val: Sequence[Path],
        test: Sequence[Path] = (),
        batch_size: int = 8,
        pseudo_share: float = 0.5,
        augmentation: Strength = "strong",
        batches_per_epoch: int | None = None,
        workers: int = 0,
        seed: int = 0,
        max_invalid_share: float = 0.05,
        ignore_categories: Sequence[str] = (),
        later_block: bool = False,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        empty_pseudo: bool = False,
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
        self.source = source
        self.pseudo = pseudo
        self.pseudo_share = pseudo_share
        self.augmentation: Strength = augmentation
        self.empty_pseudo = empty_pseudo

    def training_sets(self) -> list[TrainingSet]:
        """Return the labelled source frames and the pseudo-labelled ones."""
        taken = self.labelled if self.empty_pseudo else self.to_train_on
        return [self.to_train_on(self.source, self.augmentation), taken(self.pseudo, self.augmentation)]

    def train_dataloader(self) -> Loader:
        """Return batches with frames of both kinds, source first, each a `Batch`."""
        pseudo = round(self.pseudo_share * self.batch_size)
        if not 0 < pseudo < self.batch_size:
            message = (
                f"pseudo_share {self.pseudo_share} of a batch of {self.batch_size} leaves no frame of one kind. "
                "Choose another share or a larger batch_size; for one kind alone use LabelledData."
            )
            raise ConfigError(message)
        sizes = (self.batch_size - pseudo, pseudo)
        _, world_size = self._place()
        full = [len(frames) // (size * world_size) for frames, size in zip(self._training, sizes, strict=True)]
        batches = self.batches_per_epoch or max(full) or None
        orders = [self.order(len(frames), size, batches) for frames, size in zip(self._training, sizes, strict=True)]
        return self.training_loader(orders, _one_batch)


def _check_adaptation(
    restyle: float, target_batch_size: int | None, curriculum: Sequence[float] | None, mixed: bool
) -> None:
    """Refuse settings of an adaptation's data that cannot be right, all together."""
    wrong = []
    if not 0 <= restyle <= 1:
        wrong.append(f"data.restyle must lie in 0..1, got {restyle}.")
    if target_batch_size is not None and target_batch_size < 1:
        wrong.append(f"data.target_batch_size must be at least 1, got {target_batch_size}.")
    if not all(0 < share <= 1 for share in curriculum or ()):
        given = list(curriculum or ())
        wrong.append(f"data.curriculum must be shares above 0 and up to 1, such as [0.3, 0.5, 1.0], got {given}.")
    if mixed and not curriculum:
        wrong.append("data.mixed: true is the control of a curriculum: give data.curriculum, or leave it out.")
    if wrong:
        raise ConfigError("\n".join(wrong))


def _one_batch(parts: list[list[Sample]]) -> Batch:
    return collate([sample for part in parts for sample in part])


def _source_and_target(parts: list[list[Any]]) -> dict[str, Batch]:
    *source, target = parts
    batches = {
        "target_weak": collate([weak for weak, _ in target]),
        "target_strong": collate([strong for _, strong in target]),
    }
    return batches | ({"source": collate(source[0])} if source else {})
