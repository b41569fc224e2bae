"""`cahqp benchmark gate`: how often the gate is wrong, on simulated candidates whose true worth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.errors import check_numbers
from cahqp.evaluation.bootstrap import Groups
from cahqp.evaluation.matching import ClassMatches, Matches, average_precisions
from cahqp.files import atomic_write, write_json
from cahqp.gate.decision import Role, RuntimeCost, decide
from cahqp.gate.evidence import weigh
from cahqp.gate.options import GateLimits
from cahqp.runs.directory import RunDirectory

SHARES = {"car": 0.6, "person": 0.25, "bus": 0.15}  # of the objects
POINTS = (-5, -4, -3, -2, -1, 0, 1, 2, 3, 4)
_SAME = RuntimeCost(1.0, 1.0)
_POPULATION = 300  # recordings from which a candidate's true worth is read
_FALSE = 0.8  # false detections for each object


@dataclass(frozen=True)
class World:
    """What recordings and candidates are like.

    Attributes:
        recordings: In a set; drawn anew for every decision.
        frames: In a recording.
        objects: In a frame, on average.
        recall: Share of the objects that the running model finds, on average over recordings.
        unlike: Standard deviation of that share between recordings.
        spread: Standard deviation between recordings of how much more the candidate finds there.
        shared: Share of the objects whose being found is decided alike for both models.
    """

    recordings: int = 12
    frames: int = 60
    objects: float = 6.0
    recall: float = 0.65
    unlike: float = 0.1
    spread: float = 0.01
    shared: float = 0.8


def gate(
    output: Path, decisions: int = 200, recordings: int = 12, frames: int = 60, objects: float = 6.0, sets: int = 1,
    spread: float = 0.01, resamples: int = 400, seed: int = 0,
) -> None:  # fmt: skip
    """Let the gate decide about simulated candidates, and write how often it publishes them.

    Args:
        output: Directory for `gate.md` and `gate.json`; never overwritten.
        decisions: About candidates of each true difference.
        recordings: In each labelled set.
        frames: In a recording.
        objects: In a frame, on average.
        sets: Labelled sets that a candidate is measured on.
        spread: Standard deviation between recordings of the candidate's gain, in recall from 0 to 1.
        resamples: Draws of the gate's bootstrap.
        seed: Of everything random.
    """
    counts = {"decisions": decisions, "recordings": recordings, "frames": frames, "sets": sets, "resamples": resamples}
    check_numbers({"spread": spread}, counts)
    settings = counts | {"objects": objects, "spread": spread}
    run = RunDirectory(output, "benchmark-gate", settings, {}, seed)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    world = World(recordings=recordings, frames=frames, objects=objects, spread=spread)
    found = curve(world, POINTS, decisions=decisions, sets=sets, resamples=resamples, seed=seed)
    write_json(run.work / "gate.json", {"settings": settings, "published": found})
    text = "\n".join(table(found, settings)) + "\n"
    with atomic_write(run.work / "gate.md") as file:
        file.write(text)
    run.finish({})
    print(text, end="")


def curve(
    world: World, points: Sequence[int], *, decisions: int, sets: int, resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Return by true difference in points of AP50 the share of candidates published, and the mean spread of a set."""
    result = {}
    gains = _gains(world, points, seed)
    for point, gain in zip(points, gains, strict=True):
        random = np.random.default_rng([seed, 1, point + 100])
        outcomes = [_decision(random, world, gain, sets, resamples, number) for number in range(decisions)]
        differences = [difference for _, difference in outcomes]
        result[f"{point:+d}"] = {
            "published": float(np.mean([published for published, _ in outcomes])),
            "mean_difference": round(100 * float(np.mean(differences)), 3),
            "standard_error": round(100 * float(np.std(differences)), 3),
        }
    return result


