import json

import numpy as np
import pytest

from cahqp.frame import Frame
from cahqp.labels.apply_rules import apply_rules
from cahqp.labels.candidates import Candidates, encode
from cahqp.labels.options import LabelOptions
from cahqp.labels.rules import DOUBTFUL, MOVING, Rules
from cahqp.labels.shards.shards import LabelShards
from cahqp.labels.tracking.motion import decode_thumbnail, encode_thumbnail

SIZE = (64, 128)


def picture(number):
    """Two bright objects that move to the right, one above the other."""
    image = np.full((*SIZE, 3), 90, np.uint8)
    image[4:14, 8 * number : 8 * number + 16] = 200
    image[44:56, 8 * number : 8 * number + 16] = 30
    return image


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Candidates: a certain box, and a moving and a still one with equal, doubtful scores. The dark object has none."""
    folder = tmp_path_factory.mktemp("motion") / "shards"
    with LabelShards(folder, 0) as written:
        for number in range(12):
            left = 8.0 * number
            boxes = np.array([[60, 24, 80, 34], [left, 4, left + 16, 14], [20, 24, 40, 34]], float)
            found = Candidates(boxes, np.array([0.9, 0.2, 0.2]), np.zeros(3, np.int64))
            frame = Frame(number + 1, f"{number}.jpg", SIZE, "one", "one", number, 0.2 * number)
            written.append(encode(number, frame, found, encode_thumbnail(picture(number))))
    return folder


def test_thumbnails_are_stored_without_loss():
    assert (decode_thumbnail(encode_thumbnail(picture(3))) == picture(3)).all()


def ignored(shards, output, **options):
    rules = Rules(("car",), np.array([0.5]), LabelOptions(ignore_share=0.6, **options))
    apply_rules(shards, output, rules)
    records = [json.loads(line) for line in (output / "rank-00000.jsonl").open()]
    assert all(len(record["kept"]) <= 1 for record in records)
    return [{box["reason"]: box["bbox"] for box in record["ignored"]} for record in records]


@pytest.mark.parametrize("temporal", [False, True])
def test_doubtful_boxes_that_move_and_moving_regions_are_ignored(temporal, shards, tmp_path):
    found = ignored(shards, tmp_path, moving_ignore_share=0.3, temporal=temporal)
    assert [boxes[DOUBTFUL] for boxes in found] == [[8.0 * number, 4, 16, 10] for number in range(12)]
    assert [boxes[MOVING][1::2] for boxes in found] == [[44, 12]] * 12


def test_motion_changes_nothing_without_the_option(shards, tmp_path):
    assert not any(ignored(shards, tmp_path))
