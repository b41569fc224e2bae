"""How long the stages of a benchmark will take, from steps and frames; and how many images they look at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from cahqp.benchmarks.adapt.configs import merged, steps_of
from cahqp.benchmarks.adapt.plan import ARMS, SCENES, SOURCE_CONTINUED, Arm, Plan
from cahqp.coco.document import read_document

_DEFAULT_FRAMES = {"recordings": 4, "frames": 40}  # of `cahqp scenes`


_ALONE = ARMS[SOURCE_CONTINUED].configs  # it passes no target frame


class Estimate:
    """The estimates of one plan, in seconds.

    Args:
        plan: Its `cost` holds the measured times.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.cost = plan, plan.cost

    def labelled(self, configs: Sequence[str]) -> float:
        """Return the time of a teacher's training on labels."""
        return self.cost.start + self.cost.labelled * steps_of(configs)

    def student(self, configs: Sequence[str]) -> float:
        """Return the time of a student's training."""
        return self.cost.start + self.cost.student * steps_of(configs)

    def adaptation(self, arm: Arm) -> float:
        """Return the time of an arm's training; that of the source alone has no target frames to do."""
        per_step = self.cost.labelled if arm.kind == "oracle" or arm.configs == _ALONE else self.cost.adapt
        return self.cost.start + per_step * self._length(arm)

    def images(self, arm: Arm) -> int:
        """Return how many images an arm's training looks at, each as often as it does."""
        if arm.kind == "none":
            return 0
        model = self.plan.teacher
        configs = model.oracle if arm.kind == "oracle" else model.then
        data = merged([*configs, *arm.configs]).get("data", {}).get("init_args", {})
        data |= {name.removeprefix("data."): value for name, value in (self.plan.set | arm.set).items()}
        per_step = int(data.get("batch_size", 8))
        if arm.kind == "adapt" and arm.configs != _ALONE:
            per_step += int(data.get("target_batch_size") or per_step)
        images = per_step * self._length(arm)
        if self_training_rounds := self.plan.self_training_rounds(arm):
            images += (
                self_training_rounds
                * int(merged(model.self_training)["data"]["init_args"]["batch_size"])
                * steps_of(model.self_training)
            )
        return images

    def relabel(self) -> float:
        """Return the time to relabel the target's training frames."""
        return self.cost.start + self.cost.frame * sum(map(self._frames, self.plan.target.train))

    def measure(self, models: int) -> float:
        """Return the time to measure models on both test sets."""
        frames = self._frames(self.plan.target.test) + self._frames(self.plan.source.test)
        return self.cost.start + self.cost.frame * frames * models

    def scenes(self, name: str) -> float:
        """Return the time to make synthetic recordings."""
        return self.cost.start + self.cost.scene * self._frames(SCENES + name)

    def _length(self, arm: Arm) -> int:
        return max(1, round(self.plan.epochs * arm.steps)) * self.plan.batches

    def _frames(self, entry: str) -> int:
        if entry.startswith(SCENES):
            given = _DEFAULT_FRAMES | self.plan.scenes[entry.removeprefix(SCENES)]
            return int(given["recordings"]) * int(given["frames"])
        return _images(Path(entry))


@lru_cache(maxsize=64)
def _images(path: Path) -> int:
    return len(read_document(path)["images"])
