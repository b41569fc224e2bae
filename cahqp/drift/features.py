"""`cahqp features`: the signals of every frame that drift detection reads: features, scores and plain signals."""

from __future__ import annotations

import os
from dataclasses import replace
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
from cahqp.drift.options import FeaturesOptions
from cahqp.drift.signals import PLAIN, SCORE_EDGES, Signals, write_signals
from cahqp.inference.device import check_device
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
    settings: dict[str, Any] = {"frame_interval": options.frame_interval, "batch_size": options.batch_size}
    settings |= options.naming_settings
    with open_run(options.output, "features", settings, inputs) as run:
        if run is None:
            return
        source = open_frames(options.frames, options.frame_interval, options.naming)
        detector = load(options.weights).to(check_device(options.device)).eval()
        frames = FrameSet(source, detector.preprocessing, options.max_invalid_share)
        signals = measure_signals(detector, frames, options.batch_size, options.workers)
        write_signals(run.work, signals, _root(source, run.work))
        run.metrics = {"frames": len(source), "unreadable": int((~signals.readable).sum())}
        print(f"{options.output}: {len(source)} frames of {len(set(signals.cameras))} camera(s).")


@torch.no_grad()
def measure_signals(detector: Detector, frames: FrameSet, batch_size: int = 8, workers: int = 0) -> Signals:
    """Return the signals of every frame. Unreadable frames are marked.

    Args:
        detector: Detector in eval mode, on its device.
        frames: The frames.
        batch_size: Frames in a batch.
        workers: Processes that load images.
    """
    signals = _unreadable(frames.source, detector.provenance.get("hash"))
    features: NDArray[np.float32] | None = None
    device = next(detector.parameters()).device
    previous: dict[str, Tensor] = {}
    for item in FrameLoader(frames, fixed_batches(len(frames), batch_size), workers):
        frames.quarantine.check()
        if item.batch is None:
            continue
        batch = item.batch.to(device)
        images = detector.preprocessing.normalise(batch.images, batch.padding_mask)
        output: Output = detector(images, batch.padding_mask)
        pooled = pool(output, batch).cpu().numpy()
        if features is None:
            features = np.zeros((len(frames), pooled.shape[1]), np.float32)
        features[item.positions] = pooled
        signals.readable[item.positions] = True
        for row, (position, found) in enumerate(
            zip(item.positions, detector.decode(output, output.sizes), strict=True)
        ):
            scores = found.scores.cpu().numpy()
            signals.scores[position] = np.histogram(scores, SCORE_EDGES)[0]
            signals.uncertainty[position] = uncertainty(scores)
            grey = _grey(batch, row)
            signals.view[position] = _view(grey)
            key = batch.frames[row].camera or batch.frames[row].recording
            signals.plain[position] = _plain(grey, _count(found, detector), previous.get(key))
            previous[key] = _thumbnail(grey)
    return signals if features is None else replace(signals, features=features)


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


def _unreadable(source: FrameSource, model: str | None) -> Signals:
    """Return signals of frames that are not read yet."""
    frames, count = source.frames, len(source)
    return Signals(
        features=np.zeros((count, 1), np.float32),
        scores=np.zeros((count, len(SCORE_EDGES) - 1), np.float32),
        plain=np.full((count, len(PLAIN)), np.nan, np.float32),
        view=np.zeros((count, _VIEW[0] * _VIEW[1]), np.float32),
        uncertainty=np.zeros(count, np.float32),
        readable=np.zeros(count, np.bool_),
        names=[_name(source, position) for position in range(count)],
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
