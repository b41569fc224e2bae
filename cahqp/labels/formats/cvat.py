"""CVAT for images 1.1: one XML file, with confidence and track as attributes of each box."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from cahqp.errors import DataError
from cahqp.files import atomic_write
from cahqp.labels.formats.coco import HUMAN, MODEL, LabelBox, LabelImage, Labels
from cahqp.labels.formats.xml_file import read_xml

FILE = "annotations.xml"
_ATTRIBUTES = ("confidence", "track_id", "ignored")
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_OTHER_SHAPES = ("polygon", "polyline", "points", "ellipse", "cuboid", "skeleton", "mask")
_BY_MODEL = ("auto", "file")
"""Values of `source` for untouched boxes; CVAT writes `manual` or `semi-auto` for edited ones."""


def write(labels: Labels, folder: Path) -> None:
    """Write `annotations.xml`, for upload as "CVAT 1.1" into a task with these images."""
    root = ElementTree.Element("annotations")
    _add_text(root, "version", "1.1")
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    _add_text(task, "size", str(len(labels.images)))
    classes = ElementTree.SubElement(task, "labels")
    for name in labels.categories.values():
        label = ElementTree.SubElement(classes, "label")
        _add_text(label, "name", name)
        attributes = ElementTree.SubElement(label, "attributes")
        for attribute in _ATTRIBUTES:
            entry = ElementTree.SubElement(attributes, "attribute")
            texts = {"name": attribute, "mutable": "False", "input_type": "text", "default_value": "", "values": ""}
            for key, text in texts.items():
                _add_text(entry, key, text)
    for number, image in enumerate(labels.images):
        root.append(_write_image(number, image))
    ElementTree.indent(root)
    with atomic_write(Path(folder) / FILE, "wb") as file:
        ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)


def _write_image(number: int, image: LabelImage) -> ElementTree.Element:
    size = {key: str(image.entry[key]) for key in ("width", "height")}
    element = ElementTree.Element("image", {"id": str(number), "name": image.name, **size})
    for box in image.boxes:
        x, y, width, height = box.bbox
        corners = zip(_CORNERS, (x, y, x + width, y + height), strict=True)
        fields = {"label": box.name, "source": "manual" if box.origin == HUMAN else "auto", "occluded": "0"}
        fields |= {key: f"{value:.2f}" for key, value in corners} | {"z_order": "0"}
        child = ElementTree.SubElement(element, "box", fields)
        values = (box.score, box.track, "true" if box.ignored else None)
        for name, value in zip(_ATTRIBUTES, values, strict=True):
            if value is not None:
                ElementTree.SubElement(child, "attribute", {"name": name}).text = str(value)
    return element


def _add_text(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text


def read(path: Path) -> Labels:
    """Read an XML file of CVAT for images.

    Args:
        path: The file, or its folder.

    Raises:
        DataError: The file is of another kind, a box is incomplete, or a shape is no upright rectangle.
    """
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    root = read_xml(path, "Export the task as `CVAT for images 1.1`.")
    if root.tag != "annotations" or root.find("track") is not None:
        message = f"{path} is no file of CVAT for images. Export the task as `CVAT for images 1.1`, not for video."
        raise DataError(message)
    images = [_read_image(path, number, element) for number, element in enumerate(root.iterfind("image"), 1)]
    listed = [label.text or "" for label in root.iterfind("./meta//labels/label/name")]
    names = dict.fromkeys([*listed, *(box.name for image in images for box in image.boxes)])
    return Labels(dict(enumerate(names, 1)), tuple(images))


def _read_image(path: Path, number: int, element: ElementTree.Element) -> LabelImage:
    try:
        entry = {"id": number, "file_name": element.attrib["name"]}
        entry |= {key: int(element.attrib[key]) for key in ("width", "height")}
        _check_shapes(path, element)
        boxes = tuple(_read_box(box) for box in element.iterfind("box"))
    except (KeyError, ValueError) as error:
        message = f"{path}: image {number} or one of its boxes lacks a value or has an invalid number ({error})."
        raise DataError(message) from error
    return LabelImage(entry, boxes, any(box.origin == HUMAN for box in boxes))


def _check_shapes(path: Path, element: ElementTree.Element) -> None:
    kinds = [child.tag for child in element if child.tag in _OTHER_SHAPES]
    kinds += ["rotated box" for box in element.iterfind("box") if float(box.get("rotation", 0)) % 360]
    if kinds:
        name = element.attrib["name"]
        message = f"{path}: {name} has a {kinds[0]}; labels are upright boxes. Draw it as a box, and export it again."
        raise DataError(message)


def _read_box(element: ElementTree.Element) -> LabelBox:
    x1, y1, x2, y2 = (float(element.attrib[key]) for key in _CORNERS)
    values = {a.attrib["name"]: (a.text or "").strip() for a in element.iterfind("attribute")}
    origin = MODEL if element.attrib.get("source", "manual") in _BY_MODEL else HUMAN
    score = float(values["confidence"]) if values.get("confidence") and origin == MODEL else None
    track = int(values["track_id"]) if values.get("track_id") else None
    bbox = (x1, y1, round(x2 - x1, 2), round(y2 - y1, 2))
    return LabelBox(element.attrib["label"], bbox, score, track, origin, values.get("ignored") == "true")
