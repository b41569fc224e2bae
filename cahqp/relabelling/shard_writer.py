"""Frames through teachers into shards of candidates; written frames are skipped when a run resumes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from cahqp.data.images import Quarantine
from cahqp.detectors.base import Detector
from cahqp.files import atomic_write, read_json, write_json
from cahqp.inference.frames import FrameBatch, FrameLoader, FrameSet, detect, fixed_batches
from cahqp.labels.candidates import Candidates, clip_candidates, encode
from cahqp.labels.shards.shards import LabelShards
from cahqp.labels.tracking.motion import encode_thumbnail
from cahqp.motion import reduce, thumbnail_size
from cahqp.relabelling.output_names import OutputNames
from cahqp.relabelling.tta import Ensemble, ViewBatch, ViewFrames, collate_views

CANDIDATES = "checkpoints/candidates"
"""Folder of the shards in a run directory. A manifest does not cover checkpoints."""


class SingleTeacher(LightningModule):
    """One detector on unchanged frames.

    Args:
        detector: The teacher.
        floor: Lowest score of a candidate.
    """

    def __init__(self, detector: Detector, floor: float = 0.0) -> None:
        super().__init__()
        self.detector, self.floor = detector.eval(), floor

    def predict_step(self, batch: FrameBatch, batch_idx: int) -> list[Candidates]:
        """Return the candidates of each frame, boxes in pixels of the original, also those outside the frame."""
        if batch.batch is None:
            return []
        detections = detect(self.detector, batch.batch)
        candidates = []
        for frame, found in zip(batch.batch.frames, detections, strict=True):
            boxes, scores = (x.cpu().numpy().astype(np.float64) for x in (found.boxes, found.scores))
            every = Candidates(boxes, scores, found.labels.cpu().numpy())
            candidates.append(clip_candidates(every, frame.size, self.floor, frame.name, min_side=-np.inf))
        return candidates


class EnsembleTeacher(LightningModule):
    """Several teachers or views of frames, fused.

    Args:
        ensemble: The teachers and views.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble.eval()

    def predict_step(self, batch: ViewBatch, batch_idx: int) -> list[Candidates]:
        """Return the candidates of each frame."""
        return self.ensemble(batch.views) if batch.views else []


class RemainingFrames(LightningDataModule):
    """Batches of frames that are not labelled yet, divided between ranks.

    Args:
        frames: All frames of the input.
        work: Directory of the run.
        batch_size: Number of frames in a batch.
        workers: Number of processes that load images on each rank.
    """

    def __init__(self, frames: FrameSet, work: Path, batch_size: int, workers: int) -> None:
        super().__init__()
        self.frames, self.work, self.batch_size, self.workers = frames, work, batch_size, workers

    def predict_dataloader(self) -> FrameLoader:
        """Return the batches of this rank. All ranks read the shards before any rank writes."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        with LabelShards(self.work / CANDIDATES, rank) as shards:
            done = shards.done()
        if rank == 0:  # broken images are tried again, because they may have been fixed
            for path in (self.work / CANDIDATES).glob("quarantine-*.json"):
                path.unlink()
        if self.trainer is not None:
            self.trainer.strategy.barrier("shards read")
        batches = fixed_batches(len(self.frames), self.batch_size)
        remaining = [batch for batch in batches if not all(_is_done(done, position) for position in batch)]
        collate_fn = collate_views if isinstance(self.frames, ViewFrames) else None
        return FrameLoader(self.frames, remaining[rank::ranks], self.workers, collate_fn)


def _is_done(done: Any, position: int) -> bool:
    return position < len(done) and bool(done[position])


class CandidateWriter(BasePredictionWriter):
    """Callback that appends the candidates of each frame to the shard of its rank.

    Args:
        work: Directory of the run.
        frames: Frames of the input. Their images are saved if they have no file.
        thumbnails: Add a thumbnail of each frame, to detect motion.
    """

    def __init__(self, work: Path, frames: FrameSet, thumbnails: bool = False) -> None:
        super().__init__("batch")
        self.work, self.frames, self.thumbnails = work, frames, thumbnails
        self.names = OutputNames(frames.source)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the shard of this rank."""
        self.shards = LabelShards(self.work / CANDIDATES, trainer.global_rank)
        self.done = self.shards.done()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Sequence[Candidates],
        batch_indices: Sequence[int] | None,
        batch: FrameBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the frames of the batch, except those that an interrupted run had written."""
        self.frames.quarantine.check()
        if batch.batch is None:
            return
        images = zip(batch.positions, batch.batch.frames, batch.batch.images, batch.batch.padding_mask, strict=True)
        for (position, frame, image, padding), candidates in zip(images, prediction, strict=True):
            if _is_done(self.done, position):
                continue
            if self.names.saved:
                self._save_image(position)
            thumbnail = _thumbnail(image, padding, frame.size) if self.thumbnails else None
            self.shards.append(encode(position, self.names.rename(position, frame), candidates, thumbnail))

    def _save_image(self, position: int) -> None:
        pixels = cv2.cvtColor(self.frames.source.read(position), cv2.COLOR_RGB2BGR)
        _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
        with atomic_write(self.names.image_folder(self.work) / self.names[position], "wb") as file:
            file.write(encoded.tobytes())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the shard, and wait for all ranks."""
        self.shards.close()
        write_broken(self.work, trainer.global_rank, self.frames.quarantine)
        trainer.strategy.barrier("shards written")


def _thumbnail(image: Tensor, padding: Tensor, size: tuple[int, int]) -> str:
    """Return the thumbnail of a frame from its image in the batch."""
    height, width = int((~padding[:, 0]).sum()), int((~padding[0]).sum())
    pixels = np.ascontiguousarray(image[:, :height, :width].permute(1, 2, 0).cpu().numpy())
    return encode_thumbnail(reduce(pixels, thumbnail_size(*size)))


def write_broken(work: Path, rank: int, quarantine: Quarantine) -> None:
    """Write the frames that a rank could not read, by position."""
    broken = dict(zip(map(str, quarantine.positions()), quarantine.entries(), strict=True))
    if broken:
        write_json(work / CANDIDATES / f"quarantine-{rank}.json", broken)


def read_broken(work: Path, names: OutputNames) -> list[dict[str, str]]:
    """Return file name and reason of each frame that no rank could read."""
    reasons: dict[int, str] = {}
    for path in sorted((work / CANDIDATES).glob("quarantine-*.json")):
        reasons |= {int(position): entry["reason"] for position, entry in read_json(path).items()}
    return [{"file_name": names[position], "reason": reasons[position]} for position in sorted(reasons)]


def write_candidates(
    trainer: Trainer,
    teacher: LightningModule,
    frames: FrameSet,
    work: Path,
    batch_size: int,
    workers: int,
    thumbnails: bool = False,
) -> OutputNames:
    """Write the candidates of all remaining frames, and return the file names of the frames.

    Args:
        trainer: Trainer without a prediction writer.
        teacher: `SingleTeacher`, or an ensemble.
        frames: Frames of the input, as the teacher expects them.
        work: Directory of the run.
        batch_size: Number of frames in a batch.
        workers: Number of processes that load images.
        thumbnails: Also write a thumbnail of each frame.
    """
    writer = CandidateWriter(work, frames, thumbnails)
    trainer.callbacks.append(writer)  # type: ignore[attr-defined]
    data = RemainingFrames(frames, work, batch_size, workers)
    warnings.filterwarnings("ignore", "Couldn't infer the batch indices")  # batches contain their positions
    trainer.predict(teacher, datamodule=data, return_predictions=False)
    return writer.names
