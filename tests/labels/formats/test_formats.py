import json
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from cahqp.__main__ import main
from cahqp.errors import DataError
from cahqp.labels.external import ExternalPredictions
from cahqp.labels.formats import cvat, label_studio, yolo
from cahqp.labels.formats.coco import (
    HUMAN,
    LabelBox,
    LabelImage,
    Labels,
    read_label_file,
    write_coco,
)
from cahqp.labels.formats.review import accept, merge_review, unique_images

MORE = {"uncertainty": 0.2, "weight": 0.8}


@pytest.fixture
def labels():
    """Three images: one with every kind of box, an empty one, one that a person has seen."""
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 200, (8, 2)), rng.uniform(2, 100, (8, 2))
    boxes = [
        LabelBox(
            ("car", "traffic light")[n % 2],
            tuple(np.round([*corner[n], *side[n]], 2).tolist()),
            round(0.3 + 0.05 * n, 4),
            n if n < 5 else None,
            ignored=n == 7,
            more=MORE | ({"reason": "doubtful"} if n == 7 else {}),
        )
        for n in range(8)
    ]
    drawn = LabelBox("car", (1.5, 2.25, 30.0, 40.75), None, None, HUMAN)
    size = {"width": 641, "height": 359}
    entries = [{"id": 10 + n, "file_name": f"a/b & c/{n}.jpg", **size, "recording": "a"} for n in range(3)]
    images = ((entries[0], tuple(boxes), False), (entries[1], (), False), (entries[2], (drawn,), True))
    return Labels({3: "car", 5: "traffic light"}, tuple(LabelImage(*image) for image in images))


def seen(labels):
    return {image.name: (image.reviewed, image.boxes) for image in labels.images}


def held(box, *names):
    return [getattr(box, name) for name in ("name", "bbox", "score", *names)]


def test_coco_loses_nothing_and_pycocotools_reads_it(labels, tmp_path, capsys):
    write_coco(labels, tmp_path / "labels.json")
    assert read_label_file(tmp_path) == labels
    coco = COCO(tmp_path / "labels.json")
    assert coco.getImgIds() == [10, 11, 12]
    assert coco.loadCats([3, 5])[1]["name"] == "traffic light"
    assert sorted(a["iscrowd"] for a in coco.loadAnns(coco.getAnnIds())) == [0] * 8 + [1]


@pytest.mark.parametrize("module", [cvat, label_studio])
def test_formats_with_confidence_come_back_whole(module, labels, tmp_path):
    module.write(labels, tmp_path)
    back = module.read(tmp_path)
    for image, returned in zip(labels.images, back.images, strict=True):
        assert (returned.name, returned.reviewed) == (image.name, image.reviewed)
        assert [returned.entry[key] for key in ("width", "height")] == [641, 359]
        columns = ("track", "origin", "ignored")
        assert [held(b, *columns) for b in returned.boxes] == [held(b, *columns) for b in image.boxes]


def test_yolo_comes_back_with_scores(labels, tmp_path):
    yolo.write(labels, tmp_path)
    back = yolo.read(tmp_path, labels)
    for image, returned in zip(labels.images, back.images, strict=True):
        assert [held(b) for b in returned.boxes] == [held(b) for b in image.boxes]


def test_yolo_is_what_trainers_read(labels, tmp_path):
    yolo.write(labels, tmp_path)
    told = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert told["names"] == {0: "car", 1: "traffic light"}
    listed = (tmp_path / "train.txt").read_text().splitlines()
    assert listed[0] == "./images/train/a/b & c/0.jpg"
    rows = np.loadtxt(tmp_path / "labels" / "train" / "a" / "b & c" / "0.txt")
    assert rows.shape == (7, 5)  # the region to ignore has no place there
    x, y, width, height = labels.images[0].boxes[0].bbox
    shares = [(x + width / 2) / 641, (y + height / 2) / 359, width / 641, height / 359]
    assert rows[0] == pytest.approx([0, *shares], abs=1e-7)
    assert (tmp_path / "labels" / "train" / "a" / "b & c" / "1.txt").read_text() == ""


def test_cvat_has_what_its_schema_asks_for(labels, tmp_path):
    cvat.write(labels, tmp_path)
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert [label.findtext("name") for label in root.iterfind("./meta/task/labels/label")] == ["car", "traffic light"]
    images = root.findall("image")
    assert [set(image.attrib) for image in images] == [{"id", "name", "width", "height"}] * 3
    needed = {"label", "source", "occluded", "xtl", "ytl", "xbr", "ybr", "z_order"}
    assert all(set(box.attrib) == needed for box in root.iter("box"))
    assert [box.attrib["source"] for box in root.iter("box")] == ["auto"] * 8 + ["manual"]


