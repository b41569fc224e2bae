"""Files of matches: the basis of intervals over seeds and recordings, without the models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cahqp.errors import RunError
from cahqp.evaluation.bootstrap import Groups
from cahqp.evaluation.matching import ClassMatches, Matches
from cahqp.files import atomic_write, read_json, write_json

ARRAYS, INDEX = "matches.npz", "matches.json"
_FIELDS = ("scores", "hits", "images", "objects")


def write_matches(folder: Path, matches: Mapping[str, Mapping[str, Matches]], groups: Mapping[str, Groups]) -> None:
    """Write `matches.npz` and `matches.json`.

    Args:
        folder: Existing directory.
        matches: Matches by model, then by set of frames.
        groups: Resampling groups by set of frames.
    """
    arrays: dict[str, Any] = {f"groups/{frames}": group.rows for frames, group in groups.items()}
    for model, sets in matches.items():
        for frames, of_frames in sets.items():
            for row, of_class in enumerate(of_frames.per_class):
                arrays |= {f"{model}/{frames}/{row}/{name}": getattr(of_class, name) for name in _FIELDS}
    with atomic_write(folder / ARRAYS, "wb") as file:
        np.savez_compressed(file, **arrays)
    index = {
        "models": {model: {frames: list(each.classes) for frames, each in s.items()} for model, s in matches.items()},
        "groups": {frames: {"unit": group.unit, "count": group.count} for frames, group in groups.items()},
    }
    write_json(folder / INDEX, index)


def read_matches(folder: Path, model: str, frames: str) -> tuple[Matches, Groups]:
    """Read the matches of one model on one set of frames, and the groups of these frames.

    Raises:
        RunError: The files are missing, or contain no such model or frames.
    """
    try:
        index = read_json(folder / INDEX)
        classes, group = index["models"][model][frames], index["groups"][frames]
    except (OSError, KeyError) as error:
        message = f"{folder} contains no matches of {model} on {frames}. Remove it and rerun the benchmark."
        raise RunError(message) from error
    with np.load(folder / ARRAYS) as arrays:
        per_class = tuple(
            ClassMatches(**{name: arrays[f"{model}/{frames}/{row}/{name}"] for name in _FIELDS})
            for row in range(len(classes))
        )
        return Matches(tuple(classes), per_class), Groups(group["unit"], arrays[f"groups/{frames}"], group["count"])
