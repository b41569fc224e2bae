"""`cahqp relabel`: a teacher's labels for frames, streamed to disk, from where a killed run goes on."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import cv2
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BasePredictionWriter, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only

from cahqp.cycle.manifest import RunDirectory
from cahqp.data.frames import FrameSource, JoinedFrames, open_frames
from cahqp.data.images import write_quarantine
from cahqp.detectors.output import Detector
from cahqp.detectors.weights import load
from cahqp.errors import DataError, check_numbers
from cahqp.files import atomic_write, read_json, write_json
from cahqp.labels.candidates import Candidates, encode
from cahqp.labels.formats import write_format
from cahqp.labels.fusion import Method
from cahqp.labels.select import resolve_thresholds, select
from cahqp.labels.shards import LabelShards
from cahqp.labels.writers import merge
from cahqp.structures import Detections, Frame
from cahqp.training.looks import LookFrames, collate_looks
from cahqp.training.predict import FrameBatch, FrameLoader, FrameSet, detect, fixed_batches
from cahqp.training.refining import Options, Refinery
from cahqp.training.soft_store import SoftStoreSettings, check_soft, write_store

SHARDS = "checkpoints/shards"  # where a manifest does not look
REFINED = "checkpoints/refined"
DEFAULT_THRESHOLD = 0.3


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
        collate_fn = collate_looks if isinstance(self.frames, LookFrames) else None
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
        self.names = Names(frames.source)

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
        write_quarantine(self.work / SHARDS / f"quarantine-{trainer.global_rank}.json", [self.frames.quarantine])
        trainer.strategy.barrier("all written")


class Names:
    """What the labelled frames are called in `labels.json`, and where their images lie.

    Images stay where they are. Only where a frame has no file of its own, as in a video, all are saved beside the
    labels, or nobody could train on them.

    Args:
        source: The input.

    Attributes:
        saved: The images are saved into the run directory.
        root: Folder the names are relative to; `None` where `saved`.
    """

    def __init__(self, source: FrameSource) -> None:
        self.source = source
        paths = [source.path(position) for position in range(len(source))]
        self.saved = any(path is None for path in paths)
        parts = source.sources if isinstance(source, JoinedFrames) else [source]
        roots = [str(Path(getattr(part, "root", ".")).resolve()) for part in parts]
        self.root = None if self.saved else Path(os.path.commonpath(roots))

    def of(self, position: int) -> str:
        """Return a frame's file name."""
        path = self.source.path(position)
        if self.root is not None and path is not None:
            return Path(
                os.path.relpath(path.resolve() if not path.is_symlink() else path.absolute(), self.root)
            ).as_posix()
        frame = self.source.frames[position]
        stem = Path(frame.name.replace("@", "_")).with_suffix("") if path else Path(frame.name.replace("@", "_"))
        return f"{frame.recording or 'frames'}/{stem.as_posix().replace('/', '_')}.jpg"

    def rename(self, position: int, frame: Frame) -> Frame:
        """Return the frame under its name in the labels."""
        return replace(frame, name=self.of(position))


