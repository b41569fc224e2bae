"""`cahqp evaluate` and `cahqp info`: accuracy and content of model files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from cahqp.data.frames import open_frames
from cahqp.data.images import Quarantine, write_quarantine
from cahqp.detectors import model_file
from cahqp.detectors.base import Detector
from cahqp.errors import ConfigError
from cahqp.evaluation.bootstrap import within_chance
from cahqp.evaluation.ground_truth import GroundTruth, ImagePredictions, Predictions, read_ground_truth
from cahqp.evaluation.scoring import score
from cahqp.files import write_json
from cahqp.inference.device import check_device
from cahqp.inference.frames import FrameLoader, FrameSet, as_arrays, detect, fixed_batches
from cahqp.inference.options import EvaluateOptions, InfoOptions
from cahqp.runs.directory import open_run

QUARANTINE = "quarantine.json"

_log = logging.getLogger(__name__)


def evaluate(options: EvaluateOptions) -> None:
    """Measure average precision of model files on labelled frames, with intervals of paired differences.

    Unreadable frames are left out for all models and listed in `quarantine.json`.
    """
    device = check_device(options.device)
    models, files = name_paths(options.weights, "--weights"), name_paths(options.frames, "--frames")
    settings = {key: getattr(options, key) for key in ("batch_size", "resamples", "max_invalid_share")}
    settings |= {"models": list(models), "frames": list(files)}
    inputs = {f"weights.{k}": v for k, v in models.items()} | {f"frames.{k}": v for k, v in files.items()}
    with open_run(options.output, "evaluate", settings, inputs, options.seed) as run:
        if run is None:
            return
        detectors = {name: model_file.load(path).to(device) for name, path in models.items()}
        frames = EvaluationFrames(options.batch_size, options.max_invalid_share)
        predictions = {
            model: {name: frames.predict(detector, path) for name, path in files.items()}
            for model, detector in detectors.items()
        }
        classes = next(iter(detectors.values())).classes
        result = score(
            predictions,
            {name: frames.keep_readable(path, read_ground_truth(path, classes)) for name, path in files.items()},
            comparisons=_comparisons(list(models)),
            seed=options.seed,
            resamples=options.resamples,
        )
        hashes = run.identity["inputs"]
        result["inputs"] = {
            "weights": {name: hashes[f"weights.{name}"] for name in models},
            "frames": {name: hashes[f"frames.{name}"] for name in files},
        }
        write_json(run.work / "metrics.json", result)
        frames.write_quarantine(run.work)
    print(_table(result))


def _table(result: dict[str, Any]) -> str:
    """Return the figures of `metrics.json` as a table, in percent."""
    rows = [("model", "frames", "images", "AP50", "mAP")]
    for model, sets in result["models"].items():
        for frames, own in sets.items():
            rows.append((model, frames, str(own["images"]), _percent(own["ap50"]), _percent(own["map"])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for row in result["differences"]:
        note = " within chance" if within_chance(row["low"], row["high"]) else ""
        interval = f"[{_percent(row['low'])}, {_percent(row['high'])}]"
        lines.append(f"{row['model']} - {row['baseline']} on {row['frames']}: {_percent(row['ap50'])} {interval}{note}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


class EvaluationFrames:
    """Frames of COCO files that several models are measured on. Frames unreadable for one model are left out for all.

    Args:
        batch_size: Frames per batch.
        max_invalid_share: Largest accepted share of unreadable images of a file, 0..1.
    """

    def __init__(self, batch_size: int, max_invalid_share: float) -> None:
        self.batch_size, self.max_invalid_share = batch_size, max_invalid_share
        self._quarantines: dict[Path, Quarantine] = {}
        self._readable: dict[Path, set[int]] = {}

    def predict(self, detector: Detector, path: Path) -> Predictions:
        """Return a detector's predictions on the readable frames of a file.

        Args:
            detector: The detector in eval mode, on its device.
            path: The COCO file. Its labels are not read.

        Raises:
            DataError: More than `max_invalid_share` of the images are unreadable.
        """
        device = next(detector.parameters()).device
        images: dict[int, ImagePredictions] = {}
        dataset = FrameSet(open_frames([path]), detector.preprocessing, self.max_invalid_share)
        for item in FrameLoader(dataset, fixed_batches(len(dataset), self.batch_size)):
            if item.batch is not None:
                detections = detect(detector, item.batch.to(device))
                images |= {f.id: as_arrays(d) for f, d in zip(item.batch.frames, detections, strict=True)}
            dataset.quarantine.check()
        self._quarantines[path] = dataset.quarantine
        self._readable[path] = self._readable.get(path, images.keys()) & images.keys()
        return Predictions(detector.classes, images)

    def keep_readable(self, path: Path, ground_truth: GroundTruth) -> GroundTruth:
        """Return the ground truth of the frames that every model could read. Log a warning about the others."""
        kept = ground_truth.select(self._readable[path])
        if lost := len(ground_truth.images) - len(kept.images):
            _log.warning("%s: %d images are unreadable and not measured; see %s.", path, lost, QUARANTINE)
        return kept

    def write_quarantine(self, folder: Path) -> None:
        """List the unreadable images in `quarantine.json`; write no file without them."""
        write_quarantine(folder / QUARANTINE, list(self._quarantines.values()))


def info(options: InfoOptions) -> None:
    """Print a model file's architecture, classes, preprocessing, thresholds, provenance, hash and parameter count."""
    description = model_file.read_metadata(options.file) | {"parameters": model_file.count_parameters(options.file)}
    print(json.dumps(description, indent=2, sort_keys=True))


def parse_named(values: list[str], flag: str) -> dict[str, Path]:
    """Return paths by name. A repeated name gets a number from its second path on."""
    named: dict[str, Path] = {}
    for text in values:
        name, sign, path = text.partition("=")
        if not (name and sign and path):
            message = f"{flag} {text!r} must be NAME=FILE, such as teacher=runs/teacher/model.safetensors."
            raise ConfigError(message)
        key, number = name, 2
        while key in named:
            key, number = f"{name}-{number}", number + 1
        named[key] = Path(path)
    return named


def name_paths(values: list[str], flag: str) -> dict[str, Path]:
    """Return paths by name, as `parse_named` does; a path without a name gets that of its run, folder or file.

    Args:
        values: NAME=FILE or FILE.
        flag: Option that gives the values.

    Raises:
        ConfigError: A value with `=` has an empty name or file.
    """
    return parse_named([text if _is_named(text) else f"{_default_name(Path(text))}={text}" for text in values], flag)


def _is_named(text: str) -> bool:
    return "=" in text and not Path(text).exists()


def _default_name(path: Path) -> str:
    """Return `teacher` for `runs/teacher/model.safetensors`, and the stem for files of other names."""
    return path.absolute().parent.name if path.stem in ("model", "annotations", "labels") else path.stem


def _comparisons(names: list[str]) -> list[tuple[str, str]]:
    """Return pairs of a model and its baseline: the first model with the same part before the first dash."""
    baselines: dict[str, str] = {}
    for name in names:
        baselines.setdefault(name.split("-")[0], name)
    pairs = [(name, baselines[name.split("-")[0]]) for name in names]
    return [(name, baseline) for name, baseline in pairs if name != baseline]
