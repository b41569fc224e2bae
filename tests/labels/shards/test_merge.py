import contextlib
import io
import json
import random
import tracemalloc

import numpy as np
import pytest
from pycocotools.coco import COCO

from cahqp.errors import DataError, RunError
from cahqp.frame import Frame
from cahqp.labels.rules import box_entry
from cahqp.labels.shards.merge import assign_category_ids, merge
from cahqp.labels.shards.records import dumps, image_entry
from cahqp.labels.shards.shards import LabelShards

CLASSES = ("car", "person")


def frame(position):
    return Frame(position + 10, f"a/{position}.jpg", (100, 200), "north", "north-1", position, position / 4)


def detections(position, boxes=2):
    """Return boxes and scores: labels first, then as many rejected boxes."""
    generator = np.random.default_rng(position)
    corner = generator.uniform(0, 50, (2 * boxes, 2))
    return np.concatenate([corner, corner + 10.123456], 1), generator.uniform(0, 1, 2 * boxes)


def line(position, boxes=2, image=None):
    found = [
        box_entry(row % 2, box, score)
        for row, (box, score) in enumerate(zip(*detections(position, boxes), strict=True))
    ]
    rejected = [box | {"reason": "below threshold"} for box in found[boxes:]]
    entry = image_entry(frame(position if image is None else image))
    return dumps({"position": position, "image": entry, "kept": found[:boxes], "rejected": rejected}).encode() + b"\n"


def write(work, positions, ranks=1, boxes=2):
    shards = [LabelShards(work, rank) for rank in range(ranks)]
    for number, position in enumerate(positions):
        shards[number % ranks].append(line(position, boxes))
    for shard in shards:
        shard.close()


def merged(folder, positions, **how):
    write(folder / "shards", positions, **how)
    merge(folder / "shards", CLASSES, {}, folder)
    return (folder / "labels.json").read_bytes(), (folder / "rejected.json").read_bytes()


def coco(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.fixture
def straight(tmp_path_factory):
    return merged(tmp_path_factory.mktemp("straight"), range(20))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_bytes_do_not_depend_on_who_wrote_when(tmp_path, straight, ranks):
    positions = random.Random(ranks).sample(range(20), 20)
    assert merged(tmp_path, positions, ranks=ranks) == straight


def test_nor_on_a_restart_with_another_number_of_ranks(tmp_path, straight):
    write(tmp_path / "shards", range(0, 20, 3), ranks=3)
    assert merged(tmp_path, [p for p in range(20) if p % 3], ranks=2) == straight


def test_pycocotools_loads_what_was_written(tmp_path):
    merged(tmp_path, range(4))
    loaded = coco(tmp_path / "labels.json")
    assert loaded.imgs[12] == {
        "id": 12, "file_name": "a/2.jpg", "width": 200, "height": 100,
        "camera": "north", "recording": "north-1", "frame": 2, "timestamp": 0.5,
    }  # fmt: skip
    assert sorted(loaded.anns) == list(range(1, 9))
    assert len(loaded.loadRes([{**loaded.anns[1]}]).anns) == 1


def test_an_annotation_is_rounded_xywh(tmp_path):
    merged(tmp_path, [0], boxes=1)
    boxes, scores = detections(0, 1)
    box, score = boxes[0].tolist(), float(scores[0])
    label = coco(tmp_path / "labels.json").anns[1]
    assert label["bbox"][:2] == [round(box[0], 2), round(box[1], 2)]
    assert label["bbox"][2:] == pytest.approx([10.12, 10.12], abs=0.0101)
    assert label["score"] == round(score, 4)
    assert (label["category_id"], label["iscrowd"], label["image_id"]) == (1, 0, 10)


def test_rejected_boxes_carry_their_reason(tmp_path):
    merged(tmp_path, range(3))
    assert {a["reason"] for a in coco(tmp_path / "rejected.json").anns.values()} == {"below threshold"}


def test_no_detections_at_all_is_a_valid_file(tmp_path):
    merged(tmp_path, range(3), boxes=0)
    loaded = coco(tmp_path / "labels.json")
    assert (len(loaded.imgs), len(loaded.anns), len(loaded.cats)) == (3, 0, 2)


def test_the_summary_counts_every_class(tmp_path):
    write(tmp_path / "shards", range(5), boxes=1)
    summary = merge(tmp_path / "shards", CLASSES, {}, tmp_path)
    assert (summary.frames, summary.kept, summary.rejected) == (5, {"car": 5, "person": 0}, {"below threshold": 5})


def test_category_ids_of_the_input_are_kept():
    assert assign_category_ids(CLASSES, {"person": 7, "car": 3}) == {"car": 3, "person": 7}


def test_category_ids_of_other_names_are_not():
    assert assign_category_ids(CLASSES, {"person": 7}) == {"car": 1, "person": 2}


def test_the_same_frame_twice_counts_once(tmp_path, straight):
    write(tmp_path / "shards", [3, 4])
    assert merged(tmp_path, range(20), ranks=2) == straight


def test_the_same_frame_labelled_differently_is_refused(tmp_path):
    write(tmp_path / "shards", [3], boxes=1)
    with pytest.raises(RunError, match="Frame 3 was labelled twice"):
        merged(tmp_path, [3])
    assert not (tmp_path / "labels.json").exists()


def test_two_images_with_one_id_are_refused(tmp_path):
    with LabelShards(tmp_path / "shards", 0) as shards:
        shards.append(line(0, image=5))
        shards.append(line(1, image=5))
    with pytest.raises(DataError, match="image id 15"):
        merge(tmp_path / "shards", CLASSES, {}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def fake_shard(work, frames):
    work.mkdir()
    box = {"label": 0, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}
    with (work / "rank-00000.jsonl").open("w") as file:
        for position in reversed(range(frames)):
            image = {"id": position, "file_name": f"{position}.jpg", "width": 9, "height": 9}
            line = {"position": position, "image": image, "kept": [box] * 3, "rejected": []}
            file.write(json.dumps(line) + "\n")


def peak(work, output):
    tracemalloc.start()
    merge(work, CLASSES, {}, output)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest


def test_memory_does_not_grow_with_the_boxes_of_20000_frames(tmp_path):
    fake_shard(tmp_path / "few", 1000)
    fake_shard(tmp_path / "many", 20_000)
    growth = peak(tmp_path / "many", tmp_path) - peak(tmp_path / "few", tmp_path)
    assert growth < 19_000 * 120  # the index; the labels themselves take over 500 bytes a frame
