"""`cahqp.load` and `Model.predict`: each kind of input, thresholds, and what a result offers."""

import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clips import encode
from PIL import Image

import cahqp
from cahqp.coco.decoding import BrokenImageError, read_image
from cahqp.detectors import RTDETR
from cahqp.detectors.model_file import save
from cahqp.errors import CahqpError, ConfigError, DataError, WeightsError

TINY = {"backbone_width": 8, "dim": 32, "heads": 4, "ffn_dim": 32, "fusion_blocks": 1, "decoder_layers": 1}
CLASSES = ("car", "bus")
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def scores_apart(detector):
    """Give an untrained detector scores that lie apart, some of them high."""
    with torch.no_grad():
        for head in [*detector.class_heads, detector.proposal_class]:
            head.weight.normal_(std=0.6)
            head.bias.copy_(torch.tensor([-0.5, 1.5]))
    return detector


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(1)
    detector = scores_apart(RTDETR(list(CLASSES), queries=10, size=(64, 96), **TINY))
    detector.thresholds = {"car": 0.6, "bus": 0.49}
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save(path, detector)
    return path


@pytest.fixture(scope="module")
def model(model_file):
    return cahqp.load(model_file)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A folder of three images, of which the second is cut short."""
    folder = tmp_path_factory.mktemp("frames")
    for name in ("1.png", "2.png", "10.png"):
        Image.fromarray(PIXELS).save(folder / name)
    data = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(data[: len(data) // 2])
    return folder


def test_import_is_instant_and_imports_nothing():
    code = "import sys, cahqp; print(sorted({'torch', 'numpy', 'PIL', 'yaml'} & set(sys.modules)), dir(cahqp))"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.startswith("[] ") and "'run_cycle'" in told


def test_all_names_can_be_imported():
    assert [name for name in dir(cahqp) if not name.startswith("_") and getattr(cahqp, name) is None] == []
    assert callable(cahqp.relabel)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        cahqp.lode  # noqa: B018


@pytest.mark.parametrize("kind", ["path", "text", "pil", "grey pil", "array", "view"])
def test_one_image_gives_one_result(model, frames, kind):
    grey = Image.fromarray(PIXELS).convert("L")
    source = {
        "path": frames / "1.png", "text": str(frames / "1.png"), "pil": Image.fromarray(PIXELS), "grey pil": grey,
        "array": PIXELS, "view": PIXELS[:, :, ::-1].copy()[:, :, ::-1],
    }[kind]  # fmt: skip
    expected = model.predict(PIXELS if kind != "grey pil" else np.repeat(np.array(grey)[:, :, None], 3, 2))
    found = model.predict(source)
    assert len(found) == len(expected) > 0
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert found.file == ("1.png" if kind in ("path", "text") else "")


def test_boxes_are_in_pixels_of_each_image(model):
    small, large = np.zeros((48, 64, 3), np.uint8), np.zeros((480, 640, 3), np.uint8)
    first, second = model.predict([small, large], threshold=0)
    assert len(first) == len(second) == 20
    np.testing.assert_allclose(second.boxes, first.boxes * 10, atol=0.05)


def test_a_list_mixes_kinds_in_order(model, frames):
    found = model.predict([PIXELS, frames / "10.png", frames, Image.fromarray(PIXELS)])
    assert [one.file for one in found] == ["", "10.png", "1.png", "10.png", ""]
    assert model.predict([]) == []


def test_a_folder_leaves_out_unreadable_images_with_a_warning(model, frames, caplog):
    assert [found.file for found in model.predict(frames)] == ["1.png", "10.png"]
    assert f"2.png in {frames} cannot be decoded" in caplog.text


def test_a_folder_without_readable_images_is_refused(model, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="None of the 1 frames"):
        list(model.predict(tmp_path))


def test_an_unreadable_image_that_is_named_is_refused(model, frames):
    with pytest.raises(BrokenImageError, match=r"2\.png"):
        model.predict(frames / "2.png")


def test_a_video_is_read_as_the_iterator_advances(model, tmp_path, monkeypatch):
    times = [0, 100, 250, 400, 500]
    encode(tmp_path / "a.mp4", "libx264", times)
    calls = []
    detect = model.backend.detect
    monkeypatch.setattr(model.backend, "detect", lambda images: calls.append(len(images)) or detect(images))
    found = model.predict(tmp_path / "a.mp4", threshold=0)
    assert calls == []
    first = next(found)
    assert (first.file, first.timestamp, calls) == ("a.mp4@0.000s", 0.0, [1])
    assert [one.timestamp for one in found] == pytest.approx([time / 1000 for time in times[1:]])


def test_a_reused_array_does_not_change_a_result(model):
    buffer = PIXELS.copy()
    found = model.predict(buffer)
    buffer[:] = 0
    np.testing.assert_array_equal(found.pixels, PIXELS)


def test_the_models_own_thresholds_count(model):
    found, everything = model.predict(PIXELS), model.predict(PIXELS, threshold=0)
    limits = np.where(everything.labels == 0, 0.6, 0.49).astype(np.float32)
    assert len(found) == (everything.scores >= limits).sum() and 0 < len(found) < len(everything)
    assert model.thresholds == {"car": 0.6, "bus": 0.49}


def test_thresholds_can_be_given(model):
    assert len(model.predict(PIXELS, threshold=1.0)) == 0
    found, everything = model.predict(PIXELS, {"car": 1.0}), model.predict(PIXELS, threshold=0.49)
    assert set(found.names) == {"bus"} and len(found) == (everything.labels == 1).sum()


@pytest.mark.parametrize("given, message", [(1.5, "threshold must lie in 0..1"), ({"van": 0.5}, "van is no class of")])
def test_wrong_thresholds_are_refused(model, given, message):
    with pytest.raises(ConfigError, match=message):
        model.predict(PIXELS, given)


def test_a_class_without_threshold_gets_a_half(tmp_path):
    save(tmp_path / "m.safetensors", RTDETR(["car"], queries=10, size=(64, 96), **TINY))
    assert cahqp.load(tmp_path / "m.safetensors").thresholds == {"car": 0.5}


@pytest.mark.parametrize(
    "source, message",
    [
        (np.zeros((8, 8, 3)), r"The image must be \(H, W, 3\) uint8 RGB, got \(8, 8, 3\) float64"),
        ([PIXELS, np.zeros((8, 8), np.uint8)], r"images\[1\] must be .* uint8"),
        ("missing.jpg", r"missing\.jpg does not exist"),
        ({"image": PIXELS}, "is a dict. Give a path"),
    ],
)
def test_wrong_images_are_named(model, source, message):
    with pytest.raises(DataError, match=message):
        model.predict(source)


def test_a_result_is_a_sequence_of_named_detections(model):
    found = model.predict(PIXELS)
    rows = list(found)
    assert len(rows) == len(found) == len(found.names)
    assert (rows[0].box, rows[0].name) == (tuple(found.boxes[0].tolist()), CLASSES[found.labels[0]])
    assert found.classes == CLASSES
    assert repr(found).startswith("<Result image 64x48: ") and f" {rows[0].name}" in repr(found)


def test_models_describe_themselves(model, model_file):
    assert repr(model) == f"<Model {model_file}: car 0.6, bus 0.49>"
    assert type(model.detector) is RTDETR


def test_drawing_keeps_colours_and_pixels(model):
    found = model.predict(PIXELS)
    drawn = np.array(found.draw())
    assert drawn.shape == PIXELS.shape and (drawn != PIXELS).any()
    np.testing.assert_array_equal(np.array(model.predict(PIXELS, threshold=1.0).draw()), PIXELS)
    np.testing.assert_array_equal(found.pixels, PIXELS)


def test_saving_writes_the_drawing(model, tmp_path):
    found = model.predict(PIXELS)
    path = found.save(tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(read_image(path), np.array(found.draw()))
    with pytest.raises(ConfigError, match=r"must be one of \.jpg, \.jpeg, \.png"):
        found.save(tmp_path / "a.gif")


def test_coco_results_have_ids_and_sizes(model):
    found = model.predict(PIXELS)
    rows = found.to_coco(image_id=7)
    left, top, right, bottom = found.boxes[0].tolist()
    assert rows[0] == {
        "image_id": 7, "category_id": int(found.labels[0]) + 1, "category": found.names[0],
        "bbox": [left, top, right - left, bottom - top], "score": float(found.scores[0]),
    }  # fmt: skip
    assert len(rows) == len(found)


def test_supervision_gets_arrays_and_names(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=lambda **given: given))
    found = model.predict(PIXELS)
    given = found.to_supervision()
    np.testing.assert_array_equal(given["xyxy"], found.boxes)
    assert given["class_id"].tolist() == found.labels.tolist()
    assert given["data"]["class_name"].tolist() == found.names


def test_a_missing_supervision_names_the_installation(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match="pip install supervision"):
        model.predict(PIXELS).to_supervision()


def test_a_run_directory_loads_its_model(model, model_file):
    assert cahqp.load(model_file.parent).classes == model.classes


@pytest.mark.parametrize(
    "given, error",
    [
        ({"path": "none.safetensors"}, WeightsError),
        ({"path": "."}, WeightsError),
        ({"device": "gpu"}, ConfigError),
        ({"trusted": "key.pem"}, ConfigError),
    ],
)
def test_what_cannot_be_loaded_is_one_error(model_file, tmp_path, monkeypatch, given, error):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as raised:
        cahqp.load(**{"path": model_file, **given})
    assert isinstance(raised.value, CahqpError) and "--device" not in str(raised.value)


def test_images_need_no_file(model):
    stored = io.BytesIO()
    Image.fromarray(PIXELS).save(stored, "PNG")
    assert len(model.predict(Image.open(stored))) == len(model.predict(PIXELS))
