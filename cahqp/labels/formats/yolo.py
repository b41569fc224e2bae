"""YOLO, as Ultralytics reads it: one text file per image, and scores in separate files because trainers refuse them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from cahqp.errors import DataError
from cahqp.files import atomic_write, leads_out
from cahqp.labels.formats.coco import HUMAN, LabelBox, LabelImage, Labels
from cahqp.labels.formats.yolo_texts import find_texts
from cahqp.yaml_policy import read_yaml

DATA = "data.yaml"
LIST = "train.txt"
IMAGES = "images/train"
_DECIMALS = 8
"""Decimals of a share of the image, exact to a hundredth of a pixel."""

_SAME = 0.025
"""Tolerance in pixels for untouched boxes: tools write shares with six decimals."""


def write(labels: Labels, folder: Path) -> None:
    """Write `data.yaml`, `train.txt`, `labels/train/*.txt` and, with the score of each line, `scores/train/*.txt`.

    The images belong at `images/train`. Paths are relative to `data.yaml`, which has no `path`: trainers look for a
    relative one in their own folders. Regions to ignore are left out, because the format has none.

    Raises:
        DataError: A name leads out of the folder, or two images would share one text file.
    """
    folder = Path(folder)
    check_names(image.name for image in labels.images)
    names = list(labels.categories.values())
    with atomic_write(folder / DATA) as file:
        yaml.safe_dump({"train": LIST, "val": LIST, "names": dict(enumerate(names))}, file)
    with atomic_write(folder / LIST) as file:
        file.writelines(f"./{IMAGES}/{image.name}\n" for image in labels.images)
    for image in labels.images:
        kept = [box for box in image.boxes if not box.ignored]
        with atomic_write(_text_file(folder, "labels", image.name)) as file:
            file.writelines(_line(box, image, names) + "\n" for box in kept)
        with atomic_write(_text_file(folder, "scores", image.name)) as file:
            file.writelines(("" if box.score is None else f"{box.score:g}") + "\n" for box in kept)


def check_names(names: Iterable[str]) -> None:
    """Check that each image name gives a text file of its own.

    Raises:
        DataError: A name leads out of the folder, or two images would share one text file.
    """
    texts: dict[PurePosixPath, str] = {}
    for name in names:
        if leads_out(name):
            message = f"The image {name!r} lies outside the folder of the images. YOLO needs all images in it."
            raise DataError(message)
        other = texts.setdefault(PurePosixPath(name).with_suffix(".txt"), name)
        if other != name:
            message = f"YOLO stores the labels of {other!r} and {name!r} in one text file. Rename one of the images."
            raise DataError(message)


def _text_file(folder: Path, kind: str, name: str) -> Path:
    return folder / kind / "train" / PurePosixPath(name).with_suffix(".txt")


def _line(box: LabelBox, image: LabelImage, names: list[str]) -> str:
    x, y, width, height = box.bbox
    across, down = float(image.entry["width"]), float(image.entry["height"])
    shares = ((x + width / 2) / across, (y + height / 2) / down, width / across, height / down)
    return " ".join([str(names.index(box.name)), *(f"{share:.{_DECIMALS}f}" for share in shares)])


def read(path: Path, like: Labels | None) -> Labels:
    """Read a folder in YOLO's format.

    A line with class and position of a box of `like` is that box, untouched. All other lines are boxes of a person.
    `cahqp.labels.formats.yolo_texts` finds the text files in the layouts of Ultralytics and Roboflow.

    Args:
        path: Folder with `data.yaml`.
        like: Labels of the same images, because the format has neither image sizes nor regions to ignore.

    Raises:
        DataError: Files or `like` are missing, a line is no box, or a name leads out of the folder.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    if like is None:
        message = f"{folder} does not contain image sizes. Give --like the labels.json it was made from."
        raise DataError(message)
    try:
        listed: Any = read_yaml(folder / DATA)["names"]
        pairs = listed.items() if isinstance(listed, dict) else enumerate(listed)
        names = {int(number): str(name) for number, name in pairs}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        message = f"{folder / DATA} cannot be read, or has no `names` by number ({error})."
        raise DataError(message) from error
    check_names(image.name for image in like.images)
    images = []
    texts = find_texts(folder, [image.name for image in like.images])
    for image in like.images:
        file = texts.get(image.name)
        if file is not None:  # a missing file did not come back
            regions = tuple(box for box in image.boxes if box.ignored)
            images.append(LabelImage(image.entry, _boxes(file, image, names) + regions, image.reviewed))
    listed = [names[number] for number in sorted(names)]
    classes = dict.fromkeys([*listed, *(box.name for image in images for box in image.boxes)])  # also of regions
    return Labels(dict(enumerate(classes, 1)), tuple(images))


def _boxes(file: Path, image: LabelImage, names: Mapping[int, str]) -> tuple[LabelBox, ...]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{file} cannot be read ({error})."
        raise DataError(message) from error
    drawn = [_box(f"{file}, line {number}", line, image, names) for number, line in enumerate(lines, 1) if line.strip()]
    left = [box for box in image.boxes if not box.ignored]
    return tuple(_untouched(box, left) for box in drawn)


def _untouched(box: LabelBox, left: list[LabelBox]) -> LabelBox:
    """Return the matching box of `left` and remove it there; without a match, return the box itself."""
    for other in left:
        if other.name == box.name and all(abs(a - b) < _SAME for a, b in zip(other.bbox, box.bbox, strict=True)):
            left.remove(other)
            return other
    return box


def _box(where: str, line: str, image: LabelImage, names: Mapping[int, str]) -> LabelBox:
    try:
        label, x, y, width, height, *confidence = line.split()
        if len(confidence) > 1:
            message = "polygons and oriented boxes are not supported"
            raise ValueError(message)
        across, down = float(image.entry["width"]), float(image.entry["height"])
        w, h = float(width) * across, float(height) * down
        left, top = round(float(x) * across - w / 2, 2), round(float(y) * down - h / 2, 2)
        return LabelBox(names[int(label)], (left, top, round(w, 2), round(h, 2)), origin=HUMAN)
    except (ValueError, KeyError) as error:
        message = (
            f"{where}: {line[:60]!r} must be a class number of {DATA} and four shares: x and y of the centre, width, "
            f"height; a confidence may follow ({error})."
        )
        raise DataError(message) from error
