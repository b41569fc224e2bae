"""Content of `drift.json`, which `cahqp drift` writes and other commands read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cahqp.drift.options import DRIFT
from cahqp.errors import DataError
from cahqp.records import Name, Record, read_record
from cahqp.runs.manifest import read_manifest

FILE = "drift.json"


class CameraResult(Record):
    """Result of one camera.

    Attributes:
        verdict: Result of the test.
        since: Number of the first drifted window; `None` without drift.
    """

    verdict: Literal["drift", "fault", "too few frames", "steady"]
    since: Annotated[int, Field(ge=0)] | None = None


class DriftResult(Record):
    """Content of `drift.json`.

    Attributes:
        cameras: Result of each camera.
        groups: Cameras that one adaptation serves.
    """

    cameras: dict[Name, CameraResult]
    groups: list[list[Name]]


def read_drift(path: Path) -> DriftResult:
    """Read the result of `cahqp drift`.

    Args:
        path: Directory of the run, or `drift.json` in it.

    Raises:
        DataError: The file is missing or has invalid entries.
    """
    path = path / FILE if path.is_dir() else path
    return read_record(path, DriftResult, "Give the directory that `cahqp drift` wrote.", DataError)


def first_drifted(path: Path) -> dict[str, int]:
    """Return the index of the first drifted frame of each drifted camera.

    Raises:
        DataError: The result cannot be read, or the manifest beside it has no window.
    """
    directory = path if path.is_dir() else path.parent
    window = read_manifest(directory)["settings"].get("window")
    if type(window) is not int or window < 1:
        message = f"{directory} is not a run of `cahqp drift`: its manifest has no window. Give its directory."
        raise DataError(message)
    cameras = read_drift(directory).cameras
    return {name: (entry.since or 0) * window for name, entry in cameras.items() if entry.verdict == DRIFT}
