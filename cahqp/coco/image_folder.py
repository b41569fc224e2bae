"""Folder of the images of a COCO file, and a check of names that lead out of it."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from cahqp.coco.document import read_document
from cahqp.errors import DataError
from cahqp.files import leads_out


class ImageFolder:
    """Folder that the `file_name`s of a COCO file are relative to; see `image_root`.

    Each sub-folder is listed once, so that a hundred thousand names cost no more than their folders.

    Args:
        annotations: Path of the COCO file.

    Raises:
        DataError: `source.json` does not name a folder.
    """

    def __init__(self, annotations: Path) -> None:
        self.root = image_root(annotations)
        self._real_root = os.path.realpath(self.root)
        self._listings: dict[str, dict[str, bool] | None] = {}

    def problem(self, name: str) -> str | None:
        """Return the problem with a file name, `None` for an image file inside the folder."""
        if leads_out(name):
            return f"file_name {name!r} leaves its folder; it must be relative to {self.root}, without `..` or `\\`"
        parent, _, file = PurePosixPath(name).as_posix().rpartition("/")
        if parent not in self._listings:
            self._listings[parent] = self._list(self.root / parent)
        entries = self._listings[parent]
        if entries is None:
            return f"file_name {name!r} leaves its folder {self.root} through a link; copy the images there"
        inside = entries.get(file)
        if inside is None:
            return (
                f"file {name!r} does not exist in {self.root}; `cahqp import coco FILE --images DIR` searches a folder"
            )
        if not inside:
            return f"file {name!r} is a link that leaves its folder {self.root}; copy the image there"
        return None

    def _list(self, folder: Path) -> dict[str, bool] | None:
        """Return for each file name of a sub-folder whether it stays inside; `None` for a folder outside."""
        if not self._inside(folder):
            return None
        if not folder.is_dir():
            return {}
        with os.scandir(folder) as entries:
            return {e.name: not e.is_symlink() or self._inside(Path(e.path)) for e in entries if e.is_file()}

    def _inside(self, path: Path) -> bool:
        real = os.path.realpath(path)
        return real == self._real_root or real.startswith(self._real_root.rstrip(os.sep) + os.sep)


def image_root(annotations: Path) -> Path:
    """Return the folder that the names in a COCO file are relative to.

    It is the `root` in `NAME.source.json` beside `NAME.json`, which `cahqp import` writes, or in `source.json`, which
    `cahqp relabel` writes. Without these it is `images/` beside the file, if that exists, else the file's own folder.

    Args:
        annotations: Path of the COCO file.

    Raises:
        DataError: The file with the root does not name a folder.
    """
    folder = Path(annotations).parent
    own = source_file(annotations)
    origin = own if own.is_file() else folder / "source.json"
    if not origin.is_file():
        return folder / "images" if (folder / "images").is_dir() else folder
    root = read_document(origin).get("root")
    if not isinstance(root, str) or Path(root).is_absolute() or not (folder / root).is_dir():
        message = (
            f'{origin} must contain {{"root": PATH}}, the folder of the images relative to {folder}; got {root!r}. '
            "Move the images back to where they were labelled, or relabel them."
        )
        raise DataError(message)
    return folder / root


def source_file(annotations: Path) -> Path:
    """Return the file beside a COCO file that names the folder of its images alone."""
    return Path(annotations).with_name(f"{Path(annotations).stem}.source.json")
