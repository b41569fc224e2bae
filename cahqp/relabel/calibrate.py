"""`cahqp calibrate`: what a teacher's scores are worth, measured on labelled source frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.data.frames import open_frames
from cahqp.detectors.base import Detector
from cahqp.detectors.model_file import load
from cahqp.errors import DataError, check_numbers
from cahqp.evaluation.ground_truth import GroundTruth, ImagePredictions, Predictions, read_ground_truth
from cahqp.evaluation.metrics import Metrics, average_precision
from cahqp.inference.frames import FrameLoader, fixed_batches
from cahqp.labels.calibration.curves import Curve, Method, expected_error, fit, reliability
from cahqp.labels.calibration.file import FORMAT, Calibration, calibrate, write_calibration
from cahqp.labels.candidates import Candidates, calibrated
from cahqp.labels.fusion import Method as Fusion
from cahqp.labels.fusion import nms
from cahqp.labels.views import ViewSpec, parse_views
from cahqp.relabel.tta import Ensemble, ViewFrames, collate_looks, open_externals
from cahqp.reports.calibration import write_calibration_page
from cahqp.runs.directory import RunDirectory

Floats = NDArray[np.float64]


def identity(
    detectors: Sequence[Detector], views: Sequence[ViewSpec], externals: int, fuse: Fusion, nms_iou: float
) -> dict[str, Any]:
    """Return what a calibration holds for, as plain JSON values."""
    looks = len(detectors) * len(views) + externals
    return {
        "models": [detector.provenance.get("hash") for detector in detectors],
        "views": [[list(view.part), view.mirrored, view.scale] for view in views],
        "predictions": externals,
        "fuse": fuse if looks > 1 else None,
        "nms_iou": nms_iou,
    }


def calibrate_command(
    weights: Path,
    frames: list[Path],
    output: Path,
    teachers: list[Path] | None = None,
    predictions: list[Path] | None = None,
    views: list[str] | None = None,
    fuse: Fusion = "wbf",
    method: Method = "isotonic",
    uncalibrated: list[str] | None = None,
    nms_iou: float = 0.7,
    batch_size: int = 8,
    workers: int = 0,
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Fit what a teacher's scores are worth, on labelled source frames that it was not trained on.

    Args:
        weights: Model file of the teacher.
        frames: COCO file with truth; one.
        output: Directory for `calibration.json` and `calibration.html`; never overwritten.
        teachers: Further model files, as `cahqp relabel` will use them.
        predictions: COCO files of other detectors' predictions on the same frames.
        views: Views, as `cahqp relabel` will use them: flip, scale:S, tiles:CxR.
        fuse: How looks are fused.
        method: `isotonic`, `platt` or `temperature`.
        uncalibrated: Classes that the frames lack; they take the curve of all classes together.
        nms_iou: Overlap above which the lower-scored of two boxes is dropped.
        batch_size: Frames in a batch.
        workers: Processes that load images.
        device: What to compute on.
        seed: Kept in the manifest.
    """
    check_numbers(shares={"--nms_iou": nms_iou}, counts={"--batch_size": batch_size})
    if len(frames) != 1:
        message = f"calibrate takes one COCO file after --frames, got {len(frames)}. Join them first."
        raise DataError(message)
    detectors = [load(path).to(device) for path in [weights, *(teachers or [])]]
    specs = parse_views(views or [])
    inputs = {"weights": weights, "frames.0": frames[0]}
    inputs |= {f"teachers.{i}": path for i, path in enumerate(teachers or [])}
    inputs |= {f"predictions.{i}": path for i, path in enumerate(predictions or [])}
    held = identity(detectors, specs, len(predictions or []), fuse, nms_iou)
    lent = uncalibrated or []
    settings = {"format": FORMAT, "method": method, "uncalibrated": lent, "batch_size": batch_size, **held}
    run = RunDirectory(output, "calibrate", settings, inputs, seed)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    with run.whole():
        ground_truth = read_ground_truth(frames[0], detectors[0].classes)
        found = _candidates(detectors, specs, frames[0], predictions or [], fuse, (batch_size, workers), device)
        metrics = average_precision(ground_truth, _suppressed(ground_truth.classes, found, nms_iou))
        scores, hits = _evidence(metrics)
        objects = {name: metrics.per_class[name].objects for name in ground_truth.classes}
        fitted = calibrate(held, method, scores, hits, objects, lent)
        curves = [fitted.curves[name] for name in ground_truth.classes]
        fitted = replace(fitted, decided=decided(ground_truth, found, curves, nms_iou))
        measured = _measured(fitted, metrics, ground_truth, method, lent)
        write_calibration(run.work / "calibration.json", fitted, measured)
        summary = f"On recordings that the curves were not fitted on: {_said(measured['held_out'])}"
        write_calibration_page(run.work / "calibration.html", fitted, measured["per_class"], summary)
        run.finish(measured)
    print(f"{output}: {_said(measured['held_out'])}")


