"""`cahqp sample`: select the most useful frames to send to the cloud, within a budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cahqp.coco.decoding import BrokenImageError, read_image
from cahqp.coco.subset import build_document, copy_file
from cahqp.drift.mmd import fit_scale, squared_distances
from cahqp.drift.result import first_drifted
from cahqp.drift.signals import Signals, join_signals, read_signals, write_signals
from cahqp.errors import ConfigError, DataError, check_numbers
from cahqp.files import path_inside, write_json
from cahqp.runs.directory import open_run

Array = NDArray[np.float64]
Choice = tuple[int, dict[str, float]]  # a row, and its score by criterion, 0..1


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Select frames to adapt to: uncertain detections, different from each other, and spread over time.

    Writes `frames.json` (COCO without annotations), the images and their features, and `chosen.json` with the scores of
    each frame.

    Attributes:
        features: Directories of `cahqp features`. Their frames must be image files; `cahqp fetch` extracts them from
            videos.
        output: New directory for the frames.
        budget: Largest number of frames over all cameras. Each camera gets its share.
        drift: `drift.json` or its directory: select from drifted cameras only, from the start of the drift. Default:
            all frames.
        cameras: Cameras to select from. Default: all cameras.
        known: Features of frames that were sent before. New frames should differ from them.
        uncertainty: Weight of the uncertainty of the detections.
        novelty: Weight of the distance to selected frames and to `known`.
        spread: Weight of the distance in time to selected frames.
    """

    features: list[Path]
    output: Path
    budget: int
    drift: Path | None = None
    cameras: list[str] | None = None
    known: list[Path] = field(default_factory=list)
    uncertainty: float = 1.0
    novelty: float = 1.0
    spread: float = 1.0

    def __post_init__(self) -> None:
        check_numbers({}, {"--budget": self.budget})
        if min(self.weights.values()) < 0 or not sum(self.weights.values()):
            message = f"--uncertainty, --novelty and --spread must be 0 or more, one above 0, got {self.weights}."
            raise ConfigError(message)

    @property
    def weights(self) -> dict[str, float]:
        """The weights by criterion."""
        return {"uncertainty": self.uncertainty, "novelty": self.novelty, "spread": self.spread}


def sample(options: SampleOptions) -> None:
    """Run `cahqp sample`."""
    inputs = {f"features.{number}": path for number, path in enumerate(options.features)}
    inputs |= {f"known.{number}": path for number, path in enumerate(options.known)}
    inputs |= {"drift": options.drift} if options.drift else {}
    settings = {"budget": options.budget, "cameras": options.cameras, **options.weights}
    with open_run(options.output, "sample", settings, inputs) as run:
        if run is None:
            return
        parts = [read_signals(path) for path in options.features]
        files = [_file(part, row) for part in parts for row in range(len(part))]
        signals = join_signals(parts)
        rows = _candidates(signals, options)
        known = join_signals([read_signals(path) for path in options.known]) if options.known else None
        chosen = choose_frames(signals.take(rows), options.budget, known, **options.weights)
        _write(run.work, signals, files, [(int(rows[row]), scores) for row, scores in chosen])
        run.metrics = {"frames": len(chosen), "of": len(signals)}
        print(f"{options.output}: {len(chosen)} of {len(signals)} frames.")