def table(found: dict[str, dict[str, float]], settings: dict[str, Any]) -> list[str]:
    """Return the curve as lines of markdown."""
    head = (
        f"{settings['decisions']} decisions for each difference, {settings['sets']} labelled set(s) of "
        f"{settings['recordings']} recordings with {settings['frames']} frames and {settings['objects']:g} objects."
    )
    rows = [f"| {point} | {100 * row['published']:.1f} | {row['standard_error']:.2f} |" for point, row in found.items()]
    title = "| true difference, points of AP50 | published, % | spread of the measured mean, points |"
    return [head, "", title, "|---|---|---|", *rows]


def _decision(
    random: np.random.Generator, world: World, gain: float, sets: int, resamples: int, seed: int
) -> tuple[bool, float]:
    evidence = []
    for number in range(sets):
        candidate, running, groups = simulate(random, world, gain)
        role: Role = "source" if number == 0 else "replay"
        name = f"set-{number}"
        evidence.append(weigh(role, name, candidate, running, groups, seed=seed, resamples=resamples))
    decision = decide(evidence, GateLimits(), _SAME, _SAME)
    return bool(decision["published"]), float(decision["mean_difference"])


def _gains(world: World, points: Sequence[int], seed: int) -> list[float]:
    """Return the gains in recall whose difference in AP50 over very many recordings is as wanted."""
    many = World(**{**vars(world), "recordings": _POPULATION})
    tried = np.linspace(-0.12, 0.12, 13)
    reached = []
    for gain in tried:
        candidate, running, _ = simulate(np.random.default_rng([seed, 0]), many, float(gain))
        reached.append(100 * float(np.nanmean(average_precisions(candidate) - average_precisions(running))))
    order = np.argsort(reached)
    return [float(g) for g in np.interp(points, np.array(reached)[order], tried[order])]


def simulate(random: np.random.Generator, world: World, gain: float) -> tuple[Matches, Matches, Groups]:
    """Make what two models find on one set of recordings.

    Args:
        random: Draws everything.
        world: What recordings are like.
        gain: How much more of the objects the candidate finds, on average over recordings.

    Returns:
        Matches of the candidate and of the running model, and the groups of the bootstrap.
    """
    images = world.recordings * world.frames
    recording = np.repeat(np.arange(world.recordings), world.frames)
    recall = np.clip(random.normal(world.recall, world.unlike, world.recordings), 0.05, 0.95)
    better = random.normal(gain, world.spread, world.recordings)
    classes = [_class(random, world, share, recording, recall, better, images) for share in SHARES.values()]
    names = tuple(SHARES)
    groups = Groups("recordings", recording.astype(np.int64), world.recordings)
    return Matches(names, tuple(c for c, _ in classes)), Matches(names, tuple(r for _, r in classes)), groups


def _class(
    random: np.random.Generator, world: World, share: float, recording: NDArray[np.int64],
    recall: NDArray[np.float64], better: NDArray[np.float64], images: int,
) -> tuple[ClassMatches, ClassMatches]:  # fmt: skip
    objects = random.poisson(share * world.objects, images).astype(np.int64)
    rows = np.repeat(np.arange(images), objects)
    place = recording[rows]
    difficulty = random.uniform(size=len(rows))
    other = np.where(random.uniform(size=len(rows)) < world.shared, difficulty, random.uniform(size=len(rows)))
    found = []
    for limit, hard in ((recall + better, other), (recall, difficulty)):
        hit = hard < limit[place]
        wrong = np.repeat(np.arange(images), random.poisson(_FALSE * share * world.objects, images))
        scores = np.concatenate([random.beta(4, 2, int(hit.sum())), random.beta(2, 4, len(wrong))])
        hits = np.concatenate([np.ones(int(hit.sum()), bool), np.zeros(len(wrong), bool)])
        where = np.concatenate([rows[hit], wrong]).astype(np.int64)
        order = np.argsort(-scores, kind="stable")
        found.append(ClassMatches(scores[order], hits[order], where[order], objects))
    return found[0], found[1]
