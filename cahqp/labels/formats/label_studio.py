"""Label Studio: tasks as JSON, the model's boxes as predictions with scores, a person's as annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cahqp.errors import DataError
from cahqp.files import atomic_write, read_json, write_json
from cahqp.labels.formats.coco import HUMAN, MODEL, LabelBox, LabelImage, Labels

FILE = "tasks.json"
CONFIG = "labeling_config.xml"
_OTHER_SHAPES = ("rectangle", "polygon", "ellipse", "keypoint", "brush", "bitmask", "vector")
"""What else a person can draw; each kind comes as this or as this and `labels`."""
_SENT = "by_model"
"""Place and class of a model's box in an annotation, as it was sent out."""
_SAME = 1e-4  # of a percent
_PERCENT_DECIMALS = 6
"""Of a percent: a hundredth of a pixel on any image up to a hundred million pixels wide."""


def write(labels: Labels, folder: Path) -> None:
    """Write `tasks.json` to import and `labeling_config.xml` for the project's settings."""
    write_json(Path(folder) / FILE, [_task(number, image) for number, image in enumerate(labels.images, 1)])
    from xml.sax.saxutils import quoteattr

    values = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in labels.categories.values())
    view = f'<View>\n  <Image name="image" value="$image"/>\n  <RectangleLabels name="label" toName="image">\n{values}'
    with atomic_write(Path(folder) / CONFIG) as file:
        file.write(view + "\n  </RectangleLabels>\n</View>\n")


def _task(number: int, image: LabelImage) -> dict[str, Any]:
    by_model = [box for box in image.boxes if box.origin == MODEL]
    by_person = [box for box in image.boxes if box.origin == HUMAN]
    scores = [box.score for box in by_model if box.score is not None]
    task: dict[str, Any] = {
        "id": number,
        "data": {"image": f"/data/local-files/?d={image.name}", "file_name": image.name, **_size(image.entry)},
        "predictions": [
            {
                "model_version": "cahqp",
                "score": round(sum(scores) / len(scores), 4) if scores else 0.0,
                "result": _results(by_model, image.entry),
            }
        ],
    }
    if image.reviewed or by_person:  # where there is an annotation, it alone counts
        task["annotations"] = [{"result": _results(image.boxes, image.entry, True), "was_cancelled": False}]
    return task


def _size(entry: Mapping[str, Any]) -> dict[str, int]:
    return {"width": int(entry["width"]), "height": int(entry["height"])}


def _results(boxes: Sequence[LabelBox], entry: Mapping[str, Any], annotation: bool = False) -> list[dict[str, Any]]:
    return [_result(number, box, annotation, **_size(entry)) for number, box in enumerate(boxes)]


def _result(number: int, box: LabelBox, annotation: bool, width: int, height: int) -> dict[str, Any]:
    sides = (width, height, width, height)
    shares = [round(100 * value / side, _PERCENT_DECIMALS) for value, side in zip(box.bbox, sides, strict=True)]
    value: dict[str, Any] = dict(zip(("x", "y", "width", "height"), shares, strict=True))
    result: dict[str, Any] = {
        "id": f"{box.origin}-{number}",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value | {"rotation": 0, "rectanglelabels": [box.name]},
    }
    meta: dict[str, Any] = ({"track_id": box.track} if box.track is not None else {}) | (
        {"ignored": True} if box.ignored else {}
    )
    if annotation and box.origin == MODEL:  # still the model's, as long as nobody moves it or names it anew
        meta |= {_SENT: {"label": box.name, **dict(zip(("x", "y", "width", "height"), shares, strict=True))}}
    return result | ({} if box.score is None else {"score": box.score}) | ({"meta": meta} if meta else {})


def read(path: Path) -> Labels:
    """Read exported tasks. Where a person has annotated an image, that counts and the predictions do not.

    Tasks that nobody annotated and that hold no prediction, or only its number, are left out: nothing is said of them.

    Args:
        path: The JSON file, or its folder.

    Raises:
        DataError: It is no such file, a task lacks something, or a shape is no upright rectangle.
    """
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    data = read_json(path)
    if not isinstance(data, list):
        message = f"{path} is no export of Label Studio: it must be a list of tasks. Export the project as JSON."
        raise DataError(message)
    read = (_image(path, number, task) for number, task in enumerate(data, 1))
    images = tuple(image for image in read if image is not None)
    names = dict.fromkeys(box.name for image in images for box in image.boxes)
    return Labels(dict(enumerate(names, 1)), images)


def _image(path: Path, number: int, task: Any) -> LabelImage | None:
    try:
        told = task["data"]
        name = str(told.get("file_name") or str(told["image"]).rpartition("?d=")[2])
        done = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
        given = done or [p for p in task.get("predictions") or [] if isinstance(p, dict)]
        if not given:
            return None
        origin = HUMAN if done else MODEL
        _check_shapes(path, name, given[-1]["result"])
        results = [r for r in given[-1]["result"] if r.get("type") == "rectanglelabels"]
        # What the tool has seen counts: it may have turned an image that EXIF says to turn.
        size = results[0] if results and "original_width" in results[0] else told
        width, height = (int(size.get(f"original_{key}") or size[key]) for key in ("width", "height"))
        boxes = tuple(_box(result, width, height, origin) for result in results)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        message = (
            f"{path}: task {number} lacks something that Label Studio writes ({error!r}). Export it as JSON again."
        )
        raise DataError(message) from error
    return LabelImage({"id": number, "file_name": name, "width": width, "height": height}, boxes, bool(done))


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
    sides = (width, height, width, height)
    x, y, w, h = (
        round(value[key] * side / 100, 2) for key, side in zip(("x", "y", "width", "height"), sides, strict=True)
    )
    sent = meta.get(_SENT)
    if sent and sent.get("label") == value["rectanglelabels"][0]:
        origin = MODEL if all(abs(sent[key] - value[key]) < _SAME for key in ("x", "y", "width", "height")) else HUMAN
    score = result.get("score") if origin == MODEL else None
    track = meta.get("track_id")
    return LabelBox(value["rectanglelabels"][0], (x, y, w, h), score, track, origin, bool(meta.get("ignored")))
