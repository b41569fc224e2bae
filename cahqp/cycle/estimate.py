"""Expected cost of a cycle's stages, for the remaining time that a run prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cahqp.cycle.training_steps import merge_configs
from cahqp.runs.state import Stage

_START = 3.0
# Seconds of one core with the demo's models at 2.8 GHz. Only their ratios count once a stage has ended.
_PER_IMAGE = {"TeacherAdaptation": 0.14, "StudentTraining": 0.036}
_PER_FRAME = {"scenes": 0.035, "relabel": 0.06, "evaluate": 0.03, "calibrate": 0.06}
_FRAMES = 300
"""Frames of a stage whose input is not counted."""


def stage_costs(stages: Sequence[Stage]) -> dict[str, float]:
    """Return the expected seconds of each stage by name. Files are not opened, except configs."""
    frames: dict[Path, float] = {}
    costs: dict[str, float] = {}
    for stage in stages:
        command, options = stage.arguments[0], _options(stage.arguments[1:])
        if command == "scenes":
            count = float(options.get("recordings", 8)) * float(options.get("frames", 30))
            frames[stage.output] = count
        else:
            count = sum(frames.get(path.parent, _FRAMES) for path in stage.inputs if path.suffix != ".safetensors")
            count *= max(1, sum(path.suffix == ".safetensors" for path in stage.inputs))
        costs[stage.name] = _START + (_fit(stage) if command == "fit" else _PER_FRAME.get(command, 0.0) * count)
    return costs


def _fit(stage: Stage) -> float:
    """Return the seconds of a training by its steps and images per step; one epoch of 100 steps if they are open."""
    settings = merge_configs([a.partition("=")[2] for a in stage.arguments if a.startswith("--config=")])
    data: dict[str, Any] = settings.get("data", {}).get("init_args", {})
    steps = settings.get("trainer", {}).get("max_epochs", 1) * (data.get("batches_per_epoch") or 100)
    images = data.get("batch_size", 8) + data.get("target_batch_size", 0)
    module = str(settings.get("model", {}).get("class_path", "")).rpartition(".")[2]
    return float(steps * images * _PER_IMAGE.get(module, 0.1))


def _options(arguments: Sequence[str]) -> dict[str, str]:
    pairs = (argument.removeprefix("--").partition("=") for argument in arguments if argument.startswith("--"))
    return {name: value for name, _, value in pairs}
