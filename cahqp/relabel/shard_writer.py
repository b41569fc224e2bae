"""Frames through a detector into shards of labels: what is left to do, what is written, and under which names."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from cahqp.data.images import Quarantine
from cahqp.data.sources import FrameSource, JoinedFrames
from cahqp.detectors.base import Detector
from cahqp.errors import DataError
from cahqp.files import atomic_write, read_json, write_json
from cahqp.frame import Frame
from cahqp.inference.frames import FrameBatch, FrameLoader, FrameSet, detect, fixed_batches
from cahqp.labels.candidates import Candidates, encode
from cahqp.labels.select import select
from cahqp.labels.shards.shards import LabelShards
from cahqp.relabel.tta import ViewFrames, collate_looks
from cahqp.structures import Detections

SHARDS = "checkpoints/shards"  # where a manifest does not look


class PseudoLabelExport(LightningModule):
    """A detector that only labels.

    Args:
        detector: The teacher.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector.eval()

    def predict_step(self, batch: FrameBatch, batch_idx: int) -> list[Detections]:
        """Return detections in pixels of the original frames."""
        return [] if batch.batch is None else detect(self.detector, batch.batch)


class FramesToLabel(LightningDataModule):
    """The batches of an input that are not labelled yet, shared out to the ranks batch by batch.

    Args:
        frames: All frames of the input.
        work: The run directory, whose shards say what is done.
        batch_size: Frames in a batch.
        workers: Processes that load images on each rank.
    """

    def __init__(self, frames: FrameSet, work: Path, batch_size: int, workers: int) -> None:
        super().__init__()
        self.frames, self.work, self.batch_size, self.workers = frames, work, batch_size, workers

    def predict_dataloader(self) -> FrameLoader:
        """Return this rank's part. All ranks look at what is done before any of them writes."""
        rank, ranks = self._place
        with LabelShards(self.work / SHARDS, rank) as shards:
            done = shards.done()
        if rank == 0:  # what was broken is tried again, and may have been mended
            for path in (self.work / SHARDS).glob("quarantine-*.json"):
                path.unlink()
        if self.trainer is not None:
            self.trainer.strategy.barrier("what is done")
        left = [b for b in fixed_batches(len(self.frames), self.batch_size) if not all(_has(done, p) for p in b)]
        collate_fn = collate_looks if isinstance(self.frames, ViewFrames) else None
        return FrameLoader(self.frames, left[rank::ranks], self.workers, collate_fn)

    @property
    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


def _has(done: Any, position: int) -> bool:
    return position < len(done) and bool(done[position])


