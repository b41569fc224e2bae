"""`cahqp import`: read labels of any layout, check them against the images, write one COCO file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cahqp.coco.image_folder import source_file
from cahqp.coco.reader import read_coco
from cahqp.errors import ConfigError, DataError, RunError
from cahqp.files import write_json
from cahqp.labels.imports.checks import CheckedBox, CheckedImage, Checker
from cahqp.labels.imports.findings import Findings
from cahqp.labels.imports.options import ImportOptions
from cahqp.labels.imports.readers import READERS
from cahqp.labels.imports.records import FoundBox, FoundImage
from cahqp.labels.imports.source import Found, Source


def import_labels(options: ImportOptions) -> None:
    """Write one validated COCO file of labels in any layout, with a report of everything left out.

    Raises:
        CahqpError: The source cannot be read, contains invalid rows, or the output exists.
    """
    if options.output.exists():
        message = f"{options.output} exists, and labels are never overwritten. Choose another --output."
        raise RunError(message)
    findings = Findings(options.source, options.on_invalid)
    source = Source(options.source, options.images, options.selected)
    found = READERS[options.format](source, findings)
    source.check_selection()
    classes = _Classes(found, options)
    checker = Checker(findings, options.oriented)
    images = [
        checked
        for image in _unique(found.images, findings)
        if (checked := checker.check(classes.rename(image, findings))) is not None
    ]
    findings.check()
    if not images:
        message = "\n".join([f"{options.source} contains no image to import.", *findings.lines()])
        raise DataError(message)
    _write(options, images, classes.names(images), findings)


def _unique(images: Iterable[FoundImage], findings: Findings) -> list[FoundImage]:
    """Return each image once. An image with two different sets of boxes is invalid."""
    kept: dict[Path, FoundImage] = {}
    for image in images:
        first = kept.setdefault(image.path, image)
        if first is image:
            continue
        if _content(first) == _content(image):
            findings.left_out("image that is listed before", image.where)
        else:
            findings.invalid("image has other boxes than before", image.where, f"see {first.where}")
    return list(kept.values())


def _content(image: FoundImage) -> set[tuple[Any, ...]]:
    return {(box.name, box.xyxy, box.ignored) for box in image.boxes}


class _Classes:
    """Class names: renamed, chosen and ordered.

    Raises:
        ConfigError: `--map` names a class that does not occur.
    """

    def __init__(self, found: Found, options: ImportOptions) -> None:
        self._renamed, self._chosen, self._regions = options.renamed, options.classes, found.regions
        appeared = sorted({box.name for image in found.images for box in image.boxes})
        self._declared = list(dict.fromkeys([*found.classes, *appeared]))
        unknown = sorted(self._renamed.keys() - set(self._declared))
        if unknown:
            contained = ", ".join(self._declared) or "none"
            message = f"--map names {', '.join(unknown)}; the source has the classes {contained}. Correct --map."
            raise ConfigError(message)

    def rename(self, image: FoundImage, findings: Findings) -> FoundImage:
        """Return an image with the chosen boxes under their new names."""
        boxes = []
        for box in image.boxes:
            name = self._renamed.get(box.name, box.name)
            region = box.ignored and box.name in self._regions
            if name and (region or not self._chosen or name in self._chosen):
                boxes.append(FoundBox(box.where, name, box.xyxy, box.ignored, box.more))
            else:
                findings.left_out(f"box of class {box.name}", box.where)
        return FoundImage(image.where, image.path, tuple(boxes), image.size, image.shares, image.more)

    def names(self, images: Iterable[CheckedImage]) -> list[str]:
        """Return the names of the output in the order of their ids."""
        declared = [self._renamed.get(name, name) for name in self._declared if name not in self._regions]
        regions = {checked.box.name for image in images for checked in image.boxes if checked.box.ignored}
        chosen = self._chosen or [name for name in declared if name]
        return list(dict.fromkeys([*chosen, *sorted(regions)]))


def _write(options: ImportOptions, images: Sequence[CheckedImage], names: Sequence[str], findings: Findings) -> None:
    root = _root(options, images)
    numbers = {name: number for number, name in enumerate(names, 1)}
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }
    for number, image in enumerate(images, 1):
        height, width = image.size
        name = Path(os.path.relpath(image.image.path.absolute(), root)).as_posix()
        entry = {"id": number, "file_name": name, "height": height, "width": width}
        document["images"].append(entry | dict(image.image.more))
        for box in image.boxes:
            entry = {"id": len(document["annotations"]) + 1, "image_id": number}
            document["annotations"].append(entry | _annotation(box, numbers))
    origin = {"root": Path(os.path.relpath(root, options.output.absolute().parent)).as_posix()}
    write_json(source_file(options.output), origin)
    write_json(options.output, document)
    try:
        read_coco(options.output)
    except DataError:
        options.output.unlink()
        source_file(options.output).unlink()
        raise
    counts = Counter(checked.box.name for image in images for checked in image.boxes if not checked.box.ignored)
    _report(options.output, len(images), {name: counts[name] for name in names}, findings)


def _root(options: ImportOptions, images: Sequence[CheckedImage]) -> Path:
    """Return the folder that contains all images: that of the source if possible."""
    folder = options.images or (options.source if options.source.is_dir() else options.source.parent)
    parents = [image.image.path.absolute().parent for image in images]
    if all(parent.is_relative_to(folder.absolute()) for parent in parents):
        return folder.absolute()
    return Path(os.path.commonpath(parents))


def _annotation(checked: CheckedBox, numbers: Mapping[str, int]) -> dict[str, Any]:
    area = round(checked.xywh[2] * checked.xywh[3], 3)
    entry = {"category_id": numbers[checked.box.name], "bbox": list(checked.xywh), "area": area}
    return entry | {"iscrowd": int(checked.box.ignored)} | dict(checked.box.more)


def _report(output: Path, images: int, classes: Mapping[str, int], findings: Findings) -> None:
    boxes = sum(classes.values())
    report = {"images": images, "boxes": boxes, "classes": dict(classes), **findings.as_dict()}
    write_json(output.with_name(f"{output.stem}.report.json"), report)
    print(f"{output}: {images} images, {boxes} boxes of {len(classes)} classes.")
    print("\n".join([*(f"  {count:8} {name}" for name, count in classes.items()), *findings.lines()]))
