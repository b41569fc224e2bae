"""Base of all LightningDataModules: held-out frames, broken images, resuming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from cahqp.coco.reader import read_coco
from cahqp.data.datasets import LabelledFrames, UnlabelledFrames
from cahqp.data.images import write_quarantine
from cahqp.data.loaders import Loader, exact_loader, training_loader
from cahqp.data.samplers import Order, contiguous_batches
from cahqp.data.splits import check_leakage
from cahqp.data.transforms import Augmentation, plain, strong, weak
from cahqp.errors import ConfigError, DataError, check_numbers
from cahqp.structures import Preprocessing

Strength = Literal["none", "weak", "strong"]
_AUGMENTATIONS = {"none": plain, "weak": weak, "strong": strong}
TrainingSet = LabelledFrames | UnlabelledFrames
_MISSING = "data.{0} is missing: pass {0} of the model's detector to the DataModule. The command line does this itself."


class DetectionData(LightningDataModule):
    """Options and held-out frames of all DataModules; subclasses add the training sets.

    Args:
        val: COCO files to select the best model on.
        test: COCO files to evaluate the final model on.
        batch_size: Frames in a batch of one device.
        augmentation: Augmentation of labelled training frames.
        batches_per_epoch: Batches in an epoch; by default as many as the frames fill.
        workers: Processes that load images; 0 loads in the training process.
        seed: Seed of the order of the frames and of their augmentation.
        max_invalid_share: Largest allowed share of broken images, 0..1; more stop the run.
        ignore_categories: Names of categories whose boxes are left out.
        later_block: Allow recordings both in training and held out, if the held-out frames come after all others.
        classes: Class names of the detector; the command line passes them.
        preprocessing: Size rule of the detector; the command line passes it.
    """

    def __init__(
        self,
        *,
        val: Sequence[Path] = (),
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
        super().__init__()
        counts = {"data.batch_size": batch_size, "data.batches_per_epoch": batches_per_epoch}
        check_numbers(shares={"data.max_invalid_share": max_invalid_share}, counts=counts)
        self.val = val
        self.test = test
        self.batch_size = batch_size
        self.augmentation: Strength = augmentation
        self.batches_per_epoch = batches_per_epoch
        self.workers = workers
        self.seed = seed
        self.max_invalid_share = max_invalid_share
        self.ignore_categories = ignore_categories
        self.later_block = later_block
        self.classes = classes
        self.preprocessing = preprocessing
        self._training: list[TrainingSet] = []
        self._held_out: dict[str, LabelledFrames] = {}
        self._loaders: list[Loader] = []

    def setup(self, stage: str) -> None:
        """Read the files that a stage needs and check them.

        Args:
            stage: `fit`, `validate` or `test`.

        Raises:
            DataError: A file cannot be used, or held-out frames are also training frames.
            ConfigError: The classes or the size rule are missing.
        """
        if stage == "fit":
            self._training = self.training_sets()
        for name, paths, stages in (("val", self.val, ("fit", "validate")), ("test", self.test, ("test",))):
            if stage in stages and paths:
                self._held_out[name] = self.labelled(paths, "none")
        if stage == "fit" and self.val:
            for part in self._training:
                check_leakage(part.located(), self._held_out["val"].located(), self.later_block)

    def training_sets(self) -> list[TrainingSet]:
        """Return the sets of training frames."""
        raise NotImplementedError

    def labelled(
        self, paths: Sequence[Path], augmentation: Strength | None = None, count_ignored: bool = False
    ) -> LabelledFrames:
        """Return the frames of COCO files with boxes of the detector's classes.

        Args:
            paths: COCO files.
            augmentation: Augmentation of the frames; by default that of training.
            count_ignored: Set the expected number of objects in an ignored region to its score; otherwise to 0.
        """
        return LabelledFrames(
            [read_coco(path) for path in paths],
            self.given_classes(),
            self.augmentation_of(augmentation or self.augmentation),
            seed=self.seed,
            max_invalid_share=self.max_invalid_share,
            ignore_categories=self.ignore_categories,
            count_ignored=count_ignored,
        )

    def with_boxes(self, paths: Sequence[Path], count_ignored: bool = False) -> LabelledFrames:
        """Return the frames of COCO files for training, as `labelled`.

        Raises:
            DataError: They contain no boxes.
        """
        frames = self.labelled(paths, count_ignored=count_ignored)
        if frames.boxes == 0:
            names = ", ".join(str(path) for path in paths) or "An empty list of files"
            message = f"{names}: there are no boxes to train on. Check the files and `ignore_categories`."
            raise DataError(message)
        return frames

    def augmentation_of(self, strength: Strength) -> Augmentation:
        """Return an augmentation that ends with the detector's size."""
        if self.preprocessing is None:
            raise ConfigError(_MISSING.format("preprocessing"))
        return _AUGMENTATIONS[strength](self.preprocessing)

    def given_classes(self) -> Sequence[str]:
        """Return the class names.

        Raises:
            ConfigError: They are missing.
        """
        if self.classes is None:
            raise ConfigError(_MISSING.format("classes"))
        return self.classes

    def training_loader(self, orders: Sequence[Order], collate: Callable[[list[list[Any]]], Any]) -> Loader:
        """Return a loader of the training sets together.

        Args:
            orders: One per set, equally long.
            collate: Makes a batch of the samples of each set.
        """
        sets = self._training
        identity = {
            "number of frames": sum(len(frames) for frames in sets),
            "frames per step": sum(order.step for order in orders),
            "batches per epoch": len(orders[0]),
            "seed": self.seed,
        }
        loader = training_loader(
            list(zip(sets, orders, strict=True)),
            collate,
            position=self._position if self.trainer is not None else None,
            quarantines=[frames.quarantine for frames in sets],
            workers=self.workers,
            identity=identity,
        )
        self._loaders.append(loader)
        return loader

    def order(self, frames: int, batch_size: int, batches: int | None, **curriculum: Any) -> Order:
        """Return the order of a training set on this device.

        Args:
            frames: Number of frames in the set.
            batch_size: Frames in a batch of one device.
            batches: Batches in an epoch; `None` takes as many as the set fills.
            curriculum: `easiness`, `curriculum` and `mixed` of `Order`.
        """
        rank, world_size = self._ranks()
        return Order(
            frames, batch_size, seed=self.seed, batches=batches, rank=rank, world_size=world_size, **curriculum
        )

    def orders(self, sizes: Sequence[int], batches: int | None) -> list[Order]:
        """Return the order of each training set on this device.

        Args:
            sizes: Frames of each set in a batch of one device.
            batches: Batches in an epoch; `None` takes as many as the set fills.
        """
        return [self.order(len(frames), size, batches) for frames, size in zip(self._training, sizes, strict=True)]

    def _ranks(self) -> tuple[int, int]:
        """Return rank and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _position(self) -> int:
        # Lightning restores its counters, requests a loader and fetches from it before any hook gets the epoch, and
        # miscounts epochs if `max_steps` is set. Its count of batches is right whenever the checkpoint was written.
        trainer: Any = self.trainer
        return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Return the validation frames, each once; every device has a contiguous part."""
        return self._exact("val", *self._ranks()) or []

    def test_dataloader(self) -> Loader | list[Loader]:
        """Return the test frames, each once; every device has a contiguous part."""
        return self._exact("test", *self._ranks()) or []

    def whole_val_dataloader(self) -> Loader | None:
        """Return all validation frames, for one process to evaluate alone; `None` if there are none."""
        return self._exact("val", 0, 1)

    def _exact(self, name: str, rank: int, world_size: int) -> Loader | None:
        if name not in self._held_out:
            return None
        frames = self._held_out[name]
        loader = exact_loader(frames, contiguous_batches(len(frames), self.batch_size, rank, world_size), self.workers)
        self._loaders.append(loader)
        return loader

    def teardown(self, stage: str) -> None:
        """End the workers; write `quarantine.json` into the run's directory if images were broken."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()
        if self.trainer is None:
            return
        rank = self.trainer.global_rank
        name = f"quarantine.rank{rank}.json" if rank else "quarantine.json"
        sets = [*self._training, *self._held_out.values()]
        write_quarantine(Path(self.trainer.default_root_dir) / name, [frames.quarantine for frames in sets])

    def on_exception(self, exception: BaseException) -> None:
        """Do the same as `teardown`."""
        self.teardown("fit")
