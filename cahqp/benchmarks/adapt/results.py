"""Metrics of a benchmark from its finished runs: the content of `results.json`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cahqp.benchmarks.adapt.code_state import code_state
from cahqp.benchmarks.adapt.matches import read_matches
from cahqp.benchmarks.adapt.plan import CA_HQP, MEAN_TEACHER, ORACLES, SOURCE_ONLY, ZERO_SHOT, BenchmarkPlan
from cahqp.benchmarks.adapt.stages import SOURCE_TEST, TARGET_TEST, ArmRun
from cahqp.benchmarks.adapt.terms import METRICS, term_effects
from cahqp.cycle.plan import SCENES
from cahqp.evaluation.seeds import Draws, Interval
from cahqp.files import read_json
from cahqp.runs.state import State
from cahqp.version import __version__

_DIGITS = 5
BEFORE = "student-before"


def results(plan: BenchmarkPlan, runs: Sequence[ArmRun], root: Path) -> dict[str, Any]:
    """Return all figures of a plan from its finished runs below `root`; AP and shares in 0..1."""
    return _Results(plan, runs, root).all()


def machine() -> str:
    """Return the number of cores and the processor's name."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name"))
        model = next(lines, f": {model}").partition(":")[2].strip()
    return f"{os.cpu_count()} cores of {model}"


