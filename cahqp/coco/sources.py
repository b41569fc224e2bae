"""Kinds of files that frames are read from, and the images in a folder."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Literal

from cahqp.errors import DataError
from cahqp.files import natural_key

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"})
SUFFIXES = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))


def is_image(path: str | PurePath) -> bool:
    """Return whether a name has the suffix of an image."""
    return PurePath(path).suffix.lower() in IMAGE_SUFFIXES


def is_video(path: str | PurePath) -> bool:
    """Return whether a name has the suffix of a video."""
    return PurePath(path).suffix.lower() in VIDEO_SUFFIXES


def source_kind(path: Path) -> Literal["folder", "coco", "video", "image"]:
    """Return the kind of a source of frames.

    Raises:
        DataError: It does not exist, or is of another kind.
    """
    if not path.exists():
        message = f"{path} does not exist. Check the path; relative paths start in the working directory."
        raise DataError(message)
    if path.is_dir():
        return "folder"
    if path.suffix.lower() == ".json":
        return "coco"
    if is_video(path):
        return "video"
    if is_image(path):
        return "image"
    message = f"{path} is of no known kind. Allowed are a folder of images, a COCO file (.json), {SUFFIXES}."
    raise DataError(message)


def image_names(root: Path) -> list[str]:
    """Return the images in a folder and its sub-folders, relative to it, in natural order; hidden files are left out.

    Raises:
        DataError: The folder contains no images.
    """
    names = []
    for folder, _, files in os.walk(root):
        below = Path(folder).relative_to(root)
        names += [(below / file).as_posix() for file in files if is_image(file) and not file.startswith(".")]
    if not names:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        message = f"{root} contains no images ({kinds}). Name videos in it one by one."
        raise DataError(message)
    return sorted(names, key=natural_key)
