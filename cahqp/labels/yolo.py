"""YOLO: one text file for each image, as Ultralytics trains from; scores lie beside, because trainers refuse them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from cahqp.errors import DataError
from cahqp.files import atomic_write
from cahqp.labels.document import LabelBox, LabelImage, Labels

DATA = "data.yaml"
LIST = "train.txt"
_DECIMALS = 8
"""Of a share of the image: a hundredth of a pixel survives on any image that fits into memory."""


def write(labels: Labels, folder: Path) -> None:
    """Write `data.yaml`, `train.txt`, `labels/train/*.txt` and, with the score of each line, `scores/train/*.txt`.

    Put the images at `images/train`, or link them there. Regions to ignore are left out: the format has none.
    """
    folder = Path(folder)
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


def _text_file(folder: Path, kind: str, name: str) -> Path:
    return folder / kind / "train" / PurePosixPath(name).with_suffix(".txt")


def _line(box: LabelBox, image: LabelImage, names: list[str]) -> str:
    x, y, width, height = box.bbox
    across, down = float(image.entry["width"]), float(image.entry["height"])
    shares = ((x + width / 2) / across, (y + height / 2) / down, width / across, height / down)
    return " ".join([str(names.index(box.name)), *(f"{share:.{_DECIMALS}f}" for share in shares)])


def read(path: Path, like: Labels | None) -> Labels:
    """Read a folder in YOLO's format.

    Args:
        path: The folder with `data.yaml`.
        like: Labels with the same images: the format holds neither their sizes nor regions to ignore.

    Raises:
        DataError: Something is missing, or a line is no box.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    if like is None:
        message = f"{folder} does not hold the sizes of its images. Give --like the labels.json it was made from."
        raise DataError(message)
    try:
        given: Any = yaml.safe_load((folder / DATA).read_text(encoding="utf-8"))
        names = given["names"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        message = f"{folder / DATA} cannot be read, or has no `names` ({error})."
        raise DataError(message) from error
    ordered = list(names.values()) if isinstance(names, dict) else list(names)
    images = []
    for image in like.images:
        file = _text_file(folder, "labels", image.name)
        if file.is_file():  # what is not there did not come back
            kept_back = tuple(box for box in image.boxes if box.ignored)  # which the format has no place for
            boxes = _boxes(file, folder, image, ordered) + kept_back
            images.append(LabelImage(image.entry, boxes, image.reviewed))
    return Labels(dict(enumerate(ordered, 1)), tuple(images))


def _boxes(file: Path, folder: Path, image: LabelImage, names: list[str]) -> tuple[LabelBox, ...]:
    scores_file = _text_file(folder, "scores", image.name)
    lines = file.read_text(encoding="utf-8").splitlines()
    scores = scores_file.read_text(encoding="utf-8").splitlines() if scores_file.is_file() else []
    scores = scores if len(scores) == len(lines) else [""] * len(lines)  # lines were added or taken away
    return tuple(
        _box(f"{file}, line {number}", line, score, image, names)
        for number, (line, score) in enumerate(zip(lines, scores, strict=True), 1)
        if line.strip()
    )


def _box(where: str, line: str, score: str, image: LabelImage, names: list[str]) -> LabelBox:
    try:
        label, x, y, width, height = line.split()[:5]
        across, down = float(image.entry["width"]), float(image.entry["height"])
        w, h = float(width) * across, float(height) * down
        bbox = (float(x) * across - w / 2, float(y) * down - h / 2, w, h)
        name = names[int(label)]
    except (ValueError, IndexError) as error:
        message = (
            f"{where}: {line[:60]!r} must be a class number and four shares: x and y of the middle, width, height."
        )
        raise DataError(message) from error
    x1, y1, w, h = (round(value, 2) for value in bbox)
    return LabelBox(name, (x1, y1, w, h), float(score) if score else None)
