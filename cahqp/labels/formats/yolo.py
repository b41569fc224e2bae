"""YOLO: one text file for each image, as Ultralytics trains from; scores lie beside, because trainers refuse them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from cahqp.coco.image_folder import leads_out
from cahqp.errors import DataError
from cahqp.files import atomic_write
from cahqp.labels.formats.coco import HUMAN, LabelBox, LabelImage, Labels

DATA = "data.yaml"
LIST = "train.txt"
_DECIMALS = 8
"""Of a share of the image: a hundredth of a pixel survives on any image that fits into memory."""


_SAME = 0.025
"""Pixels that a side may be off and still be untouched: tools write six decimals of a share, and pixels have two."""


def write(labels: Labels, folder: Path) -> None:
    """Write `data.yaml`, `train.txt`, `labels/train/*.txt` and, with the score of each line, `scores/train/*.txt`.

    Put the images at `images/train`, or link them there. Regions to ignore are left out: the format has none.

    Raises:
        DataError: A name leads out of the folder, or two images would share one text file.
    """
    folder = Path(folder)
    check_names(image.name for image in labels.images)
    names = list(labels.categories.values())
    with atomic_write(folder / DATA) as file:
        yaml.safe_dump({"path": ".", "train": LIST, "val": LIST, "names": dict(enumerate(names))}, file)
    with atomic_write(folder / LIST) as file:
        file.writelines(f"./images/train/{image.name}\n" for image in labels.images)
    for image in labels.images:
        kept = [box for box in image.boxes if not box.ignored]
        with atomic_write(_text_file(folder, "labels", image.name)) as file:
            file.writelines(_line(box, image, names) + "\n" for box in kept)
        with atomic_write(_text_file(folder, "scores", image.name)) as file:
            file.writelines(("" if box.score is None else f"{box.score:g}") + "\n" for box in kept)


def check_names(names: Iterable[str]) -> None:
    """Refuse image names that YOLO's text files cannot be named after.

    Raises:
        DataError: A name leads out of the folder, or two images would share one text file.
    """
    texts: dict[PurePosixPath, str] = {}
    for name in names:
        if leads_out(name):
            message = f"The image {name!r} lies outside the folder of the images, so YOLO has no place for its labels."
            raise DataError(message)
        other = texts.setdefault(PurePosixPath(name).with_suffix(".txt"), name)
        if other != name:
            message = f"YOLO keeps the labels of {other!r} and {name!r} in one text file. Rename one of the images."
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

    A line of the class and at the place of a box of `like` is that box, untouched; any other is a person's.

    Args:
        path: The folder with `data.yaml`.
        like: Labels with the same images: the format holds neither their sizes nor regions to ignore.

    Raises:
        DataError: Something is missing, a line is no box, or a name leads out of the folder.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    if like is None:
        message = f"{folder} does not hold the sizes of its images. Give --like the labels.json it was made from."
        raise DataError(message)
    try:
        given: Any = yaml.safe_load((folder / DATA).read_text(encoding="utf-8"))
        listed = given["names"]
        pairs = listed.items() if isinstance(listed, dict) else enumerate(listed)
        names = {int(number): str(name) for number, name in pairs}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        message = f"{folder / DATA} cannot be read, or has no `names` by number ({error})."
        raise DataError(message) from error
    check_names(image.name for image in like.images)
    images = []
    for image in like.images:
        file = _text_file(folder, "labels", image.name)
        if file.is_file():  # what is not there did not come back
            kept_back = tuple(box for box in image.boxes if box.ignored)  # which the format has no place for
            boxes = _boxes(file, image, names) + kept_back
            images.append(LabelImage(image.entry, boxes, image.reviewed))
    return Labels(dict(enumerate((names[number] for number in sorted(names)), 1)), tuple(images))


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
    """Return the box of `left` that a line is, and take it from there; the line's own where it is none of them."""
    for other in left:
        if other.name == box.name and all(abs(a - b) < _SAME for a, b in zip(other.bbox, box.bbox, strict=True)):
            left.remove(other)
            return other
    return box


def _box(where: str, line: str, image: LabelImage, names: Mapping[int, str]) -> LabelBox:
    try:
        label, x, y, width, height, *confidence = line.split()
        if len(confidence) > 1:
            message = "polygons and oriented boxes are no labels here"
            raise ValueError(message)
        across, down = float(image.entry["width"]), float(image.entry["height"])
        w, h = float(width) * across, float(height) * down
        bbox = (float(x) * across - w / 2, float(y) * down - h / 2, w, h)
        name = names[int(label)]
        x1, y1, w, h = (round(value, 2) for value in bbox)
        return LabelBox(name, (x1, y1, w, h), origin=HUMAN)
    except (ValueError, KeyError) as error:
        message = (
            f"{where}: {line[:60]!r} must be a class number of {DATA} and four shares: x and y of the middle, width, "
            f"height; a confidence may follow ({error})."
        )
        raise DataError(message) from error
