"""`cahqp benchmark gate`: how often the gate is wrong, on simulated candidates of known quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cahqp.benchmarks.markdown import render
from cahqp.benchmarks.options import GateBenchmarkOptions
from cahqp.evaluation.bootstrap import Groups
from cahqp.evaluation.matching import ClassMatches, Matches, average_precisions
from cahqp.files import atomic_write, write_json
from cahqp.gate.decision import Role, RuntimeCost, decide
from cahqp.gate.evidence import compare_ap50
from cahqp.gate.options import GateLimits
from cahqp.runs.directory import open_run

CLASS_SHARES = {"car": 0.6, "person": 0.25, "bus": 0.15}
POINTS = (-5, -4, -3, -2, -1, 0, 1, 2, 3, 4)
RECALL, RECALL_SPREAD = 0.65, 0.1
"""Mean and standard deviation over recordings of the running model's recall."""

SHARED = 0.8
"""Share of the objects whose detection is equally difficult for both models."""

FALSE_POSITIVES = 0.8
"""False detections per object."""

_SAME_COST = RuntimeCost(1.0, 1.0)
_POPULATION = 300  # recordings that define a candidate's true difference
_RECORDED = ("decisions", "recordings", "frames", "sets", "resamples", "objects", "spread")


def gate(options: GateBenchmarkOptions) -> None:
    """Run `cahqp benchmark gate`."""
    settings = {name: getattr(options, name) for name in _RECORDED}
    with open_run(options.output, "benchmark-gate", settings, {}, options.seed) as run:
        if run is None:
            return
        published = curve(options, POINTS)
        write_json(run.work / "gate.json", {"settings": settings, "published": published})
        text = render("gate.md.j2", {**settings, "published": published})
        with atomic_write(run.work / "gate.md") as file:
            file.write(text)
    print(text, end="")


def curve(options: GateBenchmarkOptions, points: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return the share of published candidates, and mean and spread of their measured differences, in points of AP50.

    The keys are the true differences `points`.
    """
    result = {}
    for point, gain in zip(points, _gains(options, points), strict=True):
        random = np.random.default_rng([options.seed, 1, point + 100])
        outcomes = [_decide(random, options, gain, number) for number in range(options.decisions)]
        differences = [difference for _, difference in outcomes]
        result[f"{point:+d}"] = {
            "published": float(np.mean([published for published, _ in outcomes])),
            "mean_difference": round(100 * float(np.mean(differences)), 3),
            "standard_error": round(100 * float(np.std(differences)), 3),
        }
    return result


def _decide(random: np.random.Generator, options: GateBenchmarkOptions, gain: float, seed: int) -> tuple[bool, float]:
    """Return the gate's decision about one candidate and the measured difference in AP50."""
    evidence = []
    for number in range(options.sets):
        candidate, running, groups = simulate(random, options, gain)
        role: Role = "source" if number == 0 else "replay"
        name = f"set-{number}"
        evidence.append(compare_ap50(role, name, candidate, running, groups, seed=seed, resamples=options.resamples))
    decision = decide(evidence, GateLimits(), _SAME_COST, _SAME_COST)
    return bool(decision["published"]), float(decision["mean_difference"])


def _gains(options: GateBenchmarkOptions, points: Sequence[int]) -> list[float]:
    """Return the gains in recall that lead to these differences in points of AP50, over very many recordings."""
    many = replace(options, recordings=_POPULATION)
    gains = np.linspace(-0.12, 0.12, 13)
    differences = []
    for gain in gains:
        candidate, running, _ = simulate(np.random.default_rng([options.seed, 0]), many, float(gain))
        differences.append(100 * float(np.nanmean(average_precisions(candidate) - average_precisions(running))))
    order = np.argsort(differences)
    return [float(g) for g in np.interp(points, np.array(differences)[order], gains[order])]


def simulate(
    random: np.random.Generator, options: GateBenchmarkOptions, gain: float
) -> tuple[Matches, Matches, Groups]:
    """Return simulated matches of candidate and running model on one set of recordings, and its bootstrap groups.

    The candidate's recall is higher by `gain` on average.
    """
    recording = np.repeat(np.arange(options.recordings), options.frames)
    recall = np.clip(random.normal(RECALL, RECALL_SPREAD, options.recordings), 0.05, 0.95)
    recalls = (recall + random.normal(gain, options.spread, options.recordings), recall)
    pairs = [_simulate_class(random, share * options.objects, recording, recalls) for share in CLASS_SHARES.values()]
    candidate, running = (Matches(tuple(CLASS_SHARES), per_class) for per_class in zip(*pairs, strict=True))
    return candidate, running, Groups("recordings", recording.astype(np.int64), options.recordings)


def _simulate_class(
    random: np.random.Generator, mean: float, recording: NDArray[np.int64], recalls: Sequence[NDArray[np.float64]]
) -> list[ClassMatches]:
    """Return the matches of candidate and running model for a class with a mean number of objects per frame."""
    images = len(recording)
    objects = random.poisson(mean, images).astype(np.int64)
    rows = np.repeat(np.arange(images), objects)
    running = random.uniform(size=len(rows))
    candidate = np.where(random.uniform(size=len(rows)) < SHARED, running, random.uniform(size=len(rows)))
    matches = []
    for recall, difficulty in zip(recalls, (candidate, running), strict=True):
        hit = difficulty < recall[recording[rows]]
        false = np.repeat(np.arange(images), random.poisson(FALSE_POSITIVES * mean, images))
        scores = np.concatenate([random.beta(4, 2, int(hit.sum())), random.beta(2, 4, len(false))])
        hits = np.concatenate([np.ones(int(hit.sum()), bool), np.zeros(len(false), bool)])
        image = np.concatenate([rows[hit], false]).astype(np.int64)
        order = np.argsort(-scores, kind="stable")
        matches.append(ClassMatches(scores[order], hits[order], image[order], objects))
    return matches
