"""COCO reader. Reports all problems of a file together, before anything is computed from it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cahqp.coco.annotations import Annotations, AnnotationTable, build_table
from cahqp.coco.document import read_document
from cahqp.coco.image_folder import ImageFolder
from cahqp.coco.problems import Problems
from cahqp.coco.tables import read_boxes, read_categories, read_frames
from cahqp.errors import DataError
from cahqp.frame import Frame

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoFrames:
    """Images of a COCO file without their annotations.

    Attributes:
        path: The COCO file.
        root: Folder that names are relative to.
        frames: One per image, in the order of the file; see `cahqp.coco.tables.read_frames`.
        categories: Category names by their id in the file.
    """

    path: Path
    root: Path
    frames: tuple[Frame, ...] = field(repr=False)
    categories: dict[int, str]

    @property
    def files(self) -> list[Path]:
        """Path of each image."""
        return [self.root / frame.name for frame in self.frames]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.frames)


@dataclass(frozen=True)
class CocoFile(CocoFrames):
    """A COCO file with its annotations.

    Attributes:
        table: Annotations of all images.
    """

    table: AnnotationTable = field(repr=False)

    def annotations(self, position: int) -> Annotations:
        """Return the annotations of the image at a position in `frames`."""
        return self.table.of(position)


def read_coco(path: Path, images: bool = True) -> CocoFile:
    """Read and check a COCO file.

    Boxes that cross the border are clipped, boxes that repeat another are left out, and a warning counts both. Boxes
    with `iscrowd` or `ignore` become regions to ignore.
    `file_name` is relative to the folder that `ImageFolder` describes.

    Args:
        path: JSON file.
        images: Image files must exist. Without, `file_name`, `width`, `height` and the ids of annotations may be
            missing, and weights and tracks are not read.

    Raises:
        DataError: All problems of the file together, each with its row.
    """
    path = Path(path)
    document = read_document(path)
    problems = Problems(path)
    categories = read_categories(document, problems)
    root, frames = _frames(document, path, problems, files=images, sizes=images)
    boxes = read_boxes(document, problems, {frame.id for frame in frames}, categories, ids=images)
    table = build_table(boxes, frames, problems, strict=images)
    problems.check()
    _report(f"{path}: {table.oddities.sentence()}." if table.oddities.sentence() else "")
    return CocoFile(path, root, frames, categories, table)


@lru_cache(maxsize=256)
def _report(text: str) -> None:
    """Log a warning, once for each text: commands read some files several times."""
    if text:
        _log.warning(text)


def read_coco_frames(path: Path, sizes: bool = True) -> CocoFrames:
    """Read the images of a COCO file; its annotations are neither checked nor returned.

    Args:
        path: JSON file; `annotations` and `categories` may be missing.
        sizes: Images must have `width` and `height`.

    Raises:
        DataError: All problems of the images and categories together, each with its row.
    """
    path = Path(path)
    document = read_document(path)
    problems = Problems(path)
    categories = read_categories(document, problems) if "categories" in document else {}
    root, frames = _frames(document, path, problems, sizes=sizes)
    problems.check()
    return CocoFrames(path, root, frames, categories)


def _frames(
    document: dict[str, Any], path: Path, problems: Problems, *, sizes: bool, files: bool = True
) -> tuple[Path, tuple[Frame, ...]]:
    """Return the folder of the images, and the images, whose files must exist if `files`."""
    rows = read_frames(document, problems, sizes, names=files)
    if not files:
        return path.parent, tuple(frame for _, frame in rows)
    folder = ImageFolder(path)
    windows = [(row, frame) for row, frame in rows if "\\" in frame.name]
    if windows:  # one problem for all, since programs of Windows write each name like this
        row, first = windows[0]
        more = f" (and {len(windows) - 1} more)" if len(windows) > 1 else ""
        row.add_problem(
            f"file_name {first.name!r}{more} is a path of Windows and leaves its folder; `cahqp import coco {path} "
            "--images DIR` finds the images by their names"
        )
    for row, frame in rows:
        if "\\" in frame.name:
            continue
        problem = folder.problem(frame.name) if frame.name else None
        if problem is not None:
            row.add_problem(problem)
    return folder.root, tuple(frame for _, frame in rows)


def class_indices(file: CocoFile, classes: Sequence[str], ignore: Sequence[str] = ()) -> dict[int, int]:
    """Map the category ids of a file to a detector's classes, by name.

    Args:
        file: The COCO file.
        classes: Class names of the detector.
        ignore: Names of categories whose boxes are left out.

    Returns:
        Class index by category id; -1 for categories that are left out, and for unknown ones without boxes.

    Raises:
        DataError: A box has a category that is not a class of the detector.
    """
    used = file.table.used_categories()
    known = {*classes, *ignore}
    unknown = sorted(name for identifier, name in file.categories.items() if identifier in used and name not in known)
    if unknown:
        message = (
            f"{file.path} has boxes of {_join(unknown)}, which are not classes of the detector.\n"
            f"  categories of the file: {_join(file.categories.values())}\n"
            f"  classes of the detector: {_join(classes)}\n"
            "Rename the categories, train a detector with these classes, or leave these boxes out with "
            f"`ignore_categories: [{_join(unknown)}]`."
        )
        raise DataError(message)
    index = {name: position for position, name in enumerate(classes) if name not in ignore}
    return {identifier: index.get(name, -1) for identifier, name in file.categories.items()}


def _join(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
