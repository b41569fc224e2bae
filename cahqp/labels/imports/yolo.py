"""YOLO folders in the layouts of Ultralytics, Roboflow and Darknet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cahqp.coco.sources import is_image
from cahqp.errors import DataError
from cahqp.files import natural_key
from cahqp.labels.formats.xml_file import number_of
from cahqp.labels.imports.findings import Findings
from cahqp.labels.imports.records import FoundBox, FoundImage
from cahqp.labels.imports.source import Found, Source
from cahqp.yaml_policy import read_yaml

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NAME_FILES = ("classes.txt", "obj.names")


def read(source: Source, findings: Findings) -> Found:
    """Read a YOLO folder.

    The source is `data.yaml`, its folder, or a folder with `classes.txt` or `obj.names`. Paths in the YAML file are
    relative to its `path`, else to the file; the additional `../` that Roboflow writes is ignored. The text file of an
    image is in `labels` instead of `images`, or beside the image. A polygon becomes the box around it.

    Raises:
        DataError: Class names are missing, or a folder of images does not exist.
    """
    config_path = _config_path(source)
    if config_path is None:
        return _read_folder(source, findings)
    config = _read_config(config_path)
    names = _names(config.get("names"), config_path)
    reader = _Rows(names, findings, keypoints=bool(config.get("kpt_shape")))
    images = [
        image
        for key, split in _SPLITS.items()
        if config.get(key) and source.takes(split=split)
        for path in _images(source, config_path, config, key, findings)
        for image in reader.image(path)
    ]
    return Found(images, list(names.values()))


def _config_path(source: Source) -> Path | None:
    if source.path.is_file():
        return source.path
    named = [source.path / name for name in ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")]
    others = sorted([*source.path.glob("*.yaml"), *source.path.glob("*.yml")])
    return next((path for path in [*named, *others] if path.is_file()), None)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_yaml(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        message = f"{path} is not readable YAML ({error}). Give the data.yaml of a YOLO data set."
        raise DataError(message) from error
    if not isinstance(config, dict):
        message = f"{path} contains no keys. A data.yaml has `names` and `train`."
        raise DataError(message)
    return config


def _names(listed: Any, path: Path) -> dict[int, str]:
    """Return class names by number from a list or an object."""
    try:
        pairs = listed.items() if isinstance(listed, dict) else enumerate([*listed])
        return {int(number): str(name) for number, name in sorted(pairs, key=lambda pair: int(pair[0]))}
    except (TypeError, ValueError) as error:
        message = f"{path} has no `names` by number ({error}). Add the class names."
        raise DataError(message) from error


def _images(
    source: Source, config_path: Path, config: Mapping[str, Any], key: str, findings: Findings
) -> Iterator[Path]:
    """Yield the images of a split, which is a folder, a list of images, or several of them."""
    bases = [config_path.parent]
    if isinstance(config.get("path"), str):
        bases.insert(0, config_path.parent / config["path"])
    entries = config[key] if isinstance(config[key], list) else [config[key]]
    for entry in map(str, entries):
        found = [base / entry for base in bases if (base / entry).exists()]
        found += [base / shorter for base in bases for shorter in (_shortened(entry),) if (base / shorter).exists()]
        if source.images is not None:
            found.insert(0, source.images)
        if not found:
            message = f"{config_path} names {entry!r} as {key}, which does not exist. Correct the path in the file."
            raise DataError(message)
        if found[0].is_dir():
            yield from _images_below(found[0], findings)
        else:
            yield from _listed(found[0])


def _shortened(entry: str) -> str:
    while entry.startswith("../"):
        entry = entry.removeprefix("../")
    return entry or "."


def _listed(path: Path) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} is no list of images ({error}). Write one image per line."
        raise DataError(message) from error
    for line in filter(None, map(str.strip, lines)):
        name = line.replace("\\", "/")
        yield path.parent / name


def _images_below(folder: Path, findings: Findings) -> Iterator[Path]:
    """Yield the images below a folder; text files without an image are invalid."""
    images = sorted(
        (path for path in folder.rglob("*") if is_image(path) and not path.name.startswith(".")),
        key=lambda path: natural_key(path.as_posix()),
    )
    texts = {_text_file(path) for path in images}
    folders = {text.parent for text in texts} | {_text_file(folder / "_.jpg").parent}
    orphans = {text for below in folders for text in below.glob("*.txt")} - texts
    for text in sorted(path for path in orphans if path.name not in _NAME_FILES and "labels" in path.parts):
        findings.invalid("text file without an image", str(text))
    yield from images


def _text_file(image: Path) -> Path:
    """Return the label file of an image: in `labels` instead of the last `images`, else beside it."""
    parts = list(image.parts[:-1])
    if "images" in parts:
        position = len(parts) - 1 - parts[::-1].index("images")
        parallel = Path(*parts[:position], "labels", *parts[position + 1 :], f"{image.stem}.txt")
        if parallel.parent.is_dir():
            return parallel
    return image.with_suffix(".txt")


def _read_folder(source: Source, findings: Findings) -> Found:
    listed = [path for name in _NAME_FILES for path in sorted(source.path.rglob(name))]
    if not listed:
        message = f"{source.path} has neither data.yaml nor classes.txt. Add one of them with the class names."
        raise DataError(message)
    lines = listed[0].read_text(encoding="utf-8-sig").splitlines()
    names = dict(enumerate(line.strip() for line in lines if line.strip()))
    reader = _Rows(names, findings)
    folder = source.images or source.path
    images = [image for path in _images_below(folder, findings) for image in reader.image(path)]
    return Found(images, list(names.values()))


class _Rows:
    """Rows of text files."""

    def __init__(self, names: Mapping[int, str], findings: Findings, keypoints: bool = False) -> None:
        self._names, self._findings, self._keypoints = names, findings, keypoints

    def image(self, path: Path) -> Iterator[FoundImage]:
        """Yield an image with its boxes, unless its text file cannot be read."""
        text = _text_file(path)
        if not text.is_file():
            self._findings.odd("image without a text file, taken as without objects", str(path))
            yield FoundImage(str(path), path)
            return
        try:
            lines = text.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            self._findings.invalid("text file cannot be read", str(text), str(error))
            return
        rows = [self._box(f"{text}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
        yield FoundImage(str(path), path, tuple(filter(None, rows)), shares=True)

    def _box(self, where: str, line: str) -> FoundBox | None:
        try:
            label, *values = line.split()
            name = self._names[int(number_of(label))]
            corners, more = self._corners(where, [number_of(value) for value in values])
        except (KeyError, ValueError) as error:
            self._findings.invalid("row is no box", where, f"{line.strip()[:60]!r}: {error}")
            return None
        if max(map(abs, corners)) > 2:
            self._findings.invalid("box is in pixels instead of shares 0..1", where, line.strip()[:60])
            return None
        return FoundBox(where, name, corners, more=more)

    def _corners(
        self, where: str, values: list[float]
    ) -> tuple[tuple[float, float, float, float], dict[str, float]]:  # fmt: skip
        if len(values) in (4, 5) or (self._keypoints and len(values) > 4):
            x, y, width, height = values[:4]
            score = {"score": values[4]} if len(values) == 5 and 0 <= values[4] <= 1 else {}
            return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), score
        if len(values) < 6 or len(values) % 2:
            message = f"{len(values)} numbers are neither x, y, width, height nor a polygon"
            raise ValueError(message)
        self._findings.odd("polygon, taken as the box around it", where)
        return (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])), {}
