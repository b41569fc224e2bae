"""`cahqp inspect` on tiny data sets."""

import json

import numpy as np
import pytest
from PIL import Image

from cahqp.__main__ import main
from cahqp.frame import Frame
from cahqp.reports.capture_hours import capture_hour
from cahqp.reports.perceptual_hash import find_copies, hash_image


@pytest.fixture
def inspected(tmp_path, capsys):
    def run(*data):
        assert main(["inspect", *map(str, data), "--output", str(tmp_path / "run")]) == 0
        page = (tmp_path / "run" / "inspect.html").read_text()
        return json.loads((tmp_path / "run" / "inspect.json").read_text()), page, capsys.readouterr().out

    return run


def _street(seed, size=(120, 160)):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (6, 8)).astype(np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((20, 20), np.uint8))).convert("RGB").resize(size[::-1])


def test_counts_sizes_and_cameras_are_those_of_the_labels(inspected, write_coco):
    result, page, said = inspected(f"train={write_coco('train', 3)}", f"val={write_coco('val', 2, 'south', grey=90)}")
    train = result["data"]["train"]
    assert (train["images"], train["boxes"], train["cameras"]) == (3, 3, {"north": 3})
    sizes = {"small": 3, "medium": 0, "large": 0, "p5": 8.9, "p50": 8.9, "p95": 8.9}
    assert train["classes"]["car"] == {"boxes": 3, **sizes}
    assert train["classes_by_camera"] == {"car": {"north": 3}}
    assert train["brightness"]["unknown"] == {"images": 3, "mean": 53.0, "darkest": 50.0}
    assert page.count("<image ") == 5
    assert "train: 3 images, 1 recordings, 3 boxes, 0 images without" in said


def test_copies_across_splits_are_found_though_saved_again_and_resized(inspected, tmp_path):
    for number in range(6):
        (tmp_path / "a").mkdir(exist_ok=True)
        _street(number).save(tmp_path / "a" / f"{number}.png")
    (tmp_path / "b").mkdir()
    _street(1).save(tmp_path / "b" / "again.jpg", quality=60)
    _street(3).resize((96, 72)).save(tmp_path / "b" / "small.png")
    _street(77).save(tmp_path / "b" / "other.png")
    result, page, said = inspected(tmp_path / "a", tmp_path / "b")
    assert {(pair["a"], pair["b"]) for pair in result["copies"]} == {("1.png", "again.jpg"), ("3.png", "small.png")}
    assert "2 pairs of nearly equal images in different splits" in said
    assert "1.png = again.jpg" in page


def test_frames_of_one_camera_with_other_cars_are_no_copies(tmp_path):
    street = np.asarray(_street(5)).copy()
    Image.fromarray(street).save(tmp_path / "a.png")
    street[60:72, 40:60] = 255 - street[60:72, 40:60]
    Image.fromarray(street).save(tmp_path / "b.png")
    one, other = hash_image(tmp_path / "a.png"), hash_image(tmp_path / "b.png")
    assert find_copies([one], [other]) == []
    assert len(find_copies([one], [one])) == 1


def test_broken_and_turned_images_are_counted(inspected, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no image")
    image = _street(0)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a" / "turned.jpg", exif=exif)
    result, _, said = inspected(tmp_path / "a")
    assert list(result["data"]["a"]["unreadable"]) == ["broken.jpg"]
    assert "1 unreadable, 1 with an EXIF orientation" in said


def test_the_same_name_twice_is_refused(write_coco, tmp_path, capsys):
    path = str(write_coco())
    assert main(["inspect", path, path, f"--output={tmp_path / 'run'}"]) == 1
    assert "Write NAME=PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "timestamp", "hour"),
    [
        ("cam2_20260105T131500.jpg", None, 13),
        ("2026-01-05/13/gate/00.10.jpg", None, None),
        ("2026-01-05_21-30-00.jpg", None, 21),
        ("a.jpg", 1767618000.0, 13),
        ("a.jpg", 12.5, None),
        ("123456789.jpg", None, None),
    ],
)
def test_hours_come_from_names_and_times(tmp_path, name, timestamp, hour):
    assert capture_hour(Frame(1, name, (1, 1), timestamp=timestamp), tmp_path / "none.jpg") == hour


def test_hours_come_from_exif(tmp_path):
    image = _street(0)
    exif = image.getexif()
    exif[0x0132] = "2026:01:05 06:30:00"
    image.save(tmp_path / "a.jpg", exif=exif)
    assert capture_hour(Frame(1, "a.jpg", (1, 1)), tmp_path / "a.jpg") == 6
