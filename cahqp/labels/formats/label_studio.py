"""Label Studio: tasks as JSON, with boxes of the model as predictions and boxes of a person as annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from cahqp.coco.values import as_flag
from cahqp.errors import DataError
from cahqp.files import atomic_write, read_json, write_json
from cahqp.labels.formats.coco import HUMAN, MODEL, LabelBox, LabelImage, Labels
from cahqp.labels.formats.label_studio_names import image_name

FILE = "tasks.json"
CONFIG = "labeling_config.xml"
_SIDES = ("x", "y", "width", "height")
_OTHER_SHAPES = ("rectangle", "polygon", "ellipse", "keypoint", "brush", "bitmask", "vector")
"""Other shapes of the tool; each type may also end with `labels`."""
_SENT = "by_model"
"""Key of the original position and class of a model's box in an annotation."""
_SAME = 1e-4  # percent
_PERCENT_DECIMALS = 6
"""Decimals of a percent, exact to a hundredth of a pixel on images up to a hundred million pixels wide."""


def write(labels: Labels, folder: Path) -> None:
    """Write `tasks.json` to import, and `labeling_config.xml` for the settings of the project."""
    write_json(Path(folder) / FILE, [_task(number, image) for number, image in enumerate(labels.images, 1)])
    values = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in labels.categories.values())
    view = f'<View>\n  <Image name="image" value="$image"/>\n  <RectangleLabels name="label" toName="image">\n{values}'
    with atomic_write(Path(folder) / CONFIG) as file:
        file.write(view + "\n  </RectangleLabels>\n</View>\n")


def _task(number: int, image: LabelImage) -> dict[str, Any]:
    size = {key: int(image.entry[key]) for key in ("width", "height")}
    by_model = [box for box in image.boxes if box.origin == MODEL]
    scores = [box.score for box in by_model if box.score is not None]
    prediction = {
        "model_version": "cahqp",
        "score": round(sum(scores) / len(scores), 4) if scores else 0.0,
        "result": [_result(row, box, size) for row, box in enumerate(by_model)],
    }
    data = {"image": f"/data/local-files/?d={image.name}", "file_name": image.name, **size}
    task: dict[str, Any] = {"id": number, "data": data, "predictions": [prediction]}
    if image.reviewed or len(by_model) < len(image.boxes):  # an annotation replaces the predictions
        results = [_result(row, box, size, annotation=True) for row, box in enumerate(image.boxes)]
        task["annotations"] = [{"result": results, "was_cancelled": False}]
    return task


def _result(number: int, box: LabelBox, size: Mapping[str, int], annotation: bool = False) -> dict[str, Any]:
    width, height = size["width"], size["height"]
    percents = [
        round(100 * value / side, _PERCENT_DECIMALS)
        for value, side in zip(box.bbox, (width, height, width, height), strict=True)
    ]
    position = dict(zip(_SIDES, percents, strict=True))
    meta: dict[str, Any] = {"track_id": box.track} if box.track is not None else {}
    meta |= {"ignored": True} if box.ignored else {}
    if annotation and box.origin == MODEL:  # recognised as the model's until its position or class changes
        meta |= {_SENT: {"label": box.name, **position}}
    result = {
        "id": f"{box.origin}-{number}",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": position | {"rotation": 0, "rectanglelabels": [box.name]},
    }
    return result | ({} if box.score is None else {"score": box.score}) | ({"meta": meta} if meta else {})


def read(path: Path) -> Labels:
    """Read exported tasks. The annotation of a person replaces the predictions on an image.

    Tasks with neither annotations nor predictions, or with the number of a prediction only, are left out.

    Args:
        path: The JSON file, or its folder.

    Raises:
        DataError: The file is no export, a task is incomplete, or a shape is no upright rectangle.
    """
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    data = read_json(path)
    if not isinstance(data, list):
        message = f"{path} is no export of Label Studio: it must be a list of tasks. Export the project as JSON."
        raise DataError(message)
    images = [image for number, task in enumerate(data, 1) if (image := _image(path, number, task)) is not None]
    names = dict.fromkeys(box.name for image in images for box in image.boxes)
    return Labels(dict(enumerate(names, 1)), tuple(images))


def _image(path: Path, number: int, task: Any) -> LabelImage | None:
    try:
        data = task["data"]
        name = image_name(data)
        annotations = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
        versions = annotations or [p for p in task.get("predictions") or [] if isinstance(p, dict)]
        if not versions:
            return None
        results = versions[-1]["result"]
        _check_shapes(path, name, results)
        results = [result for result in results if result.get("type") == "rectanglelabels"]
        # The size in the tool differs from the file if it applied an EXIF orientation.
        size = results[0] if results and "original_width" in results[0] else data
        sides = {key: int(size.get(f"original_{key}") or size.get(key) or 0) for key in ("width", "height")}
        if results and not all(sides.values()):
            message = "width and height"
            raise KeyError(message)
        origin = HUMAN if annotations else MODEL
        boxes = tuple(_box(result, sides["width"], sides["height"], origin) for result in results)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        message = f"{path}: task {number} lacks a value that Label Studio writes ({error!r}). Export it as JSON again."
        raise DataError(message) from error
    known = sides if all(sides.values()) else {}  # a task without boxes may have no size
    return LabelImage({"id": number, "file_name": name, **known}, boxes, bool(annotations))


def _check_shapes(path: Path, name: str, results: Sequence[Mapping[str, Any]]) -> None:
    for result in results:
        kind = str(result.get("type"))
        if kind == "rectanglelabels" and not result["value"].get("rotation"):
            continue
        if kind == "rectanglelabels" or kind.removesuffix("labels") in _OTHER_SHAPES:
            shape = "a rotated rectangle" if kind == "rectanglelabels" else f"a shape of kind {kind}"
            message = f"{path}: {name} has {shape}; labels are upright rectangles with a class. Draw it as one."
            raise DataError(message)


def _box(result: Mapping[str, Any], width: int, height: int, origin: str) -> LabelBox:
    value, meta = result["value"], result.get("meta") or {}
    sides = zip(_SIDES, (width, height, width, height), strict=True)
    x, y, w, h = (round(value[key] * side / 100, 2) for key, side in sides)
    name, sent = value["rectanglelabels"][0], meta.get(_SENT)
    if sent and sent.get("label") == name:
        origin = MODEL if all(abs(sent[key] - value[key]) < _SAME for key in _SIDES) else HUMAN
    score = result.get("score") if origin == MODEL else None
    x, y = min(x, round(x + w, 2)), min(y, round(y + h, 2))  # a box may be drawn from any corner
    return LabelBox(
        name, (x, y, abs(w), abs(h)), score, meta.get("track_id"), origin, bool(as_flag(meta.get("ignored")))
    )