def _candidates(
    detectors: Sequence[Detector],
    views: Sequence[ViewSpec],
    path: Path,
    predictions: Sequence[Path],
    fuse: Fusion,
    loading: tuple[int, int],
    device: str,
) -> dict[int, Candidates]:
    """Return the candidates of a COCO file's frames by image id."""
    source = open_frames([path])
    names = {frame.name: frame for frame in source.frames}
    ensemble = Ensemble(detectors, views, open_externals(predictions, detectors[0].classes, names), fuse)
    data = ViewFrames(source, [d.preprocessing for d in detectors], views)
    answers = {frame.id: Candidates(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)) for frame in source.frames}
    for item in FrameLoader(data, fixed_batches(len(data), loading[0]), loading[1], collate_looks):
        if item.batch is not None:
            looks = item.to(device).looks  # type: ignore[attr-defined]
            answers |= {frame.id: one for frame, one in zip(item.batch.frames, ensemble(looks), strict=True)}
        data.quarantine.check()
    return answers


def _suppressed(classes: Sequence[str], found: Mapping[int, Candidates], nms_iou: float) -> Predictions:
    """Return what is left of candidates when duplicates are gone as relabelling has it."""
    left = {id_: one[nms(one.boxes, one.scores, nms_iou)] for id_, one in found.items()}
    return Predictions(
        tuple(classes), {id_: ImagePredictions(one.boxes, one.scores, one.labels) for id_, one in left.items()}
    )


def decided(
    ground_truth: GroundTruth, found: Mapping[int, Candidates], curves: Sequence[Curve], nms_iou: float
) -> dict[str, tuple[Floats, NDArray[np.bool_]]]:
    """Return by class calibrated scores and hits of what is left when calibrated scores decide what is a duplicate."""
    valued = {id_: calibrated(one, curves) for id_, one in found.items()}
    matches = average_precision(ground_truth, _suppressed(ground_truth.classes, valued, nms_iou)).matches
    return {name: (own.scores, own.hits) for name, own in zip(matches.classes, matches.per_class, strict=True)}


def _evidence(metrics: Metrics) -> tuple[dict[str, Floats], dict[str, NDArray[np.bool_]]]:
    per_class = dict(zip(metrics.matches.classes, metrics.matches.per_class, strict=True))
    scores = {name: np.round(found.scores, 4) for name, found in per_class.items()}
    return scores, {name: found.hits for name, found in per_class.items()}


def _measured(
    fitted: Calibration, metrics: Metrics, ground_truth: GroundTruth, method: Method, lent: Sequence[str]
) -> dict[str, Any]:
    """Return the calibration error by class, and on recordings that the curves were not fitted on."""
    per_class = {}
    for name in fitted.curves:
        before = reliability(fitted.scores[name], fitted.hits[name])
        after = reliability(fitted.calibrated(name), fitted.hits[name])
        per_class[name] = {
            "detections": len(fitted.scores[name]),
            "objects": metrics.per_class[name].objects,
            "own_curve": fitted.curves[name].own,
            "before": round(expected_error(before), 6),
            "after": round(expected_error(after), 6),
        }
    return {"per_class": per_class, "held_out": _held_out(metrics, ground_truth, method, lent)}


def _held_out(metrics: Metrics, ground_truth: GroundTruth, method: Method, lent: Sequence[str]) -> dict[str, Any]:
    """Return the error before and after, each half of the recordings calibrated by the other half's curves.

    Where a half is too small for curves the errors are `None`, and `unknown` says why: the curves of all frames stand.
    """
    recordings = sorted({image.recording for image in ground_truth.images})
    half = {name: number % 2 for number, name in enumerate(recordings)}
    if len(recordings) < 2:  # one camera: a later block of its frames
        middle = len(ground_truth.images) // 2
        side = np.array([int(number >= middle) for number in range(len(ground_truth.images))])
    else:
        side = np.array([half[image.recording] for image in ground_truth.images])
    counts = {"detections": int(sum(len(found.scores) for found in metrics.matches.per_class))}
    counts["recordings"] = len(recordings)
    try:
        other_half = [_fold(metrics, side, 1 - fold, method, lent) for fold in (0, 1)]
    except DataError as error:
        return {"before": None, "after": None, "unknown": f"One half of the recordings is too small. {error}", **counts}
    before, after, hits = [], [], []
    for fold, curves in enumerate(other_half):
        for name, found in zip(metrics.matches.classes, metrics.matches.per_class, strict=True):
            own = side[found.images] == fold
            before.append(found.scores[own])
            after.append(curves[name](found.scores[own]))
            hits.append(found.hits[own])
    ground_truths = np.concatenate(hits)
    return {
        "before": round(expected_error(reliability(np.concatenate(before), ground_truths)), 6),
        "after": round(expected_error(reliability(np.concatenate(after), ground_truths)), 6),
        **counts,
    }


def _fold(metrics: Metrics, side: NDArray[Any], fold: int, method: Method, lent: Sequence[str]) -> dict[str, Curve]:
    scores, hits = {}, {}
    for name, found in zip(metrics.matches.classes, metrics.matches.per_class, strict=True):
        own = side[found.images] == fold
        scores[name], hits[name] = found.scores[own], found.hits[own]
    return fit(method, scores, hits, lent)


def _said(held: Mapping[str, Any]) -> str:
    if held["before"] is None:
        return f"calibration error on held-out recordings unknown. {held['unknown']}"
    before, after = 100 * held["before"], 100 * held["after"]
    return f"calibration error on held-out recordings {before:.1f} % before, {after:.1f} % after."