def relabel(
    weights: Path,
    frames: list[Path],
    output: Path,
    threshold: float | None = None,
    calibration: Path | None = None,
    target_precision: float | None = None,
    top_share: float | None = None,
    dynamic: bool = False,
    ignore_share: float = 1.0,
    temporal: bool = False,
    weighted: bool = False,
    views: list[str] | None = None,
    teachers: list[Path] | None = None,
    predictions: list[Path] | None = None,
    fuse: Method = "wbf",
    format: list[Literal["coco", "yolo", "cvat", "label-studio"]] | None = None,
    soft: bool = False,
    soft_store: SoftStoreSettings | None = None,
    nms_iou: float = 0.7,
    max_boxes: int = 100,
    every: float | None = None,
    batch_size: int = 8,
    workers: int = 0,
    max_broken: float = 0.05,
    devices: int = 1,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    seed: int = 0,
) -> None:
    """Write a teacher's labels for frames as COCO: `labels.json`, and what was dropped as `rejected.json`.

    Killed and started again it goes on where it stopped, and the files are the same to the byte.

    Args:
        weights: Model file of the teacher.
        frames: Folders of images, videos or COCO files, whose labels are not read.
        output: Directory for the labels; never overwritten.
        threshold: Lowest score of a label, 0..1; the model's own per class where not given, 0.3 where it has none.
        calibration: File or directory of `cahqp calibrate`; scores then say how likely a box is right.
        target_precision: Thresholds per class that give this precision on the calibration's frames, 0..1.
        top_share: This share of each class's boxes become labels, 0..1.
        dynamic: Lower the threshold of a class that the teacher is less sure of here than on the calibration's frames.
        ignore_share: From this share of the threshold up to it a box is neither object nor background in training; 1
            makes all below the threshold background.
        temporal: Follow boxes over time: drop flickers, fill gaps, vote classes. Recordings whose frames have no time
            stamps or lie too far apart are left as they are, and said to be.
        weighted: Boxes count in training by their confidence, not fully.
        views: Further views of each frame: flip, scale:1.5, tiles:2x2.
        teachers: Further model files whose word counts as well.
        predictions: COCO files of other detectors' predictions, with scores, whose word counts as well.
        fuse: How the boxes of several views and teachers become one: nms, soft-nms or wbf (weighted box fusion).
        format: Further formats to write: yolo, cvat, label-studio; COCO is always written.
        soft: Keep the teacher's soft answers to several views of every frame, too, for students to learn from.
        soft_store: What is kept of them.
        nms_iou: Overlap above which the lower-scored of two labels is dropped, whatever their classes.
        max_boxes: Most labels of a frame.
        every: Seconds between the frames taken from a video; all of them where not given.
        batch_size: Frames in a batch.
        workers: Processes that load images; 0 loads in the main one.
        max_broken: Share of broken images, 0..1, that is put up with.
        devices: Number of devices to share the frames between.
        accelerator: What to compute on.
        precision: Of the computation.
        seed: Kept in the manifest.
    """
    options = Options(
        calibration,
        target_precision,
        top_share,
        dynamic,
        ignore_share,
        temporal,
        weighted,
        views or [],
        teachers or [],
        predictions or [],
        fuse,
    )
    check_numbers(
        shares={"--threshold": threshold, "--nms_iou": nms_iou, "--max_broken": max_broken},
        counts={"--max_boxes": max_boxes, "--batch_size": batch_size, "--devices": devices},
    )
    options.check(threshold)
    if soft:
        check_soft(devices)
    seed_everything(seed, verbose=False)
    formats = sorted(set(format or []) - {"coco"})
    settings: dict[str, Any] = {
        "threshold": threshold,
        "nms_iou": nms_iou,
        "max_boxes": max_boxes,
        "every": every,
        "batch_size": batch_size,
        "precision": precision,
    }
    settings |= (options.settings if options.asked else {}) | ({"format": formats} if formats else {})
    kept = soft_store or SoftStoreSettings()
    settings |= {"soft_store": asdict(kept)} if soft else {}
    detector = load(weights)
    source = open_frames(frames, every)
    inputs = {"weights": weights, **{f"frames.{i}": path for i, path in enumerate(frames)}, **options.files}
    run = RunDirectory(output, "relabel", settings, inputs, seed)
    first = (getattr(rank_zero_only, "rank", None) or 0) == 0
    if first and not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    refinery = None
    frame_set = FrameSet(source, detector.preprocessing, max_broken)
    if options.asked:
        listed = [frame.name for frame in source.frames]
        refinery = Refinery(options, detector, listed, threshold, DEFAULT_THRESHOLD, nms_iou, max_boxes)
        wanted = [teacher.preprocessing for teacher in refinery.ensemble.detectors]
        frame_set = LookFrames(source, wanted, refinery.views, max_broken)
    thresholds = threshold if threshold is not None else (detector.thresholds or DEFAULT_THRESHOLD)
    resolve_thresholds(thresholds, detector.classes)

    def trainer() -> Trainer:
        return Trainer(
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            logger=False,
            callbacks=[TQDMProgressBar(refresh_rate=10)],
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=run.work,
        )

    rules: dict[str, Any] = {"thresholds": thresholds, "nms_iou": nms_iou, "max_boxes": max_boxes}
    module = None if refinery is None else refinery.module()
    names = label_frames(trainer(), detector, frame_set, run.work, batch_size, workers, module, **rules)
    if soft:
        images = run.work / "images" if names.root is None else names.root
        known = [names.rename(position, frame) for position, frame in enumerate(source.frames)]
        sizes = (batch_size, workers)
        write_store(trainer(), detector, source, run.work / "soft", images, known, kept, seed, *sizes)
    if first:
        metrics = complete(run, source, detector, names, refinery, formats)
        print(f"{run.output}: {metrics['boxes']} labels on {metrics['frames']} frames.")


def label_frames(
    trainer: Trainer,
    detector: Detector,
    frames: FrameSet,
    work: Path,
    batch_size: int,
    workers: int,
    module: LightningModule | None = None,
    **rules: Any,
) -> Names:
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


def complete(
    run: RunDirectory,
    source: FrameSource,
    detector: Detector,
    names: Names,
    refinery: Refinery | None = None,
    formats: Sequence[str] = (),
) -> dict[str, Any]:
    """Merge the shards, check that no frame is missing, and complete the run directory."""
    shards = run.work / SHARDS
    if refinery is not None:
        shards = run.work / REFINED
        refinery.decide(run.work / SHARDS, shards, run.work)
    categories = getattr(source, "categories", None) or {}
    listed = [{"id": key, "name": name} for key, name in categories.items()]
    merged = merge(shards, detector.classes, listed, run.work)
    broken = _broken(run.work, source)
    if merged.frames + len(broken) != len(source):
        message = f"{len(source) - merged.frames - len(broken)} frames were not labelled. Run the same command again."
        raise DataError(message)
    if broken:
        write_json(run.work / "quarantine.json", {"images": broken})
    root = "images" if names.root is None else os.path.relpath(names.root, run.work.resolve())
    write_json(run.work / "source.json", {"root": Path(root).as_posix()})
    for name in formats:
        write_format(run.work / "labels.json", name, run.work / name)
    metrics = {"frames": merged.frames, "boxes": sum(merged.kept.values()), "kept": merged.kept, "broken": len(broken)}
    metrics |= {} if refinery is None else {"ignored": merged.ignored}
    run.finish(metrics)
    shutil.rmtree(run.output / Path(SHARDS).parts[0])  # only now: killed before, a run goes on from its shards
    return metrics


def _broken(work: Path, source: FrameSource) -> list[dict[str, str]]:
    """Return name and reason of the frames that no rank could read, each once."""
    found = [entry for path in sorted((work / SHARDS).glob("quarantine-*.json")) for entry in read_json(path)["images"]]
    return list({entry["file_name"]: entry for entry in found}.values())
