"""Calibration curves: maps from scores to the probability that a detection is correct.

Curves are fitted per class on labelled source frames that the model was not trained on. A curve is stored as points
with linear interpolation, so that its use needs only NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import DataError

Method = Literal["isotonic", "platt", "temperature"]
Floats = NDArray[np.float64]

MIN_DETECTIONS = 20
"""Smallest number of detections of a class for a curve of its own; else it uses the curve of all classes together."""

MIN_CORRECT = 5
"""Smallest number of correct detections for a curve of its own: three objects decide no curve."""

BINS = 15
_GRID = np.concatenate([[0.0], np.geomspace(1e-3, 0.05, 12), np.linspace(0.06, 1.0, 95)])


@dataclass(frozen=True)
class Curve:
    """Monotone map of scores.

    Attributes:
        x: (K,) scores, ascending.
        y: (K,) calibrated scores, not descending.
        own: Whether the curve was fitted on the class itself, not on all classes together.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    own: bool = True

    def __call__(self, scores: Floats) -> Floats:
        """Return calibrated scores."""
        return np.interp(scores, self.x, self.y)


@dataclass(frozen=True)
class Bin:
    """Bin of a reliability diagram.

    Attributes:
        low: Lowest score.
        high: Highest score.
        count: Number of detections.
        score: Mean score of the detections.
        precision: Share of detections that match an object.
    """

    low: float
    high: float
    count: int
    score: float
    precision: float


def fit(
    method: Method,
    scores: Mapping[str, Floats],
    hits: Mapping[str, NDArray[np.bool_]],
    uncalibrated: Sequence[str] = (),
) -> dict[str, Curve]:
    """Fit a curve for each class.

    Args:
        method: `isotonic` (any monotone curve), `platt` (logistic in the logit) or `temperature` (the logit divided by
            one number).
        scores: By class name, (N,) scores in 0..1.
        hits: By class name, (N,) whether each detection matches an object.
        uncalibrated: Classes that always use the curve of all classes together.

    Raises:
        DataError: There are too few detections, or all or none of them match an object.
    """
    everything = np.concatenate(list(scores.values())), np.concatenate(list(hits.values()))
    if len(everything[0]) < MIN_DETECTIONS or not 0 < everything[1].sum() < len(everything[1]):
        message = (
            f"Calibration needs at least {MIN_DETECTIONS} detections, both correct and wrong ones, got "
            f"{len(everything[0])} with {int(everything[1].sum())} correct. Give --frames more labelled frames."
        )
        raise DataError(message)
    shared = _fit_one(method, *everything)
    curves = {}
    for name, own in scores.items():
        enough = len(own) >= MIN_DETECTIONS and MIN_CORRECT <= int(hits[name].sum()) < len(own)
        alone = enough and name not in uncalibrated
        curves[name] = replace(_fit_one(method, own, hits[name]) if alone else shared, own=alone)
    return curves


def _fit_one(method: Method, scores: Floats, hits: NDArray[np.bool_]) -> Curve:
    if method == "isotonic":
        return _isotonic(scores, hits)
    from sklearn.linear_model import LogisticRegression

    logits = _logit(scores)
    if method == "platt":
        model = LogisticRegression(C=1e6).fit(logits[:, None], hits)
        y = model.predict_proba(_logit(_GRID)[:, None])[:, 1]
        if float(model.coef_[0, 0]) <= 0:  # scores carry no information, so every score becomes the mean
            y = np.full(len(_GRID), hits.mean())
    else:
        y = _sigmoid(_logit(_GRID) / _temperature(logits, hits))
    return _curve(_GRID, y)


def _isotonic(scores: Floats, hits: NDArray[np.bool_]) -> Curve:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, hits.astype(np.float64))
    # The fit is a staircase, which makes scores within a step equal. Lines between the means of the steps keep their
    # order.
    fitted = model.predict(scores)
    steps = np.unique(fitted)
    means = [float(scores[fitted == step].mean()) for step in steps]
    x = np.concatenate([[0.0], means, [1.0]])
    y = np.concatenate([[steps[0] * 0.5], steps, [steps[-1]]])
    return _curve(x, y)


def _temperature(logits: Floats, hits: NDArray[np.bool_]) -> float:
    """Return the divisor of the logits with the lowest negative log-likelihood (Guo et al., 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float((np.logaddexp(0, scaled) - hits * scaled).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def _curve(x: Floats, y: Floats) -> Curve:
    keep = np.concatenate([[True], np.diff(x) > 0])
    rising = np.maximum.accumulate(np.clip(y, 0, 1))
    return Curve(tuple(np.round(x[keep], 6).tolist()), tuple(np.round(rising[keep], 6).tolist()))


def reliability(scores: Floats, hits: NDArray[np.bool_], count: int = BINS) -> list[Bin]:
    """Return the bins of a reliability diagram that contain detections."""
    edges = np.linspace(0, 1, count + 1)
    rows = np.clip(np.digitize(scores, edges[1:-1]), 0, count - 1)
    bins = []
    for row in np.unique(rows).tolist():
        own = rows == row
        low, high = float(edges[row]), float(edges[row + 1])
        bins.append(Bin(low, high, int(own.sum()), float(scores[own].mean()), float(hits[own].mean())))
    return bins


def expected_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error: the mean difference of score and precision, weighted by count."""
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.score - each.precision) for each in bins) / total if total else 0.0


def estimated_drift(bins: Sequence[Bin], scores: Floats) -> dict[str, float]:
    """Estimate the drift of the calibration of a class, on frames without labels.

    The estimate cannot detect a model that makes more errors at equal scores.

    Args:
        bins: Reliability of calibrated scores on the source.
        scores: (N,) calibrated scores on the target.

    Returns:
        `distance`: largest difference of the cumulative score distributions, 0..1 (Kolmogorov and Smirnov).
        `expected_error`: calibration error with the bins of the source weighted by the scores of the target.
        `unknown`: share of the target's scores in bins that are empty on the source.
    """
    if not len(scores) or not bins:
        return {"distance": 0.0, "expected_error": 0.0, "unknown": 0.0}
    total = sum(each.count for each in bins)
    source = np.zeros(BINS)
    errors = np.full(BINS, np.nan)
    for each in bins:
        row = min(BINS - 1, round(each.low * BINS))
        source[row], errors[row] = each.count / total, abs(each.score - each.precision)
    target = np.bincount(np.minimum((scores * BINS).astype(int), BINS - 1), minlength=BINS) / len(scores)
    known = ~np.isnan(errors) & (target > 0)
    mass = float(target[known].sum())
    return {
        "distance": float(np.abs(np.cumsum(source) - np.cumsum(target)).max()),
        "expected_error": float((target[known] * errors[known]).sum() / mass) if mass else 0.0,
        "unknown": 1 - mass,
    }


def to_json(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Return the curves as JSON values."""
    return {name: asdict(curve) for name, curve in curves.items()}


def _logit(scores: Floats) -> Floats:
    inside = np.clip(scores, 1e-4, 1 - 1e-4)
    return np.asarray(np.log(inside / (1 - inside)), np.float64)


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)), np.float64)