def test_label_studio_has_what_its_import_asks_for(labels, tmp_path):
    label_studio.write(labels, tmp_path)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    result = tasks[0]["predictions"][0]["result"][0]
    assert set(result["value"]) == {"x", "y", "width", "height", "rotation", "rectanglelabels"}
    assert result["value"]["x"] == pytest.approx(100 * labels.images[0].boxes[0].bbox[0] / 641)
    assert (result["type"], result["from_name"], result["to_name"]) == ("rectanglelabels", "label", "image")
    assert (result["original_width"], result["original_height"]) == (641, 359)
    assert "annotations" not in tasks[0]
    assert len(tasks[2]["annotations"][0]["result"]) == 1
    config = ElementTree.parse(tmp_path / "labeling_config.xml").getroot()
    assert [label.attrib["value"] for label in config.iter("Label")] == ["car", "traffic light"]


def test_what_a_person_changed_is_truth_and_the_rest_as_it_was(labels, tmp_path):
    cvat.write(labels, tmp_path)
    file = tmp_path / "annotations.xml"
    tree = ElementTree.parse(file)
    box = next(tree.getroot().iter("box"))
    box.attrib |= {"source": "manual", "xbr": "300.00"}
    tree.getroot().remove(tree.getroot().findall("image")[1])
    tree.write(file)
    back = merge_review(cvat.read(file), labels)
    changed, untouched = back.images[0].boxes[0], back.images[0].boxes[1:]
    assert (changed.origin, changed.score, changed.bbox[0] + changed.bbox[2]) == (HUMAN, None, 300)
    assert untouched == labels.images[0].boxes[1:]
    assert back.images[0].reviewed
    assert back.images[1] == labels.images[1]
    assert back.categories == labels.categories


def test_an_accepted_image_is_a_persons_word(labels):
    found = accept(labels)
    assert all(image.reviewed for image in found.images)
    boxes = [box for image in found.images for box in image.boxes]
    assert len(boxes) == 8  # without the one that was in doubt
    assert all((b.origin, b.score) == (HUMAN, None) and not b.more for b in boxes)


@pytest.mark.parametrize("module", [cvat, label_studio, yolo])
def test_untouched_doubt_goes_where_all_was_accepted(module, labels, tmp_path):
    module.write(labels, tmp_path)
    back = module.read(tmp_path, labels) if module is yolo else module.read(tmp_path)
    found = merge_review(back, labels, reviewed=True)
    assert [len(image.boxes) for image in found.images] == [7, 0, 1]
    assert all(box.origin == HUMAN and not box.more for image in found.images for box in image.boxes)


def test_images_that_did_not_come_back_were_not_accept(labels):
    back = merge_review(Labels(labels.categories, labels.images[1:]), labels, reviewed=True)
    assert back.images[0] == labels.images[0]
    assert back.images[1].reviewed


def annotated(labels, folder, change):
    """Write tasks of Label Studio and read them again after `change(task)` of the first."""
    label_studio.write(labels, folder)
    file = folder / "tasks.json"
    tasks = json.loads(file.read_text())
    change(tasks[0])
    file.write_text(json.dumps(tasks))
    return label_studio.read(file)


def test_doubt_left_in_a_persons_annotation_is_still_a_models(labels, tmp_path):
    back = annotated(labels, tmp_path, lambda task: task.update(annotations=task["predictions"]))
    kept = merge_review(back, labels).images[0]
    assert [box.origin for box in kept.boxes] == [HUMAN] * 7 + ["model"]
    assert kept.boxes[7] == labels.images[0].boxes[7]
    assert len(merge_review(back, labels, reviewed=True).images[0].boxes) == 7


CANCELLED = {"result": [], "was_cancelled": True}


@pytest.mark.parametrize("predictions", [[], [17], None])
@pytest.mark.parametrize("annotations", [[], [CANCELLED], None])
def test_a_task_that_says_nothing_changes_nothing(annotations, predictions, labels, tmp_path):
    back = annotated(labels, tmp_path, lambda task: task.update(annotations=annotations, predictions=predictions))
    assert len(back.images) == 2
    assert merge_review(back, labels) == labels


def turned(task):
    task["predictions"][0]["result"][0]["value"]["rotation"] = 30


def outlined(task):
    task["predictions"][0]["result"].append({"type": "polygonlabels", "value": {"points": [[1, 1], [2, 2], [3, 1]]}})


