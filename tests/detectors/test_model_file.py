import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cahqp.detectors import model_file
from cahqp.detectors.model_file import load, read_metadata, save, weights_hash
from cahqp.detectors.prompts.visual_prompt import VisualPrompt
from cahqp.detectors.shrink import shrink
from cahqp.errors import WeightsError


@pytest.fixture
def student(build):
    return build("rtdetr")


@pytest.fixture
def path(tmp_path, student) -> Path:
    save(tmp_path / "model.safetensors", student, {"epoch": 3})
    return tmp_path / "model.safetensors"


def detections(detector, images) -> list[torch.Tensor]:
    with torch.no_grad():
        out = detector(images)
    return [t for d in detector.decode(out, out.sizes) for t in (d.boxes, d.scores, d.labels)]


def prompted(detector, injection="cross_attention"):
    detector.prompt = VisualPrompt(32, 3, prompt_dim=8, components=3, injection=injection, heads=4)
    for parameter in detector.prompt.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return detector.eval()


@pytest.mark.parametrize("with_prompt", [False, True])
def test_a_loaded_detector_detects_the_same_bits(detector, images, tmp_path, with_prompt):
    plain = detections(detector, images)
    if with_prompt:
        prompted(detector)
    digest = save(tmp_path / "a.safetensors", detector)
    torch.manual_seed(99)
    loaded = load(tmp_path / "a.safetensors")
    expected = detections(detector, images)
    assert all(torch.equal(a, b) for a, b in zip(detections(loaded, images), expected, strict=True))
    assert with_prompt != all(torch.equal(a, b) for a, b in zip(plain, expected, strict=True))
    assert not loaded.training and loaded.provenance["hash"] == digest


def test_classes_thresholds_and_preprocessing_are_in_the_file(student, tmp_path):
    student.thresholds, student.provenance = {"car": 0.31, "bus": 0.5}, {"from": "day"}
    digest = save(tmp_path / "a.safetensors", student)
    loaded = load(tmp_path / "a.safetensors")
    assert loaded.thresholds == student.thresholds and loaded.classes == student.classes
    assert loaded.provenance == {"from": "day", "hash": digest}
    assert loaded.preprocessing == student.preprocessing


def test_preprocessing_is_that_of_the_file(build, tmp_path):
    detector = build("dino", size=None, short_side=48, max_side=96)
    detector.preprocessing = build("dino", size=None, short_side=32, max_side=None).preprocessing
    save(tmp_path / "a.safetensors", detector)
    assert load(tmp_path / "a.safetensors").preprocessing == detector.preprocessing


def test_explicit_provenance_replaces_the_detectors_own(path):
    assert read_metadata(path)["provenance"] == {"epoch": 3}


def test_saving_again_gives_the_same_bytes(path, tmp_path):
    save(tmp_path / "again.safetensors", load(path), {"epoch": 3})
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_half_precision_halves_the_file_and_rounds_the_weights(student, images, tmp_path, path):
    save(tmp_path / "half.safetensors", student, half=True)
    loaded = load(tmp_path / "half.safetensors")
    assert all(t.dtype in (torch.float32, torch.int64) for t in loaded.state_dict().values())
    data = [sum(t.nbytes for t in load_file(p).values()) for p in (tmp_path / "half.safetensors", path)]
    assert data[0] < 0.52 * data[1]
    for name, value in student.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float() if value.is_floating_point() else value)


def test_a_shrunk_file_names_its_source(path, tmp_path):
    digest = shrink(path, tmp_path / "small.safetensors")
    assert load(tmp_path / "small.safetensors").provenance == {
        "epoch": 3,
        "shrunk_from": read_metadata(path)["hash"],
        "hash": digest,
    }


def test_weights_too_large_for_half_precision_are_refused(student, tmp_path):
    student.query_position.layers[0].bias.data[0] = 1e6
    with pytest.raises(WeightsError, match="too large for half precision"):
        save(tmp_path / "a.safetensors", student, half=True)


def test_the_hash_depends_on_the_content():
    tensors, settings = {"a": torch.zeros(4), "b": torch.zeros(2, 2)}, {"x": 1}
    digest = weights_hash(tensors, settings)
    assert digest == weights_hash(dict(reversed(tensors.items())), settings)
    others = [{**tensors, "a": torch.tensor([0, 0, 0, 1e-30])}, {**tensors, "b": torch.zeros(4)}]
    others += [{**tensors, "a": torch.zeros(4, dtype=torch.int32)}, {"c": torch.zeros(4), "b": tensors["b"]}]
    hashes = {weights_hash(t, settings) for t in others} | {weights_hash(tensors, {"x": 2})}
    assert len(hashes) == 5 and digest not in hashes


