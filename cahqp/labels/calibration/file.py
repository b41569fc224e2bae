"""The calibration file: curves and the evidence they were fitted on, bound to the models and views it holds for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import DataError
from cahqp.files import read_json, write_json
from cahqp.labels.calibration.curves import Curve, Method, fit, from_json, to_json
from cahqp.labels.calibration.thresholds import LEAST, Histogram, for_precision

Floats = NDArray[np.float64]
FORMAT = 2
"""2 holds what suppression by calibrated scores keeps, too."""


@dataclass(frozen=True)
class Calibration:
    """What was measured on labelled source frames.

    Attributes:
        identity: What it holds for: hashes of the models, views, fusion.
        method: Of the curves.
        curves: By class name.
        scores: By class name, each (N,) uncalibrated scores of the detections.
        hits: By class name, each (N,) whether they found an object.
        objects: By class name, how many objects there were.
        decided: By class name, calibrated scores and hits of the boxes that are left where suppression goes by
            calibrated scores: other boxes win than by the scores that the curves were fitted on. Relabelling suppresses
            like this, but among the boxes above their thresholds alone, and so may keep a few more.
    """

    identity: Mapping[str, Any]
    method: Method
    curves: Mapping[str, Curve]
    scores: Mapping[str, Floats]
    hits: Mapping[str, NDArray[np.bool_]]
    objects: Mapping[str, int]
    decided: Mapping[str, tuple[Floats, NDArray[np.bool_]]]

    def calibrated(self, name: str) -> Floats:
        """Return the calibrated scores of a class's detections on the source."""
        return self.curves[name](self.scores[name])

    def thresholds(self, precision: float) -> dict[str, float]:
        """Return by class the lowest calibrated score from which on this share of the source's labels hit."""
        return {name: max(LEAST, for_precision(*self.decided[name], precision)) for name in self.curves}

    def means(self, thresholds: Mapping[str, float]) -> dict[str, float]:
        """Return by class how sure the model was on the source of its boxes from half the threshold on.

        Asked are the boxes that suppression by calibrated scores keeps, as on the frames to label.
        """
        found = {}
        for name, value in thresholds.items():
            histogram = Histogram()
            histogram.add(self.decided[name][0])
            mean = histogram.mean_above(0.5 * value)
            if mean is not None:
                found[name] = mean
        return found


def calibrate(
    identity: Mapping[str, Any],
    method: Method,
    scores: Mapping[str, Floats],
    hits: Mapping[str, NDArray[np.bool_]],
    objects: Mapping[str, int],
    lent: Sequence[str] = (),
) -> Calibration:
    """Fit the curves.

    Args:
        identity: What it holds for.
        method: Of the curves.
        scores: By class name, each (N,) in 0..1.
        hits: By class name, each (N,), whether the detection found an object.
        objects: By class name, how many objects there are.
        lent: Classes that take the curve of all classes together.

    Raises:
        DataError: A class has no object in the frames, `lent` names one that is not there, or there are too few
            detections.
    """
    unknown = [name for name in lent if name not in objects]
    if unknown:
        message = f"--uncalibrated names {', '.join(unknown)}; the model knows {', '.join(objects)}."
        raise DataError(message)
    missing = [name for name, count in objects.items() if not count and name not in lent]
    if missing:
        message = (
            f"The labelled frames have no object of {', '.join(missing)}, so nothing is known of how good its scores "
            "are. Give --frames a file that has some, or name these classes in --uncalibrated to lend them the curve "
            "of all classes together."
        )
        raise DataError(message)
    curves = fit(method, scores, hits, lent)
    decided = {name: (curve(scores[name]), hits[name]) for name, curve in curves.items()}
    return Calibration(identity, method, curves, scores, hits, objects, decided)


def write_calibration(path: Path, found: Calibration, measured: Mapping[str, Any]) -> None:
    """Write a calibration with what it reaches."""
    evidence = {
        name: {
            "scores": [round(float(score), 4) for score in found.scores[name]],
            "hits": "".join("1" if hit else "0" for hit in found.hits[name]),
            "objects": int(found.objects[name]),
            "decided": {
                # Rounded down: a threshold is one of these, and the boxes it is taken from must reach it.
                "scores": (np.floor(found.decided[name][0] * 1e6) / 1e6).tolist(),
                "hits": "".join("1" if hit else "0" for hit in found.decided[name][1]),
            },
        }
        for name in found.curves
    }
    value = {"format": FORMAT, "identity": dict(found.identity), "method": found.method, "measured": dict(measured)}
    write_json(path, value | {"curves": to_json(found.curves), "source": evidence})


def read_calibration(path: Path, identity: Mapping[str, Any] | None, classes: Sequence[str]) -> Calibration:
    """Read what `write_calibration` wrote.

    Args:
        path: The file, or the directory of `cahqp calibrate`.
        identity: What it is to be used for; `None` does not ask.
        classes: Class names that it must have.

    Raises:
        DataError: It is no such file, was made for something else, or lacks a class.
    """
    path = Path(path) / "calibration.json" if Path(path).is_dir() else Path(path)
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT or "curves" not in data:
        message = f"{path} is no calibration of this version. Make it with `cahqp calibrate`."
        raise DataError(message)
    if identity is not None and data["identity"] != dict(identity):
        differ = [key for key in identity if data["identity"].get(key) != identity[key]]
        told = "; ".join(f"{key} was {data['identity'].get(key)}, is {identity[key]}" for key in differ)
        message = f"{path} was made for something else ({told}). Run `cahqp calibrate` with the same models and views."
        raise DataError(message)
    lacking = [name for name in classes if name not in data["curves"]]
    if lacking:
        message = f"{path} has no calibration of {', '.join(lacking)}. Run `cahqp calibrate` for this model."
        raise DataError(message)
    source = {name: data["source"][name] for name in classes}
    curves = from_json(data["curves"])
    return Calibration(
        data["identity"],
        data["method"],
        {name: curves[name] for name in classes},
        {name: np.array(own["scores"], np.float64) for name, own in source.items()},
        {name: _hits(own) for name, own in source.items()},
        {name: int(own["objects"]) for name, own in source.items()},
        {name: (np.array(o["decided"]["scores"], np.float64), _hits(o["decided"])) for name, o in source.items()},
    )


def _hits(own: Mapping[str, Any]) -> NDArray[np.bool_]:
    return np.array([hit == "1" for hit in own["hits"]], np.bool_)
