"""The matches of a benchmark's models on disk: from them any difference over seeds and recordings can be drawn."""

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


def write_matches(folder: Path, matches: Mapping[str, Mapping[str, Matches]], groups: Mapping[str, Groups]) -> None:
    """Write the matches of models.

    Args:
        folder: Gets `matches.npz` and `matches.json`.
        matches: By model, then by set of frames.
        groups: What is drawn together, by set of frames.
    """
    arrays: dict[str, Any] = {f"groups/{frames}": found.rows for frames, found in groups.items()}
    for model, sets in matches.items():
        for frames, found in sets.items():
            for row, each in enumerate(found.per_class):
                arrays |= {f"{model}/{frames}/{row}/{name}": values for name, values in vars(each).items()}
    with atomic_write(folder / ARRAYS, "wb") as file:
        np.savez_compressed(file, **arrays)
    index = {
        "models": {model: {frames: list(found.classes) for frames, found in s.items()} for model, s in matches.items()},
        "groups": {frames: {"unit": found.unit, "count": found.count} for frames, found in groups.items()},
    }
    write_json(folder / INDEX, index)


def read_matches(folder: Path, model: str, frames: str) -> tuple[Matches, Groups]:
    """Read one model's matches on one set of frames.

    Raises:
        RunError: They are not there.
    """
    try:
        index = read_json(folder / INDEX)
        classes, told = index["models"][model][frames], index["groups"][frames]
    except (OSError, KeyError) as error:
        message = f"{folder} holds no matches of {model} on {frames}. Remove it and run the benchmark again."
        raise RunError(message) from error
    with np.load(folder / ARRAYS) as arrays:
        names = ("scores", "hits", "images", "objects")
        each = [
            ClassMatches(**{name: arrays[f"{model}/{frames}/{row}/{name}"] for name in names})
            for row in range(len(classes))
        ]
        groups = Groups(told["unit"], arrays[f"groups/{frames}"], told["count"])
    return Matches(tuple(classes), tuple(each)), groups
