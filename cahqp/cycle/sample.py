"""`cahqp sample`: the frames worth sending to the cloud, within a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.coco.subset import build_document, copy_file
from cahqp.drift.command import DRIFT
from cahqp.drift.mmd import fit_scale, squared_distances
from cahqp.drift.signals import Signals, join, read_signals, write_signals
from cahqp.errors import ConfigError, DataError, check_numbers
from cahqp.files import read_json, write_json
from cahqp.runs.directory import RunDirectory

Array = NDArray[np.float64]


def sample(
    features: list[Path],
    output: Path,
    budget: int,
    drift: Path | None = None,
    cameras: list[str] | None = None,
    known: list[Path] | None = None,
    uncertainty: float = 1.0,
    novelty: float = 1.0,
    spread: float = 1.0,
) -> None:
    """Choose frames to adapt on: those the detector is undecided about, unlike each other, and spread over time.

    Writes `frames.json` (COCO without annotations), the images and their features beside it, and `chosen.json`, which
    says what spoke for each.

    Args:
        features: Directories of `cahqp features`. Their frames must be image files; `cahqp fetch` takes them out of
            videos.
        output: Directory to make.
        budget: Most frames that are sent, over all cameras; each camera gets its share.
        drift: `drift.json`, or its directory: of drifted cameras alone, from where they drifted on. Default all.
        cameras: Of these cameras alone. Default all.
        known: Features of frames that were sent before, which new ones should differ from. Default none.
        uncertainty: Weight of what the detector is undecided about.
        novelty: Weight of the distance to what is chosen already, and to `known`.
        spread: Weight of the distance in time to what is chosen already.
    """
    check_numbers(shares={}, counts={"--budget": budget})
    weights = {"uncertainty": uncertainty, "novelty": novelty, "spread": spread}
    if min(weights.values()) < 0 or not sum(weights.values()):
        message = f"--uncertainty, --novelty and --spread must be 0 or more, and one of them above 0, got {weights}."
        raise ConfigError(message)
    inputs = {f"features.{number}": path for number, path in enumerate(features)}
    inputs |= {f"known.{number}": path for number, path in enumerate(known or [])}
    inputs |= {"drift": drift} if drift else {}
    settings = {"budget": budget, "cameras": cameras, **weights}
    run = RunDirectory(output, "sample", settings, inputs, seed=0)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    parts = [read_signals(path) for path in features]
    files = [_file(part, row) for part in parts for row in range(len(part))]
    signals = join(parts)
    rows = _candidates(signals, drift, cameras)
    past = join([read_signals(path) for path in known]) if known else None
    chosen = choose(signals.take(rows), budget, past, **weights)
    _write(run.work, signals, files, [(int(rows[row]), reasons) for row, reasons in chosen])
    run.finish({"frames": len(chosen), "of": len(signals)})
    print(f"{output}: {len(chosen)} of {len(signals)} frames.")


def choose(
    signals: Signals, budget: int, known: Signals | None = None, **weights: float
) -> list[tuple[int, dict[str, float]]]:
    """Choose rows, camera by camera, each the best of those left given what is chosen already (a greedy k-centre).

    Args:
        signals: The frames to choose from, readable ones.
        budget: Most rows; what a camera leaves of its share goes to the others.
        known: Frames that chosen ones should differ from as well.
        **weights: Of `uncertainty`, `novelty` and `spread`.

    Returns:
        Rows in the order of the input, each with what spoke for it, in 0..1.
    """
    if not len(signals):
        return []
    rows_of = {c: [row for row, camera in enumerate(signals.cameras) if camera == c] for c in set(signals.cameras)}
    scale = fit_scale(signals.features) if len(signals) > 1 else None
    values = scale.apply(signals.features) if scale else signals.features.astype(np.float64)
    before = scale.apply(known.features[known.readable]) if known is not None and scale else None
    found: list[tuple[int, dict[str, float]]] = []
    left = budget
    # The smallest first, so that what they leave is shared by the others.
    for number, camera in enumerate(sorted(rows_of, key=lambda c: (len(rows_of[c]), c))):
        share = min(len(rows_of[camera]), left // (len(rows_of) - number))
        found += _of_camera(rows_of[camera], share, values, signals.uncertainty, before, weights)
        left -= share
    return sorted(found, key=lambda pair: pair[0])


def _of_camera(
    rows: list[int],
    share: int,
    values: Array,
    uncertain: NDArray[np.float32],
    before: Array | None,
    weights: dict[str, float],
) -> list[tuple[int, dict[str, float]]]:
    values = values[rows]
    undecided = _ranks(uncertain[rows].astype(np.float64))
    far = _nearest(values, before) if before is not None and len(before) else np.full(len(rows), np.inf)
    apart = np.full(len(rows), np.inf)
    found: list[tuple[int, dict[str, float]]] = []
    free = np.ones(len(rows), np.bool_)
    for _ in range(share):
        parts = {
            "uncertainty": undecided,
            "novelty": _ranks(far),
            "spread": np.minimum(apart * share / len(rows), 1.0),  # 1 where it is as far as an even spread would be
        }
        total = sum((weights[name] * part for name, part in parts.items()), np.zeros(len(rows)))
        best = int(np.where(free, total, -np.inf).argmax())
        found.append((rows[best], {name: round(float(part[best]), 4) for name, part in parts.items()}))
        free[best] = False
        far = np.minimum(far, squared_distances(values, values[best][None])[:, 0])
        apart = np.minimum(apart, np.abs(np.arange(len(rows)) - best))
    return found


def _nearest(values: Array, others: Array) -> Array:
    nearest: Array = squared_distances(values, others).min(1)
    return nearest


def _ranks(values: Array) -> Array:
    """Return places in 0..1, equal values alike: weights then mean the same whatever the values' scale."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = ((ends - counts + ends - 1) / 2 / max(len(values) - 1, 1))[places]
    return ranks


