"""Pascal VOC: one XML file per image. Also the layout of Sim10k."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from cahqp.errors import DataError
from cahqp.labels.formats.xml_file import number_of, read_xml
from cahqp.labels.imports.findings import Findings
from cahqp.labels.imports.records import FoundBox, FoundImage
from cahqp.labels.imports.source import Found, ImageIndex, Source

_ADVICE = "Give Pascal VOC files, one XML file per image."


def read(source: Source, findings: Findings) -> Found:
    """Read the XML files below a folder.

    Images are in `JPEGImages` or `images` beside the folder of the XML files, or beside the XML files. `split` is a
    list in `ImageSets/Main`, else the folder of the XML file. `difficult` objects become regions to ignore.
    Coordinates are taken as they are.
    """
    return _read(source, findings, 0)


def read_sim10k(source: Source, findings: Findings) -> Found:
    """Read Sim10k, whose coordinates count pixels from 1, as VOC's do.

    Papers train on `trainval10k`, all 10,000 images. The data set has no other split: `fold`, the last digit of an
    image's number, holds out a part of it. Each image is a recording of its own.
    """
    return _read(source, findings, 1)


def _read(source: Source, findings: Findings, first: int) -> Found:
    lists = _lists(source)
    images = []
    for path in source.files("*.xml"):
        splits = [name for name, stems in lists.items() if path.stem in stems] or [path.parent.name]
        fold = {"fold": path.stem[-1]} if first else {}
        if not any([source.takes(split=split, **fold) for split in splits]):
            continue
        root = read_xml(path, _ADVICE)
        if root.tag == "annotation":
            images.append(_image(source, path, root, findings, first))
        else:
            findings.left_out("XML file of another kind", str(path))
    return Found(images)


def _lists(source: Source) -> dict[str, set[str]]:
    """Return the stems in each list of `ImageSets/Main`, by the name of the list."""
    stems: dict[str, set[str]] = {}
    for path in sorted(source.folder.rglob("ImageSets/Main/*.txt")):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            message = f"{path} is no list of images ({error}). Write one image per line."
            raise DataError(message) from error
        stems[path.stem] = {line.split()[0] for line in lines if line.split()}
    return stems


def _image(source: Source, path: Path, root: ElementTree.Element, findings: Findings, first: int) -> FoundImage:
    folder = path.parent
    beside = [folder.parent / name / part for name in ("JPEGImages", "images") for part in ("", folder.name)]
    index = ImageIndex([source.images] if source.images else [*filter(Path.is_dir, beside), folder])
    image = index.find(root.findtext("filename") or path.stem)
    if not image.is_file():
        image = index.find_stem(path.stem)
    boxes = [_box(f"{path}, object {n}", e, findings, first) for n, e in enumerate(root.iterfind("object"), 1)]
    more = {"recording": path.stem} if first else {}
    return FoundImage(str(path), image, tuple(filter(None, boxes)), _size(root), more=more)


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        height, width = (int(number_of(root.findtext(f"size/{side}"))) for side in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None


def _box(where: str, element: ElementTree.Element, findings: Findings, first: int) -> FoundBox | None:
    try:
        x1, y1, x2, y2 = (number_of(element.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError as error:
        findings.invalid("object has no box", where, str(error))
        return None
    name = (element.findtext("name") or "").strip()
    if not name:
        findings.invalid("object has no name", where)
        return None
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return FoundBox(where, name, (max(x1 - first, 0), max(y1 - first, 0), x2, y2), difficult)
