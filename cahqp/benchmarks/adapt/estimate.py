"""Estimated duration of a benchmark's stages, and the number of training images of its arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cahqp.benchmarks.adapt.plan import ARMS, RESTYLE_ONLY, SOURCE_CONTINUED, Arm, BenchmarkPlan
from cahqp.coco.document import read_document
from cahqp.cycle.plan import SCENES
from cahqp.cycle.training_steps import count_steps, images_per_step
from cahqp.scenes.options import ScenesOptions

_SOURCE_CONFIGS = {*ARMS[SOURCE_CONTINUED].configs, *ARMS[RESTYLE_ONLY].configs}  # adaptations on source images alone


class Estimate:
    """Estimates of one plan, in seconds, from its `cost`."""

    def __init__(self, plan: BenchmarkPlan) -> None:
        self.plan, self.cost = plan, plan.cost

    def fit(self, kind: str, configs: Sequence[str], settings: Mapping[str, Any]) -> float:
        """Return the duration of a training of a kind such as `adapt`, with settings laid over its configs."""
        if kind == "start":
            return self.frames(self.plan.source.val, models=1)
        epochs, batches = (settings.get(name) for name in ("trainer.max_epochs", "data.batches_per_epoch"))
        by_role = {"student": self.cost.student, "expert": self.cost.expert}
        per_step = by_role.get(kind.partition("-")[0], self.cost.labelled) * images_per_step(configs, settings)[0] / 8
        if kind == "adapt" and not _SOURCE_CONFIGS & set(configs):
            per_step = self.cost.adapt
        return self.cost.start + per_step * (epochs * batches if epochs and batches else count_steps(configs))

    def relabel(self, views: int) -> float:
        """Return the duration of relabelling the target's training frames in a number of views."""
        return self.frames(self.plan.target.train, views)

    def measure(self, models: int) -> float:
        """Return the duration of measuring models on both test sets."""
        return self.frames([self.plan.target.test, self.plan.source.test], models)

    def frames(self, entries: Sequence[str], models: int) -> float:
        """Return the duration of detecting in frames with a number of models."""
        return self.cost.start + self.cost.frame * models * sum(map(self._count_frames, entries))

    def scenes(self, name: str) -> float:
        """Return the duration of rendering synthetic recordings."""
        return self.cost.start + self.cost.scene * self._count_frames(SCENES + name)

    def images(self, arm: Arm) -> int:
        """Return the number of training images of an arm, repetitions included."""
        if arm.kind in ("none", "start"):
            return 0
        teacher = self.plan.teacher
        configs = teacher.oracle if arm.kind == "oracle" else teacher.adapt
        source, target = images_per_step([*configs, *arm.configs], self.plan.set | arm.set)
        per_step = source + (target if arm.kind == "adapt" and not arm.source_images else 0)
        images = per_step * max(1, round(self.plan.epochs * arm.steps)) * self.plan.batches if arm.adaptation else 0
        if self.plan.self_training_rounds(arm):
            images += images_per_step(teacher.self_training, self.plan.set)[0] * self.plan.self_training_steps
        return images

    def _count_frames(self, entry: str) -> int:
        if not entry.startswith(SCENES):
            return _count_images(Path(entry))
        scenes = self.plan.scenes[entry.removeprefix(SCENES)]
        recordings, frames = (int(scenes.get(key, getattr(ScenesOptions, key))) for key in ("recordings", "frames"))
        return recordings * frames


@lru_cache(maxsize=64)
def _count_images(path: Path) -> int:
    return len(read_document(path)["images"])
