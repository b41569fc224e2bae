"""Public benchmarks in their published layouts, on tiny files."""

import json

import pytest

DETRAC = """<?xml version="1.0" encoding="utf-8"?>
<sequence name="{name}">
  <sequence_attribute camera_state="unstable" sence_weather="{weather}"/>
  <ignored_region><box left="0" top="0" width="8.5" height="4"/></ignored_region>
  <frame density="1" num="2"><target_list><target id="3">
    <box left="10.5" top="5" width="12" height="6.25"/>
    <attribute orientation="18.488" speed="6.859" trajectory_length="5" truncation_ratio="0.1" vehicle_type="van"/>
  </target></target_list></frame>
</sequence>"""


@pytest.fixture
def detrac(picture, text, tmp_path):
    for split, name, weather in (("Train", "MVI_20011", "sunny"), ("Test", "MVI_39031", "night")):
        text(f"ua/DETRAC-{split}-Annotations-XML/{name}.xml", DETRAC.format(name=name, weather=weather))
        for number in (1, 2):
            picture(f"ua/Insight-MVT_Annotation_{split}/{name}/img{number:05d}.jpg")
    return tmp_path / "ua"


def test_ua_detrac_is_read_by_weather_with_its_ignored_regions(imported, detrac):
    done = imported("ua-detrac", detrac, "--select", "weather=night", "split=test", "--map", "van=car")
    name = "Insight-MVT_Annotation_Test/MVI_39031/img00002.jpg"
    assert done.boxes == {name: [("car", 10.5, 5.0, 12.0, 6.25)]}
    assert done.ignored == {name: 1}
    entry = json.loads(done.output.read_text())["images"][0]
    assert (entry["recording"], entry["frame"], entry["timestamp"]) == ("MVI_39031", 2, 0.04)
    assert done.count("left_out", "frame without an entry in its XML file") == 1


def test_a_value_that_no_image_has_is_refused_with_the_possible_ones(imported, detrac):
    done = imported("ua-detrac", detrac, "--select", "weather=snow")
    assert done.code == 1
    assert "weather=night, weather=sunny" in done.message
    assert not done.output.exists()


def test_a_chosen_class_keeps_regions_that_count_for_every_class(imported, detrac):
    done = imported("ua-detrac", detrac, "--classes", "bus")
    assert set(done.ignored.values()) == {1}
    assert done.report["boxes"] == 0
    assert done.count("left_out", "box of class van") == 2


BDD = [
    {"name": "a.jpg", "attributes": {"timeofday": "daytime", "weather": "clear", "scene": "city street"},
     "labels": [{"id": "0", "category": "bike", "box2d": {"x1": 1, "y1": 2, "x2": 11.5, "y2": 12}},
                {"id": "1", "category": "lane", "poly2d": [{"vertices": [[0, 0], [1, 1]]}]}]},
    {"name": "b.jpg", "attributes": {"timeofday": "night", "weather": "clear", "scene": "highway"}, "labels": None},
]  # fmt: skip


@pytest.mark.parametrize("name", ["labels/det_20/det_train.json", "labels/bdd100k_labels_images_train.json"])
def test_bdd100k_is_read_by_time_of_day(imported, picture, text, tmp_path, name):
    for image in ("a", "b"):
        picture(f"bdd/images/100k/train/{image}.jpg")
    path = text(f"bdd/{name}", BDD)
    day = imported("bdd100k", tmp_path / "bdd", "--select", "timeofday=daytime", "split=train")
    assert day.boxes == {"images/100k/train/a.jpg": [("bicycle", 1.0, 2.0, 10.5, 10.0)]}
    day.output.unlink()
    assert list(imported("bdd100k", path, "--select", "timeofday=night").boxes.values()) == [[]]


def test_bdd100k_is_read_from_one_file_per_image(imported, picture, text, tmp_path):
    picture("bdd/images/100k/val/c.jpg")
    objects = [{"category": "car", "id": 0, "box2d": {"x1": 1, "y1": 2, "x2": 5, "y2": 6}}]
    frame = {"name": "c", "attributes": BDD[1]["attributes"], "frames": [{"timestamp": 10000, "objects": objects}]}
    text("bdd/labels/100k/val/c.json", frame)
    done = imported("bdd100k", tmp_path / "bdd", "--select", "split=val", "timeofday=night")
    assert done.boxes == {"images/100k/val/c.jpg": [("car", 1.0, 2.0, 4.0, 4.0)]}