def choose_frames(signals: Signals, budget: int, known: Signals | None = None, **weights: float) -> list[Choice]:
    """Choose rows greedily per camera, as in k-centre selection: each time the best row given those chosen already.

    Args:
        signals: Readable frames to choose from.
        budget: Largest number of rows. The unused share of a camera goes to the others.
        known: Frames that chosen frames should differ from, too.
        **weights: Weights of `uncertainty`, `novelty` and `spread`.

    Returns:
        Rows in the order of the input, each with its scores.
    """
    if not len(signals):
        return []
    rows_of = {c: [row for row, camera in enumerate(signals.cameras) if camera == c] for c in set(signals.cameras)}
    scale = fit_scale(signals.features) if len(signals) > 1 else None
    values = scale.apply(signals.features) if scale else signals.features.astype(np.float64)
    before = scale.apply(known.features[known.readable]) if known is not None and scale else None
    chosen: list[Choice] = []
    left = budget
    # Smallest camera first, so that the others divide its unused share.
    for number, camera in enumerate(sorted(rows_of, key=lambda c: (len(rows_of[c]), c))):
        rows = rows_of[camera]
        share = min(len(rows), left // (len(rows_of) - number))
        far = np.full(len(rows), np.inf)
        if before is not None and len(before):
            far = squared_distances(values[rows], before).min(1)
        ranks = _ranks(signals.uncertainty[rows].astype(np.float64))
        chosen += [(rows[row], scores) for row, scores in _of_camera(share, values[rows], ranks, far, weights)]
        left -= share
    return sorted(chosen, key=lambda choice: choice[0])


def _of_camera(share: int, values: Array, uncertainty: Array, far: Array, weights: dict[str, float]) -> list[Choice]:
    """Choose `share` rows of one camera.

    Args:
        share: Number of rows.
        values: (N, D) scaled features.
        uncertainty: (N,) ranks in 0..1.
        far: (N,) squared distances to the nearest known frame.
        weights: Weights by criterion.
    """
    apart = np.full(len(values), np.inf)
    free = np.ones(len(values), np.bool_)
    chosen: list[Choice] = []
    for _ in range(share):
        scores = {
            "uncertainty": uncertainty,
            "novelty": _ranks(far),
            "spread": np.minimum(apart * share / len(values), 1.0),  # 1 at the distance of an even spread
        }
        total = sum((weights[name] * part for name, part in scores.items()), np.zeros(len(values)))
        best = int(np.where(free, total, -np.inf).argmax())
        chosen.append((best, {name: round(float(part[best]), 4) for name, part in scores.items()}))
        free[best] = False
        far = np.minimum(far, squared_distances(values, values[best][None])[:, 0])
        apart = np.minimum(apart, np.abs(np.arange(len(values)) - best))
    return chosen


def _ranks(values: Array) -> Array:
    """Return ranks in 0..1, the same for equal values, so that weights do not depend on the scale of the values."""
    _, positions, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = ((ends - counts + ends - 1) / 2 / max(len(values) - 1, 1))[positions]
    return ranks


def _candidates(signals: Signals, options: SampleOptions) -> NDArray[np.int64]:
    """Return the rows to choose from.

    Raises:
        ConfigError: A camera is unknown.
        DataError: There are no rows.
    """
    known = set(signals.cameras)
    cameras = set(options.cameras or known)
    if unknown := sorted(cameras - known):
        message = f"--cameras {', '.join(unknown)} are not among the frames; allowed are {', '.join(sorted(known))}."
        raise ConfigError(message)
    first = dict.fromkeys(known, 0) if options.drift is None else first_drifted(options.drift)
    seen: dict[str, int] = {}
    rows = []
    for row, camera in enumerate(signals.cameras):
        index = seen[camera] = seen.get(camera, -1) + 1
        if camera in cameras and camera in first and index >= first[camera] and signals.readable[row]:
            rows.append(row)
    if not rows:
        message = "There is no frame to choose from: no camera has drifted, or none of its frames is readable."
        raise DataError(message)
    return np.array(rows, np.int64)


def _file(signals: Signals, row: int) -> Path:
    if signals.root is None:
        message = f"{signals.names[row]} is not a file. Extract the frames of videos with `cahqp fetch`."
        raise DataError(message)
    return path_inside(signals.root, signals.names[row])


def _write(work: Path, signals: Signals, files: list[Path], chosen: list[Choice]) -> None:
    images, entries = [], []
    for number, (row, scores) in enumerate(chosen, 1):
        name = f"{signals.recordings[row].replace('/', '_')}/{number:05d}{files[row].suffix.lower()}"
        copy_file(files[row], path_inside(work / "images", name))
        try:
            height, width, _ = read_image(work / "images" / name).shape
        except BrokenImageError as error:
            message = f"{files[row]} {error}. Restore the file, or measure the features without it."
            raise DataError(message) from error
        image = {"id": number, "file_name": name, "height": height, "width": width}
        image |= {"camera": signals.cameras[row], "recording": signals.recordings[row], "frame": signals.indices[row]}
        images.append(image | ({} if signals.times[row] is None else {"timestamp": signals.times[row]}))
        entries.append({"file_name": name, "from": signals.names[row], **scores})
    names = [str(image["file_name"]) for image in images]
    write_signals(work, replace(signals.take([row for row, _ in chosen]), names=names), "images")
    write_json(work / "frames.json", build_document(images, [], []))
    write_json(work / "chosen.json", {"frames": entries})
