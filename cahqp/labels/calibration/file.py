"""Calibration file: curves and the evidence that they were fitted on, for given models and views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cahqp.errors import DataError
from cahqp.files import write_json
from cahqp.labels.calibration.curves import Curve, Method, fit, to_json
from cahqp.labels.calibration.thresholds import MIN_THRESHOLD, Histogram, for_f1, for_precision
from cahqp.records import Name, Record, Share, read_record

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
FORMAT = 2
"""Version of the file. Version 2 added the evidence after suppression by calibrated scores."""


class _CurveRecord(Record):
    """Points of a curve: scores and calibrated scores, neither of them descending."""

    x: Annotated[list[Share], Field(min_length=1)]
    y: list[Share]
    own: bool

    @model_validator(mode="after")
    def _check_points(self) -> Self:
        if len(self.x) != len(self.y) or self.x != sorted(self.x) or self.y != sorted(self.y):
            message = "`x` and `y` must be as long as each other and ascending"
            raise ValueError(message)
        return self


class _Detections(Record):
    """Scores of detections, and a digit for each: 1 if it matches an object."""

    scores: list[Share]
    hits: Annotated[str, Field(pattern=r"\A[01]*\z")]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(self.scores) != len(self.hits):
            message = f"{len(self.scores)} scores have {len(self.hits)} hits"
            raise ValueError(message)
        return self

    def arrays(self) -> tuple[Floats, Bools]:
        """Return scores, (N,), and hits, (N,)."""
        return np.array(self.scores, np.float64), np.array([hit == "1" for hit in self.hits], np.bool_)


class _Evidence(_Detections):
    """Detections of one class, those after suppression by calibrated scores, and the number of its objects."""

    objects: Annotated[int, Field(ge=0)]
    decided: _Detections


class _CalibrationRecord(Record):
    """Content of `calibration.json`."""

    format: Literal[2]
    identity: dict[str, Any]
    method: Method
    curves: dict[Name, _CurveRecord]
    source: dict[Name, _Evidence]

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        if missing := self.curves.keys() ^ self.source.keys():
            message = f"{min(missing)} lacks a curve or its evidence"
            raise ValueError(message)
        return self


@dataclass(frozen=True)
class Calibration:
    """Calibration curves with their evidence on labelled source frames.

    Attributes:
        scope: Conditions that the calibration holds for: hashes of the models, views, fusion.
        method: Method of the curves.
        curves: Curves by class name.
        scores: By class name, (N,) uncalibrated scores of the detections.
        hits: By class name, (N,) whether each detection matches an object.
        objects: Number of objects by class name.
        after_nms: By class name, calibrated scores and hits of the boxes that suppression by calibrated scores keeps.
            Suppression by uncalibrated scores, for `scores`, keeps other boxes. Relabelling suppresses among boxes
            above their thresholds only, so it may keep a few more.
    """

    scope: Mapping[str, Any]
    method: Method
    curves: Mapping[str, Curve]
    scores: Mapping[str, Floats]
    hits: Mapping[str, Bools]
    objects: Mapping[str, int]
    after_nms: Mapping[str, tuple[Floats, Bools]]

    def calibrated(self, name: str) -> Floats:
        """Return the calibrated scores of the detections of a class."""
        return self.curves[name](self.scores[name])

    def thresholds(self, precision: float) -> dict[str, float]:
        """Return the lowest calibrated score by class from which labels reach this precision on the source."""
        return {name: max(MIN_THRESHOLD, for_precision(*self.after_nms[name], precision)) for name in self.curves}

    def best_f1(self) -> dict[str, float]:
        """Return the calibrated score by class with the best F1 on the source, `NEVER` for a class without a hit."""
        return {
            name: max(MIN_THRESHOLD, for_f1(*self.after_nms[name], self.objects[name])) for name in self.curves
        }  # fmt: skip

    def means(self, thresholds: Mapping[str, float]) -> dict[str, float]:
        """Return the mean calibrated score by class, of boxes after suppression with at least half the threshold."""
        means = {}
        for name, value in thresholds.items():
            histogram = Histogram()
            histogram.add(self.after_nms[name][0])
            mean = histogram.mean_above(0.5 * value)
            if mean is not None:
                means[name] = mean
        return means


def fit_calibration(
    scope: Mapping[str, Any],
    method: Method,
    scores: Mapping[str, Floats],
    hits: Mapping[str, Bools],
    objects: Mapping[str, int],
    uncalibrated: Sequence[str] = (),
) -> Calibration:
    """Fit the curves.

    Args:
        scope: Conditions that the calibration holds for.
        method: Method of the curves.
        scores: By class name, (N,) scores in 0..1.
        hits: By class name, (N,) whether each detection matches an object.
        objects: Number of objects by class name.
        uncalibrated: Classes that use the curve of all classes together.

    Raises:
        DataError: A class has no objects, a name in `uncalibrated` is unknown, or there are too few detections.
    """
    unknown = [name for name in uncalibrated if name not in objects]
    if unknown:
        message = f"--uncalibrated names {', '.join(unknown)}; the model has {', '.join(objects)}."
        raise DataError(message)
    missing = [name for name, count in objects.items() if not count and name not in uncalibrated]
    if missing:
        message = (
            f"The labelled frames have no object of {', '.join(missing)}. Give --frames a file with such objects, or "
            "name these classes in --uncalibrated, to use the curve of all classes together."
        )
        raise DataError(message)
    curves = fit(method, scores, hits, uncalibrated)
    after_nms = {name: (curve(scores[name]), hits[name]) for name, curve in curves.items()}
    return Calibration(scope, method, curves, scores, hits, objects, after_nms)


def write_calibration(path: Path, calibration: Calibration, measured: Mapping[str, Any]) -> None:
    """Write a calibration with its measured errors."""
    evidence = {
        name: {
            "scores": [round(float(score), 4) for score in calibration.scores[name]],
            "hits": _to_text(calibration.hits[name]),
            "objects": int(calibration.objects[name]),
            "decided": {
                # Rounded down: a threshold is one of these scores, and its own box must reach it.
                "scores": (np.floor(calibration.after_nms[name][0] * 1e6) / 1e6).tolist(),
                "hits": _to_text(calibration.after_nms[name][1]),
            },
        }
        for name in calibration.curves
    }
    value = {"format": FORMAT, "identity": dict(calibration.scope), "method": calibration.method}
    curves = to_json(calibration.curves)
    write_json(path, value | {"measured": dict(measured), "curves": curves, "source": evidence})


def read_calibration(path: Path, scope: Mapping[str, Any] | None, classes: Sequence[str]) -> Calibration:
    """Read a file that `write_calibration` wrote.

    Args:
        path: The file, or the directory that `cahqp calibrate` wrote.
        scope: Conditions in which the calibration is used; `None` skips the check.
        classes: Class names that the file must contain.

    Raises:
        DataError: The file is not a calibration, was made for other conditions, or lacks a class.
    """
    path = Path(path) / "calibration.json" if Path(path).is_dir() else Path(path)
    remedy = "It is no calibration of this version. Make it with `cahqp calibrate`."
    data = read_record(path, _CalibrationRecord, remedy, DataError)
    if scope is not None and data.identity != dict(scope):
        changes = [
            f"{key} was {data.identity.get(key)}, is {value}"
            for key, value in scope.items()
            if data.identity.get(key) != value
        ]
        message = f"{path} is for other conditions: {'; '.join(changes)}. Run `cahqp calibrate` with the same options."
        raise DataError(message)
    missing = [name for name in classes if name not in data.curves]
    if missing:
        message = f"{path} has no calibration of {', '.join(missing)}. Run `cahqp calibrate` for this model."
        raise DataError(message)
    curves = {name: data.curves[name] for name in classes}
    source = {name: data.source[name] for name in classes}
    evidence = {name: own.arrays() for name, own in source.items()}
    return Calibration(
        data.identity,
        data.method,
        {name: Curve(tuple(own.x), tuple(own.y), own.own) for name, own in curves.items()},
        {name: scores for name, (scores, _) in evidence.items()},
        {name: hits for name, (_, hits) in evidence.items()},
        {name: own.objects for name, own in source.items()},
        {name: own.decided.arrays() for name, own in source.items()},
    )


def _to_text(hits: Bools) -> str:
    return "".join("1" if hit else "0" for hit in hits)
