"""From finished runs to a benchmark's figures: the content of `results.json`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import cahqp
from cahqp.benchmarks.adapt.matches import read_matches
from cahqp.benchmarks.adapt.plan import CA_HQP, MEAN_TEACHER, ORACLES, SCENES, SOURCE_ONLY, Plan
from cahqp.benchmarks.adapt.stages import SOURCE_TEST, TARGET_TEST, Run
from cahqp.evaluation.seeds import Draws, Interval
from cahqp.files import read_json
from cahqp.runs.state import State

_DIGITS = 5
BEFORE = "student-before"


def results(plan: Plan, runs: Sequence[Run], root: Path) -> dict[str, Any]:
    """Return all figures of a plan; AP and shares in 0..1.

    Args:
        plan: What was compared.
        runs: All finished, one per arm and seed.
        root: The benchmark's directory.
    """
    by_arm = {arm: [run for run in runs if run.arm == arm] for arm in plan.chosen}
    draws = _draws(plan, by_arm, "teacher")
    students = _students(plan, by_arm)
    figures = {run.measured: read_json(run.measured / "metrics.json")["models"] for run in runs}
    records = State(root).records
    seconds = {name: record.seconds for name, record in records.items()}
    oracle = next((arm for arm in ORACLES if arm in by_arm), None)
    return {
        "name": plan.name,
        "about": plan.about,
        "shift": plan.shift,
        "seeds": plan.seeds,
        "steps": plan.epochs * plan.batches,
        "self_training_steps": plan.self_training_steps,
        "oracle": oracle,
        "ground_truth": [name for name, arm in plan.chosen.items() if arm.ground_truth is not None],
        "source_test_is_validation": plan.source.test in plan.source.val,
        "frames": _frames(runs, figures),
        "unit": _unit(runs),
        "version": cahqp.__version__,
        "codes": len({records[s].code if s in records else None for run in runs for s in run.training}),
        "machine": machine(),
        "order": list(by_arm),  # files are sorted by name
        "arms": {
            arm: _arm(arm, by_arm, figures, draws, oracle)
            | {"minutes": _minutes(given, seconds), "images": given[0].images}
            | _student(arm, by_arm, figures, students, plan)
            for arm, given in by_arm.items()
        },
        "student_before": _before(by_arm[SOURCE_ONLY], figures),
        "differences": _differences(draws),
    }


def machine() -> str:
    """Return cores and processor in words."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name"))
        model = next(lines, f": {model}").partition(":")[2].strip()
    return f"{os.cpu_count()} cores of {model}"


def _draws(
    plan: Plan, by_arm: Mapping[str, Sequence[Run]], model: str, more: Mapping[str, Sequence[Run]] | None = None
) -> Draws | None:
    """Return the draws of one model of each arm's runs; of `more`, models by their own name."""
    if not by_arm:
        return None
    named = [(arm, model, runs) for arm, runs in by_arm.items()] + [(n, n, runs) for n, runs in (more or {}).items()]
    found = {arm: [read_matches(run.measured, name, TARGET_TEST) for run in runs] for arm, name, runs in named}
    groups = [group for _, group in next(iter(found.values()))]
    test = plan.target.test
    shared = not test.startswith(SCENES) or "seed" in plan.scenes[test.removeprefix(SCENES)]
    return Draws({arm: [m for m, _ in each] for arm, each in found.items()}, groups, shared)


def _students(plan: Plan, by_arm: Mapping[str, Sequence[Run]]) -> Draws | None:
    """Return the draws of the arms' students, and of the running one, which is measured beside that of source-only."""
    chosen = {arm: by_arm[arm] for arm in plan.students}
    return _draws(plan, chosen, "student", {BEFORE: by_arm[SOURCE_ONLY]} if SOURCE_ONLY in chosen else {})


