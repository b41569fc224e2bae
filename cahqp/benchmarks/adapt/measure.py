"""`cahqp benchmark measure`: what the models of one arm reach, kept so that seeds can be put together."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from cahqp.benchmarks.adapt.matches import write_matches
from cahqp.detectors import model_file as model_files
from cahqp.detectors.base import Detector
from cahqp.errors import ConfigError, check_numbers
from cahqp.evaluation.bootstrap import group_frames
from cahqp.evaluation.ground_truth import read_ground_truth
from cahqp.evaluation.matching import Matches
from cahqp.evaluation.metrics import Metrics, at_thresholds, average_precision
from cahqp.files import write_json
from cahqp.inference.evaluate import FramesSeen
from cahqp.runs.directory import RunDirectory

_log = logging.getLogger(__name__)


def command(arguments: list[str]) -> None:
    """Run `cahqp benchmark measure`."""
    parser = ArgumentParser(prog="cahqp benchmark measure", exit_on_error=False)
    parser.add_function_arguments(measure, skip={"weights", "frames"}, as_group=False)
    for name, text in (("weights", "NAME=FILE of each model."), ("frames", "NAME=FILE of each COCO file with truth.")):
        parser.add_argument(f"--{name}", nargs="+", type=str, required=True, help=text)
    measure(**parser.parse_args(arguments[1:]).as_dict())


def measure(
    weights: list[str],
    frames: list[str],
    output: Path,
    batch_size: int = 8,
    seed: int = 0,
    max_invalid_share: float = 0.05,
) -> None:
    """Measure models on labelled frames: AP, and precision, recall and F1 at the thresholds in each model's file.

    The thresholds were fixed on the source's validation frames when the model was made; nothing is chosen here.

    Args:
        weights: NAME=FILE of each model.
        frames: NAME=FILE of each COCO file with truth.
        output: Directory for `metrics.json` and the matches; never overwritten.
        batch_size: Frames in a batch.
        seed: Kept in the manifest.
        max_invalid_share: Share of broken images, 0..1, that is put up with; they are measured for no model.
    """
    check_numbers(shares={"--max_invalid_share": max_invalid_share}, counts={"--batch_size": batch_size})
    models, sets = _named(weights, "--weights"), _named(frames, "--frames")
    inputs = {f"weights.{k}": v for k, v in models.items()} | {f"frames.{k}": v for k, v in sets.items()}
    run = RunDirectory(
        output, "benchmark measure", {"batch_size": batch_size, "max_invalid_share": max_invalid_share}, inputs, seed
    )
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    figures: dict[str, dict[str, Any]] = {}
    matches: dict[str, dict[str, Matches]] = {}
    ground_truths: dict[str, Any] = {}
    seen = FramesSeen(batch_size, max_invalid_share)
    with run.whole():
        for name, path in models.items():
            detector = model_files.load(path)
            for key, file in sets.items():
                ground_truths[key] = read_ground_truth(file, detector.classes)
                if ground_truths[key].left_out:
                    told = ", ".join(f"{category} ({count})" for category, count in ground_truths[key].left_out.items())
                    _log.warning("%s: objects of %s are left out; %s does not know them.", file, told, name)
                answers = seen.predict(detector, file)
                ground_truths[key] = seen.only(file, ground_truths[key])
                found = average_precision(ground_truths[key], answers)
                figures.setdefault(name, {})[key] = _figures(found, detector)
                matches.setdefault(name, {})[key] = found.matches
    write_matches(run.work, matches, {key: group_frames(ground_truth) for key, ground_truth in ground_truths.items()})
    write_json(run.work / "metrics.json", {"models": figures})
    seen.write(run.work)
    run.finish({})


def _figures(found: Metrics, detector: Detector) -> dict[str, Any]:
    points = at_thresholds(found.matches, detector.thresholds) if detector.thresholds else {}
    mean = {
        name: round(sum(getattr(p, name) for p in points.values()) / len(points), 6) if points else None
        for name in ("precision", "recall", "f1")
    }
    return {
        "ap50": found.ap50,
        "map": found.map,
        "images": found.images,
        "per_class": {name: figures.ap50 for name, figures in found.per_class.items()},
        "operating": {name: asdict(point) for name, point in points.items()},
        **mean,
    }


def _named(given: list[str], flag: str) -> dict[str, Path]:
    pairs = [text.partition("=") for text in given]
    wrong = [text for text, (name, sign, path) in zip(given, pairs, strict=True) if not (name and sign and path)]
    if wrong or len({name for name, _, _ in pairs}) != len(pairs):
        message = f"{flag} must be NAME=FILE, each name once, got {' '.join(given)}."
        raise ConfigError(message)
    return {name: Path(path) for name, _, path in pairs}
