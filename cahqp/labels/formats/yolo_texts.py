"""Text files of a YOLO folder that came back from a tool, by the image that was sent out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cahqp.errors import DataError

_LABELS = "labels"
_ROBOFLOW = re.compile(r"\.rf\.[0-9a-zA-Z]+$")
"""End that Roboflow adds to the stem `a_jpg` of `a.jpg`."""


def find_texts(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return the text file of each image that came back.

    A text file lies below a folder `labels`, with the folders of its image or without them: `labels/train/cam/a.txt`,
    `labels/a.txt`, or Roboflow's `train/labels/a_jpg.rf.0a1b.txt`.

    Args:
        folder: Folder of `data.yaml`.
        names: Names of the images that were sent out.

    Raises:
        DataError: No text file came back, one belongs to no image, or several belong to one image.
    """
    texts = sorted(path for path in folder.rglob("*.txt") if _LABELS in path.relative_to(folder).parts[:-1])
    by_path = {PurePosixPath(name).with_suffix("").as_posix(): name for name in names}
    by_stem: dict[str, list[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        for stem in {path.stem, f"{path.stem}_{path.suffix[1:]}"}:
            by_stem.setdefault(stem, []).append(name)
    found: dict[str, Path] = {}
    for text in texts:
        owners = _owners(text.relative_to(folder), by_path, by_stem)
        if len(owners) != 1 or owners[0] in found:
            message = (
                f"{text} belongs to {_shown(owners)}. Give the folder that came back, with one text file per image."
            )
            raise DataError(message)
        found[owners[0]] = text
    if not found:
        message = f"{folder} contains no text file below a folder `{_LABELS}`. Give the folder that came back."
        raise DataError(message)
    return found


def _owners(text: Path, by_path: dict[str, str], by_stem: dict[str, list[str]]) -> list[str]:
    """Return the images that a text file may belong to: by its whole path, else by its file name alone."""
    parts = text.with_suffix("").parts
    below = parts[parts.index(_LABELS) + 1 :]
    for start in (1, 0):  # after the folder of the split, or without one
        name = by_path.get("/".join(below[start:]))
        if name is not None:
            return [name]
    return by_stem.get(_ROBOFLOW.sub("", text.stem), [])


def _shown(owners: Sequence[str]) -> str:
    return (
        ("several images, or one that has another text file: " + ", ".join(owners[:5]))
        if owners
        else "no image sent out"
    )