@pytest.mark.parametrize(("change", "told"), [(turned, "a rotated rectangle"), (outlined, "of kind polygonlabels")])
def test_shapes_of_label_studio_that_are_no_boxes_are_refused(change, told, labels, tmp_path):
    with pytest.raises(DataError, match=rf"a/b & c/0\.jpg has .*{told}"):
        annotated(labels, tmp_path, change)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("</image>", '<polygon label="car" points="1,1;5,1;5,5"/></image>', "polygon"),
        ("</image>", '<polyline label="car" points="1,1;5,1"/></image>', "polyline"),
        ("<box ", '<box rotation="45.0" ', "rotated box"),
    ],
)
def test_shapes_of_cvat_that_are_no_boxes_are_refused(old, new, told, labels, tmp_path):
    cvat.write(labels, tmp_path)
    file = tmp_path / "annotations.xml"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=rf"a/b & c/0\.jpg has a {told}"):
        cvat.read(file)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.jpg", "a.png"], "'a.jpg' and 'a.png' in one text file"),
        (["../a.jpg"], "outside"),
        (["/a.jpg"], "outside"),
        (["b\\..\\a.jpg"], "outside"),
    ],
)
def test_names_that_yolo_has_no_file_for_are_refused(names, told, tmp_path):
    images = tuple(
        LabelImage({"id": n, "file_name": name, "width": 9, "height": 9}, ()) for n, name in enumerate(names)
    )
    given = Labels({1: "car"}, images)
    with pytest.raises(DataError, match=told):
        yolo.write(given, tmp_path / "out")
    assert not list(tmp_path.rglob("*.txt"))


def test_a_line_of_yolo_that_is_no_box_sent_out_is_a_persons(labels, tmp_path):
    yolo.write(labels, tmp_path)
    file = tmp_path / "labels" / "train" / "a" / "b & c" / "0.txt"
    lines = [" ".join(f"{float(v):.6f}" if n else v for n, v in enumerate(line.split())) for line in file.open()]
    lines[1] = "1 0.5 0.5 0.9 0.9"
    file.write_text("\n".join(lines[:6]))  # one redrawn, one taken away, the rest rounded by the tool
    image = merge_review(yolo.read(tmp_path, labels), labels).images[0]
    sent = labels.images[0].boxes
    assert [image.boxes[n] for n in (0, 2, 3, 4, 5)] == [sent[n] for n in (0, 2, 3, 4, 5)]
    assert (image.boxes[1].origin, image.boxes[1].score, image.boxes[1].track) == (HUMAN, None, None)
    assert [box.ignored for box in image.boxes] == [False] * 6 + [True]
    assert image.reviewed


def test_what_was_never_sent_out_is_refused(labels):
    strange = Labels(labels.categories, (LabelImage({"file_name": "z.jpg"}, ()),))
    with pytest.raises(DataError, match=r"name z\.jpg"):
        merge_review(strange, labels)


