"""Tiny data sets in published layouts, and the command that imports them."""

import json

import numpy as np
import pytest
from PIL import Image

from cahqp.__main__ import main
from cahqp.coco.reader import read_coco


@pytest.fixture
def picture(tmp_path):
    """Write an image below the test's folder, optionally with an EXIF orientation, and return its path."""

    def write(name, size=(20, 40), orientation=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.full((*size, 3), len(name) % 200, np.uint8))
        exif = image.getexif()
        if orientation is not None:
            exif[0x0112] = orientation
        image.save(path, exif=exif)
        return path

    return write


@pytest.fixture
def text(tmp_path):
    """Write a text file, or a value as JSON, below the test's folder and return its path."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


class Imported:
    """Result of an import: exit code, boxes by image as (class, x, y, width, height), and the report."""

    def __init__(self, code, output, message):
        self.code, self.output, self.message = code, output, message
        report = output.with_name("coco.report.json")
        self.report = json.loads(report.read_text()) if report.is_file() else None

    @property
    def boxes(self):
        file = read_coco(self.output)
        rows = {}
        for position, frame in enumerate(file.frames):
            found = file.annotations(position)
            names = [file.categories[c] for c in found.categories.tolist()]
            sides = found.boxes.astype(float).round(2)
            rows[frame.name] = [
                (name, *box[:2].tolist(), *(box[2:] - box[:2]).round(2).tolist())
                for name, box in zip(names, sides, strict=True)
            ]
        return rows

    @property
    def ignored(self):
        file = read_coco(self.output)
        return {f.name: len(file.annotations(n).ignore) for n, f in enumerate(file.frames)}

    def count(self, group, kind):
        return self.report[group].get(kind, {"count": 0})["count"]


@pytest.fixture
def imported(tmp_path, capsys):
    """Run `cahqp import`; the output is `out/coco.json`."""

    def run(kind, source, *options):
        output = tmp_path / "out" / "coco.json"
        code = main(["import", kind, str(source), f"--output={output}", *map(str, options)])
        streams = capsys.readouterr()
        return Imported(code, output, streams.out + streams.err)

    return run
