"""LightningCLI for `fit`, `validate`, `test` and `predict`."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from argparse import ArgumentError
from operator import attrgetter, not_
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jsonargparse.typing import NonNegativeInt
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from cahqp.cli.training_arguments import all_subclasses, explained, join_lists, list_names
from cahqp.data.base import DetectionData
from cahqp.data.frames import open_frames
from cahqp.data.modules import AdaptationData
from cahqp.detectors.base import Detector
from cahqp.errors import CahqpError, ConfigError, shortened
from cahqp.files import write_json
from cahqp.inference.frames import FrameSet
from cahqp.labels.options import LabelOptions
from cahqp.labels.rules import Rules
from cahqp.relabelling.command import complete
from cahqp.relabelling.shard_writer import SingleTeacher, write_candidates
from cahqp.runs.directory import RunDirectory
from cahqp.training import student, supervised  # noqa: F401  so that a config may name its classes without their module
from cahqp.training.base import DetectionModule
from cahqp.training.ca_hqp import module as adaptation
from cahqp.training.callbacks.alarms import Alarms
from cahqp.training.callbacks.checkpoints import AtomicCheckpointIO, ExampleImages, checkpoints
from cahqp.training.callbacks.ema import EMA
from cahqp.training.callbacks.images import PseudoLabelImages
from cahqp.training.distillation import data as soft_data  # noqa: F401  likewise
from cahqp.training.lightning_errors import lightning_errors
from cahqp.training.run_inputs import split_inputs
from cahqp.training.save_model import finish_fit

# Hides tips and device listings; problems are raised as errors.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

# Options that may differ between two attempts of the same run: its location and monitoring.
_NOT_IDENTITY = (
    "output",
    "config",
    "seed",
    "seed_everything",
    "ckpt_path",
    "wandb",
    "example_images",
    "default_root_dir",
    "logger",
    "enable_progress_bar",
    "enable_model_summary",
    "verbose",
    "weights_only",
    "alarms",  # they stop a run, and change nothing in a run that completes
)


_MODEL_TO_DATA = (
    ("model.detector", "classes", attrgetter("classes")),
    ("model.detector", "preprocessing", attrgetter("preprocessing")),
    ("model.confidence", "confidence", None),
    ("model.teacher", "teacher", None),
)
"""Attributes of the model that become arguments of the DataModule."""


class Cli(LightningCLI):
    """LightningCLI that gives each run its own run directory."""

    run: RunDirectory | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except BaseException:
            if self.run is not None:
                self.run.discard_empty()
            raise

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--output`, `--seed`, `--wandb`, the EMA and the alarms; link model attributes to the data."""
        parser.add_argument("--output", type=Path, default=None, help="Run directory; never overwritten.")
        parser.add_argument("--seed", type=int, default=0, help="Seed of weights, order, augmentation and noise.")
        parser.add_argument(
            "--wandb", type=Literal["off", "online", "offline"], default="off", help="Also track with Weights & Biases."
        )
        parser.add_argument(
            "--example_images",
            type=NonNegativeInt,
            default=0,
            help="Number of frames drawn with detections and pseudo-labels; they may show faces and number plates.",
        )
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(Alarms, "alarms")
        parser.link_arguments("seed", "seed_everything")
        parser.link_arguments("seed", "data.init_args.seed")
        parser.link_arguments("data.init_args.source", "model.init_args.source_free", not_)
        # jsonargparse ignores a link whose source or target the chosen classes do not have.
        for source, target, compute in _MODEL_TO_DATA:
            parser.link_arguments(source, f"data.init_args.{target}", compute, apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: hyperparameters of a checkpoint would silently override flags and config."""

    @property
    def settings(self) -> Any:
        """Parsed configuration of the running subcommand."""
        return self.config[self.subcommand]

    @property
    def work(self) -> Path | None:
        """Directory to write into; `None` without `--output`."""
        output: Path | None = self.settings.output
        return None if output is None else output.with_name(f"{output.name}.partial")

    def before_instantiate_classes(self) -> None:
        """Claim the run directory before model and data are built."""
        settings, output = self.settings, self.settings.output
        if settings.get("ckpt_path"):
            message = "--ckpt-path is not supported. The same --output resumes; --model.weights loads a model file."
            raise ConfigError(message)
        if output is None:
            if self.subcommand in ("fit", "predict"):
                message = f"{self.subcommand} needs --output DIR, a new run directory such as runs/teacher."
                raise ConfigError(message)
            return
        if not _is_rank_zero():
            return
        parser = self._parser(self.subcommand)
        plain, inputs = split_inputs(parser.dump(settings, skip_none=False, format="json"), _NOT_IDENTITY)
        run = RunDirectory(output, str(self.subcommand), plain, inputs, settings.seed)
        if not run.begin():
            print(f"{output} is finished already: nothing to do.")
            raise SystemExit(0)
        self.run = run
        self.run.work.mkdir(parents=True, exist_ok=True)
        (self.run.work / "config.yaml").write_text(parser.dump(settings, skip_none=False), encoding="utf-8")

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; their errors become one message."""
        try:
            super().instantiate_classes()
        except (ValueError, RuntimeError) as error:
            raise _own(error) or ConfigError(shortened(str(error))) from error

    def after_instantiate_classes(self) -> None:
        """Check that the DataModule yields the batches that the model trains on."""
        adapts = isinstance(self.model, adaptation.TeacherAdaptation)
        if self.subcommand == "fit" and isinstance(self.datamodule, AdaptationData) != adapts:
            message = (
                f"{type(self.model).__name__} cannot train on {type(self.datamodule).__name__}: TeacherAdaptation "
                "needs AdaptationData, and no other model does. Change `class_path` of `data` or of `model`."
            )
            raise ConfigError(message)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with the run directory's checkpoints and logs."""
        if self.work is not None:
            kwargs |= {"default_root_dir": self.work, "logger": self._loggers(self.work)}
        elif self.settings.trainer.get("logger") is None:
            kwargs["logger"] = False
        if self.subcommand == "fit" and self.work is not None and not self.settings.trainer.fast_dev_run:
            # Passed to the constructor: otherwise the Trainer adds its default checkpoint callback.
            asked = self.config_init[self.subcommand].trainer.callbacks or []
            examples = ExampleImages(self.settings.example_images, self.work / "checkpoints" / "examples")
            labels = PseudoLabelImages(self.settings.example_images, self.work / "checkpoints" / "examples")
            kwargs["callbacks"] = [*asked, examples, labels, *checkpoints(self.work / "checkpoints")]
        return super().instantiate_trainer(**kwargs, plugins=[AtomicCheckpointIO()])

    def _loggers(self, work: Path) -> list[Logger]:
        attempts = len(list((work / "attempts").glob("*"))) if _is_rank_zero() else 0
        loggers: list[Logger] = [
            CSVLogger(work, name="attempts", version=f"{attempts:03d}", flush_logs_every_n_steps=10)
        ]
        if self.settings.wandb != "off" and self.subcommand == "fit":
            name = self.settings.output.name
            loggers.append(
                WandbLogger(
                    name, work.parent, project="cahqp", offline=self.settings.wandb == "offline", log_model=False
                )
            )
        return loggers

    def fit(self, model: DetectionModule, datamodule: DetectionData, **_: Any) -> None:
        """Train, from the last checkpoint after an interruption, and write a model file."""
        assert self.work is not None
        last = self.work / "checkpoints" / "last.ckpt"
        for logger in self.trainer.loggers[1:]:
            logger.log_hyperparams(yaml.safe_load(self._parser("fit").dump(self.settings, skip_none=False)))
        self.trainer.fit(model, datamodule=datamodule, ckpt_path=str(last) if last.is_file() else None)
        if self.run is not None:
            metrics = finish_fit(self.trainer, model, datamodule, self.run)
            print(f"{self.run.output}: {', '.join(f'{k} {v:.3f}' for k, v in metrics.items() if isinstance(v, float))}")

    def validate(self, model: LightningModule, datamodule: LightningDataModule, **_: Any) -> None:
        """Measure on the validation frames."""
        self._measure(self.trainer.validate(model, datamodule=datamodule))

    def test(self, model: LightningModule, datamodule: LightningDataModule, **_: Any) -> None:
        """Measure on the test frames."""
        self._measure(self.trainer.test(model, datamodule=datamodule))

    def predict(self, model: DetectionModule, datamodule: DetectionData, **_: Any) -> None:
        """Write all detections on the test frames to `labels.json`."""
        if not datamodule.test:
            message = "predict needs frames: give --data.test='[FILE]' with COCO files. Their labels are not read."
            raise ConfigError(message)
        assert self.work is not None
        detector = model.detector
        frames = FrameSet(open_frames(datamodule.test), detector.preprocessing, datamodule.max_invalid_share)
        loading = (datamodule.batch_size, datamodule.workers)
        names = write_candidates(self.trainer, SingleTeacher(detector), frames, self.work, *loading)
        if self.run is not None:
            keep_all = LabelOptions(nms_iou=1.0, max_boxes=detector.max_detections)
            complete(self.run, names, Rules(detector.classes, np.zeros(len(detector.classes)), keep_all, plain=True))

    def _measure(self, results: Any) -> None:
        if self.run is not None:
            metrics = dict(results[0]) if results else {}
            write_json(self.run.work / "metrics.json", metrics)
            self.run.finish(metrics)


def _own(error: BaseException | None) -> CahqpError | None:
    """Return the CahqpError that jsonargparse wrapped; `None` if there is none."""
    while error is not None and not isinstance(error, CahqpError):
        error = error.__cause__ or error.__context__
    return error


def _is_rank_zero() -> bool:
    return (getattr(rank_zero_only, "rank", None) or 0) == 0


def lightning(arguments: list[str], own_process: bool = True) -> None:
    """Run LightningCLI.

    Args:
        arguments: The command's name and its options, as LightningCLI spells them; see `cahqp.cli.training`.
        own_process: The process runs this command alone. Otherwise further ranks run the caller's program.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    arguments = join_lists(arguments, list_names([*all_subclasses(DetectionData), *all_subclasses(Detector)]))
    # Lightning starts further ranks with sys.argv.
    given = sys.argv
    if own_process:
        sys.argv = [given[0], *arguments]
    try:
        with lightning_errors():
            _run_lightning(arguments)
    except ArgumentError as error:
        raise explained(error, _spellings()) from error
    finally:
        sys.argv = given


def _spellings() -> list[str]:
    """Return the options of the Trainer and of this command line, for suggestions."""
    own = "config output seed wandb example-images print-config model data trainer ema alarms".split()
    trainer = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    return [*(f"--{name}" for name in own), *(f"--trainer.{name}" for name in trainer)]


def _run_lightning(arguments: list[str]) -> None:
    # The warning is about options of two origins; these are the same, or the options of the caller's program.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    Cli(
        DetectionModule,
        DetectionData,
        args=arguments,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        seed_everything_default=0,
        trainer_defaults={
            # The samplers shard by themselves: two processes draw the frames of one.
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "gradient_clip_val": 0.1,
            "log_every_n_steps": 10,
        },
        parser_kwargs={"prog": "cahqp", "exit_on_error": False},
    )
