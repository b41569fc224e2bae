import json

import numpy as np
import pytest

from cahqp.coco.reader import class_indices, read_coco, read_coco_frames
from cahqp.errors import DataError


def first(key, **changes):
    """Return a change of the first entry of a list."""

    def change(document):
        document[key][0].update(changes)

    return change


def again(key, **changes):
    """Return a change that repeats the first entry of a list at its end."""

    def change(document):
        document[key].append({**document[key][0], **changes})

    return change


def test_frames_boxes_and_categories_are_read(write_coco):
    file = read_coco(write_coco(frames=2))
    frame = file.frames[1]
    assert (frame.id, frame.name, frame.size, frame.recording, frame.index) == (
        2,
        "north/001.png",
        (24, 32),
        "north",
        1,
    )
    assert file.annotations(1).boxes.tolist() == [[4, 6, 14, 14]]
    assert file.categories == {7: "car"}


def test_optional_columns_are_read(write_coco):
    file = read_coco(write_coco(change=first("annotations", score=0.5, weight=0.25, track_id=9)))
    found = file.annotations(0)
    assert (found.scores[0], found.weights[0], found.tracks[0]) == (0.5, 0.25, 9)
    assert file.annotations(1).tracks.tolist() == [-1]


@pytest.mark.parametrize("flag", ["iscrowd", "ignore"])
def test_crowds_become_regions_to_ignore(flag, write_coco):
    found = read_coco(write_coco(change=first("annotations", **{flag: 1}))).annotations(0)
    assert len(found.boxes) == 0
    assert found.ignore.tolist() == [[4, 6, 14, 14]]


def test_boxes_over_the_border_are_clipped_and_counted(write_coco):
    file = read_coco(write_coco(change=first("annotations", bbox=[-5, 20, 20, 20])))
    assert file.annotations(0).boxes.tolist() == [[0, 20, 15, 24]]
    assert file.table.oddities.clipped == 1


def test_repeated_boxes_are_left_out_and_counted_in_one_warning(write_coco, caplog):
    def change(document):
        twice = [{**row, "id": row["id"] + 10} for row in document["annotations"]]
        document["annotations"] += [*twice, {**twice[0], "id": 99, "bbox": [30, 6, 9, 0.5]}]

    path = write_coco(change=change)
    file = read_coco(path)
    read_coco(path)
    assert [len(file.annotations(n).boxes) for n in range(4)] == [2, 1, 1, 1]
    sentence = "of 9 boxes, 1 clipped to their image, 1 under one pixel, 4 equal to another box and left out."
    assert [record.message for record in caplog.records] == [f"{path}: {sentence}"]


def _boxes(rows):
    def change(document):
        row = document["annotations"][0]
        document["annotations"] = [{**row, "id": n, "bbox": box} for n, box in enumerate(rows)]

    return change


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[8 + n, 6, 24 + n, 20] for n in range(6)], "looks like two corners.* 6 of 6 boxes"),
        ([[0.1 * n, 0.2, 0.3, 0.4] for n in range(6)], "looks like shares of the image"),
    ],
)
def test_boxes_of_another_form_are_refused(write_coco, rows, message):
    with pytest.raises(DataError, match=message):
        read_coco(write_coco(change=_boxes(rows)))


@pytest.mark.parametrize("flag", ["0", "false", False, 0, 0.0])
def test_flags_that_are_false_in_other_types_are_false(write_coco, flag):
    assert len(read_coco(write_coco(change=first("annotations", iscrowd=flag))).annotations(0).boxes) == 1


def test_the_unused_root_category_of_roboflow_is_ignored(write_coco):
    def change(document):
        document["categories"].insert(0, {"id": 0, "name": "car", "supercategory": "none"})

    assert read_coco(write_coco(change=change)).categories == {7: "car"}


def test_recording_falls_back_to_the_camera_and_then_the_folder(write_coco):
    def change(document):
        document["images"][0].update(recording="monday")
        del document["images"][2]["camera"]

    assert [f.recording for f in read_coco(write_coco(change=change)).frames] == ["monday", "north", "north", "north"]


def test_names_are_relative_to_the_json_where_there_is_no_images_folder(write_coco):
    path = write_coco()
    (path.parent / "images" / "north").rename(path.parent / "north")
    (path.parent / "images").rmdir()
    assert read_coco(path).files[0] == path.parent / "north" / "000.png"


def test_a_byte_order_mark_is_passed_over(write_coco):
    path = write_coco()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_coco(path)) == 4


def _same_name(document):
    document["categories"].append({"id": 8, "name": "car"})
    document["annotations"][0]["category_id"] = 8


