"""`cahqp features`: the signals of every frame that drift detection reads: features, scores and plain signals."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cahqp.data.frames import open_frames
from cahqp.data.sources import FrameSource, JoinedFrames
from cahqp.detectors.base import Detector, Output
from cahqp.detectors.model_file import load
from cahqp.drift.options import FeaturesOptions
from cahqp.drift.signals import PLAIN, SCORE_EDGES, Signals, write_signals
from cahqp.inference.frames import FrameLoader, FrameSet, fixed_batches
from cahqp.runs.directory import open_run
from cahqp.structures import Batch, Detections

GRID = 2
"""Cells along each side over which features are averaged: too coarse to locate a vehicle, fine enough to
detect a turned camera."""

_THUMBNAIL = (36, 64)
_VIEW = (9, 16)
_DEFAULT_THRESHOLD = 0.3  # for model files without thresholds


def features(options: FeaturesOptions) -> None:
    """Run `cahqp features`."""
    inputs = {"weights": options.weights, **{f"frames.{i}": path for i, path in enumerate(options.frames)}}
    settings = {"frame_interval": options.frame_interval, "batch_size": options.batch_size}
    with open_run(options.output, "features", settings, inputs) as run:
        if run is None:
            return
        source = open_frames(options.frames, options.frame_interval)
        detector = load(options.weights).to(options.device).eval()
        frames = FrameSet(source, detector.preprocessing, options.max_invalid_share)
        signals = measure_signals(detector, frames, options.batch_size, options.workers)
        write_signals(run.work, signals, _root(source, run.work))
        run.metrics = {"frames": len(source), "unreadable": int((~signals.readable).sum())}
        print(f"{options.output}: {len(source)} frames of {len(set(signals.cameras))} camera(s).")


@dataclass
class _Rows:
    """Signals collected over the batches. Row i belongs to frame i."""

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
def measure_signals(detector: Detector, frames: FrameSet, batch_size: int = 8, workers: int = 0) -> Signals:
    """Return the signals of every frame. Unreadable frames are marked.

    Args:
        detector: Detector in eval mode, on its device.
        frames: The frames.
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
        detections = detector.decode(output, output.sizes)
        pooled = pool(output, batch).cpu().numpy()
        if rows.features is None:
            rows.features = np.zeros((len(frames), pooled.shape[1]), np.float32)
        rows.features[item.positions] = pooled
        for row, position in enumerate(item.positions):
            rows.readable[position] = True
            rows.scores[position] = _histogram(detections[row])
            rows.uncertainty[position] = uncertainty(detections[row].scores.cpu().numpy())
            grey = _grey(batch, row)
            rows.view[position] = _view(grey)
            key = batch.frames[row].camera or batch.frames[row].recording
            rows.plain[position] = _plain(grey, _count(detections[row], detector), previous.get(key))
            previous[key] = _thumbnail(grey)
    return _signals(rows, frames.source, detector.provenance.get("hash"))


def pool(output: Output, batch: Batch) -> Tensor:
    """Return (B, D) features: the coarsest backbone level, averaged over a grid of the valid part of each image."""
    maps = output.features.backbone[-1].float()
    height, width = batch.images.shape[-2:]
    pooled = []
    for row, (valid_height, valid_width) in enumerate(output.sizes.tolist()):
        rows = max(1, round(maps.shape[2] * valid_height / height))
        columns = max(1, round(maps.shape[3] * valid_width / width))
        pooled.append(functional.adaptive_avg_pool2d(maps[row, :, :rows, :columns], GRID).flatten())
    return torch.stack(pooled)


def uncertainty(scores: NDArray[np.float32]) -> float:
    """Return the summed entropy in bits of a frame's detections with scores of at least 0.1.

    It is small for frames without objects and for frames with certain objects.
    """
    kept = np.clip(scores[scores >= 0.1].astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-(kept * np.log2(kept) + (1 - kept) * np.log2(1 - kept)).sum())


def _histogram(detections: Detections) -> NDArray[np.float32]:
    return np.histogram(detections.scores.cpu().numpy(), SCORE_EDGES)[0].astype(np.float32)


def _grey(batch: Batch, row: int) -> Tensor:
    """Return (h, w) float32 grey values of the valid part of an image, 0..255."""
    valid = ~batch.padding_mask[row]
    height, width = int(valid.any(1).sum()), int(valid.any(0).sum())
    return batch.images[row, :, :height, :width].float().mean(0)


def _thumbnail(grey: Tensor, size: tuple[int, int] = _THUMBNAIL) -> Tensor:
    return functional.adaptive_avg_pool2d(grey[None], size)[0]


def _view(grey: Tensor) -> NDArray[np.float32]:
    """Return the normalised brightness of a tiny image, which changes if the camera is moved, not with the light."""
    small = _thumbnail(grey, _VIEW).flatten()
    view: NDArray[np.float32] = ((small - small.mean()) / small.std().clamp_min(1.0)).cpu().numpy()
    return view


def _count(detections: Detections, detector: Detector) -> int:
    """Return the number of detections that reach the operating threshold of their class."""
    thresholds = [detector.thresholds.get(name, _DEFAULT_THRESHOLD) for name in detector.classes]
    return int((detections.scores >= detections.scores.new_tensor(thresholds)[detections.labels]).sum())


def _plain(grey: Tensor, count: int, before: Tensor | None) -> NDArray[np.float32]:
    """Return the plain signals of one frame, in the order of `PLAIN`."""
    edges = grey[1:-1, 1:-1] * 4 - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    change = float((_thumbnail(grey) - before).abs().mean()) if before is not None else np.nan
    return np.array([grey.mean().item(), grey.std().item(), edges.std().item(), count, change], np.float32)


def _signals(rows: _Rows, source: FrameSource, model: str | None) -> Signals:
    frames = source.frames
    return Signals(
        features=np.zeros((rows.count, 1), np.float32) if rows.features is None else rows.features,
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
    """Return the folder of the frames' files, relative to `work`; `None` for frames of a video."""
    if any(source.path(position) is None for position in range(len(source))):
        return None
    return Path(os.path.relpath(os.path.commonpath(_roots(source)), work.resolve())).as_posix()


def _name(source: FrameSource, position: int) -> str:
    """Return a frame's name, relative to the common folder of all sources."""
    path, roots = source.path(position), _roots(source)
    if path is None or len(roots) == 1:
        return source.frames[position].name
    return Path(os.path.relpath(path.absolute(), os.path.commonpath(roots))).as_posix()


def _roots(source: FrameSource) -> list[str]:
    parts = source.sources if isinstance(source, JoinedFrames) else [source]
    return [str(Path(getattr(part, "root", ".")).resolve()) for part in parts]
