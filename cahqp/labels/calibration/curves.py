"""Scores that mean what they say: of the boxes scored 0.8, eight in ten are right.

Fitted per class on labelled source frames that the model was not trained on, from each detection's score and whether
it hit. A curve is kept as points between which scores are interpolated, so that applying it needs NumPy alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import DataError

Method = Literal["isotonic", "platt", "temperature"]
Floats = NDArray[np.float64]

FEWEST = 20
"""Detections below which one class tells nothing of its own; it takes the curve of all classes together."""

BINS = 15
_GRID = np.concatenate([[0.0], np.geomspace(1e-3, 0.05, 12), np.linspace(0.06, 1.0, 95)])


@dataclass(frozen=True)
class Curve:
    """A monotone map of scores.

    Attributes:
        x: (K,) scores, ascending.
        y: (K,) calibrated scores, not descending.
        own: Fitted on the class itself, not on all classes together.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    own: bool = True

    def __call__(self, scores: Floats) -> Floats:
        """Return calibrated scores."""
        return np.interp(scores, self.x, self.y)


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram.

    Attributes:
        low: Least score.
        high: Highest score.
        count: Detections.
        score: Their mean score.
        precision: Share that hit.
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
    lent: Sequence[str] = (),
) -> dict[str, Curve]:
    """Fit a curve for each class.

    Args:
        method: `isotonic` (any monotone curve), `platt` (a logistic curve in the logit) or `temperature` (the logit
            divided by one number).
        scores: By class name, each (N,) in 0..1.
        hits: By class name, each (N,), whether the detection found an object.
        lent: Classes that take the curve of all classes together, whatever they have.

    Raises:
        DataError: There are too few detections in all, or none of them, or all of them, hit.
    """
    everything = np.concatenate(list(scores.values())), np.concatenate(list(hits.values()))
    if len(everything[0]) < FEWEST or not 0 < everything[1].sum() < len(everything[1]):
        message = (
            f"Calibration needs at least {FEWEST} detections, hits and misses among them; the frames gave "
            f"{len(everything[0])} with {int(everything[1].sum())} hits. Give --frames more labelled frames."
        )
        raise DataError(message)
    shared = _fit_one(method, *everything)
    curves = {}
    for name, own in scores.items():
        found = int(hits[name].sum())
        alone = name not in lent and len(own) >= FEWEST and 0 < found < len(own)
        curve = _fit_one(method, own, hits[name]) if alone else shared
        curves[name] = Curve(curve.x, curve.y, own=alone)
    return curves


def _fit_one(method: Method, scores: Floats, hits: NDArray[np.bool_]) -> Curve:
    if method == "isotonic":
        return _isotonic(scores, hits)
    from sklearn.linear_model import LogisticRegression

    logits = _logit(scores)
    if method == "platt":
        model = LogisticRegression(C=1e6).fit(logits[:, None], hits)
        y = model.predict_proba(_logit(_GRID)[:, None])[:, 1]
        if float(model.coef_[0, 0]) <= 0:  # a class whose scores say nothing: all are as good as their mean
            y = np.full(len(_GRID), hits.mean())
    else:
        y = _sigmoid(_logit(_GRID) / _temperature(logits, hits))
    return _curve(_GRID, y)


def _isotonic(scores: Floats, hits: NDArray[np.bool_]) -> Curve:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, hits.astype(np.float64))
    # The fit is a staircase: scores within one step come out equal, and no order is left among them. So each step is
    # taken in its middle, weighted by its detections, and joined to the next one by a line.
    fitted = model.predict(scores)
    steps = np.unique(fitted)
    middles = [float(scores[fitted == step].mean()) for step in steps]
    x = np.concatenate([[0.0], middles, [1.0]])
    y = np.concatenate([[steps[0] * 0.5], steps, [steps[-1]]])
    return _curve(x, y)


def _temperature(logits: Floats, hits: NDArray[np.bool_]) -> float:
    """Return the number that the logits are divided by for the least negative log-likelihood (Guo et al., 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float((np.logaddexp(0, scaled) - hits * scaled).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def _curve(x: Floats, y: Floats) -> Curve:
    keep = np.concatenate([[True], np.diff(x) > 0])
    rising = np.maximum.accumulate(np.clip(y, 0, 1))
    return Curve(tuple(np.round(x[keep], 6).tolist()), tuple(np.round(rising[keep], 6).tolist()))


def reliability(scores: Floats, hits: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """Return the bars of a reliability diagram; empty ones are left out."""
    edges = np.linspace(0, 1, bins + 1)
    rows = np.clip(np.digitize(scores, edges[1:-1]), 0, bins - 1)
    found = []
    for row in range(bins):
        own = rows == row
        if own.any():
            low, high = float(edges[row]), float(edges[row + 1])
            found.append(Bin(low, high, int(own.sum()), float(scores[own].mean()), float(hits[own].mean())))
    return found


def expected_error(bars: list[Bin]) -> float:
    """Return the expected calibration error: the mean gap between score and precision, weighted by count."""
    total = sum(bar.count for bar in bars)
    return sum(bar.count * abs(bar.score - bar.precision) for bar in bars) / total if total else 0.0


def estimated_drift(bars: list[Bin], scores: Floats) -> dict[str, float]:
    """Return how far a class's calibration has likely drifted on frames without labels.

    Args:
        bars: Of the source validation, calibrated.
        scores: (N,) calibrated scores on the target.

    Returns:
        `distance`: largest difference of the two cumulative distributions of scores, 0..1 (Kolmogorov and Smirnov);
        `expected_error`: the calibration error if a score still meant on the target what it meant on the source, its
        bars weighted as the target's scores are; `unknown`: share of the target's scores in bars that the source
        never filled, where nothing is known. The estimate is blind to a model that errs more at equal scores.
    """
    if not len(scores) or not bars:
        return {"distance": 0.0, "expected_error": 0.0, "unknown": 0.0}
    total = sum(bar.count for bar in bars)
    source = np.zeros(BINS)
    gaps = np.full(BINS, np.nan)
    for bar in bars:
        row = min(BINS - 1, round(bar.low * BINS))
        source[row], gaps[row] = bar.count / total, abs(bar.score - bar.precision)
    target = np.bincount(np.minimum((scores * BINS).astype(int), BINS - 1), minlength=BINS) / len(scores)
    known = ~np.isnan(gaps) & (target > 0)
    mass = float(target[known].sum())
    return {
        "distance": float(np.abs(np.cumsum(source) - np.cumsum(target)).max()),
        "expected_error": float((target[known] * gaps[known]).sum() / mass) if mass else 0.0,
        "unknown": 1 - mass,
    }


def to_json(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Return the curves as plain JSON values."""
    return {name: asdict(curve) for name, curve in curves.items()}


def from_json(value: Mapping[str, Any]) -> dict[str, Curve]:
    """Return the curves that `to_json` made."""
    return {name: Curve(tuple(c["x"]), tuple(c["y"]), bool(c["own"])) for name, c in value.items()}


def _logit(scores: Floats) -> Floats:
    inside = np.clip(scores, 1e-4, 1 - 1e-4)
    return np.asarray(np.log(inside / (1 - inside)), np.float64)


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)), np.float64)
