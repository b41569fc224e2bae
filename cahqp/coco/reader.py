"""Reading COCO files. What a stranger's file can have wrong is found here, all of it, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cahqp.coco.annotations import Annotations, AnnotationTable, read_annotations
from cahqp.coco.document import Row, read_categories, read_document, rows
from cahqp.coco.image_folder import ImageFolder
from cahqp.coco.problems import Problems
from cahqp.errors import DataError
from cahqp.frame import Frame

_REMEDY = "Mend these rows, or take them out of the file."


@dataclass(frozen=True)
class CocoFrames:
    """The images of a COCO file, without anything that was said of what is in them.

    Attributes:
        path: The COCO file.
        root: The folder that names are relative to.
        frames: One per image, in the order of the file. `recording` is the camera where not given, and the folder in
            `file_name` where neither is; `index` counts within the recording where `frame` is not given.
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
        table: The annotations of all images.
    """

    table: AnnotationTable = field(repr=False)

    def annotations(self, position: int) -> Annotations:
        """Return what the file says of the image at a position in `frames`."""
        return self.table.of(position)

    @property
    def clipped(self) -> int:
        """Number of boxes that reached over the border and were cut there."""
        return self.table.clipped


def read_coco(path: Path) -> CocoFile:
    """Read and check a COCO file.

    Boxes that reach over the border are clipped and counted; those flagged `iscrowd` or `ignore` become regions to
    ignore. `file_name` is relative to what `source.json` beside the file says, else to `images/` beside it, else to the
    file's own folder.

    Args:
        path: The JSON file.

    Raises:
        DataError: All problems of the file together, each with its row.
    """
    path = Path(path)
    document = read_document(path)
    problems = Problems(path)
    categories = read_categories(document, problems)
    root, frames = _images(document, path, problems)
    table = read_annotations(rows(document, "annotations", problems), frames, categories)
    problems.tell(_REMEDY)
    return CocoFile(path, root, tuple(frames), categories, table)


def read_coco_frames(path: Path) -> CocoFrames:
    """Read the images of a COCO file and leave its annotations alone: not checked, not handed out.

    Args:
        path: The JSON file; it may lack `annotations` and `categories`.

    Raises:
        DataError: All problems of the images and categories together, each with its row.
    """
    path = Path(path)
    document = read_document(path)
    problems = Problems(path)
    categories = read_categories(document, problems) if "categories" in document else {}
    root, frames = _images(document, path, problems)
    problems.tell(_REMEDY)
    return CocoFrames(path, root, tuple(frames), categories)


def class_indices(file: CocoFile, classes: Sequence[str], ignore: Sequence[str] = ()) -> dict[int, int]:
    """Map the category ids of a file to a detector's classes, by name.

    Args:
        file: The COCO file.
        classes: The detector's class names.
        ignore: Names of categories whose boxes are left out, as if they had not been drawn.

    Returns:
        Class index by category id; -1 for those left out, and for unknown ones that no box has.

    Raises:
        DataError: A box has a category that the detector does not know.
    """
    used = file.table.used_categories()
    known = {*classes, *ignore}
    unknown = sorted(name for identifier, name in file.categories.items() if identifier in used and name not in known)
    if unknown:
        message = (
            f"{file.path} has boxes of {_listed(unknown)}, which the detector does not know.\n"
            f"  categories of the file: {_listed(file.categories.values())}\n"
            f"  classes of the detector: {_listed(classes)}\n"
            "Rename the categories, train a detector with these classes, or leave these boxes out with "
            f"`ignore_categories: [{_listed(unknown)}]`."
        )
        raise DataError(message)
    index = {name: position for position, name in enumerate(classes) if name not in ignore}
    return {identifier: index.get(name, -1) for identifier, name in file.categories.items()}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _images(document: dict[str, Any], path: Path, problems: Problems) -> tuple[Path, list[Frame]]:
    folder = ImageFolder(path)
    frames: list[Frame] = []
    ids: dict[int, str] = {}
    names: dict[str, str] = {}
    lengths: dict[str, int] = {}
    for row in rows(document, "images", problems):
        frame = _frame(row, lengths)
        if frame is None:
            continue
        problem = folder.problem(frame.name) if frame.name else None
        if problem is not None:
            row.complain(problem)
        if ids.setdefault(frame.id, row.where) != row.where:
            row.complain(f"id {frame.id} is already that of {ids[frame.id]}")
        if frame.name and names.setdefault(frame.name, row.where) != row.where:
            row.complain(f"file_name {frame.name!r} is already that of {names[frame.name]}")
        frames.append(frame)
    return folder.root, frames


def _frame(row: Row, lengths: dict[str, int]) -> Frame | None:
    """Read one entry of `images`; a wrong size is noted and becomes 0.

    Args:
        row: The entry.
        lengths: Number of frames seen of each recording; counted up here.
    """
    identifier, name = row.whole("id"), row.text("file_name")
    height, width = row.whole("height"), row.whole("width")
    if (height is not None and height <= 0) or (width is not None and width <= 0):
        row.complain(f"height {height} and width {width} must be above 0")
    if identifier is None:
        return None
    camera = _name(row, "camera")
    recording = _name(row, "recording") or camera or name.rpartition("/")[0]
    place = lengths[recording] = lengths.get(recording, -1) + 1
    index = row.whole("frame") if row.has("frame") else place
    timestamp = row.number("timestamp") if row.has("timestamp") else None
    return Frame(identifier, name, (max(0, height or 0), max(0, width or 0)), camera, recording, index or 0, timestamp)


def _name(row: Row, key: str) -> str:
    """Return the name of a camera or a recording, which some files write as a number; empty where there is none."""
    if not row.has(key) or row.entry[key] == "":
        return ""
    return str(row.entry[key]) if isinstance(row.entry[key], int) else row.text(key)
