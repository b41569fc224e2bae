"""CVAT for images 1.1: one XML file, with confidence and track as attributes of each box."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from cahqp.errors import DataError
from cahqp.files import atomic_write
from cahqp.labels.formats.coco import HUMAN, MODEL, LabelBox, LabelImage, Labels

FILE = "annotations.xml"
_ATTRIBUTES = ("confidence", "track_id", "ignored")
_OTHER_SHAPES = ("polygon", "polyline", "points", "ellipse", "cuboid", "skeleton", "mask")
_BY_MODEL = ("auto", "file")
"""What CVAT writes as `source` of boxes that nobody touched; edited ones become `manual` or `semi-auto`."""


def write(labels: Labels, folder: Path) -> None:
    """Write `annotations.xml`, to be uploaded as "CVAT 1.1" into a task with these images."""
    root = ElementTree.Element("annotations")
    _text(root, "version", "1.1")
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    _text(task, "size", str(len(labels.images)))
    listed = ElementTree.SubElement(task, "labels")
    for name in labels.categories.values():
        label = ElementTree.SubElement(listed, "label")
        _text(label, "name", name)
        attributes = ElementTree.SubElement(label, "attributes")
        for attribute in _ATTRIBUTES:
            entry = ElementTree.SubElement(attributes, "attribute")
            for key, value in (("name", attribute), ("mutable", "False"), ("input_type", "text")):
                _text(entry, key, value)
            for key in ("default_value", "values"):
                _text(entry, key, "")
    for number, image in enumerate(labels.images):
        root.append(_image(number, image))
    ElementTree.indent(root)
    with atomic_write(Path(folder) / FILE, "wb") as file:
        ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)


def _image(number: int, image: LabelImage) -> ElementTree.Element:
    size = {key: str(image.entry[key]) for key in ("width", "height")}
    element = ElementTree.Element("image", {"id": str(number), "name": image.name, **size})
    for box in image.boxes:
        x, y, width, height = box.bbox
        corners = zip(("xtl", "ytl", "xbr", "ybr"), (x, y, x + width, y + height), strict=True)
        given = {"label": box.name, "source": "manual" if box.origin == HUMAN else "auto", "occluded": "0"}
        given |= {key: f"{value:.2f}" for key, value in corners} | {"z_order": "0"}
        child = ElementTree.SubElement(element, "box", given)
        values = (box.score, box.track, "true" if box.ignored else None)
        for name, value in zip(_ATTRIBUTES, values, strict=True):
            if value is not None:
                attribute = ElementTree.SubElement(child, "attribute", {"name": name})
                attribute.text = str(value)
    return element


def _text(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text


def read(path: Path) -> Labels:
    """Read an XML file of CVAT for images.

    Args:
        path: The file, or its folder.

    Raises:
        DataError: It is no such file, a box lacks something, or a shape is no upright rectangle.
    """
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        data = path.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            message = f"{path} declares entities, which no file of CVAT does. It is not read."
            raise DataError(message)
        root = ElementTree.fromstring(data)
    except (OSError, ElementTree.ParseError) as error:
        message = f"{path} is no readable XML file ({error}). Export the task as `CVAT for images 1.1`."
        raise DataError(message) from error
    if root.tag != "annotations" or root.find("track") is not None:
        message = f"{path} is no file of CVAT for images. Export the task as `CVAT for images 1.1`, not for video."
        raise DataError(message)
    names = [label.text or "" for label in root.iterfind("./meta//labels/label/name")]
    images = [_read_image(path, number, element) for number, element in enumerate(root.iterfind("image"), 1)]
    seen = [box.name for image in images for box in image.boxes]
    ordered = dict.fromkeys([*names, *seen])
    return Labels(dict(enumerate(ordered, 1)), tuple(images))


def _read_image(path: Path, number: int, element: ElementTree.Element) -> LabelImage:
    try:
        entry = {"id": number, "file_name": element.attrib["name"]}
        entry |= {key: int(element.attrib[key]) for key in ("width", "height")}
        _check_shapes(path, element)
        boxes = tuple(_read_box(box) for box in element.iterfind("box"))
    except (KeyError, ValueError) as error:
        message = f"{path}: image {number} or one of its boxes lacks a value or has one that is no number ({error})."
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
    x1, y1, x2, y2 = (float(element.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
    said = {a.attrib["name"]: (a.text or "").strip() for a in element.iterfind("attribute")}
    origin = MODEL if element.attrib.get("source", "manual") in _BY_MODEL else HUMAN
    score = float(said["confidence"]) if said.get("confidence") and origin == MODEL else None
    track = int(said["track_id"]) if said.get("track_id") else None
    bbox = (x1, y1, round(x2 - x1, 2), round(y2 - y1, 2))
    return LabelBox(element.attrib["label"], bbox, score, track, origin, said.get("ignored") == "true")