class LabelWriter(BasePredictionWriter):
    """Part each frame's detections into kept and rejected, and append them to this rank's shard.

    Args:
        work: The run directory.
        frames: The input, whose images are saved where they have no file of their own.
        thresholds: Lowest score of a label, for all classes or by name.
        nms_iou: Overlap above which the lower-scored of two labels is rejected; `None` keeps both.
        max_boxes: Most labels of a frame.
        classes: The detector's class names.
    """

    def __init__(
        self,
        work: Path,
        frames: FrameSet,
        thresholds: float | dict[str, float],
        nms_iou: float | None,
        max_boxes: int,
        classes: tuple[str, ...],
    ) -> None:
        super().__init__("batch")
        self.classes = classes
        self.work, self.frames = work, frames
        self.rules: dict[str, Any] = {"thresholds": thresholds, "nms_iou": nms_iou, "max_boxes": max_boxes}
        self.names = OutputNames(frames.source)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this rank's shard."""
        self.shards = LabelShards(self.work / SHARDS, trainer.global_rank)
        self.done = self.shards.done()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Sequence[Detections | Candidates],
        batch_indices: Sequence[int] | None,
        batch: FrameBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the batch's frames, those left out that a killed run had written already."""
        self.frames.quarantine.check()
        if batch.batch is None:
            return
        for position, frame, found in zip(batch.positions, batch.batch.frames, prediction, strict=True):
            if _has(self.done, position):
                continue
            if self.names.saved:
                self._save_image(position)
            named = self.names.rename(position, frame)
            if isinstance(found, Candidates):
                self.shards.write_line(encode(position, named, found))  # decided when all frames are there
            else:
                self.shards.write(position, named, select(found, frame.size, self.classes, **self.rules))

    def _save_image(self, position: int) -> None:
        path = self.work / "images" / self.names.of(position)
        pixels = self.frames.source.read(position)
        _, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
        with atomic_write(path, "wb") as file:
            file.write(encoded.tobytes())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the shard, and wait until every rank has."""
        self.shards.close()
        write_broken(self.work, trainer.global_rank, self.frames.quarantine)
        trainer.strategy.barrier("all written")


class OutputNames:
    """What the labelled frames are called in `labels.json`, and where their images lie.

    Images stay where they are. Only where a frame has no file of its own, as in a video, all are saved beside the
    labels, or nobody could train on them.

    Args:
        source: The input.

    Attributes:
        saved: The images are saved into the run directory.
        root: Folder the names are relative to; `None` where `saved`.

    Raises:
        DataError: An image is in the input twice.
    """

    def __init__(self, source: FrameSource) -> None:
        self.source = source
        paths = [source.path(position) for position in range(len(source))]
        self.saved = any(path is None for path in paths)
        parts = source.sources if isinstance(source, JoinedFrames) else [source]
        roots = [str(Path(getattr(part, "root", ".")).resolve()) for part in parts]
        self.root = None if self.saved else Path(os.path.commonpath(roots))
        self._names = [self._name(frame, path) for frame, path in zip(source.frames, paths, strict=True)]
        twice = {name for name, count in Counter(self._names).items() if count > 1}
        if twice and self.saved:  # a.jpg and a.png of one folder are both saved as JPEG
            for position, path in enumerate(paths):
                if path is not None and self._names[position] in twice:
                    self._names[position] = f"{self._names[position].removesuffix('.jpg')}{path.suffix}.jpg"
            twice = {name for name, count in Counter(self._names).items() if count > 1}
        if twice:
            message = f"{min(twice)!r} is in the input {Counter(self._names)[min(twice)]} times. Name each input once."
            raise DataError(message)

    def of(self, position: int) -> str:
        """Return a frame's file name."""
        return self._names[position]

    def _name(self, frame: Frame, path: Path | None) -> str:
        if self.root is not None and path is not None:
            return Path(
                os.path.relpath(path.resolve() if not path.is_symlink() else path.absolute(), self.root)
            ).as_posix()
        stem = Path(frame.name.replace("@", "_")).with_suffix("") if path else Path(frame.name.replace("@", "_"))
        return f"{frame.recording or 'frames'}/{stem.as_posix().replace('/', '_')}.jpg"

    def rename(self, position: int, frame: Frame) -> Frame:
        """Return the frame under its name in the labels."""
        return replace(frame, name=self.of(position))


def write_broken(work: Path, rank: int, quarantine: Quarantine) -> None:
    """Note beside the shards which frames a rank could not read, by position."""
    broken = dict(zip(map(str, quarantine.positions()), quarantine.entries(), strict=True))
    if broken:
        write_json(work / SHARDS / f"quarantine-{rank}.json", broken)


def read_broken(work: Path, names: OutputNames) -> list[dict[str, str]]:
    """Return name in the labels and reason of the frames that no rank could read, each once."""
    found: dict[int, str] = {}
    for path in sorted((work / SHARDS).glob("quarantine-*.json")):
        found |= {int(position): entry["reason"] for position, entry in read_json(path).items()}
    return [{"file_name": names.of(position), "reason": found[position]} for position in sorted(found)]


def label_frames(
    trainer: Trainer,
    detector: Detector,
    frames: FrameSet,
    work: Path,
    batch_size: int,
    workers: int,
    module: LightningModule | None = None,
    **rules: Any,
) -> OutputNames:
    """Label what is not labelled yet into the shards of a run directory, and return what the frames are called.

    Args:
        trainer: Without a writer.
        detector: The teacher.
        frames: The input.
        work: The run directory.
        batch_size: Frames in a batch.
        workers: Processes that load images.
        module: Looks at the batches; the detector alone where not given.
        **rules: `thresholds`, `nms_iou` and `max_boxes` of `LabelWriter`.
    """
    writer = LabelWriter(work, frames, classes=detector.classes, **rules)
    trainer.callbacks.append(writer)  # type: ignore[attr-defined]
    data = FramesToLabel(frames, work, batch_size, workers)
    warnings.filterwarnings("ignore", "Couldn't infer the batch indices")  # each batch says its own positions
    trainer.predict(module or PseudoLabelExport(detector), datamodule=data, return_predictions=False)
    return writer.names