def _candidates(signals: Signals, drift: Path | None, cameras: list[str] | None) -> NDArray[np.int64]:
    """Return the rows to choose from.

    Raises:
        DataError: There is none.
    """
    known = set(signals.cameras)
    asked = set(cameras or known)
    if unknown := sorted(asked - known):
        message = f"--cameras {', '.join(unknown)} are not among the frames; there are {', '.join(sorted(known))}."
        raise ConfigError(message)
    begins = dict.fromkeys(asked, 0) if drift is None else {c: n for c, n in _drifted(drift).items() if c in asked}
    seen: dict[str, int] = {}
    rows = []
    for row, camera in enumerate(signals.cameras):
        place_in_camera = seen[camera] = seen.get(camera, -1) + 1
        if camera in begins and place_in_camera >= begins[camera] and signals.readable[row]:
            rows.append(row)
    if not rows:
        message = "There is no frame to choose from: no camera has drifted, or none of its frames can be read."
        raise DataError(message)
    return np.array(rows, np.int64)


def _drifted(path: Path) -> dict[str, int]:
    """Return from which frame on each drifted camera has drifted."""
    directory = path if path.is_dir() else path.parent
    window = read_json(directory / "manifest.json")["settings"]["window"]
    found: dict[str, Any] = read_json(directory / "drift.json")["cameras"]
    return {camera: said["since"] * window for camera, said in found.items() if said["verdict"] == DRIFT}


def _file(signals: Signals, row: int) -> Path:
    if signals.root is None:
        message = f"{signals.names[row]} has no file of its own. Take the frames out of the video with `cahqp fetch`."
        raise DataError(message)
    return signals.root / signals.names[row]


def _write(work: Path, signals: Signals, files: list[Path], chosen: list[tuple[int, dict[str, float]]]) -> None:
    images, told = [], []
    for number, (row, reasons) in enumerate(chosen, 1):
        name = f"{signals.recordings[row].replace('/', '_')}/{number:05d}{files[row].suffix.lower()}"
        copy_file(files[row], work / "images" / name)
        height, width = _size(work / "images" / name)
        images.append(
            {
                "id": number,
                "file_name": name,
                "height": height,
                "width": width,
                "camera": signals.cameras[row],
                "recording": signals.recordings[row],
                "frame": signals.indices[row],
                **({} if signals.times[row] is None else {"timestamp": signals.times[row]}),
            }
        )
        told.append({"file_name": name, "from": signals.names[row], **reasons})
    names = [str(image["file_name"]) for image in images]
    write_signals(work, replace(signals.take([row for row, _ in chosen]), names=names), "images")
    write_json(work / "frames.json", build_document(images, [], []))
    write_json(work / "chosen.json", {"frames": told})


def _size(path: Path) -> tuple[int, int]:
    """Return height and width."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        message = f"{path} cannot be read as a picture."
        raise DataError(message)
    return int(image.shape[0]), int(image.shape[1])
