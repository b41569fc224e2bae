import json

import cv2
import numpy as np
import pytest

from cahqp.__main__ import main
from cahqp.coco.decoding import read_image
from cahqp.labels.formats.coco import read_label_file
from cahqp.relabelling.recompose import add_noise

HEIGHT, WIDTH, FRAMES = 64, 128, 10


def row(number, image, bbox, **more):
    entry = {"id": number, "image_id": image, "category_id": 1, "bbox": bbox, "area": 160, "iscrowd": 0, "score": 0.9}
    return entry | more


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Frames with a labelled white car, an unlabelled black one and a doubtful lamp that never moves."""
    root, images, rows = tmp_path_factory.mktemp("recompose"), [], []
    (root / "images").mkdir()
    for number in range(FRAMES):
        pixels = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
        pixels[10:20, 10 * number : 10 * number + 16] = 250
        pixels[40:50, 10 * number : 10 * number + 16] = 10
        pixels[54:60, 100:106] = 200
        cv2.imwrite(str(root / "images" / f"{number}.png"), pixels)
        entry = {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH}
        images.append({**entry, "recording": "north", "frame": number})
        rows.append(row(2 * number, number, [10 * number, 10, 16, 10], steady=0.4 if number == 3 else 1.0))
        rows.append(row(2 * number + 1, number, [100, 54, 6, 6], iscrowd=1))
    document = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "car"}]}
    (root / "labels.json").write_text(json.dumps(document))
    assert main(["recompose", f"--labels={root / 'labels.json'}", f"--output={root / 'out'}"]) == 0
    return root


def test_labelled_objects_stay_and_unlabelled_ones_vanish(root):
    for number in range(FRAMES):
        pixels = read_image(root / "out" / "images" / f"{number}.png.jpg").astype(int)
        assert (pixels[12:18, 10 * number + 2 : 10 * number + 14] > 230).all()
        assert np.abs(pixels[40:50] - 100).max() < 12
        assert (pixels[55:59, 101:105] > 180).all()


def test_labels_and_still_regions_stay(root):
    for image in read_label_file(root / "out").images:
        assert [box.ignored for box in image.boxes] == [False, True]
        assert image.boxes[0].bbox[0] == 10 * image.entry["frame"]


def test_unsteady_objects_are_left_out_with_their_labels(root, tmp_path):
    given = [f"--labels={root / 'labels.json'}", f"--output={tmp_path / 'out'}", "--min-steady=0.5"]
    assert main(["recompose", *given]) == 0
    image = read_label_file(tmp_path / "out").images[3]
    assert [box.ignored for box in image.boxes] == [True]
    assert np.abs(read_image(tmp_path / "out" / "images" / "3.png.jpg")[10:20].astype(int) - 100).max() < 12


def test_moving_doubtful_objects_vanish_with_their_region(root, tmp_path):
    document = json.loads((root / "labels.json").read_text())
    document["annotations"] += [row(100 + n, n, [10 * n, 40, 16, 10], iscrowd=1) for n in range(FRAMES)]
    (root / "doubtful.json").write_text(json.dumps(document))
    assert main(["recompose", f"--labels={root / 'doubtful.json'}", f"--output={tmp_path / 'out'}"]) == 0
    assert [len(image.boxes) for image in read_label_file(tmp_path / "out").images] == [2] * FRAMES


def test_the_background_gets_the_noise_of_the_frame():
    background, generator = np.full((40, 60, 3), 100, np.uint8), np.random.default_rng(0)
    frame = np.rint(generator.normal(100, [2, 6, 12], (40, 60, 3))).astype(np.uint8)
    frame[:10, :10] = 255
    assert add_noise(background, frame, 1).std((0, 1)) == pytest.approx([2, 6, 12], rel=0.2)
    assert (add_noise(background, background, 1) == background).all()


def test_recordings_with_few_frames_are_refused(root, tmp_path, capsys):
    document = json.loads((root / "labels.json").read_text())
    document["images"] = document["images"][:4]
    document["annotations"] = document["annotations"][:8]
    (root / "few.json").write_text(json.dumps(document))
    assert main(["recompose", f"--labels={root / 'few.json'}", f"--output={tmp_path / 'out'}"]) == 1
    assert "5 frames of one size" in capsys.readouterr().err
