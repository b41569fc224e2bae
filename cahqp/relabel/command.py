"""`cahqp relabel`: a teacher's labels for frames, streamed to disk, from where a killed run goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only

from cahqp.data.frames import open_frames
from cahqp.data.sources import FrameSource
from cahqp.detectors.base import Detector
from cahqp.detectors.model_file import load
from cahqp.errors import DataError, check_numbers
from cahqp.files import write_json
from cahqp.inference.frames import FrameSet
from cahqp.labels.formats import write_format
from cahqp.labels.formats.yolo import check_names
from cahqp.labels.fusion import Method
from cahqp.labels.select import resolve_thresholds
from cahqp.labels.shards.merge import merge
from cahqp.relabel.options import SoftStoreSettings
from cahqp.relabel.pipeline import LabelPipeline, Options
from cahqp.relabel.shard_writer import SHARDS, OutputNames, label_frames, read_broken
from cahqp.relabel.soft_labels import check_soft, write_store
from cahqp.relabel.tta import ViewFrames
from cahqp.runs.directory import RunDirectory

REFINED = "checkpoints/refined"
DEFAULT_THRESHOLD = 0.3


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
    stationary_weight: float = 1.0,
    weight_by_score: bool = False,
    views: list[str] | None = None,
    teachers: list[Path] | None = None,
    predictions: list[Path] | None = None,
    fuse: Method = "wbf",
    format: list[Literal["coco", "yolo", "cvat", "label-studio"]] | None = None,
    soft: bool = False,
    soft_store: SoftStoreSettings | None = None,
    nms_iou: float = 0.7,
    max_boxes: int = 100,
    frame_interval: float | None = None,
    batch_size: int = 8,
    workers: int = 0,
    max_invalid_share: float = 0.05,
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
        stationary_weight: What a score counts whose place is taken in most other frames of the recording, 0..1: lamps
            and lit
            windows look like road users and never move. Where `temporal` follows boxes, tracks decide instead.
        weight_by_score: Boxes count in training by their confidence, not fully.
        views: Further views of each frame: flip, scale:1.5, tiles:2x2.
        teachers: Further model files whose word counts as well.
        predictions: COCO files of other detectors' predictions, with scores, whose word counts as well.
        fuse: How the boxes of several views and teachers become one: nms, soft-nms or wbf (weighted box fusion).
        format: Further formats to write: yolo, cvat, label-studio; COCO is always written.
        soft: Keep the teacher's soft answers to several views of every frame, too, for students to learn from.
        soft_store: What is kept of them.
        nms_iou: Overlap above which the lower-scored of two labels is dropped, whatever their classes.
        max_boxes: Most labels of a frame.
        frame_interval: Seconds between the frames taken from a video; all of them where not given.
        batch_size: Frames in a batch.
        workers: Processes that load images; 0 loads in the main one.
        max_invalid_share: Share of broken images, 0..1, that is put up with.
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
        stationary_weight,
        weight_by_score,
        views or [],
        teachers or [],
        predictions or [],
        fuse,
    )
    check_numbers(
        shares={"--threshold": threshold, "--nms_iou": nms_iou, "--max_invalid_share": max_invalid_share},
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
        "frame_interval": frame_interval,
        "batch_size": batch_size,
        "precision": precision,
    }
    settings |= (options.settings if options.asked else {}) | ({"format": formats} if formats else {})
    kept = soft_store or SoftStoreSettings()
    settings |= {"soft_store": asdict(kept)} if soft else {}
    detector = load(weights)
    source = open_frames(frames, frame_interval)
    if "yolo" in formats:  # before hours of work, not after
        names = OutputNames(source)
        check_names(names.of(position) for position in range(len(source)))
    inputs = {"weights": weights, **{f"frames.{i}": path for i, path in enumerate(frames)}, **options.files}
    run = RunDirectory(output, "relabel", settings, inputs, seed)
    first = (getattr(rank_zero_only, "rank", None) or 0) == 0
    if first and not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    refinery = None
    frame_set = FrameSet(source, detector.preprocessing, max_invalid_share)
    if options.asked:
        listed = [frame.name for frame in source.frames]
        refinery = LabelPipeline(options, detector, listed, threshold, DEFAULT_THRESHOLD, nms_iou, max_boxes)
        wanted = [teacher.preprocessing for teacher in refinery.ensemble.detectors]
        frame_set = ViewFrames(source, wanted, refinery.views, max_invalid_share)
    thresholds = threshold if threshold is not None else (detector.thresholds or DEFAULT_THRESHOLD)
    if threshold is None and not detector.thresholds:
        print(
            f"{weights} holds no operating thresholds: labels are kept from {DEFAULT_THRESHOLD}. --threshold sets it."
        )
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


def complete(
    run: RunDirectory,
    source: FrameSource,
    detector: Detector,
    names: OutputNames,
    refinery: LabelPipeline | None = None,
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
    broken = read_broken(run.work, names)
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
