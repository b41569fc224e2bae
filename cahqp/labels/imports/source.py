"""Source of an import: its files, and the images to take from it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from cahqp.coco.sources import is_image
from cahqp.errors import ConfigError, DataError
from cahqp.files import natural_key
from cahqp.labels.imports.records import FoundImage


@dataclass(frozen=True)
class Found:
    """Content of a source.

    Attributes:
        images: Images in their order.
        classes: Class names in the order of the source, as far as it declares them.
        regions: Names of regions to ignore that count for every class.
    """

    images: list[FoundImage]
    classes: Sequence[str] = ()
    regions: frozenset[str] = frozenset()


class Source:
    """Data set on disk.

    Args:
        path: Folder of the data set, or its file of labels.
        images: Folder of the images; `None` where the layout prescribes it.
        selected: Accepted values of each attribute; with `!` after its name, values to leave out.

    Attributes:
        path: As given.
        images: As given.

    Raises:
        DataError: `path` or `images` does not exist.
    """

    def __init__(self, path: Path, images: Path | None = None, selected: Mapping[str, set[str]] | None = None) -> None:
        for given in filter(None, (path, images)):
            if not given.exists():
                message = f"{given} does not exist. Check the path; relative paths start in the working directory."
                raise DataError(message)
        self.path = path
        self.images = images
        self._selected = selected or {}
        self._seen: dict[str, set[str]] = {}

    @property
    def folder(self) -> Path:
        """Folder of the data set."""
        return self.path if self.path.is_dir() else self.path.parent

    def takes(self, **attributes: str) -> bool:
        """Return whether images with these attributes are selected. Attributes that are not given decide nothing."""
        for key, value in attributes.items():
            self._seen.setdefault(key, set()).add(value)
        return all(
            (attributes[key] in self._selected.get(key, {attributes[key]}))
            and attributes[key] not in self._selected.get(f"{key}!", ())
            for key in attributes
        )

    def check_selection(self) -> None:
        """Check that each selected key and value occurred.

        Raises:
            ConfigError: A key or a value did not occur.
        """
        for key, values in self._selected.items():
            unknown = sorted(values - self._seen.get(key.removesuffix("!"), set()))
            if unknown:
                known = ", ".join(f"{k}={v}" for k in sorted(self._seen) for v in sorted(self._seen[k]))
                message = f"--select {key}={unknown[0]} matches no image of {self.path}. Possible: {known or 'none'}."
                raise ConfigError(message)

    def files(self, pattern: str) -> list[Path]:
        """Return the source itself if it is a file, else the files below it that match a pattern, in natural order."""
        if not self.path.is_dir():
            return [self.path]
        found = [path for path in self.path.rglob(pattern) if path.is_file() and not path.name.startswith(".")]
        return sorted(found, key=lambda path: natural_key(path.as_posix()))


@dataclass
class ImageIndex:
    """Image files below folders, found by the names that labels give them.

    Attributes:
        roots: Folders in the order of the search.
    """

    roots: Sequence[Path]
    _by_name: dict[str, list[Path]] | None = field(default=None, repr=False)

    def find(self, name: str) -> Path:
        """Return the image of a name; a path that does not exist if there is none, or several.

        Leading folders of the name may be missing on disk, or additional ones present; backslashes separate folders.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        for start in range(len(parts)):
            rest = parts[start:]
            if ".." in rest or rest[0].startswith("/") or rest[0].endswith(":"):
                continue
            for root in self.roots:
                if (path := root.joinpath(*rest)).is_file():
                    return path
        last = parts[-1] if parts else name
        found = self._names().get(last, [])
        if len(found) == 1:
            return found[0]
        if unquote(name) != name:
            return self.find(unquote(name))
        return self.roots[0] / last

    def find_stem(self, stem: str) -> Path:
        """Return the image in one of the folders whose name without suffix is `stem`."""
        for root in self.roots:
            for suffix in (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG", ".bmp", ".webp"):
                if (path := root / f"{stem}{suffix}").is_file():
                    return path
        return self.roots[0] / f"{stem}.jpg"

    def _names(self) -> dict[str, list[Path]]:
        """Return the images below all folders by their file name."""
        if self._by_name is None:
            self._by_name = {}
            for root in self.roots:
                for folder, _, names in os.walk(root):
                    for name in filter(is_image, names):
                        paths = self._by_name.setdefault(name, [])
                        path = Path(folder) / name
                        paths += [] if path in paths else [path]
        return self._by_name