class _Results:
    """Runs of one plan, grouped by arm, with their metrics."""

    def __init__(self, plan: BenchmarkPlan, runs: Sequence[ArmRun], root: Path) -> None:
        self.plan, self.root = plan, root
        self.runs = {arm: [run for run in runs if run.arm == arm] for arm in plan.arms_by_name}
        self.metrics = {run.measured: read_json(run.measured / "metrics.json")["models"] for run in runs}
        self.records = State(root).records
        self.oracle = next((arm for arm in ORACLES if arm in self.runs), None)
        self.teachers = self._draws({arm: (runs, "teacher") for arm, runs in self.runs.items()})

    def all(self) -> dict[str, Any]:
        plan, runs = self.plan, [run for runs in self.runs.values() for run in runs]
        images = {name: self._values(SOURCE_ONLY, "teacher", name, "images")[0] for name in (TARGET_TEST, SOURCE_TEST)}
        _, groups = read_matches(runs[0].measured, "teacher", TARGET_TEST)
        codes = {self.records[s].code if s in self.records else None for run in runs for s in run.training}
        before = all(BEFORE in self.metrics[run.measured] for run in self.runs[SOURCE_ONLY])
        return {
            "name": plan.name,
            "about": plan.about,
            "shift": plan.shift,
            "seeds": plan.seeds,
            "steps": plan.epochs * plan.batches,
            "self_training_steps": plan.self_training_steps,
            "oracle": self.oracle,
            "ground_truth": [name for name, arm in plan.arms_by_name.items() if arm.ground_truth is not None],
            "source_weights": "own" if plan.teacher.weights is None else "shared",
            "min_objects": plan.min_objects,
            "left_out": self._left_out(),
            "margin": plan.margin,
            "source_test_is_validation": plan.source.test in plan.source.val,
            "frames": images,
            "unit": f"{groups.count} {groups.unit}",
            "version": __version__,
            "codes": len(codes),
            **code_state(),
            "machine": machine(),
            "order": list(self.runs),  # files are sorted by name
            "arms": {arm: self._teacher(arm) | self._student(arm) for arm in self.runs},
            "student_before": _spread(self._values(SOURCE_ONLY, BEFORE, TARGET_TEST, "ap50")) if before else None,
            "differences": self._differences(),
        }

    def _draws(self, models: Mapping[str, tuple[Sequence[ArmRun], str]]) -> Draws:
        """Return the draws of models; each has its runs and its name in them."""
        read = {
            key: [read_matches(r.measured, name, TARGET_TEST) for r in runs] for key, (runs, name) in models.items()
        }
        groups = [group for _, group in next(iter(read.values()))]
        test = self.plan.target.test
        shared = not test.startswith(SCENES) or "seed" in self.plan.scenes[test.removeprefix(SCENES)]
        return Draws({key: [matches for matches, _ in pairs] for key, pairs in read.items()}, groups, shared)

    @cached_property
    def students(self) -> Draws:
        """Draws of the arms' students, and of the running student, which is measured beside that of source-only."""
        models = {arm: (self.runs[arm], "student") for arm in self.plan.students}
        if SOURCE_ONLY in models:
            models[BEFORE] = (self.runs[SOURCE_ONLY], BEFORE)
        return self._draws(models)

    def _values(self, arm: str, model: str, frames: str, metric: str) -> list[Any]:
        """Return a metric of one of an arm's models, seed by seed."""
        return [self.metrics[run.measured][model][frames][metric] for run in self.runs[arm]]

    def _teacher(self, arm: str) -> dict[str, Any]:
        def spread(frames: str, metric: str) -> dict[str, Any]:
            return _spread(self._values(arm, "teacher", frames, metric))

        per_class = self._values(arm, "teacher", TARGET_TEST, "per_class")
        closed = None
        if self.oracle is not None and arm not in (SOURCE_ONLY, self.oracle):
            closed = self._interval(self.teachers.closed(arm, SOURCE_ONLY, self.oracle))
        seconds = [sum(self.records[s].seconds for s in run.training if s in self.records) for run in self.runs[arm]]
        return {
            "target_ap50": spread(TARGET_TEST, "ap50"),
            "target_map": spread(TARGET_TEST, "map"),
            "source_ap50": spread(SOURCE_TEST, "ap50"),
            "source_map": spread(SOURCE_TEST, "map"),
            "per_class": {name: _spread([of_seed[name] for of_seed in per_class]) for name in per_class[0]},
            "operating": {name: spread(TARGET_TEST, name) for name in ("precision", "recall", "f1")},
            "gain": None if arm == SOURCE_ONLY else self._interval(self.teachers.difference(arm, SOURCE_ONLY)),
            "closed": closed,
            "minutes": round(mean(seconds) / 60, 2),
            "images": self.runs[arm][0].images,
            "terms": term_effects(self.root / stage / METRICS for run in self.runs[arm] for stage in run.training),
        }

    def _student(self, arm: str) -> dict[str, Any]:
        """Return the student's figures. Its gap is from the running student to an oracle's student."""
        if arm not in self.plan.students:
            return {}
        figures: dict[str, Any] = {
            "student_ap50": _spread(self._values(arm, "student", TARGET_TEST, "ap50")),
            "student_source_ap50": _spread(self._values(arm, "student", SOURCE_TEST, "ap50")),
        }
        end = next((name for name in ORACLES if name in self.plan.students), None)
        if end is not None and end != arm and BEFORE in self.students.arms:
            figures["student_closed"] = self._interval(self.students.closed(arm, BEFORE, end))
        figures["student_runs"] = self._student_runs(arm)
        if ZERO_SHOT in self.runs:
            figures["student_vs_zero_shot"] = self._interval(self._student_lead(arm))
        return figures

    def _student_runs(self, arm: str) -> dict[str, dict[str, Any]]:
        """Return the figures of an arm's further student trainings; the gap is to the oracle's equally long student."""
        figures: dict[str, dict[str, Any]] = {}
        section, end = self.plan.student, next((name for name in ORACLES if name in self.plan.students), None)
        for name, run in section.runs_of(self.plan.arms_by_name[arm]).items():
            model = f"student-{name}"
            figures[name] = {
                "steps": run.steps,
                "targets": run.targets,
                "ap50": _spread(self._values(arm, model, TARGET_TEST, "ap50")),
                "source_ap50": _spread(self._values(arm, model, SOURCE_TEST, "ap50")),
            }
            same = (key for key, other in section.runs.items() if other.targets == "hard" and other.steps == run.steps)
            equal = next(same, None)
            if end is not None and arm != end and equal is not None and BEFORE in self.students.arms:
                models = {name: (self.runs[arm], model), end: (self.runs[end], f"student-{equal}")}
                draws = self._draws(models | {BEFORE: (self.runs[SOURCE_ONLY], BEFORE)})
                figures[name]["closed"] = self._interval(draws.closed(name, BEFORE, end))
        return figures

    def _student_lead(self, arm: str) -> Interval | None:
        """Return the lead of an arm's student over the published model."""
        models = {arm: (self.runs[arm], "student"), ZERO_SHOT: (self.runs[ZERO_SHOT], "teacher")}
        return self._draws(models).difference(arm, ZERO_SHOT)

    def _left_out(self) -> dict[str, int]:
        """Return the classes that some seed's means leave out, with the largest number of target test objects."""
        measured = [self.metrics[run.measured]["teacher"][TARGET_TEST] for run in self.runs[SOURCE_ONLY]]
        names = [name for name in measured[0]["objects"] if any(name not in each["counted"] for each in measured)]
        return {name: max(each["objects"][name] for each in measured) for name in names}

    def _differences(self) -> list[dict[str, Any]]:
        """Return the differences of every arm from the published model, the mean teacher and CA-HQP."""
        return [
            {"arm": arm, "baseline": baseline, **interval}
            for baseline in (ZERO_SHOT, MEAN_TEACHER, CA_HQP)
            if baseline in self.runs
            for arm in self.runs
            if arm not in (baseline, SOURCE_ONLY)
            and (interval := self._interval(self.teachers.difference(arm, baseline))) is not None
        ]

    def _interval(self, interval: Interval | None) -> dict[str, Any] | None:
        if interval is None:
            return None
        rounded = {name: round(getattr(interval, name), _DIGITS) for name in ("value", "low", "high")}
        equivalent = interval.equivalent(self.plan.margin)
        return {**rounded, "excludes_zero": interval.excludes_zero, "equivalent": equivalent}


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean and standard deviation over seeds and each value; `None` for a seed without objects."""
    known = [float(value) for value in values if value is not None]
    return {
        "mean": round(mean(known), _DIGITS) if known else None,
        "sd": round(stdev(known), _DIGITS) if len(known) > 1 else None,
        "each": [None if value is None else round(float(value), _DIGITS) for value in values],
    }
