"""Bit depth and orientation of images, files that a folder leaves out, and clocks."""

import json

import numpy as np
import pytest
from PIL import Image

from cahqp.coco import decoding, sources
from cahqp.coco.decoding import read_header, read_image
from cahqp.coco.sources import image_names
from cahqp.coco.time_stamps import SteadyClock
from cahqp.errors import DataError
from cahqp.labels.external import ExternalPredictions


@pytest.mark.parametrize("bits", [12, 14, 16])
def test_deep_images_are_scaled_from_the_bits_in_use(tmp_path, bits):
    ramp = (np.arange(256, dtype=np.uint16) << (bits - 8)).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[..., 0].ravel().tolist() == list(range(256))


def test_the_bits_in_use_are_reported(tmp_path, caplog):
    decoding._warn_once.cache_clear()
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(tmp_path / "a.png")
    for _ in range(2):
        read_image(tmp_path / "a.png")
    assert [r.message for r in caplog.records] == [
        "Images with 16 bits per pixel use 12 of them, and are scaled from these to 8."
    ]


def test_an_orientation_of_labelled_images_is_reported(tmp_path, caplog):
    decoding._warn_once.cache_clear()
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_header(tmp_path / "a.jpg").upright_size == (8, 6)
    read_image(tmp_path / "a.jpg")
    assert not caplog.records
    read_image(tmp_path / "a.jpg", (6, 8))
    assert "EXIF orientation" in caplog.text


def test_files_that_a_folder_leaves_out_are_counted_by_kind(tmp_path, caplog):
    sources._warn_once.cache_clear()
    (tmp_path / "other").mkdir()
    for name in ("a.jpg", "b.tif", "c.TIF", "d.gif", "e.mp4", "labels.json", ".hidden.gif"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "other", target_is_directory=True)
    assert image_names(tmp_path) == ["a.jpg"]
    kinds = "1 .gif, 1 .mp4 (name videos one by one), 2 .tif, 1 links to folders"
    assert f"left out, because they are not read as frames: {kinds}." in caplog.text


def test_a_clock_that_restarts_continues_after_the_frame_before():
    clock = SteadyClock()
    assert [clock.correct(t) for t in (0, 1, 2, 0, 1, 2)] == [0, 1, 2, 3, 4, 5]
    assert clock.restarts == 1


def test_one_wrong_time_drops_no_frame():
    clock = SteadyClock()
    times = [clock.correct(t) for t in (0, 1, 100, 2, 3)]
    assert times == sorted(times)
    assert times[-1] == times[-2] + 1


def test_a_list_of_results_is_read_with_the_images_it_refers_to(write_coco, tmp_path):
    results = [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = ExternalPredictions(tmp_path / "results.json", ["car"], write_coco())
    assert found.predict("north/000.png", (24, 32), 0.1).boxes.tolist() == [[1, 2, 4, 6]]
    with pytest.raises(DataError, match="--prediction-images"):
        ExternalPredictions(tmp_path / "results.json", ["car"])
