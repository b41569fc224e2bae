"""`cahqp inspect`: content of data sets before training, and copies across their splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cahqp.errors import ConfigError
from cahqp.files import write_json
from cahqp.labels.formats.coco import LabelBox
from cahqp.reports.data_sets import DataSet, copies_between, describe, open_data_set, spread, totals
from cahqp.reports.options import InspectOptions
from cahqp.reports.page import write_page
from cahqp.reports.pictures import Picture, class_colours, draw_boxes, load_picture
from cahqp.runs.directory import open_run

_LISTED = 50  # copies in the page; the JSON file contains all


def inspect(options: InspectOptions) -> None:
    """Write `inspect.json` and `inspect.html`.

    Raises:
        CahqpError: A data set cannot be read.
    """
    paths = named_paths(options.data)
    settings: dict[str, Any] = {"pictures": options.pictures, "names": list(paths), **options.naming_settings}
    with open_run(options.output, "inspect", settings, {f"data.{n}": p for n, p in paths.items()}) as run:
        if run is None:
            return
        sets = [open_data_set(name, path, options.naming) for name, path in paths.items()]
        for data in sets:
            data.read_images()
        described = {data.name: describe(data) for data in sets}
        copies = copies_between(sets)
        write_json(run.work / "inspect.json", {"data": described, "copies": copies})
        names = list(dict.fromkeys(name for data in sets if data.file for name in data.file.categories.values()))
        write_page(
            run.work / "inspect.html",
            "inspect.html.j2",
            data=described,
            copies=[[" = ".join(str(p[d.name]) for d in sets if d.name in p), f"{p['difference']:g}"] for p in copies],
            listed=_LISTED,
            sheets={data.name: _sheet(data, options.pictures, names) for data in sets},
            colours=class_colours(names),
        )
        run.metrics = {**totals(described), "copies": len(copies)}
    print("\n".join([f"{options.output}: {run.metrics['images']} images.", *_lines(described, len(copies))]))


def named_paths(given: list[str]) -> dict[str, Path]:
    """Return the data sets by name: NAME=PATH, or the stem of a path.

    Raises:
        ConfigError: Two data sets have the same name.
    """
    paths: dict[str, Path] = {}
    for text in given:
        name, sign, path = text.partition("=")
        name, path = (name, path) if sign else (Path(text).stem, text)
        if name in paths:
            message = f"--data {text}: the name {name} is used twice. Write NAME=PATH, such as val={path}."
            raise ConfigError(message)
        paths[name] = Path(path)
    return paths


def _lines(described: dict[str, Any], copies: int) -> list[str]:
    lines = []
    for name, own in described.items():
        parts = [f"{own['images']} images", f"{own['recordings']} recordings"]
        parts += [f"{own['boxes']} boxes, {own['empty_images']} images without"] if "boxes" in own else []
        parts += [f"{len(own['unreadable'])} unreadable"] if own["unreadable"] else []
        parts += [f"{own['oriented']} with an EXIF orientation"] if own["oriented"] else []
        lines.append(f"  {name}: {', '.join(parts)}")
    return [*lines, *([f"  {copies} pairs of nearly equal images in different splits"] if copies else [])]


def _sheet(data: DataSet, count: int, names: list[str]) -> list[tuple[str, Picture, list[dict[str, Any]]]]:
    """Return name, picture and drawn boxes of evenly spread images."""
    readable = sorted(data.hashes)
    sheet = []
    for index in spread(len(readable), count):
        position = readable[index]
        picture = load_picture([data.root], data.frames[position].name)
        sheet.append((data.frames[position].name, picture, draw_boxes(picture, _boxes(data, position), names)))
    return sheet


def _boxes(data: DataSet, position: int) -> list[LabelBox]:
    if data.file is None:
        return []
    found = data.file.annotations(position)
    sides = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1).tolist()
    names = [data.file.categories[category] for category in found.categories.tolist()]
    return [LabelBox(name, (box[0], box[1], box[2], box[3])) for name, box in zip(names, sides, strict=True)]
