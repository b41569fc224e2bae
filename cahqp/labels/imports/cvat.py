"""CVAT for images and for video, one or several tasks or jobs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from cahqp.errors import DataError
from cahqp.labels.formats.xml_file import number_of, read_xml
from cahqp.labels.imports.findings import Findings
from cahqp.labels.imports.records import FoundBox, FoundImage
from cahqp.labels.imports.source import Found, ImageIndex, Source

_ADVICE = "Export the tasks as `CVAT for images 1.1` or `CVAT for video 1.1`, with images."
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_POLYGONS = ("polygon",)
_OTHER_SHAPES = ("polyline", "points", "ellipse", "cuboid", "skeleton", "mask")


def read(source: Source, findings: Findings) -> Found:
    """Read the XML files below a folder, one of each task or job.

    Images are in `images` beside the XML file, also in a sub-folder per subset, or beside it. Frames of a video are
    `frame_000000.png` and so on, as CVAT exports them; `split` is the subset.

    Raises:
        DataError: A file is not CVAT's, or contains no task.
    """
    images: list[FoundImage] = []
    classes: dict[str, None] = {}
    for path in source.files("*.xml"):
        root = read_xml(path, _ADVICE)
        if root.tag != "annotations":
            message = f"{path} is no file of CVAT. {_ADVICE}"
            raise DataError(message)
        classes |= {(label.text or "").strip(): None for label in root.iterfind("./meta//labels/label/name")}
        roots = [source.images] if source.images else [path.parent / "images", path.parent]
        index = ImageIndex(roots)
        images += [
            _image(path, element, index, findings)
            for element in root.iterfind("image")
            if source.takes(split=element.get("subset", "default"))
        ]
        if root.find("track") is not None and source.takes(split="default"):
            images += _frames(path, root, index, findings)
    return Found(images, [name for name in classes if name])


def _image(path: Path, element: ElementTree.Element, index: ImageIndex, findings: Findings) -> FoundImage:
    name = element.get("name", "")
    where = f"{path}, {name}"
    boxes = [_shape(f"{where}, shape {n}", child, child.get("label"), findings) for n, child in enumerate(element, 1)]
    return FoundImage(where, index.find(name), tuple(filter(None, boxes)), _size(element))


def _size(element: ElementTree.Element | None) -> tuple[int, int] | None:
    if element is None:
        return None
    try:
        height, width = (
            int(number_of(element.get(side) or element.findtext(side))) for side in ("height", "width")
        )  # fmt: skip
    except ValueError:
        return None
    return height, width


def _frames(path: Path, root: ElementTree.Element, index: ImageIndex, findings: Findings) -> list[FoundImage]:
    """Return the frames of a video. Frames that were exported without boxes have none."""
    boxes: dict[int, list[FoundBox]] = defaultdict(list)
    for number, track in enumerate(root.iterfind("track")):
        for shape in track:
            where = f"{path}, track {track.get('id', number)}, frame {shape.get('frame')}"
            if shape.get("outside") == "1":
                continue
            box = _shape(where, shape, track.get("label"), findings, {"track_id": number})
            if box is not None and (shape.get("frame") or "").isdecimal():
                boxes[int(shape.get("frame", 0))].append(box)
    names = {f.stem.lower(): f for root_ in index.roots for f in root_.glob("frame_*") if f.stem[6:].isdecimal()}
    numbers = sorted(boxes.keys() | {int(stem[6:]) for stem in names})
    size = _size(root.find("./meta//original_size"))
    recording = {"recording": path.parent.name or path.stem}
    return [
        FoundImage(
            f"{path}, frame {number}",
            names.get(f"frame_{number:06d}") or index.find_stem(f"frame_{number:06d}"),
            tuple(boxes[number]),
            size,
            more={**recording, "frame": number},
        )
        for number in numbers
    ]


def _shape(
    where: str,
    element: ElementTree.Element,
    label: str | None,
    findings: Findings,
    more: dict[str, int] | None = None,
) -> FoundBox | None:
    if element.tag in _OTHER_SHAPES:
        findings.invalid(f"shape is a {element.tag}, not a box", where)
        return None
    if element.tag != "box" and element.tag not in _POLYGONS:  # tags and attributes
        return None
    try:
        if element.tag in _POLYGONS:
            points = [number_of(part) for part in element.get("points", "").replace(";", ",").split(",")]
            corners = (min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2]))
            findings.odd("polygon, taken as the box around it", where)
        else:
            x1, y1, x2, y2 = (number_of(element.get(key)) for key in _CORNERS)
            corners = (x1, y1, x2, y2)
        rotation = number_of(element.get("rotation", "0")) % 360
    except ValueError as error:
        findings.invalid("shape has no valid corners", where, str(error))
        return None
    if not label or rotation:
        kind = "box has no label" if not label else "box is rotated"
        findings.invalid(kind, where, "" if not label else f"{rotation:g} degrees")
        return None
    values = {a.get("name"): (a.text or "").strip() for a in element.iterfind("attribute")}
    return FoundBox(where, label, corners, values.get("ignored") == "true", more or {})