@pytest.fixture
def cityscapes(picture, text, tmp_path):
    for split, city in (("train", "aachen"), ("val", "munster")):
        stem = f"{city}_000000_000019"
        polygons = [
            {"label": "road", "polygon": [[0, 0], [39, 0], [39, 19]]},
            {"label": "car", "polygon": [[2, 3], [9, 3], [9, 8], [4, 10]]},
            {"label": "cargroup", "polygon": [[20, 3], [30, 3], [30, 8]]},
        ]
        document = {"imgHeight": 20, "imgWidth": 40, "objects": polygons}
        text(f"city/gtFine/{split}/{city}/{stem}_gtFine_polygons.json", document)
        picture(f"city/leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
        for beta in ("0.005", "0.01", "0.02"):
            picture(f"city/leftImg8bit_foggy/{split}/{city}/{stem}_leftImg8bit_foggy_beta_{beta}.png")
    return tmp_path / "city"


def test_cityscapes_polygons_become_boxes_and_groups_regions(imported, cityscapes):
    done = imported("cityscapes", cityscapes, "--select", "split=train")
    name = "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    assert done.boxes == {name: [("car", 2.0, 3.0, 7.0, 7.0)]}
    assert done.ignored == {name: 1}
    assert json.loads(done.output.read_text())["images"][0]["recording"] == "aachen_000000"
    categories = json.loads(done.output.read_text())["categories"]
    assert [c["name"] for c in categories] == "person rider car truck bus train motorcycle bicycle".split()


def test_foggy_cityscapes_is_read_by_its_fog(imported, cityscapes):
    done = imported("foggy-cityscapes", cityscapes, "--select", "beta=0.02", "city!=aachen", "--classes", "car")
    name = "leftImg8bit_foggy/val/munster/munster_000000_000019_leftImg8bit_foggy_beta_0.02.png"
    assert done.boxes == {name: [("car", 2.0, 3.0, 7.0, 7.0)]}


def test_a_ready_coco_file_of_foggy_cityscapes_finds_its_images(imported, cityscapes, text):
    name = "munster_000000_000019_leftImg8bit_foggy_beta_0.02.png"
    document = {
        "images": [{"id": 3, "file_name": name, "width": 40, "height": 20}],
        "annotations": [{"id": 1, "image_id": 3, "category_id": 26, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 26, "name": "car"}],
    }
    path = text("city/cocoAnnotations/cityscapes_foggy_val_cocostyle.json", document)
    done = imported("coco", path, "--images", cityscapes / "leftImg8bit_foggy")
    assert list(done.boxes) == [f"val/munster/{name}"]


VOC = """<annotation><folder>VOC2012</folder><filename>{name}.jpg</filename>
<size><width>40</width><height>20</height><depth>3</depth></size>
<object><name>car</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>10</xmax><ymax>8</ymax></bndbox></object>
<object><name>motorbike</name>
<bndbox><xmin>11</xmin><ymin>3</ymin><xmax>20</xmax><ymax>8</ymax></bndbox></object></annotation>"""


def test_sim10k_is_read_by_its_list_with_cars_alone(imported, picture, text, tmp_path):
    for name in ("3384645", "3384646"):
        picture(f"VOC2012/JPEGImages/{name}.jpg")
        text(f"VOC2012/Annotations/{name}.xml", VOC.format(name=name))
    text("VOC2012/ImageSets/Main/trainval10k.txt", "3384645\n")
    chosen = ["split=trainval10k", "fold!=6"]
    done = imported("sim10k", tmp_path / "VOC2012", "--select", *chosen, "--classes", "car")
    assert done.boxes == {"JPEGImages/3384645.jpg": [("car", 0.0, 2.0, 10.0, 6.0)]}  # pixels count from 1
    assert done.count("left_out", "box of class motorbike") == 1


def test_acdc_is_read_by_condition_though_the_file_of_rain_lists_all(imported, picture, text, tmp_path):
    names = [f"{condition}/train/GP010476/GP010476_frame_000054_rgb_anon.png" for condition in ("rain", "fog")]
    for name in names:
        picture(f"acdc/rgb_anon/{name}")
    box = {"category_id": 26, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    document = {
        "images": [{"id": n, "file_name": name, "width": 40, "height": 20} for n, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": n, **box} for n in range(2)],
        "categories": [{"id": 26, "name": "car"}],
    }
    text("acdc/gt_detection/rain/instancesonly_rain_train_gt_detection.json", document)
    done = imported("acdc", tmp_path / "acdc", "--select", "condition=rain", "split=train")
    assert done.boxes == {f"rgb_anon/{names[0]}": [("car", 1.0, 2.0, 3.0, 4.0)]}
