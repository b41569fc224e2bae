"""Signals of frames without labels, as a file: the input of `cahqp drift`, `sample` and `replay`."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import Field

from cahqp.errors import DataError
from cahqp.files import atomic_write, write_json
from cahqp.records import FileName, Record, Text, read_record

FILE = "features.npz"
FRAMES = "signals.json"

SCORE_EDGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PLAIN = ("brightness", "contrast", "sharpness", "detections", "change")
"""Mean and standard deviation of the grey values (0..255), standard deviation of their second differences, number of
detections above the operating threshold, and mean difference of the thumbnail from that of the camera's frame before
(NaN for its first frame)."""

_ARRAYS = {
    "features": (np.float32, 2), "scores": (np.float32, 2), "plain": (np.float32, 2), "view": (np.float32, 2),
    "uncertainty": (np.float32, 1), "readable": (np.bool_, 1),
}  # fmt: skip
"""Type and number of axes of each array."""
_LISTS = ("names", "cameras", "recordings", "indices", "times")
_MAX_FRAMES_BYTES = 1 << 30  # of `signals.json`: about five million frames


class _FrameRecord(Record):
    file_name: FileName
    camera: Text
    recording: Text
    frame: Annotated[int, Field(ge=-(1 << 53), le=1 << 53)]
    timestamp: float | None


class _SignalsRecord(Record):
    """Content of `signals.json`."""

    root: Text | None
    model: Text | None = None
    images: list[_FrameRecord]


@dataclass(frozen=True)
class Signals:
    """Signals of N frames, in the order of the input.

    Attributes:
        features: (N, D) float32 features of one model.
        scores: (N, 10) float32 counts of detections by score, between `SCORE_EDGES`.
        plain: (N, 5) float32, in the order of `PLAIN`; NaN for unreadable frames.
        view: (N, 144) float32 grey values of a thumbnail, normalised to mean 0 and standard deviation 1.
        uncertainty: (N,) float32, summed entropy of the detections in bits.
        readable: (N,) bool.
        names: File names.
        cameras: Names of the cameras.
        recordings: Names of the recordings.
        indices: Positions in the recordings; only their order counts.
        times: Seconds within the recording; `None` if unknown.
        root: Folder that `names` are relative to; `None` if the frames are not files, as in a video.
        model: Hash of the model of the features; `None` if it was not recorded.
    """

    features: NDArray[np.float32]
    scores: NDArray[np.float32]
    plain: NDArray[np.float32]
    view: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    readable: NDArray[np.bool_]
    names: list[str]
    cameras: list[str]
    recordings: list[str]
    indices: list[int]
    times: list[float | None]
    root: Path | None = None
    model: str | None = None

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.names)

    def take(self, rows: NDArray[np.int64] | list[int]) -> Signals:
        """Return the frames of these rows, in the order of `rows`."""
        chosen = [int(row) for row in rows]
        columns: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _ARRAYS}
        columns |= {name: [getattr(self, name)[row] for row in chosen] for name in _LISTS}
        return replace(self, **columns)

    def by_camera(self) -> dict[str, Signals]:
        """Return each camera's frames, in the order of the input, which is the order of time."""
        rows: dict[str, list[int]] = {}
        for row, camera in enumerate(self.cameras):
            rows.setdefault(camera, []).append(row)
        return {camera: self.take(found) for camera, found in sorted(rows.items())}


def same_model(*parts: Signals) -> bool:
    """Return whether features may be of one model: the same number of values, and no two different hashes."""
    hashes = {part.model for part in parts} - {None}
    return len(hashes) <= 1 and len({part.features.shape[1] for part in parts}) <= 1


def interval(signals: Signals) -> float | None:
    """Return the median seconds between consecutive frames of a recording; `None` if times are unknown."""
    frames = pairwise(zip(signals.recordings, signals.times, strict=True))
    gaps = [b - a for (left, a), (right, b) in frames if left == right and a is not None and b is not None]
    return float(np.median(gaps)) if gaps else None