@pytest.mark.parametrize(
    ("module", "name", "text", "told"),
    [
        (cvat, "annotations.xml", "<annotations><track/></annotations>", "not for video"),
        (cvat, "annotations.xml", "no xml", "no readable XML"),
        (cvat, "annotations.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "declares entities"),
        (cvat, "annotations.xml", '<annotations><image name="a"/></annotations>', "lacks a value"),
        (label_studio, "tasks.json", "{}", "list of tasks"),
        (label_studio, "tasks.json", '[{"data": {}}]', "task 1 lacks"),
    ],
)
def test_files_of_something_else_are_refused(module, name, text, told, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=told):
        module.read(tmp_path)


def test_broken_yolo_is_refused(labels, tmp_path):
    yolo.write(labels, tmp_path)
    with pytest.raises(DataError, match="Give --like"):
        yolo.read(tmp_path, None)
    (tmp_path / "labels" / "train" / "a" / "b & c" / "0.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match="line 1"):
        yolo.read(tmp_path, labels)


@pytest.mark.parametrize(
    "line",
    ["0 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4", "0 0.1 0.2 0.3 0.4 0.5 0.6", "-1 0.5 0.5 0.1 0.1", "0 nan 0.5 0.1 0.1"],
)
def test_lines_of_yolo_that_are_no_boxes_of_a_known_class_are_refused(line, labels, tmp_path):
    yolo.write(labels, tmp_path)
    (tmp_path / "labels" / "train" / "a" / "b & c" / "0.txt").write_text(line + "\n")
    with pytest.raises(DataError, match="line 1"):
        yolo.read(tmp_path, labels)


def test_classes_of_yolo_are_known_by_number(labels, tmp_path):
    yolo.write(labels, tmp_path)
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({**data, "names": {7: "traffic light", 2: "car"}}))
    (tmp_path / "labels" / "train" / "a" / "b & c" / "0.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    (tmp_path / "labels" / "train" / "a" / "b & c" / "2.txt").unlink()
    assert yolo.read(tmp_path, labels).images[0].boxes[0].name == "traffic light"
    (tmp_path / "data.yaml").write_text("names: null\n")
    with pytest.raises(DataError, match="no `names`"):
        yolo.read(tmp_path, labels)


def test_a_models_boxes_beside_a_persons_go_through_label_studio(labels, tmp_path):
    entry, boxes = labels.images[0].entry, labels.images[0].boxes
    drawn = labels.images[2].boxes
    mixed = Labels(labels.categories, (LabelImage(entry, boxes + drawn, True), labels.images[1]))
    label_studio.write(mixed, tmp_path)
    assert seen(merge_review(label_studio.read(tmp_path), mixed)) == seen(mixed)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    tasks[0]["annotations"][0]["result"][0]["value"]["x"] += 1.0
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    moved = merge_review(label_studio.read(tmp_path), mixed).images[0].boxes[0]
    assert (moved.origin, moved.score) == (HUMAN, None)


def test_an_image_of_another_size_is_refused(labels):
    turned = LabelImage({**labels.images[0].entry, "width": 359, "height": 641}, labels.images[0].boxes)
    with pytest.raises(DataError, match=r"another size: a/b & c/0\.jpg"):
        merge_review(Labels(labels.categories, (turned,)), labels)


def test_of_an_image_that_came_back_twice_the_one_that_was_seen_counts(labels):
    first, _, drawn = labels.images
    other = LabelImage(drawn.entry, ())
    assert unique_images(Labels(labels.categories, (other, drawn))).images == (drawn,)
    assert unique_images(Labels(labels.categories, (drawn, other))).images == (drawn,)
    with pytest.raises(DataError, match=r"0\.jpg \(2 times, 0 of them"):
        unique_images(Labels(labels.categories, (first, first)))


def predictions(path, image=None, **changed):
    annotation = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5} | changed
    images = [{"id": 1, "file_name": "a.jpg"} | (image or {})]
    categories = [{"id": 2, "name": "car"}, {"id": 3, "name": "zebra"}]
    path.write_text(json.dumps({"images": images, "annotations": [annotation], "categories": categories}))
    return path


def test_predictions_of_other_detectors(tmp_path):
    found = ExternalPredictions(predictions(tmp_path / "a.json"), ["bus", "car"])
    boxes = found.predict("a.jpg", (48, 64), 0.1)
    assert boxes.boxes.tolist() == [[1, 2, 4, 6]]
    assert (boxes.labels.tolist(), boxes.scores.tolist()) == ([1], [0.5])
    assert found.predict("a.jpg", (48, 64), 0.6).boxes.shape == (0, 4)
    assert found.predict("b.jpg", (48, 64), 0.1) is None
    with pytest.raises(DataError, match="contains none of the frames"):
        found.check(["b.jpg"])
    with pytest.raises(DataError, match="none of bus"):
        ExternalPredictions(predictions(tmp_path / "a.json"), ["bus"])
    with pytest.raises(DataError, match=r"annotations\[0\]: lacks `score`"):
        ExternalPredictions(predictions(tmp_path / "a.json", score=None), ["car"])


def test_predictions_on_images_of_another_size_are_refused(tmp_path):
    found = ExternalPredictions(predictions(tmp_path / "a.json", image={"width": 640, "height": 480}), ["car"])
    assert len(found.predict("a.jpg", (480, 640), 0.1).boxes) == 1
    with pytest.raises(DataError, match=r"'a\.jpg' for 640 x 480 pixels, the frame has 64 x 48"):
        found.predict("a.jpg", (48, 64), 0.1)


def changed(document, part, **values):
    row = {key: value for key, value in (document[part][0] | values).items() if value != "gone"}
    return document | {part: [row, *document[part][1:]]}


def twice(document, part):
    return document | {part: [document[part][0], *document[part]]}


DOCUMENT = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 90, "height": 60}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}],
    "categories": [{"id": 2, "name": "car"}],
}
BAD = [
    (changed(DOCUMENT, "images", id="gone"), r"images\[0\]: lacks `id`"),
    (changed(DOCUMENT, "images", file_name="gone"), r"images\[0\]: lacks `file_name`"),
    (twice(DOCUMENT, "images"), r"images\[1\]: id 1 is already"),
    (changed(DOCUMENT, "annotations", bbox="gone"), r"annotations\[0\]: .*`bbox`"),
    (changed(DOCUMENT, "annotations", bbox=[1, 2, float("nan"), 4]), r"annotations\[0\]: .*`bbox`"),
    (changed(DOCUMENT, "annotations", bbox=[1, 2, 3, 10**400]), r"annotations\[0\]: .*`bbox`"),
    (changed(DOCUMENT, "annotations", image_id=7), r"annotations\[0\]: `image_id` 7"),
    (changed(DOCUMENT, "annotations", category_id=7), r"annotations\[0\]: `category_id` 7"),
    (changed(DOCUMENT, "annotations", score=2), r"annotations\[0\]: .*`score`"),
    (changed(DOCUMENT, "categories", name="gone"), r"categories\[0\]: lacks `name`"),
]


