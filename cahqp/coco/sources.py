"""Kinds of files that frames are read from, and the images in a folder."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Literal

from cahqp.errors import DataError
from cahqp.files import natural_key

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"})
SUFFIXES = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
_SIDE_FILES = frozenset({".json", ".jsonl", ".txt", ".xml", ".csv", ".md", ".yaml", ".yml", ".html", ".log"})
"""Suffixes of labels and notes, which nobody takes for frames."""

_log = logging.getLogger(__name__)


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
    if not path.is_file():
        message = f"{path} is a FIFO or device, which has no end. Give a file, a folder, or the URL of a stream."
        raise DataError(message)
    if path.suffix.lower() == ".json":
        return "coco"
    if is_video(path):
        return "video"
    if is_image(path):
        return "image"
    message = f"{path} is of no known kind. Allowed are a folder of images, a COCO file (.json), {SUFFIXES}."
    raise DataError(message)


def report_left_out(source: str, names: Iterable[str], videos: bool = True) -> None:
    """Log how many files of a folder are not read as frames, by suffix; once for each text.

    Args:
        source: The folder.
        names: Names below it; those of links to folders end with `/`.
        videos: Whether videos are read.
    """
    kinds: Counter[str] = Counter()
    for name in names:
        suffix = PurePath(name).suffix.lower()
        if name.endswith("/"):
            kinds["links to folders"] += 1
        elif is_video(name):
            kinds[f"{suffix} (name videos one by one)"] += not videos
        elif not (is_image(name) or suffix in _SIDE_FILES or f"/{name}".count("/.")):
            kinds[suffix or "without a suffix"] += 1
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()) if count)
    if listed:
        _warn_once(f"{source}: left out, because they are not read as frames: {listed}.")


@lru_cache(maxsize=256)
def _warn_once(text: str) -> None:
    _log.warning(text)


def image_names(root: Path) -> list[str]:
    """Return the images in a folder and its sub-folders, relative to it, in natural order; hidden files are left out.

    A warning counts files that are not read as frames, by suffix, and links to folders, which are not followed.

    Raises:
        DataError: The folder contains no images.
    """
    found = []
    for folder, folders, files in os.walk(root):
        below = Path(folder).relative_to(root)
        found += [(below / file).as_posix() for file in files if not file.startswith(".")]
        found += [f"{(below / name).as_posix()}/" for name in folders if (Path(folder) / name).is_symlink()]
    names = [name for name in found if is_image(name) and not name.endswith("/")]
    report_left_out(str(root), found, videos=False)
    if not names:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        message = f"{root} contains no images ({kinds}). Name videos in it one by one."
        raise DataError(message)
    return sorted(names, key=natural_key)