def join_signals(parts: list[Signals]) -> Signals:
    """Return the concatenation of several inputs, without a root.

    Raises:
        DataError: The inputs have features of different models.
    """
    if not same_model(*parts):
        message = "The features are of different models. Run `cahqp features` with one model."
        raise DataError(message)
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
    lists: dict[str, Any] = {name: [value for part in parts for value in getattr(part, name)] for name in _LISTS}
    return Signals(**arrays, **lists, model=next((part.model for part in parts if part.model), None))


def write_signals(directory: Path, signals: Signals, root: str | None) -> None:
    """Write `features.npz` and `signals.json`; the same signals give the same bytes.

    Args:
        directory: Directory of the files.
        signals: Signals of all frames.
        root: Folder of the images relative to `directory`; `None` if the frames are not files.
    """
    with atomic_write(directory / FILE, "wb") as file:
        np.savez(file, **{name: getattr(signals, name) for name in _ARRAYS})
    columns = zip(*(getattr(signals, name) for name in _LISTS), strict=True)
    images = [
        {"file_name": name, "camera": camera, "recording": recording, "frame": index, "timestamp": time}
        for name, camera, recording, index, time in columns
    ]
    write_json(directory / FRAMES, {"root": root, "model": signals.model, "images": images})


def read_signals(path: Path) -> Signals:
    """Read the files that `cahqp features` wrote.

    Args:
        path: The directory, or the `features.npz` in it.

    Raises:
        DataError: A file is missing or damaged.
    """
    directory = path if path.is_dir() else path.parent
    if not (directory / FILE).is_file():
        message = f"{path} contains no {FILE}. Run `cahqp features --weights MODEL --frames ... --output DIR`."
        raise DataError(message)
    try:
        columns = _read_arrays(directory / FILE)
    except (OSError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile) as error:
        message = f"{directory / FILE} is damaged ({error}). Rerun `cahqp features`."
        raise DataError(message) from error
    frames = read_record(directory / FRAMES, _SignalsRecord, "Rerun `cahqp features`.", DataError, _MAX_FRAMES_BYTES)
    images = frames.images
    if any(len(columns[name]) != len(images) for name in _ARRAYS):
        message = f"{directory} is damaged: {FILE} and {FRAMES} list different frames. Rerun `cahqp features`."
        raise DataError(message)
    return Signals(
        **columns,
        names=[image.file_name for image in images],
        cameras=[image.camera for image in images],
        recordings=[image.recording for image in images],
        indices=[image.frame for image in images],
        times=[image.timestamp for image in images],
        root=None if frames.root is None else directory / frames.root,
        model=frames.model,
    )


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of `features.npz`.

    `np.load` would allocate whatever size a header claims, and unpack whatever a compressed file contains.

    Raises:
        ValueError: An array has another type, number of axes or size, or is compressed; or features are not finite.
    """
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as file:
        for name, (kind, axes) in _ARRAYS.items():
            entry = file.getinfo(f"{name}.npy")
            with file.open(entry) as member:
                npy.read_magic(member)
                shape, fortran, dtype = npy.read_array_header_1_0(member)
                size = entry.file_size - member.tell()
                if entry.compress_type != zipfile.ZIP_STORED or math.prod(shape) * dtype.itemsize != size:
                    message = f"{name} does not have the size that its header states"
                    raise ValueError(message)
                if dtype != kind or len(shape) != axes:
                    message = f"{name} must be {np.dtype(kind)} with {axes} axes, got {dtype} {shape}"
                    raise ValueError(message)
                values = np.frombuffer(member.read(), dtype).copy()
                arrays[name] = values.reshape(shape[::-1]).T if fortran else values.reshape(shape)
    if arrays["plain"].shape[1:] != (len(PLAIN),) or arrays["scores"].shape[1:] != (len(SCORE_EDGES) - 1,):
        message = f"`plain` and `scores` must have {len(PLAIN)} and {len(SCORE_EDGES) - 1} columns"
        raise ValueError(message)
    if any(not np.isfinite(arrays[name]).all() for name in ("features", "scores", "view", "uncertainty")):
        message = "a value is NaN or infinite"
        raise ValueError(message)
    return arrays
