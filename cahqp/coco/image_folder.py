"""Where the images of a COCO file lie, and a refusal of names that lead out of there."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from cahqp.coco.document import read_document
from cahqp.errors import DataError


class ImageFolder:
    """The folder that the `file_name`s of a COCO file are relative to.

    It is what `source.json` beside the file says, which `cahqp relabel` writes; without that `images/` beside the file
    where it exists, else the file's own folder. Each folder is listed once, so that a hundred thousand names cost no
    more than their folders.

    Args:
        annotations: Path of the COCO file.

    Raises:
        DataError: `source.json` does not say a folder.
    """

    def __init__(self, annotations: Path) -> None:
        self.root = _root(Path(annotations).parent)
        self._real_root = os.path.realpath(self.root)
        self._listings: dict[str, dict[str, bool] | None] = {}

    def problem(self, name: str) -> str | None:
        """Return what is wrong with a file name, `None` where an image file lies inside the folder under it."""
        if leads_out(name):
            return f"file_name {name!r} leaves its folder; it must be relative to {self.root}, without `..` or `\\`"
        parts = PurePosixPath(name).parts
        entries = self._listing("/".join(parts[:-1]))
        if entries is None:
            return f"file_name {name!r} leaves its folder {self.root} through a link; copy the images there"
        inside = entries.get(parts[-1])
        if inside is None:
            return f"file {name!r} does not exist in {self.root}"
        if not inside:
            return f"file {name!r} is a link that leaves its folder {self.root}; copy the image there"
        return None

    def _listing(self, parent: str) -> dict[str, bool] | None:
        """Return the file names of a sub-folder with whether they stay inside; `None` for a folder outside."""
        if parent not in self._listings:
            self._listings[parent] = self._list(self.root / parent)
        return self._listings[parent]

    def _list(self, folder: Path) -> dict[str, bool] | None:
        if not self._inside(folder):
            return None
        if not folder.is_dir():
            return {}
        with os.scandir(folder) as entries:
            return {e.name: not e.is_symlink() or self._inside(Path(e.path)) for e in entries if e.is_file()}

    def _inside(self, path: Path) -> bool:
        real = os.path.realpath(path)
        return real == self._real_root or real.startswith(self._real_root.rstrip(os.sep) + os.sep)


def leads_out(name: str) -> bool:
    """Say whether a file name is no name below a folder."""
    parts = PurePosixPath(name).parts
    # A backslash or a drive letter is harmless here and leads out of the folder on another system.
    strange = "\\" in name or "\0" in name or re.match("[A-Za-z]:", name) is not None
    return not parts or name.startswith("/") or ".." in parts or strange


def _root(folder: Path) -> Path:
    origin = folder / "source.json"
    if not origin.is_file():
        return folder / "images" if (folder / "images").is_dir() else folder
    said = read_document(origin).get("root")
    if not isinstance(said, str) or Path(said).is_absolute() or not (folder / said).is_dir():
        message = (
            f'{origin} must hold {{"root": PATH}}, the folder of the images relative to {folder}; it says {said!r}. '
            "Bring the images back to where they were relabelled, or relabel them again."
        )
        raise DataError(message)
    return folder / said
