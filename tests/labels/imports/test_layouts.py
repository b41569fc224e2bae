"""Label formats of other tools in their published layouts, on tiny files."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from cahqp.coco.decoding import read_header
from cahqp.labels.imports.orientation import to_stored

CAR = [("car", 4.0, 5.0, 8.0, 10.0)]
ROW = "0 0.2 0.5 0.2 0.5\n"  # CAR on an image of 40x20


def test_yolo_of_ultralytics_has_splits_polygons_and_images_without_text(imported, picture, text, tmp_path):
    text(
        "y/data.yaml", yaml.safe_dump({"path": "y", "train": "images/train", "val": "images/val", "names": {0: "car"}})
    )
    for name in ("train/a", "train/b", "val/c"):
        picture(f"y/images/{name}.jpg")
    text("y/labels/train/a.txt", ROW + "0 0.1 0.25 0.3 0.25 0.3 0.75 0.1 0.75\n")
    text("y/labels/val/c.txt", "")
    done = imported("yolo", tmp_path / "y", "--select", "split=train")
    assert done.boxes == {"images/train/a.jpg": CAR, "images/train/b.jpg": []}
    assert done.count("odd", "polygon, taken as the box around it") == 1
    assert done.count("left_out", "box that repeats another box") == 1
    assert done.count("odd", "image without a text file, taken as without objects") == 1


def test_yolo_of_roboflow_has_wrong_parents_and_images_in_each_split(imported, picture, text, tmp_path):
    config = {"train": "../train/images", "val": "../valid/images", "nc": 1, "names": ["bicycle"]}
    text("r/data.yaml", yaml.safe_dump(config))
    picture("r/train/images/a_jpg.rf.0a.jpg")
    picture("r/valid/images/b_jpg.rf.0b.jpg")
    text("r/train/labels/a_jpg.rf.0a.txt", ROW)
    text("r/valid/labels/b_jpg.rf.0b.txt", "")
    done = imported("yolo", tmp_path / "r" / "data.yaml", "--map", "bicycle=bike")
    assert list(done.boxes.values()) == [[("bike", *CAR[0][1:])], []]
    assert done.report["classes"] == {"bike": 1}


def test_yolo_lists_of_images_are_read(imported, picture, text, tmp_path):
    text("y/data.yaml", yaml.safe_dump({"train": "train.txt", "names": ["car"]}))
    picture("y/images/a.jpg")
    text("y/train.txt", "./images/a.jpg\n")
    text("y/labels/a.txt", ROW)
    assert imported("yolo", tmp_path / "y").boxes == {"images/a.jpg": CAR}


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ("0 0.5 0.5 0.1\n", "row is no box"),
        ("7 0.5 0.5 0.1 0.1\n", "row is no box"),
        ("0 nan 0.5 0.1 0.1\n", "row is no box"),
        ("0 20 10 8 8\n", "box is in pixels instead of shares 0..1"),
        ("0 0.5 0.5 0 0.1\n", "box has no area"),
        ("0 1.5 0.5 0.1 0.1\n", "box lies outside its image"),
    ],
)
def test_invalid_rows_are_refused_together_or_dropped_and_counted(imported, picture, text, tmp_path, rows, kind):
    text("y/data.yaml", yaml.safe_dump({"train": "images", "names": ["car"]}))
    picture("y/images/a.jpg")
    text("y/labels/a.txt", rows + ROW)
    refused = imported("yolo", tmp_path / "y")
    assert refused.code == 1
    assert kind in refused.message
    assert "a.txt, line 1" in refused.message
    assert not refused.output.exists()
    dropped = imported("yolo", tmp_path / "y", "--on-invalid", "drop")
    assert dropped.boxes == {"images/a.jpg": CAR}
    assert dropped.count("invalid", kind) == 1
    assert kind in dropped.message


def test_a_text_file_without_its_image_is_not_passed_over(imported, picture, text, tmp_path):
    text("y/data.yaml", yaml.safe_dump({"train": "images", "names": ["car"]}))
    picture("y/images/a.jpg")
    text("y/labels/a.txt", ROW)
    text("y/labels/gone.txt", ROW)
    assert "text file without an image" in imported("yolo", tmp_path / "y").message


def test_oddities_are_counted(imported, picture, text, tmp_path):
    text("y/data.yaml", yaml.safe_dump({"train": "images", "names": ["car"]}))
    picture("y/images/a.jpg")
    text("y/labels/a.txt", "0 0.95 0.5 0.2 0.5\n0 0.5 0.5 0.01 0.5\n")
    done = imported("yolo", tmp_path / "y")
    assert done.count("odd", "box clipped to its image") == 1
    assert done.count("odd", "box under one pixel") == 1
    assert done.boxes["images/a.jpg"][0] == ("car", 34.0, 5.0, 6.0, 10.0)


def test_boxes_of_an_image_with_an_orientation_need_a_decision(imported, picture, text, tmp_path):
    text("y/data.yaml", yaml.safe_dump({"train": "images", "names": ["car"]}))
    picture("y/images/a.jpg", orientation=6)  # 20x40 pixels upright
    text("y/labels/a.txt", "0 0.5 0.25 0.5 0.1\n")  # 5, 8, 10, 4 upright
    assert "--oriented upright" in imported("yolo", tmp_path / "y").message
    done = imported("yolo", tmp_path / "y", "--oriented", "upright")
    assert done.boxes == {"images/a.jpg": [("car", 8.0, 5.0, 4.0, 10.0)]}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_the_upright_view_turn_as_the_pixels_do(tmp_path, orientation):
    pixels = np.zeros((20, 40), np.uint8)
    pixels[3:9, 5:25] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))) > 0
    rows, columns = np.flatnonzero(upright.any(1)), np.flatnonzero(upright.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert to_stored(box, read_header(tmp_path / "a.png")) == (5, 3, 25, 9)


VOC = """<annotation><filename>{filename}</filename>{size}
<object><name>car</name><bndbox><xmin>4</xmin><ymin>5</ymin><xmax>12</xmax><ymax>15</ymax></bndbox></object>
<object><name>car</name><difficult>1</difficult>
<bndbox><xmin>20</xmin><ymin>5</ymin><xmax>30</xmax><ymax>15</ymax></bndbox></object></annotation>"""
SIZE = "<size><width>40</width><height>20</height></size>"


@pytest.mark.parametrize("filename", ["a.jpg", "a", "C:\\photos\\a.jpg", "other.jpg"])
def test_voc_finds_its_images(imported, picture, text, tmp_path, filename):
    picture("voc/JPEGImages/a.jpg")
    text("voc/Annotations/a.xml", VOC.format(filename=filename, size=SIZE))
    done = imported("voc", tmp_path / "voc")
    assert done.boxes == {"JPEGImages/a.jpg": CAR}
    assert done.ignored == {"JPEGImages/a.jpg": 1}


def test_voc_of_roboflow_lies_beside_its_images(imported, picture, text, tmp_path):
    picture("voc/train/a.jpg")
    text("voc/train/a.xml", VOC.format(filename="a.jpg", size=""))
    assert imported("voc", tmp_path / "voc", "--select", "split=train").boxes == {"train/a.jpg": CAR}


def test_labels_of_another_size_are_refused(imported, picture, text, tmp_path):
    picture("voc/JPEGImages/a.jpg")
    text("voc/Annotations/a.xml", VOC.format(filename="a.jpg", size=SIZE.replace("40", "80")))
    assert "labels are for 80x20, the file has 40x20" in imported("voc", tmp_path / "voc").message


BOX = '<box label="car" occluded="0" xtl="4" ytl="5" xbr="12" ybr="15" z_order="0"{more}/>'
CVAT = """<annotations><version>1.1</version><meta><job><labels><label><name>car</name></label></labels></job></meta>
<image id="0" name="{name}" width="40" height="20">{shapes}</image></annotations>"""


def test_cvat_reads_several_jobs(imported, picture, text, tmp_path):
    for job in ("job_1", "job_2"):
        picture(f"c/{job}/images/{job}.jpg")
        text(f"c/{job}/annotations.xml", CVAT.format(name=f"{job}.jpg", shapes=BOX.format(more="")))
    done = imported("cvat", tmp_path / "c")
    assert done.boxes == {f"job_{n}/images/job_{n}.jpg": CAR for n in (1, 2)}


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (BOX.format(more=' rotation="45"'), "box is rotated"),
        ('<polyline label="car" points="1,2;3,4"/>', "shape is a polyline, not a box"),
        (BOX.format(more="").replace('xtl="4"', 'xtl="x"'), "shape has no valid corners"),
    ],
)
def test_shapes_of_cvat_that_are_no_boxes_are_refused(imported, picture, text, tmp_path, shape, kind):
    picture("c/images/a.jpg")
    text("c/annotations.xml", CVAT.format(name="a.jpg", shapes=shape))
    assert kind in imported("cvat", tmp_path / "c").message


def test_cvat_video_reads_tracks(imported, picture, text, tmp_path):
    boxes = "".join(
        f'<box frame="{n}" outside="{int(n == 2)}" occluded="0" keyframe="1" xtl="4" ytl="5" xbr="12" ybr="15"/>'
        for n in range(3)
    )
    for number in range(3):
        picture(f"gate/images/frame_{number:06d}.PNG")
    meta = "<meta><task><original_size><width>40</width><height>20</height></original_size></task></meta>"
    text("gate/annotations.xml", f'<annotations>{meta}<track id="0" label="car">{boxes}</track></annotations>')
    done = imported("cvat", tmp_path / "gate")
    assert [*done.boxes.values()] == [CAR, CAR, []]
    document = json.loads(done.output.read_text())
    assert [a["track_id"] for a in document["annotations"]] == [0, 0]
    assert {(i["recording"], i["frame"]) for i in document["images"]} == {("gate", n) for n in range(3)}


def test_cvat_files_with_entities_are_refused(imported, text):
    path = text("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>')
    assert "declares entities" in imported("cvat", path).message


def _region(**changed):
    value = {"x": 10, "y": 25, "width": 20, "height": 50, "rotation": 0, "rectanglelabels": ["car"], **changed}
    return {"type": "rectanglelabels", "original_width": 40, "original_height": 20, "value": value}


@pytest.mark.parametrize(
    "url",
    [
        "/data/upload/3/0a1b2c3d-my%20car.jpg",
        "/data/local-files/?d=frames/my%20car.jpg",
        "s3://bucket/frames/my car.jpg",
        "http://host:8080/frames/my%20car.jpg?token=x",
    ],
)
def test_label_studio_finds_uploaded_and_encoded_names(imported, picture, text, tmp_path, url):
    picture("ls/images/my car.jpg")
    task = {"id": 1, "data": {"image": url}, "annotations": [{"result": [_region()]}]}
    path = text("ls/export.json", [task])
    assert imported("label-studio", path).boxes == {"images/my car.jpg": CAR}


def test_label_studio_json_min_is_read(imported, picture, text):
    picture("ls/images/a.jpg")
    region = {**_region()["value"], "original_width": 40, "original_height": 20}
    task = {"image": "/data/upload/1/0a1b2c3d-a.jpg", "id": 1, "label": [region], "annotator": 1, "annotation_id": 4}
    assert imported("label-studio", text("ls/min.json", [task])).boxes == {"images/a.jpg": CAR}


def test_label_studio_boxes_from_another_corner_or_beyond_the_image_are_normalised(imported, picture, text):
    picture("ls/images/a.jpg")
    regions = [_region(x=30, y=75, width=-20, height=-50), _region(x=90)]
    task = {"data": {"image": "a.jpg"}, "annotations": [{"was_cancelled": True}, {"result": regions}]}
    done = imported("label-studio", text("ls/a.json", [task, {"data": {"image": "b.jpg"}, "annotations": []}]))
    assert done.boxes == {"images/a.jpg": [*CAR, ("car", 36.0, 5.0, 4.0, 10.0)]}
    assert done.count("odd", "box drawn from another corner") == 1
    assert done.count("odd", "box clipped to its image") == 1
    assert done.count("left_out", "task without an annotation") == 1


def _document(name, **more):
    image = {"id": 1, "file_name": name, "width": 40, "height": 20, **more}
    box = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [4, 5, 8, 10]}
    return {"images": [image], "annotations": [box], "categories": [{"id": 5, "name": "car"}]}


@pytest.mark.parametrize(
    ("file", "image", "name"),
    [
        ("annotations/instances_train2017.json", "images/train2017/a.jpg", "a.jpg"),
        ("annotations/instances_train.json", "train/a.jpg", "a.jpg"),
        ("labels.json", "data/a.jpg", "a.jpg"),  # FiftyOne
        ("train/_annotations.coco.json", "train/a.jpg", "a.jpg"),  # Roboflow
        ("labels.json", "images/a.jpg", "images/a.jpg"),
        ("labels.json", "images/cam/a.jpg", "cam\\a.jpg"),
        ("labels.json", "images/a.jpg", "/home/other/data/a.jpg"),
    ],
)
def test_variants_of_coco_find_their_images(imported, picture, text, tmp_path, file, image, name):
    picture(f"d/{image}")
    text(f"d/{file}", _document(name))
    assert imported("coco", tmp_path / "d").boxes == {image: CAR}


def test_one_bad_box_in_a_coco_file_is_dropped_and_counted(imported, picture, text):
    picture("d/a.jpg")
    document = _document("a.jpg")
    document["annotations"] += [
        {"id": 2, "image_id": 1, "category_id": 5, "bbox": [4, 5, "x", 10]},
        {"id": 3, "image_id": 9, "category_id": 5, "bbox": [4, 5, 8, 10]},
        {"id": 4, "image_id": 1, "category_id": 5, "bbox": [4, 5, 8, 9], "attributes": {"rotation": 45}},
        {"id": 5, "image_id": 1, "category_id": 5, "bbox": [4, 5, 8, 8], "iscrowd": "maybe"},
    ]
    path = text("d/coco.json", document)
    assert "annotations[1]" in imported("coco", path).message
    done = imported("coco", path, "--on-invalid", "drop")
    assert list(done.boxes.values()) == [CAR]
    assert done.count("invalid", "annotation is invalid") == 4


def test_coco_video_keeps_videos_frames_and_tracks(imported, picture, text):
    picture("v/a/000001.jpg")
    document = _document("a/000001.jpg", video_id=3, frame_id=7) | {"videos": [{"id": 3, "name": "gate"}]}
    document["annotations"][0]["instance_id"] = 12
    done = imported("coco", text("v/vid.json", document))
    written = json.loads(done.output.read_text())
    assert (written["images"][0]["recording"], written["images"][0]["frame"]) == ("gate", 7)
    assert written["annotations"][0]["track_id"] == 12


def test_a_missing_image_names_the_option_that_helps(imported, text):
    done = imported("coco", text("d/coco.json", _document("a.jpg")))
    assert "image is missing" in done.message
    assert "--images" in done.message


def test_two_files_of_one_image_must_agree(imported, picture, text, tmp_path):
    picture("d/a.jpg")
    text("d/one.json", _document("a.jpg"))
    other = text("d/two.json", _document("a.jpg"))
    assert imported("coco", tmp_path / "d").count("left_out", "image that is listed before") == 1
    (tmp_path / "out" / "coco.json").unlink()
    changed = _document("a.jpg")
    changed["annotations"][0]["bbox"] = [1, 1, 2, 2]
    other.write_text(json.dumps(changed))
    assert "image has other boxes than before" in imported("coco", tmp_path / "d").message


def test_an_existing_output_is_never_overwritten(imported, picture, text):
    picture("d/a.jpg")
    path = text("d/coco.json", _document("a.jpg"))
    assert imported("coco", path).code == 0
    assert "never overwritten" in imported("coco", path).message


def test_a_mapped_class_must_exist(imported, picture, text):
    picture("d/a.jpg")
    assert (
        "the source has the classes car"
        in imported("coco", text("d/c.json", _document("a.jpg")), "--map", "cra=x").message
    )