BAD = {
    "missing key": (first("images", width=None), r"images\[0\]: lacks `width`, a whole number"),
    "text for a number": (first("images", height="24"), r"images\[0\]: `height` must be a whole number, not '24'"),
    "negative size": (first("images", height=-1), r"images\[0\]: `height` must be above 0, got -1"),
    "timestamp": (first("images", timestamp=float("nan")), r"images\[0\]: `timestamp` must be a finite number"),
    "missing file": (first("images", file_name="north/x.png"), r"images\[0\]: file 'north/x.png' does not exist"),
    "parent": (first("images", file_name="../images/north/000.png"), r"images\[0\]: file_name '\.\..* leaves"),
    "absolute": (first("images", file_name="/etc/passwd"), r"images\[0\]: file_name '/etc/passwd' leaves"),
    "drive": (first("images", file_name="C:x.png"), r"images\[0\]: file_name 'C:x.png' leaves"),
    "backslash": (first("images", file_name="north\\000.png"), r"images\[0\]: file_name .* leaves"),
    "null byte": (first("images", file_name="north/000.png\0"), r"images\[0\]: file_name .* leaves"),
    "same image id": (again("images", file_name="north/003.png"), r"images\[4\]: id 1 is already that of images\[0\]"),
    "same file": (again("images", id=99), r"images\[4\]: file_name 'north/000.png' is already that of images\[0\]"),
    "unknown category": (
        first("annotations", category_id=3),
        r"annotations\[0\]: `category_id` 3 is not in `categories`",
    ),
    "unknown image": (first("annotations", image_id=77), r"annotations\[0\]: `image_id` 77 is not in `images`"),
    "same annotation id": (again("annotations"), r"annotations\[4\]: id 1 is already that of annotations\[0\]"),
    "three numbers": (first("annotations", bbox=[1, 2, 3]), r"annotations\[0\]: `bbox` must be four finite numbers"),
    "text in a box": (
        first("annotations", bbox=[1, 2, 3, "4"]),
        r"annotations\[0\]: `bbox` must be four finite numbers",
    ),
    "no area": (first("annotations", bbox=[1, 2, 0, 4]), r"annotations\[0\]: `bbox` .* has no area"),
    "negative": (first("annotations", bbox=[1, 2, 3, -4]), r"annotations\[0\]: `bbox` .* has no area"),
    "outside": (
        first("annotations", bbox=[32, 2, 3, 4]),
        r"annotations\[0\]: `bbox` .* lies outside its image of 32x24",
    ),
    "nan": (
        first("annotations", bbox=[float("nan"), 2, 3, 4]),
        r"annotations\[0\]: `bbox` must be four finite .* \[nan",
    ),
    "infinity": (
        first("annotations", bbox=[1, 2, float("inf"), 4]),
        r"annotations\[0\]: `bbox` must be four finite numbers",
    ),
    "huge": (first("annotations", bbox=[1, 2, 10**400, 4]), r"annotations\[0\]: `bbox` must be four finite numbers"),
    "score": (first("annotations", score=1.5), r"annotations\[0\]: `score` must be in 0..1, got 1.5"),
    "no flag": (first("annotations", iscrowd="maybe"), r"annotations\[0\]: `iscrowd` must be 0 or 1, not 'maybe'"),
    "rotated": (first("annotations", attributes={"rotation": 45}), r"annotations\[0\]: box is rotated by 45 degrees"),
    "large id": (first("images", id=2**63), r"images\[0\]: `id` must be a whole number of at most 64 bits"),
    "same category id": (again("categories", name="bus"), r"categories\[1\]: id 7 is already that of categories\[0\]"),
    "same category name": (_same_name, r"categories\[1\]: name 'car' is already that of another"),
    "no list": (lambda d: d.update(images={}), "images: is not a list"),
    "no annotations": (lambda d: d.pop("annotations"), "annotations: is missing"),
    "no object": (lambda d: d["images"].append(3), r"images\[4\]: is not an object"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_problems_are_reported_with_file_and_row(write_coco, change, message):
    path = write_coco(change=change)
    with pytest.raises(DataError, match=message) as caught:
        read_coco(path)
    assert str(caught.value).startswith(f"{path} has ")


def test_all_problems_come_together_and_are_capped(write_coco):
    def change(document):
        for annotation in document["annotations"]:
            annotation["bbox"] = [0, 0, 0, 0]

    with pytest.raises(DataError) as caught:
        read_coco(write_coco(frames=30, change=change))
    assert "has 30 problems" in str(caught.value)
    assert "annotations[19]" in str(caught.value)
    assert "annotations[20]" not in str(caught.value)
    assert "... and 10 more" in str(caught.value)


def test_a_bad_image_does_not_blame_its_annotations(write_coco):
    with pytest.raises(DataError, match="has 1 problem:"):
        read_coco(write_coco(change=first("images", width=None)))


@pytest.mark.parametrize("text", ["{", "[]", '{"images": ' + "[" * 200_000, "\x00", "1" * 5000])
def test_files_that_are_no_json_object_are_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"a\.json"):
        read_coco(path)


def test_a_repeated_key_is_refused(write_coco):
    path = write_coco()
    path.write_text(path.read_text().replace('"bbox"', '"bbox": [0, 0, 1, 1], "bbox"', 1))
    with pytest.raises(DataError, match=r"annotations\[0\]: key 'bbox' occurs more than once"):
        read_coco(path)


@pytest.mark.parametrize("folder", [False, True])
def test_links_that_leave_the_folder_are_refused(write_coco, tmp_path, folder):
    path = write_coco()
    inside = path.parent / "images" / "north"
    link = inside if folder else inside / "000.png"
    link.symlink_to(link.rename(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=r"images\[0\]: .*link.*copy the image"):
        read_coco(path)


def test_frames_are_read_without_looking_at_annotations(write_coco):
    frames = read_coco_frames(write_coco(change=lambda d: d.update(annotations=3)))
    assert len(frames) == 4
    assert not hasattr(frames, "annotations")


def test_categories_are_mapped_by_name(write_coco):
    file = read_coco(write_coco(change=again("categories", id=2, name="unused")))
    assert class_indices(file, ["person", "car"]) == {7: 1, 2: -1}


def test_a_category_unknown_to_the_detector_is_refused(write_coco):
    file = read_coco(write_coco())
    with pytest.raises(DataError, match="categories of the file: car\n  classes of the detector: person, bus\n"):
        class_indices(file, ["person", "bus"])
    assert class_indices(file, ["person"], ignore=["car"]) == {7: -1}


def test_annotations_may_come_in_any_order(write_coco):
    path = write_coco(frames=5, change=lambda d: d["annotations"].reverse())
    file = read_coco(path)
    boxes = np.concatenate([file.annotations(i).boxes for i in range(5)])
    assert len(boxes) == len(json.loads(path.read_text())["annotations"])
