import json

import pytest

from cahqp.__main__ import main
from cahqp.cycle.publish import PublishOptions, publish
from cahqp.errors import RunError
from cahqp.labels.formats.coco import read_label_file
from cahqp.runs.evidence import analysis_mark

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 7, "name": "bus"}]
CAR, BUS, MISSED = [0, 0, 10, 10], [50, 0, 20, 10], [0, 30, 10, 10]


def annotation(number, bbox, category, **more):
    return {"id": number, "image_id": 5, "bbox": bbox, "area": 100, "category_id": category, "iscrowd": 0, **more}


@pytest.fixture
def files(tmp_path):
    """Labels with a shifted car, a bus as a car, a box without an object and an ignored one, beside ground truth."""
    image = {"id": 5, "file_name": "a.jpg", "width": 100, "height": 60}
    labels = [
        annotation(1, [1, 0, 10, 10], 3, score=0.9),
        annotation(2, BUS, 3, score=0.8, track_id=4),
        annotation(3, [80, 40, 10, 10], 7, score=0.7),
        annotation(4, MISSED, 3, score=0.2) | {"iscrowd": 1},
    ]
    true = [annotation(1, CAR, 3), annotation(2, BUS, 7), annotation(3, MISSED, 3)]
    for name, rows in (("labels", labels), ("true", true)):
        content = {"images": [image], "annotations": rows, "categories": CATEGORIES}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def repaired(files, fix):
    given = [f"--labels={files / 'labels.json'}", f"--ground-truth={files / 'true.json'}", f"--fix={fix}"]
    assert main(["repair-labels", *given, f"--output={files / fix}"]) == 0
    boxes = read_label_file(files / fix).images[0].boxes
    assert [box.bbox for box in boxes if box.ignored] == [tuple(MISSED)]
    return [(box.name, list(box.bbox)) for box in boxes if not box.ignored]


WRONG = ("bus", [80, 40, 10, 10])


def test_each_fix_repairs_its_errors_and_no_others(files):
    shifted, bus = ("car", [1, 0, 10, 10]), ("car", BUS)
    assert repaired(files, "class") == [shifted, ("bus", BUS), WRONG]
    assert repaired(files, "box") == [("car", CAR), bus, WRONG]
    assert repaired(files, "false-positive") == [shifted, bus]
    assert repaired(files, "missed") == [shifted, bus, WRONG, ("car", MISSED)]


def test_a_repaired_label_keeps_score_and_track(files):
    repaired(files, "class")
    box = read_label_file(files / "class").images[0].boxes[1]
    assert (box.score, box.track, box.more["reason"]) == (0.8, 4, "repaired from ground truth")


def test_results_of_repaired_labels_are_marked_and_not_published(files):
    repaired(files, "class")
    assert analysis_mark([files / "class" / "labels.json"]) == analysis_mark([files / "class"]) != {}
    assert analysis_mark([files / "labels.json"]) == {}
    (files / "class" / "model.safetensors").write_bytes(b"")
    options = PublishOptions(
        candidate=files / "class" / "model.safetensors", running=files, metrics=files, output=files / "published"
    )
    with pytest.raises(RunError, match="for analysis only"):
        publish(options)