def _arm(
    arm: str,
    by_arm: Mapping[str, Sequence[Run]],
    figures: Mapping[Path, Any],
    draws: Draws | None,
    oracle: str | None,
) -> dict[str, Any]:
    assert draws is not None
    target = [figures[run.measured]["teacher"][TARGET_TEST] for run in by_arm[arm]]
    source = [figures[run.measured]["teacher"][SOURCE_TEST] for run in by_arm[arm]]
    classes = target[0]["per_class"]
    return {
        "target_ap50": _spread([t["ap50"] for t in target]),
        "target_map": _spread([t["map"] for t in target]),
        "source_ap50": _spread([s["ap50"] for s in source]),
        "source_map": _spread([s["map"] for s in source]),
        "per_class": {name: _spread([t["per_class"][name] for t in target]) for name in classes},
        "operating": {name: _spread([t[name] for t in target]) for name in ("precision", "recall", "f1")},
        "gain": None if arm == SOURCE_ONLY else _interval(draws.difference(arm, SOURCE_ONLY)),
        "closed": _closed(arm, oracle, draws),
    }


def _closed(arm: str, oracle: str | None, draws: Draws) -> dict[str, Any] | None:
    if oracle is None or arm in (SOURCE_ONLY, oracle):
        return None
    return _interval(draws.closed(arm, SOURCE_ONLY, oracle))


def _student(
    arm: str, by_arm: Mapping[str, Sequence[Run]], figures: Mapping[Path, Any], draws: Draws | None, plan: Plan
) -> dict[str, Any]:
    """Return the student's figures. Its gap goes from the running student to the one trained on the target's labels."""
    if draws is None or arm not in plan.students:
        return {}
    values = [figures[run.measured]["student"][TARGET_TEST]["ap50"] for run in by_arm[arm]]
    source = [figures[run.measured]["student"][SOURCE_TEST]["ap50"] for run in by_arm[arm]]
    found: dict[str, Any] = {"student_ap50": _spread(values), "student_source_ap50": _spread(source)}
    end = next((name for name in ORACLES if name in plan.students), None)
    if end is not None and end != arm and BEFORE in draws.arms:
        found["student_closed"] = _interval(draws.closed(arm, BEFORE, end))
    return found


def _before(runs: Sequence[Run], figures: Mapping[Path, Any]) -> dict[str, Any] | None:
    found = [figures[run.measured].get(BEFORE) for run in runs]
    return _spread([f[TARGET_TEST]["ap50"] for f in found if f]) if all(found) else None


def _differences(draws: Draws | None) -> list[dict[str, Any]]:
    """Return every arm against the mean teacher, which is what the terms of CA-HQP have to beat, and against CA-HQP."""
    assert draws is not None
    return [
        {"arm": arm, "baseline": baseline, **interval}
        for baseline in (MEAN_TEACHER, CA_HQP)
        if baseline in draws.arms
        for arm in draws.arms
        if arm not in (baseline, SOURCE_ONLY) and (interval := _interval(draws.difference(arm, baseline))) is not None
    ]


def _minutes(runs: Sequence[Run], seconds: Mapping[str, float]) -> float:
    return round(mean(sum(seconds.get(stage, 0.0) for stage in run.training) for run in runs) / 60, 2)


def _frames(runs: Sequence[Run], figures: Mapping[Path, Any]) -> dict[str, int]:
    first = figures[runs[0].measured]["teacher"]
    return {name: first[name]["images"] for name in (TARGET_TEST, SOURCE_TEST)}


def _unit(runs: Sequence[Run]) -> str:
    _, groups = read_matches(runs[0].measured, "teacher", TARGET_TEST)
    return f"{groups.count} {groups.unit}"


def _interval(found: Interval | None) -> dict[str, Any] | None:
    if found is None:
        return None
    rounded = {name: round(getattr(found, name), _DIGITS) for name in ("value", "low", "high")}
    return {**rounded, "excludes_zero": found.excludes_zero}


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds, and each; `None` where a seed had nothing to find."""
    known = [float(value) for value in values if value is not None]
    return {
        "mean": round(mean(known), _DIGITS) if known else None,
        "sd": round(stdev(known), _DIGITS) if len(known) > 1 else None,
        "each": [None if value is None else round(float(value), _DIGITS) for value in values],
    }