@pytest.mark.parametrize("share", [0.0, 0.002, 0.01, 0.03, 0.3, 0.999])
def test_a_flipped_byte_is_noticed(path, share):
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load(path)


def test_every_byte_of_the_metadata_is_checked(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    start = data.index(b"__metadata__")
    for place in range(start, min(start + 1500, 8 + length), 37):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(WeightsError):
            load(path)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_file_cut_short_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="cut short"):
        load(path)


def test_other_safetensors_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="no model file of cahqp"):
        load(tmp_path / "other.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.safetensors does not exist"):
        load(tmp_path / "nowhere.safetensors")


class Sentinel:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("writer", [lambda x, f: f.write(pickle.dumps(x)), torch.save])
def test_a_pickle_is_refused_and_not_run(tmp_path, writer):
    path, touched = tmp_path / "model.safetensors", tmp_path / "touched"
    with path.open("wb") as file:
        writer({"model": Sentinel(touched)}, file)
    for read in (load, read_metadata):
        with pytest.raises(WeightsError, match="no readable safetensors"):
            read(path)
    assert not touched.exists()


def rewritten(path: Path, change) -> None:
    """Change tensors or metadata and update the hash, as another version would."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["cahqp"])
    change(tensors, metadata)
    digest = weights_hash(tensors, metadata)
    save_file(tensors, path, {"cahqp": json.dumps(metadata, sort_keys=True), "hash": digest})


def _misfit(tensors, metadata):
    tensors["surprise"] = tensors.pop("proposal_norm.bias")
    tensors["proposal_norm.weight"] = torch.ones(3)


def test_keys_that_do_not_fit_are_all_listed(path):
    rewritten(path, _misfit)
    with pytest.raises(WeightsError) as error:
        load(path)
    for part in ("missing proposal_norm.bias", "unknown surprise", "proposal_norm.weight is [3], not [32]"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"format": 2}, "has format 2; this version reads 1"),
        ({"architecture": "YOLO"}, "holds a YOLO; supported are DINO, RTDETR"),
        ({"settings": {"classes": ["car"], "wings": 2}}, "settings that this version does not support .*wings"),
        ({"settings": {"classes": []}}, "settings that this version does not support .*different names"),
    ],
)
def test_files_of_other_versions_are_refused(path, changed, words):
    rewritten(path, lambda tensors, metadata: metadata.update(changed))
    with pytest.raises(WeightsError, match=words):
        load(path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_not_written(student, path, value):
    before = path.read_bytes()
    student.proposal_norm.bias.data[3] = value
    with pytest.raises(WeightsError, match=r"1 weights are not finite, proposal_norm\.bias"):
        save(path, student)
    assert path.read_bytes() == before


def test_unknown_kinds_of_detector_are_not_written(student, tmp_path):
    student.__class__ = type("Custom", (type(student),), {})
    with pytest.raises(WeightsError, match="Custom is none of DINO, RTDETR"):
        save(tmp_path / "a.safetensors", student)


def test_describing_reads_no_weights(path, monkeypatch):
    monkeypatch.setattr(model_file, "weights_hash", None)
    found = read_metadata(path)
    assert found["architecture"] == "RTDETR" and len(found["hash"]) == 64
    assert found["classes"] == ["car", "bus", "person"] and found["settings"]["dim"] == 32
    data = path.read_bytes()
    cut = 8 + struct.unpack("<Q", data[:8])[0]
    path.write_bytes(data[:cut] + bytes(len(data) - cut))
    assert read_metadata(path) == found


def test_no_local_path_enters_the_file(build, tmp_path):
    """Hashed files contain no absolute path, and a backbone's file is read once."""
    backbone = build("dino").backbone
    save_file(backbone.body.state_dict(), tmp_path / "backbone.safetensors")
    detector = build("dino", backbone_weights=tmp_path / "backbone.safetensors")
    save(tmp_path / "a.safetensors", detector)
    (tmp_path / "backbone.safetensors").unlink()
    assert str(tmp_path).encode() not in (tmp_path / "a.safetensors").read_bytes()
    assert torch.equal(load(tmp_path / "a.safetensors").level_embed, detector.level_embed)
