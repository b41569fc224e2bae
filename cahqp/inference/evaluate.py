"""`cahqp evaluate` and `cahqp info`: what model files reach, and what they hold."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from cahqp.data.frames import open_frames
from cahqp.data.images import Quarantine, write_quarantine
from cahqp.detectors import model_file as model_files
from cahqp.detectors.base import Detector
from cahqp.errors import ConfigError, check_numbers
from cahqp.evaluation.ground_truth import GroundTruth, ImagePredictions, Predictions, read_ground_truth
from cahqp.evaluation.scoring import score
from cahqp.files import write_json
from cahqp.inference.frames import FrameLoader, FrameSet, as_arrays, detect, fixed_batches
from cahqp.runs.directory import RunDirectory

QUARANTINE = "quarantine.json"

_log = logging.getLogger(__name__)


def evaluate(
    weights: list[str],
    frames: list[str],
    output: Path,
    batch_size: int = 8,
    resamples: int = 1000,
    device: str = "cpu",
    seed: int = 0,
    max_invalid_share: float = 0.05,
) -> None:
    """Measure model files on labelled frames: average precision, per class, and paired differences with intervals.

    Frames whose image is broken are measured for no model, and listed in `quarantine.json`.

    Args:
        weights: NAME=FILE of each model. A model is compared with the first one whose name begins alike, up to the
            first dash.
        frames: NAME=FILE of each COCO file with truth.
        output: Directory for `metrics.json`; never overwritten.
        batch_size: Frames in a batch.
        resamples: Draws of the bootstrap.
        device: Where the models run.
        seed: Of the bootstrap.
        max_invalid_share: Share of broken images, 0..1, that is put up with.
    """
    check_numbers(
        shares={"--max_invalid_share": max_invalid_share}, counts={"--batch_size": batch_size, "--resamples": resamples}
    )
    models, ground_truths = _named(weights, "--weights"), _named(frames, "--frames")
    settings = {"batch_size": batch_size, "resamples": resamples, "models": list(models), "frames": list(ground_truths)}
    settings |= {"max_invalid_share": max_invalid_share}
    inputs = {f"weights.{k}": v for k, v in models.items()} | {f"frames.{k}": v for k, v in ground_truths.items()}
    run = RunDirectory(output, "evaluate", settings, inputs, seed)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    with run.whole():
        detectors = {name: model_files.load(path).to(device) for name, path in models.items()}
        seen = FramesSeen(batch_size, max_invalid_share)
        predictions = {
            name: {frames_name: seen.predict(detector, path) for frames_name, path in ground_truths.items()}
            for name, detector in detectors.items()
        }
        classes = next(iter(detectors.values())).classes
        result = score(
            predictions,
            {name: seen.only(path, read_ground_truth(path, classes)) for name, path in ground_truths.items()},
            comparisons=_comparisons(list(models)),
            seed=seed,
            resamples=resamples,
        )
        write_json(run.work / "metrics.json", result)
        seen.write(run.work)
    run.finish({})


class FramesSeen:
    """What models say of the frames of COCO files whose images can be read: of the others nothing can be said.

    Args:
        batch_size: Frames in a batch.
        max_invalid_share: Share of broken images of a file, 0..1, that is put up with.
    """

    def __init__(self, batch_size: int, max_invalid_share: float) -> None:
        self.batch_size, self.max_invalid_share = batch_size, max_invalid_share
        self._broken: dict[Path, Quarantine] = {}
        self._ids: dict[Path, set[int]] = {}

    def predict(self, detector: Detector, path: Path) -> Predictions:
        """Return a detector's answers for the frames of a file that can be read.

        Args:
            detector: In eval mode, on its device.
            path: The COCO file; its labels are not read here.

        Raises:
            DataError: More images are broken than `max_invalid_share` allows.
        """
        source = open_frames([path])
        device = next(detector.parameters()).device
        answers: dict[int, ImagePredictions] = {}
        dataset = FrameSet(source, detector.preprocessing, self.max_invalid_share)
        for item in FrameLoader(dataset, fixed_batches(len(dataset), self.batch_size)):
            if item.batch is not None:
                found = detect(detector, item.batch.to(device))
                answers |= {f.id: as_arrays(d) for f, d in zip(item.batch.frames, found, strict=True)}
            dataset.quarantine.check()
        self._broken[path] = dataset.quarantine
        self._ids[path] = self._ids.get(path, answers.keys()) & answers.keys()
        return Predictions(detector.classes, answers)

    def only(self, path: Path, ground_truth: GroundTruth) -> GroundTruth:
        """Return the truth of the frames that every model could read, and say how many they are not."""
        kept = ground_truth.only(self._ids[path])
        if lost := len(ground_truth.images) - len(kept.images):
            _log.warning("%s: %d images are broken and not measured; see %s.", path, lost, QUARANTINE)
        return kept

    def write(self, folder: Path) -> None:
        """List the broken images in `quarantine.json` of a folder; nothing where there are none."""
        write_quarantine(folder / QUARANTINE, list(self._broken.values()))


def info(file: Path) -> None:
    """Say what a model file holds: architecture, classes, preprocessing, thresholds, provenance, hash, parameters.

    Args:
        file: The model file.
    """
    told = {**model_files.describe(file), "parameters": model_files.count_parameters(file)}
    print(json.dumps(told, indent=2, sort_keys=True))


def _named(given: list[str], flag: str) -> dict[str, Path]:
    """Return paths by name; a name that stands twice is numbered from its second path on."""
    named: dict[str, Path] = {}
    for text in given:
        name, sign, path = text.partition("=")
        if not (name and sign and path):
            message = f"{flag} {text!r} must be NAME=FILE, such as teacher=runs/teacher/model.safetensors."
            raise ConfigError(message)
        key, number = name, 2
        while key in named:
            key, number = f"{name}-{number}", number + 1
        named[key] = Path(path)
    return named


def _comparisons(names: list[str]) -> list[tuple[str, str]]:
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        kind = name.split("-")[0]
        if kind in first:
            pairs.append((name, first[kind]))
        first.setdefault(kind, name)
    return pairs
