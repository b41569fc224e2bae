"""What all LightningDataModules of ours have in common."""

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
    """What all data have in common: frames to measure on, the questions to the model, broken images, resuming.

    Args:
        val: COCO files to select the best model on.
        test: COCO files to measure the final model on.
        batch_size: Frames in a batch of one device.
        batches_per_epoch: Batches in an epoch; `None` leaves it to the frames.
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
        *,
        val: Sequence[Path],
        test: Sequence[Path],
        batch_size: int,
        batches_per_epoch: int | None,
        workers: int,
        seed: int,
        max_invalid_share: float,
        ignore_categories: Sequence[str],
        later_block: bool,
        classes: Sequence[str] | None,
        preprocessing: Preprocessing | None,
    ) -> None:
        super().__init__()
        counts = {"data.batch_size": batch_size, "data.batches_per_epoch": batches_per_epoch}
        check_numbers(shares={"data.max_invalid_share": max_invalid_share}, counts=counts)
        self.val = val
        self.test = test
        self.batch_size = batch_size
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
            DataError: A file cannot be used, or held-out frames are trained on.
            ConfigError: Nothing says the classes or the size rule.
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
        """Return the sets of frames to train on."""
        raise NotImplementedError

    def labelled(self, paths: Sequence[Path], augmentation: Strength) -> LabelledFrames:
        """Return the frames of COCO files with boxes of the detector's classes.

        Args:
            paths: The files.
            augmentation: How the frames are changed.
        """
        return LabelledFrames(
            [read_coco(path) for path in paths],
            self.given_classes(),
            self.augmentation_of(augmentation),
            seed=self.seed,
            max_invalid_share=self.max_invalid_share,
            ignore_categories=self.ignore_categories,
        )

    def to_train_on(self, paths: Sequence[Path], augmentation: Strength) -> LabelledFrames:
        """Return the same, and refuse frames without any box.

        Args:
            paths: The files.
            augmentation: How the frames are changed.
        """
        frames = self.labelled(paths, augmentation)
        if frames.boxes == 0:
            names = ", ".join(str(path) for path in paths) or "An empty list of files"
            message = f"{names}: there is not one box to learn from. Check the files and `ignore_categories`."
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
        """Load the training sets together, one order each.

        Args:
            orders: The orders, equally long.
            collate: Makes a batch of the samples of each set.
        """
        sets = self._training
        identity = {
            "number of frames": sum(len(frames) for frames in sets),
            "frames per step": sum(order.step for order in orders),
            "batches per epoch": len(orders[0]),
            "seed": self.seed,
        }
        quarantines = [frames.quarantine for frames in sets]
        parts = list(zip(sets, orders, strict=True))
        position = self._position if self.trainer is not None else None
        loader = training_loader(
            parts, collate, position=position, quarantines=quarantines, workers=self.workers, identity=identity
        )
        self._loaders.append(loader)
        return loader

    def order(self, frames: int, batch_size: int, batches: int | None, **curriculum: Any) -> Order:
        """Return the order of a training set for this device.

        Args:
            frames: Number of frames in the set.
            batch_size: Frames in a batch of one device.
            batches: Batches in an epoch; as many as the set fills where `None`.
            curriculum: `easiness` and `curriculum` of `Order`.
        """
        rank, world_size = self._place()
        return Order(
            frames, batch_size, seed=self.seed, batches=batches, rank=rank, world_size=world_size, **curriculum
        )

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _position(self) -> int:
        # Lightning restores its counters, asks for a loader and fetches from it before it tells anyone the epoch, and
        # miscounts epochs when `max_steps` is set. Batches it counts well, whenever the checkpoint was written.
        trainer: Any = self.trainer
        return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Return the frames to select on, each once; every device has a contiguous part."""
        return self._exact("val")

    def test_dataloader(self) -> Loader | list[Loader]:
        """Return the frames to measure on, each once; every device has a contiguous part."""
        return self._exact("test")

    def whole_val_dataloader(self) -> Loader | None:
        """Return all frames to select on, for one process to measure alone; `None` where there are none."""
        if "val" not in self._held_out:
            return None
        return self._exact_loader("val", 0, 1)

    def _exact(self, name: str) -> Loader | list[Loader]:
        if name not in self._held_out:
            return []
        return self._exact_loader(name, *self._place())

    def _exact_loader(self, name: str, rank: int, world_size: int) -> Loader:
        frames = self._held_out[name]
        batches = contiguous_batches(len(frames), self.batch_size, rank, world_size)
        loader = exact_loader(frames, batches, self.workers)
        self._loaders.append(loader)
        return loader

    def teardown(self, stage: str) -> None:
        """End the workers; write `quarantine.json` into the run's directory if images were broken."""
        self._finish()

    def on_exception(self, exception: BaseException) -> None:
        """End the workers; write `quarantine.json` into the run's directory if images were broken."""
        self._finish()

    def _finish(self) -> None:
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()
        self._write_quarantine()

    def _write_quarantine(self) -> None:
        if self.trainer is None:
            return
        rank = self.trainer.global_rank
        name = f"quarantine.rank{rank}.json" if rank else "quarantine.json"
        sets = [*self._training, *self._held_out.values()]
        write_quarantine(Path(self.trainer.default_root_dir) / name, [frames.quarantine for frames in sets])