@pytest.mark.parametrize("read", [read_label_file, lambda path: ExternalPredictions(path, ["car"])])
@pytest.mark.parametrize(("document", "told"), BAD)
def test_bad_rows_are_named_with_their_file(read, document, told, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=rf"(?s)bad\.json.*{told}"):
        read(tmp_path / "bad.json")


@pytest.mark.parametrize(("width", "told"), [("gone", "lacks `width`"), (0, "`width` must be above 0")])
def test_labels_need_the_sizes_of_their_images(width, told, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(changed(DOCUMENT, "images", width=width)))
    with pytest.raises(DataError, match=rf"images\[0\]: {told}"):
        read_label_file(tmp_path / "a.json")


def test_reformat_there_and_back(labels, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    write_coco(labels, tmp_path / "run" / "labels.json")
    (tmp_path / "run" / "source.json").write_text('{"root": ".."}')
    for kind in ("cvat", "yolo", "label-studio"):
        like = f"--like={tmp_path / 'run' / 'labels.json'}"
        there, back = tmp_path / kind, tmp_path / f"{kind}-back"
        assert main(["reformat", f"--labels={tmp_path / 'run'}", f"--to={kind}", f"--output={there}"]) == 0
        given = [f"--labels={there}", f"--source={kind}", "--to=coco", like, f"--output={back}"]
        assert main(["reformat", *given]) == 0
        assert seen(read_label_file(back))["a/b & c/0.jpg"] == seen(labels)["a/b & c/0.jpg"]
        assert json.loads((back / "source.json").read_text()) == {"root": ".."}
    given = [f"--labels={tmp_path / 'yolo'}", "--source=yolo", "--to=coco", f"--output={tmp_path / 'bad'}"]
    assert main(["reformat", *given]) == 1
    assert "Give --like" in capsys.readouterr().err
    assert not list(tmp_path.glob("bad*"))
    assert main(["reformat", *given, like, "--reviewed"]) == 0
    assert "8 boxes on 3 images, 3 of them reviewed by a person" in capsys.readouterr().out


def ultralytics_pairs(folder):
    """Return image and label paths as Ultralytics' data set check finds them, wherever the process stands."""
    data = yaml.safe_load((folder / "data.yaml").read_text())
    assert {"train", "val", "names"} <= data.keys() and "path" not in data  # without `path`: beside data.yaml
    assert list(data["names"]) == list(range(len(data["names"])))
    assert data.get("nc", len(data["names"])) == len(data["names"])
    pairs = []
    for split in ("train", "val"):
        for line in (folder / data[split]).read_text().splitlines():
            image = folder / line.removeprefix("./")
            before, after = str(image).rsplit("/images/", 1)
            pairs.append((image, (Path(before) / "labels" / after).with_suffix(".txt")))
    return pairs, len(data["names"])


def test_yolo_follows_the_rules_that_ultralytics_checks(labels, tmp_path, monkeypatch):
    yolo.write(labels, tmp_path / "export")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    pairs, classes = ultralytics_pairs(tmp_path / "export")
    assert len(pairs) == 2 * len(labels.images)
    assert any(text.read_text() for _, text in pairs)
    for _, text in pairs:
        rows = [line.split() for line in text.read_text().splitlines()]
        assert all(len(row) == 5 for row in rows)
        assert len({tuple(row) for row in rows}) == len(rows)
        assert all(0 <= int(row[0]) < classes for row in rows)
        assert all(0 <= float(share) <= 1 for row in rows for share in row[1:])


def test_ultralytics_loads_the_yolo_export_from_another_folder(labels, tmp_path, monkeypatch):
    data = pytest.importorskip("ultralytics.data.utils", reason="it is no dependency of cahqp")
    yolo.write(labels, tmp_path / "export")
    for image, _ in ultralytics_pairs(tmp_path / "export")[0]:
        image.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), np.zeros((359, 641, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    found = data.check_det_dataset(str(tmp_path / "export/data.yaml"), autodownload=False)
    assert list(found["names"].values()) == list(labels.categories.values())
