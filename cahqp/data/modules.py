"""LightningDataModules for training. The command line links the model's classes and size rule to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from cahqp.coco.naming import Naming
from cahqp.data.base import DetectionData, TrainingSet
from cahqp.data.datasets import Sample, UnlabelledFrames, as_tensor
from cahqp.data.frames import open_frames
from cahqp.data.loaders import Loader
from cahqp.data.transforms import Restyle
from cahqp.errors import ConfigError
from cahqp.structures import Batch, Targets, collate


class LabelledData(DetectionData):
    """Labelled frames for supervised training.

    Args:
        train: COCO files to train on.
        val: COCO files to select the best model on.
        **kwargs: Further options of `DetectionData`.
    """

    def __init__(self, train: Sequence[Path], val: Sequence[Path], **kwargs: Any) -> None:
        super().__init__(val=val, **kwargs)
        self.train = train

    def training_sets(self) -> list[TrainingSet]:
        """Return the labelled frames."""
        return [self.with_boxes(self.train)]

    def train_dataloader(self) -> Loader:
        """Return batches of labelled frames, each a `Batch`."""
        return self.training_loader(self.orders([self.batch_size], self.batches_per_epoch), _one_batch)


class AdaptationData(DetectionData):
    """Labelled source frames beside unlabelled target frames.

    A batch is a dictionary of `source`, strongly augmented and labelled, and of `target_weak` and `target_strong`: the
    same target frames in the same geometry, to label and to train on. Labels of target frames are never read. Without
    source files a batch has no `source`, and the adaptation is source-free.

    Args:
        target: Folders of images, videos or COCO files of the target domain.
        source: COCO files of the source domain.
        val: COCO files to select the best model on.
        target_batch_size: Target frames in a batch of one device; by default as many as source frames.
        restyle: Share of the source frames, 0..1, that take light and colours of a target frame (see `Restyle`).
            Source-free it has no effect.
        frame_interval: Seconds between the frames taken from a target video; by default all.
        naming: Rule for camera and time of target frames, such as `naming.pattern: '{camera}_{time:%H%M%S}'`.
        curriculum: Share of the target frames, easiest first, used in epoch 0, 1, ...; the last value holds from then
            on.
        easiness: Measure of an easy frame: its `brightness`, or the `confidence` of the initial teacher, its mean
            score in the frame.
        mixed: Use the same frames as often as the curriculum does, but in random order (a control experiment).
        confidence: Function that returns one score per frame of a batch on the device, for `easiness: confidence`; the
            command line passes that of `TeacherAdaptation`.
        **kwargs: Further options of `DetectionData`.

    Raises:
        ConfigError: Options are out of range, or `mixed` is set without a curriculum.
    """

    def __init__(
        self,
        target: Sequence[Path],
        source: Sequence[Path] = (),
        val: Sequence[Path] = (),
        target_batch_size: int | None = None,
        restyle: float = 0.0,
        frame_interval: float | None = None,
        naming: Naming | None = None,
        curriculum: Sequence[float] | None = None,
        easiness: Literal["brightness", "confidence"] = "brightness",
        mixed: bool = False,
        confidence: Callable[[Batch], list[float]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(val=val, **kwargs)
        self.source = source
        self.target = target
        self.confidence = confidence
        self.target_batch_size = target_batch_size
        _check_adaptation(restyle, target_batch_size, curriculum, mixed)
        self.restyle = restyle
        self.frame_interval = frame_interval
        self.naming = naming
        self.curriculum = curriculum
        self.easiness: Literal["brightness", "confidence"] = easiness
        self.mixed = mixed
        self._easiness: list[float] | None = None

    def training_sets(self) -> list[TrainingSet]:
        """Return the labelled source frames, if there are any, and the target frames."""
        target = UnlabelledFrames(
            open_frames(self.target, self.frame_interval, self.naming),
            self.augmentation_of("strong"),
            seed=self.seed,
            max_invalid_share=self.max_invalid_share,
        )
        if self.curriculum:
            self._easiness = target.brightness() if self.easiness == "brightness" else self._confidences(target)
        source = [self.with_boxes(self.source)] if self.source else []
        if self.restyle:
            for frames in source:
                frames.augmentation.restyle = Restyle(target.image, len(target), self.restyle)
        return [*source, target]

    def _confidences(self, target: UnlabelledFrames) -> list[float]:
        """Return the teacher's confidence in every frame, the same on all devices; -1 for broken ones.

        Raises:
            ConfigError: The model has no such measure.
        """
        trainer: Any = self.trainer
        if self.confidence is None:
            message = "data.easiness: confidence needs a TeacherAdaptation as the model. Use it, or choose brightness."
            raise ConfigError(message)
        plain, scores = self.augmentation_of("none"), []
        for position, frame in enumerate(target.frames):
            image = target.quarantine.read(position)
            if image is None:
                scores.append(-1.0)
                continue
            view, targets = plain(image, Targets.empty(), 0)
            batch = collate([(as_tensor(view), targets, frame)])
            scores += self.confidence(batch.to(trainer.strategy.root_device))
        # Devices may differ in the last digit, and must not differ in the order of the frames.
        shared: list[float] = trainer.strategy.broadcast(scores)
        return shared

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
        source: COCO files with checked labels.
        pseudo: COCO files from `cahqp relabel`; the `weight` of a box scales its loss.
        val: COCO files to select the best model on.
        pseudo_share: Share of a batch, between 0 and 1, that is pseudo-labelled.
        empty_pseudo: Accept pseudo-labelled files without boxes, as background. Benchmarks set it to measure a teacher
            that detects nothing.
        count_ignored: Add the scores of ignored regions to the number of objects that losses are divided by. Otherwise
            a frame whose objects are mostly ignored presses harder towards background.
        **kwargs: Further options of `DetectionData`. `batch_size` counts frames of both kinds together; by default an
            epoch covers the kind that takes longer.
    """

    def __init__(
        self,
        source: Sequence[Path],
        pseudo: Sequence[Path],
        val: Sequence[Path],
        pseudo_share: float = 0.5,
        empty_pseudo: bool = False,
        count_ignored: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(val=val, **kwargs)
        self.source = source
        self.pseudo = pseudo
        self.pseudo_share = pseudo_share
        self.empty_pseudo = empty_pseudo
        self.count_ignored = count_ignored

    def training_sets(self) -> list[TrainingSet]:
        """Return the labelled source frames and the pseudo-labelled ones."""
        read = self.labelled if self.empty_pseudo else self.with_boxes
        return [self.with_boxes(self.source), read(self.pseudo, count_ignored=self.count_ignored)]

    def train_dataloader(self) -> Loader:
        """Return batches with frames of both kinds, source first, each a `Batch`."""
        pseudo = round(self.pseudo_share * self.batch_size)
        if not 0 < pseudo < self.batch_size:
            message = (
                f"data.pseudo_share {self.pseudo_share} of a batch of {self.batch_size} leaves no frame of one kind. "
                "Choose another share or a larger batch_size; for one kind alone use LabelledData."
            )
            raise ConfigError(message)
        sizes = (self.batch_size - pseudo, pseudo)
        _, world_size = self._ranks()
        full = [len(frames) // (size * world_size) for frames, size in zip(self._training, sizes, strict=True)]
        return self.training_loader(self.orders(sizes, self.batches_per_epoch or max(full) or None), _one_batch)


def _check_adaptation(
    restyle: float, target_batch_size: int | None, curriculum: Sequence[float] | None, mixed: bool
) -> None:
    """Refuse invalid options of `AdaptationData`, all together."""
    problems = []
    if not 0 <= restyle <= 1:
        problems.append(f"data.restyle must be in 0..1, got {restyle}.")
    if target_batch_size is not None and target_batch_size < 1:
        problems.append(f"data.target_batch_size must be at least 1, got {target_batch_size}.")
    if not all(0 < share <= 1 for share in curriculum or ()):
        given = list(curriculum or ())
        problems.append(f"data.curriculum must be shares above 0 and up to 1, such as [0.3, 0.5, 1.0], got {given}.")
    if mixed and not curriculum:
        problems.append("data.mixed: true needs data.curriculum. Give it, or remove data.mixed.")
    if problems:
        raise ConfigError("\n".join(problems))


def _one_batch(parts: list[list[Sample]]) -> Batch:
    return collate([sample for part in parts for sample in part])


def _source_and_target(parts: list[list[Any]]) -> dict[str, Batch]:
    *source, target = parts
    batches = {
        "target_weak": collate([weak for weak, _ in target]),
        "target_strong": collate([strong for _, strong in target]),
    }
    return batches | ({"source": collate(source[0])} if source else {})
