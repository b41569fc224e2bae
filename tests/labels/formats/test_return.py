"""Corrections on their way back, and exports that training accepts: `cahqp reformat`."""

import json

import pytest
import yaml

from cahqp.__main__ import main


@pytest.fixture
def sent(write_coco):
    """A COCO file of three images with one box each."""
    return write_coco(name="sent", frames=3)


@pytest.fixture
def back(sent, tmp_path, capsys):
    """Read a folder or file back onto `sent`; return exit code, boxes by image, and all output."""

    def run(path, source, *options):
        output = tmp_path / "back"
        given = [f"--labels={path}", f"--source={source}", "--to=coco", f"--like={sent}", f"--output={output}"]
        code = main(["reformat", *given, *options])
        streams = capsys.readouterr()
        boxes = {}
        if code == 0:
            document = json.loads((output / "labels.json").read_text())
            names = {image["id"]: image["file_name"] for image in document["images"]}
            boxes = {name: [] for name in names.values()}
            for box in document["annotations"]:
                boxes[names[box["image_id"]]].append(box["bbox"])
        return code, boxes, streams.out + streams.err

    return run


def _text(folder, name, row="0 0.5 0.5 0.25 0.5\n"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(row)
    (folder / "data.yaml").write_text(yaml.safe_dump({"names": ["car"]}))


@pytest.mark.parametrize(
    "name",
    [
        "labels/train/north/000.txt",
        "labels/north/000.txt",
        "labels/000.txt",
        "train/labels/000.txt",
        "train/labels/000_png.rf.0a1b2c3d.txt",
    ],
)
def test_yolo_comes_back_in_the_layouts_of_tools(name, back, tmp_path):
    _text(tmp_path / "y", name)
    code, boxes, said = back(tmp_path / "y", "yolo")
    assert code == 0
    assert boxes == {
        "north/000.png": [[12, 6, 8, 12]],
        "north/001.png": [[4, 6, 10, 8]],
        "north/002.png": [[4, 6, 10, 8]],
    }
    assert "2 images of" in said
    assert "did not come back and keep their labels" in said


@pytest.mark.parametrize("name", ["labels/other.txt", "texts/000.txt"])
def test_yolo_texts_of_no_image_are_refused(name, back, tmp_path):
    _text(tmp_path / "y", name)
    code, _, said = back(tmp_path / "y", "yolo")
    assert code == 1
    assert "no image sent out" in said or "contains no text file" in said


def _task(name, result, **data):
    return {"data": {"image": name, **data}, "annotations": [{"result": result}]}


def test_a_reviewed_task_without_boxes_removes_the_boxes(back, tmp_path):
    (tmp_path / "ls.json").write_text(
        json.dumps([_task("/data/upload/1/0a1b2c3d-x.png", [], file_name="north/001.png")])
    )
    code, boxes, _ = back(tmp_path / "ls.json", "label-studio")
    assert code == 0
    assert boxes["north/001.png"] == []


def _rectangle(**value):
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["car"], **value}
    return {"type": "rectanglelabels", "original_width": 32, "original_height": 24, "value": value}


def test_rectangles_from_another_corner_or_beyond_the_image_are_normalised(back, tmp_path):
    results = [_rectangle(x=50, y=50, width=-25, height=-25), _rectangle(x=75, width=50)]
    (tmp_path / "ls.json").write_text(json.dumps([_task("/data/local-files/?d=north/000.png", results)]))
    code, boxes, said = back(tmp_path / "ls.json", "label-studio")
    assert code == 0
    assert boxes["north/000.png"] == [[8, 6, 8, 6], [24, 2.4, 8, 4.8]]
    assert "1 boxes crossed the border" in said


@pytest.mark.parametrize("row", ["0 0.5 0.5 0 0.5\n", "0 1.5 0.5 0.25 0.5\n"])
def test_boxes_without_area_or_outside_are_refused_with_their_image(row, back, tmp_path):
    _text(tmp_path / "y", "labels/000.txt", row)
    code, _, said = back(tmp_path / "y", "yolo")
    assert code == 1
    assert "north/000.png, box 1" in said


def test_cvat_boxes_of_zero_size_are_refused_with_their_image(back, tmp_path):
    box = '<box label="car" xtl="4" ytl="5" xbr="4" ybr="9"/>'
    image = f'<image id="0" name="north/000.png" width="32" height="24">{box}</image>'
    (tmp_path / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    code, _, said = back(tmp_path / "annotations.xml", "cvat")
    assert code == 1
    assert "north/000.png, box 1" in said


def test_an_export_to_yolo_has_its_images_and_no_path(sent, tmp_path):
    assert main(["reformat", f"--labels={sent}", "--to=yolo", f"--output={tmp_path / 'y'}"]) == 0
    for line in (tmp_path / "y" / "train.txt").read_text().split():
        assert (tmp_path / "y" / line).is_file()
    assert "path" not in yaml.safe_load((tmp_path / "y" / "data.yaml").read_text())
