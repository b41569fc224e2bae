"""`cahqp calibrate`: fit score calibration on labelled source frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.data.frames import open_frames
from cahqp.detectors.model_file import load
from cahqp.errors import DataError
from cahqp.evaluation.ground_truth import GroundTruth, ImagePredictions, Predictions, read_ground_truth
from cahqp.evaluation.metrics import Metrics, average_precision
from cahqp.inference.device import check_device
from cahqp.inference.frames import FrameLoader, fixed_batches
from cahqp.labels.calibration.curves import MIN_CORRECT, MIN_DETECTIONS, Curve, expected_error, fit, reliability
from cahqp.labels.calibration.file import FORMAT, Calibration, fit_calibration, write_calibration
from cahqp.labels.candidates import Candidates, calibrated
from cahqp.labels.fusion import nms
from cahqp.relabelling.options import CalibrateOptions
from cahqp.relabelling.tta import Ensemble, build_ensemble, collate_views
from cahqp.reports.calibration import write_calibration_page
from cahqp.runs.directory import open_run

Floats = NDArray[np.float64]
Evidence = tuple[dict[str, Floats], dict[str, NDArray[np.bool_]]]


def calibrate(options: CalibrateOptions) -> None:
    """Fit calibration curves, and write `calibration.json` and `calibration.html`.

    Raises:
        CahqpError: Options or files cannot be used, or there are too few detections.
    """
    source = open_frames(options.frames, naming=options.naming)
    ensemble = build_ensemble(options, load(options.weights), [frame.name for frame in source.frames])
    scope = ensemble.scope(options.nms_iou)
    names = {"method": options.method, "uncalibrated": options.uncalibrated, "batch_size": options.batch_size}
    settings = {"format": FORMAT, **names, **scope}
    with open_run(options.output, "calibrate", settings, options.input_files, options.seed) as run:
        if run is None:
            return
        ground_truth = read_ground_truth(options.frames[0], ensemble.classes)
        candidates = _candidates(ensemble, options)
        metrics = average_precision(ground_truth, _suppress(ground_truth.classes, candidates, options.nms_iou))
        scores, hits = _evidence(metrics)
        objects = {name: metrics.per_class[name].objects for name in ground_truth.classes}
        fitted = fit_calibration(scope, options.method, scores, hits, objects, options.uncalibrated)
        curves = [fitted.curves[name] for name in ground_truth.classes]
        fitted = replace(fitted, after_nms=suppressed_evidence(ground_truth, candidates, curves, options.nms_iou))
        held_out = _held_out(metrics, ground_truth, options)
        run.metrics = {"per_class": _per_class(fitted), "held_out": held_out}
        write_calibration(run.work / "calibration.json", fitted, run.metrics)
        summary = f"On recordings that the curves were not fitted on: {_summarise(held_out)}"
        write_calibration_page(run.work / "calibration.html", fitted, run.metrics["per_class"], summary)
    print(f"{options.output}: {_summarise(held_out)}")
    shared = [name for name, curve in fitted.curves.items() if not curve.own and name not in options.uncalibrated]
    if shared:
        need = f"{MIN_DETECTIONS} detections, {MIN_CORRECT} of them correct"
        print(f"{', '.join(shared)}: fewer than {need}, so they use the curve of all classes together.")


def _candidates(ensemble: Ensemble, options: CalibrateOptions) -> dict[int, Candidates]:
    """Return the candidates of the frames by image id; none for broken images."""
    source = open_frames(options.frames, naming=options.naming)
    frames = ensemble.to(check_device(options.device)).frames(source)
    none = Candidates(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    candidates = {frame.id: none for frame in source.frames}
    batches = fixed_batches(len(frames), options.batch_size)
    for batch in FrameLoader(frames, batches, options.workers, collate_views):
        if batch.batch is not None:
            views: Any = batch.to(options.device)
            candidates |= {f.id: one for f, one in zip(batch.batch.frames, ensemble(views.views), strict=True)}
        frames.quarantine.check()
    return candidates


def _suppress(classes: Sequence[str], candidates: Mapping[int, Candidates], nms_iou: float) -> Predictions:
    """Return the candidates without duplicates, as relabelling suppresses them."""
    left = {key: one[nms(one.boxes, one.scores, nms_iou)] for key, one in candidates.items()}
    images = {key: ImagePredictions(one.boxes, one.scores, one.labels) for key, one in left.items()}
    return Predictions(tuple(classes), images)


def suppressed_evidence(
    ground_truth: GroundTruth, candidates: Mapping[int, Candidates], curves: Sequence[Curve], nms_iou: float
) -> dict[str, tuple[Floats, NDArray[np.bool_]]]:
    """Return calibrated scores and hits by class, of the boxes that suppression by calibrated scores keeps."""
    scored = {key: calibrated(one, curves) for key, one in candidates.items()}
    matches = average_precision(ground_truth, _suppress(ground_truth.classes, scored, nms_iou)).matches
    return {name: (own.scores, own.hits) for name, own in zip(matches.classes, matches.per_class, strict=True)}


def _evidence(metrics: Metrics, images: NDArray[np.bool_] | None = None) -> Evidence:
    """Return scores and hits by class.

    Args:
        metrics: Matched detections.
        images: (N,) whether detections of each image are taken; `None` takes all, with scores as they are written.
    """
    scores, hits = {}, {}
    for name, found in zip(metrics.matches.classes, metrics.matches.per_class, strict=True):
        rows = slice(None) if images is None else images[found.images]
        scores[name], hits[name] = found.scores[rows], found.hits[rows]
    return ({name: np.round(own, 4) for name, own in scores.items()} if images is None else scores), hits


def _per_class(fitted: Calibration) -> dict[str, dict[str, Any]]:
    """Return the calibration error by class, before and after."""
    return {
        name: {
            "detections": len(fitted.scores[name]),
            "objects": fitted.objects[name],
            "own_curve": curve.own,
            "before": round(expected_error(reliability(fitted.scores[name], fitted.hits[name])), 6),
            "after": round(expected_error(reliability(fitted.calibrated(name), fitted.hits[name])), 6),
        }
        for name, curve in fitted.curves.items()
    }


def _held_out(metrics: Metrics, ground_truth: GroundTruth, options: CalibrateOptions) -> dict[str, Any]:
    """Return the error before and after, where each half of the recordings uses curves of the other half.

    If a half is too small for curves, the errors are `None` and `unknown` contains the reason.
    """
    recordings = sorted({image.recording for image in ground_truth.images})
    if len(recordings) < 2:  # of one recording, the later half of the frames
        second = np.arange(len(ground_truth.images)) >= len(ground_truth.images) // 2
    else:
        second = np.array([recordings.index(image.recording) % 2 == 1 for image in ground_truth.images])
    counts = {"detections": int(sum(len(found.scores) for found in metrics.matches.per_class))}
    counts["recordings"] = len(recordings)
    folds = [_evidence(metrics, ~second), _evidence(metrics, second)]
    try:
        curves = [fit(options.method, *fold, options.uncalibrated) for fold in reversed(folds)]
    except DataError as error:
        return {"before": None, "after": None, "unknown": f"One half of the recordings is too small. {error}", **counts}
    halves = list(zip(folds, curves, strict=True))
    all_hits = np.concatenate([own for (_, hits), _ in halves for own in hits.values()])
    before = reliability(np.concatenate([own for (scores, _), _ in halves for own in scores.values()]), all_hits)
    calibrated_scores = [other[name](own) for (scores, _), other in halves for name, own in scores.items()]
    after = reliability(np.concatenate(calibrated_scores), all_hits)
    return {"before": round(expected_error(before), 6), "after": round(expected_error(after), 6), **counts}


def _summarise(held_out: Mapping[str, Any]) -> str:
    if held_out["before"] is None:
        return f"calibration error on held-out recordings unknown. {held_out['unknown']}"
    before, after = 100 * held_out["before"], 100 * held_out["after"]
    return f"calibration error on held-out recordings {before:.1f} % before, {after:.1f} % after."
