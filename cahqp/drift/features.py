"""`cahqp features`: what drift is watched on, for every frame of an input: features, scores and plain signals."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cahqp.data.frames import open_frames
from cahqp.data.sources import FrameSource, JoinedFrames
from cahqp.detectors.base import Detector, Output
from cahqp.detectors.model_file import load
from cahqp.drift.signals import PLAIN, SCORE_EDGES, Signals, write_signals
from cahqp.errors import check_numbers
from cahqp.inference.frames import FrameLoader, FrameSet, fixed_batches
from cahqp.runs.directory import RunDirectory
from cahqp.structures import Batch, Detections

GRID = 2
"""Cells along each side into which features are averaged: coarse enough to forget where a vehicle stands, fine enough
to see that a camera was turned."""

_THUMBNAIL = (36, 64)
_VIEW = (9, 16)
_SEEN_FROM = 0.3  # where the model file states no threshold


def features(
    weights: Path,
    frames: list[Path],
    output: Path,
    frame_interval: float | None = None,
    batch_size: int = 8,
    workers: int = 0,
    max_invalid_share: float = 1.0,
    device: str = "cpu",
) -> None:
    """Write features, scores and plain signals of frames, for `cahqp drift`, `sample` and `replay`: `features.npz`.

    Args:
        weights: Model file of a student or a teacher. Files of different models cannot be compared.
        frames: Folders of images, videos or COCO files, whose labels are not read.
        output: Directory to make.
        frame_interval: Seconds between the frames taken from a video; all of them where not given.
        batch_size: Frames in a batch.
        workers: Processes that load images; 0 loads in the main one.
        max_invalid_share: Share of unreadable images, 0..1, that is put up with: they are what a dying camera sends.
        device: Where the model runs.
    """
    check_numbers(shares={"--max_invalid_share": max_invalid_share}, counts={"--batch_size": batch_size})
    inputs = {"weights": weights, **{f"frames.{i}": path for i, path in enumerate(frames)}}
    run = RunDirectory(output, "features", {"frame_interval": frame_interval, "batch_size": batch_size}, inputs, seed=0)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    source = open_frames(frames, frame_interval)
    detector = load(weights).to(device).eval()
    signals = watch(detector, FrameSet(source, detector.preprocessing, max_invalid_share), batch_size, workers)
    write_signals(run.work, signals, _root(source, run.work))
    run.finish({"frames": len(source), "unreadable": int((~signals.readable).sum())})
    print(f"{output}: {len(source)} frames of {len(set(signals.cameras))} camera(s).")


@dataclass
class _Rows:
    """What is gathered over the batches; row i belongs to frame i."""

    count: int
    features: NDArray[np.float32] | None = None
    scores: NDArray[np.float32] = field(init=False)
    plain: NDArray[np.float32] = field(init=False)
    view: NDArray[np.float32] = field(init=False)
    uncertainty: NDArray[np.float32] = field(init=False)
    readable: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.scores = np.zeros((self.count, len(SCORE_EDGES) - 1), np.float32)
        self.plain = np.full((self.count, len(PLAIN)), np.nan, np.float32)
        self.view = np.zeros((self.count, _VIEW[0] * _VIEW[1]), np.float32)
        self.uncertainty = np.zeros(self.count, np.float32)
        self.readable = np.zeros(self.count, np.bool_)


@torch.no_grad()
def watch(detector: Detector, frames: FrameSet, batch_size: int = 8, workers: int = 0) -> Signals:
    """Return the signals of every frame, those that cannot be read marked so.

    Args:
        detector: In eval mode, on its device.
        frames: The input.
        batch_size: Frames in a batch.
        workers: Processes that load images.
    """
    rows = _Rows(len(frames))
    device = next(detector.parameters()).device
    previous: dict[str, Tensor] = {}
    for item in FrameLoader(frames, fixed_batches(len(frames), batch_size), workers):
        frames.quarantine.check()
        if item.batch is None:
            continue
        batch = item.batch.to(device)
        images = detector.preprocessing.normalise(batch.images, batch.padding_mask)
        output: Output = detector(images, batch.padding_mask)
        found = detector.decode(output, output.sizes)
        pooled = pool(output, batch).cpu().numpy()
        if rows.features is None:
            rows.features = np.zeros((len(frames), pooled.shape[1]), np.float32)
        rows.features[item.positions] = pooled
        for row, position in enumerate(item.positions):
            rows.readable[position] = True
            rows.scores[position] = _histogram(found[row])
            rows.uncertainty[position] = uncertainty(found[row].scores.cpu().numpy())
            grey = _grey(batch, row)
            rows.view[position] = _view(grey)
            key = batch.frames[row].camera or batch.frames[row].recording
            rows.plain[position] = _plain(grey, _seen(found[row], detector), previous.get(key))
            previous[key] = _thumbnail(grey)
    return _signals(rows, frames.source, detector.provenance.get("hash"))


def pool(output: Output, batch: Batch) -> Tensor:
    """Return (B, D) features: the coarsest level of the backbone's, averaged over a grid of the valid part.

    Args:
        output: Of the detector.
        batch: What it saw.
    """
    maps = output.features.backbone[-1].float()
    height, width = batch.images.shape[-2:]
    pooled = []
    for row, (valid_height, valid_width) in enumerate(output.sizes.tolist()):
        rows = max(1, round(maps.shape[2] * valid_height / height))
        columns = max(1, round(maps.shape[3] * valid_width / width))
        pooled.append(functional.adaptive_avg_pool2d(maps[row, :, :rows, :columns], GRID).flatten())
    return torch.stack(pooled)


def uncertainty(scores: NDArray[Any]) -> float:
    """Return how undecided a frame's detections are: the sum of their entropies in bits, over scores of 0.1 and more.

    A frame without objects and one whose objects are all sure both have little of it.
    """
    kept = np.clip(scores[scores >= 0.1].astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-(kept * np.log2(kept) + (1 - kept) * np.log2(1 - kept)).sum())


def _histogram(detections: Detections) -> NDArray[np.float32]:
    return np.histogram(detections.scores.cpu().numpy(), SCORE_EDGES)[0].astype(np.float32)


def _grey(batch: Batch, row: int) -> Tensor:
    """Return (h, w) float grey values of the valid part of an image, 0..255."""
    valid = ~batch.padding_mask[row]
    height, width = int(valid.any(1).sum()), int(valid.any(0).sum())
    return batch.images[row, :, :height, :width].float().mean(0)


def _thumbnail(grey: Tensor, size: tuple[int, int] = _THUMBNAIL) -> Tensor:
    return functional.adaptive_avg_pool2d(grey[None], size)[0]


def _view(grey: Tensor) -> NDArray[np.float32]:
    """Return where it is bright and where dark, whatever the light: the same as long as a camera is not moved."""
    small = _thumbnail(grey, _VIEW).flatten()
    view: NDArray[np.float32] = ((small - small.mean()) / small.std().clamp_min(1.0)).cpu().numpy()
    return view


def _seen(found: Detections, detector: Detector) -> int:
    """Return how many detections reach the operating threshold of their class."""
    limits = found.scores.new_tensor([detector.thresholds.get(name, _SEEN_FROM) for name in detector.classes])
    return int((found.scores >= limits[found.labels]).sum())


def _plain(grey: Tensor, seen: int, before: Tensor | None) -> NDArray[np.float32]:
    """Return the plain signals of one frame, in the order of `PLAIN`."""
    edges = grey[1:-1, 1:-1] * 4 - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    change = float((_thumbnail(grey) - before).abs().mean()) if before is not None else np.nan
    return np.array([grey.mean().item(), grey.std().item(), edges.std().item(), seen, change], np.float32)


def _signals(rows: _Rows, source: FrameSource, model: str | None) -> Signals:
    frames = source.frames
    nothing = np.zeros((rows.count, 1), np.float32)
    return Signals(
        features=rows.features if rows.features is not None else nothing,
        scores=rows.scores,
        plain=rows.plain,
        view=rows.view,
        uncertainty=rows.uncertainty,
        readable=rows.readable,
        names=[_name(source, position) for position in range(len(source))],
        cameras=[frame.camera or frame.recording or "camera" for frame in frames],
        recordings=[frame.recording or frame.camera or "recording" for frame in frames],
        indices=[frame.index for frame in frames],
        times=[frame.timestamp for frame in frames],
        model=model,
    )


def _root(source: FrameSource, work: Path) -> str | None:
    """Return the folder that the frames' files lie in, relative to `work`; `None` for frames out of a video."""
    if any(source.path(position) is None for position in range(len(source))):
        return None
    parts = source.sources if isinstance(source, JoinedFrames) else [source]
    roots = [str(Path(getattr(part, "root", ".")).resolve()) for part in parts]
    return Path(os.path.relpath(os.path.commonpath(roots), work.resolve())).as_posix()


def _name(source: FrameSource, position: int) -> str:
    """Return a frame's name, relative to the folder that holds all of the input."""
    path = source.path(position)
    parts = source.sources if isinstance(source, JoinedFrames) else [source]
    if path is None or len(parts) == 1:
        return source.frames[position].name
    common = os.path.commonpath([str(Path(getattr(part, "root", ".")).resolve()) for part in parts])
    return Path(os.path.relpath(path.absolute(), common)).as_posix()
