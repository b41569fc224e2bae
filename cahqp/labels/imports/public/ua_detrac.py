"""UA-DETRAC (Wen et al., CVIU 2020): fixed cameras, one XML file per sequence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from cahqp.labels.formats.xml_file import number_of, read_xml
from cahqp.labels.imports.findings import Findings
from cahqp.labels.imports.records import FoundBox, FoundImage
from cahqp.labels.imports.source import Found, Source

CLASSES = ("car", "bus", "van", "others")
REGION = "ignored region"
_RATE = 25.0  # frames/s of all sequences, as published
_ADVICE = "Give the folder with DETRAC-Train-Annotations-XML and Insight-MVT_Annotation_Train."


def read(source: Source, findings: Findings) -> Found:
    """Read the XML files below a folder.

    `split` is `train` or `test` from the name of the XML files' folder, and `weather` is `sunny`, `cloudy`, `rainy` or
    `night` from the attribute `sence_weather`. A sequence is a recording. Ignored regions count for every class. Frames
    without an entry in the XML file are left out, because nothing states that they are empty.
    """
    folders = _image_folders(source)
    images: list[FoundImage] = []
    for path in source.files("*.xml"):
        split = next((name for name in ("train", "test") if name in path.parent.name.lower()), "unknown")
        if not source.takes(split=split):
            continue
        root = read_xml(path, _ADVICE)
        attribute = root.find("sequence_attribute")
        if root.tag != "sequence" or attribute is None:
            findings.invalid("XML file is no sequence of UA-DETRAC", str(path), _ADVICE)
            continue
        if source.takes(weather=attribute.get("sence_weather", "unknown")):
            name = path.stem.removesuffix("_v3")
            images += _frames(path, root, folders.get(name, source.folder / name), findings)
    return Found(images, CLASSES, frozenset({REGION}))


def _image_folders(source: Source) -> dict[str, Path]:
    """Return the folder of each sequence's images by its name."""
    root = source.images or source.folder
    below = root if source.images or source.path.is_dir() else root.parent
    return {path.name: path for path in sorted(below.rglob("MVI_*")) if path.is_dir()}


def _frames(path: Path, root: ElementTree.Element, folder: Path, findings: Findings) -> Iterator[FoundImage]:
    regions = [
        _box(f"{path}, ignored region {number}", element, REGION, findings)
        for number, element in enumerate(root.iterfind("ignored_region/box"), 1)
    ]
    listed = set()
    for frame in root.iterfind("frame"):
        number = int(frame.get("num", "0"))
        listed.add(f"img{number:05d}.jpg")
        boxes = [
            *regions,
            *(_target(path, number, target, findings) for target in frame.iterfind("target_list/target")),
        ]
        more = {"camera": folder.name, "recording": folder.name, "frame": number}
        yield FoundImage(
            f"{path}, frame {number}",
            folder / f"img{number:05d}.jpg",
            tuple(filter(None, boxes)),
            more=more | {"timestamp": round((number - 1) / _RATE, 3)},
        )
    if folder.is_dir():
        for image in sorted(image for image in folder.glob("img*.jpg") if image.name not in listed):
            findings.left_out("frame without an entry in its XML file", str(image))


def _target(path: Path, number: int, target: ElementTree.Element, findings: Findings) -> FoundBox | None:
    where = f"{path}, frame {number}, target {target.get('id')}"
    box, attribute = target.find("box"), target.find("attribute")
    if box is None or attribute is None:
        findings.invalid("target has no box or attributes", where)
        return None
    track = {"track_id": int(target.get("id", "0"))} if target.get("id", "").isdecimal() else {}
    return _box(where, box, attribute.get("vehicle_type", "others"), findings, track)


def _box(
    where: str, element: ElementTree.Element, name: str, findings: Findings, more: dict[str, int] | None = None
) -> FoundBox | None:
    try:
        x, y, width, height = (number_of(element.get(key)) for key in ("left", "top", "width", "height"))
    except ValueError as error:
        findings.invalid("box is incomplete", where, str(error))
        return None
    return FoundBox(where, name, (x, y, x + width, y + height), name == REGION, more or {})
