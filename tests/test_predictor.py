from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cahqp
from cahqp.coco.decoding import BrokenImageError
from cahqp.detectors import RTDETR
from cahqp.detectors.model_file import save

TINY = {"backbone_width": 8, "dim": 32, "heads": 4, "ffn_dim": 32, "fusion_blocks": 1, "decoder_layers": 1}


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    save(tmp_path / "model.safetensors", RTDETR(["car", "bus"], queries=10, size=(64, 96), **TINY))
    return tmp_path / "model.safetensors"


def test_boxes_come_in_pixels_of_each_image(model_file: Path) -> None:
    small, large = np.zeros((48, 64, 3), np.uint8), np.zeros((480, 640, 3), np.uint8)
    first, second = cahqp.load(model_file).predict([small, large])
    assert len(first) == 20
    np.testing.assert_allclose(second.boxes, first.boxes * 10, atol=0.05)


def test_threshold_cuts(model_file: Path) -> None:
    found = cahqp.load(str(model_file)).predict([np.zeros((48, 64, 3), np.uint8)], threshold=1.0)
    assert len(found[0]) == 0


def test_wrong_images_are_named(model_file: Path) -> None:
    with pytest.raises(ValueError, match=r"images\[1\] must be .* uint8"):
        cahqp.load(model_file).predict([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))])


def test_files_are_read_as_their_pixels_are(model_file, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = cahqp.load(model_file).predict([pixels, tmp_path / "a.png", str(tmp_path / "a.png")])
    torch.testing.assert_close(found[1].scores, found[0].scores)
    torch.testing.assert_close(found[2].scores, found[0].scores)
    with pytest.raises(BrokenImageError, match=r"none\.jpg"):
        cahqp.load(model_file).predict([tmp_path / "none.jpg"])
