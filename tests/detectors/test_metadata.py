"""A model file from a stranger: its metadata reach no file, no network and no code."""

import copy
import json
import random
import resource
import socket
import threading

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cahqp.detectors import RTDETR, HuggingFaceDetector
from cahqp.detectors.metadata import check_settings
from cahqp.detectors.model_file import load, save, weights_hash
from cahqp.errors import WeightsError

CHANNELS = {"channels": [8, 16, 16, 32], "stem_width": 8}
SMALL = {
    "backbone": "resnet10t", "backbone_options": CHANNELS, "dim": 32, "heads": 4, "ffn_dim": 32, "fusion_blocks": 1,
    "decoder_layers": 1, "queries": 10, "size": (64, 96), "max_detections": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A small model file: its path, tensors and metadata."""
    path = tmp_path_factory.mktemp("honest") / "model.safetensors"
    save(path, RTDETR(["car", "bus"], **SMALL))
    with safe_open(path, "pt") as file:
        return path, {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["cahqp"])


@pytest.fixture
def listener():
    """A local server that counts connections."""
    server = socket.create_server(("127.0.0.1", 0))
    seen = []

    def accept():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            seen.append(1)
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1], seen
    server.close()


def forge(path, tensors, metadata):
    """Write a model file whose hash fits its metadata, as anyone can."""
    header = {"cahqp": json.dumps(metadata), "hash": weights_hash(tensors, metadata)}
    save_file(tensors, path, header)


class Bomb:
    """A pickle that leaves a marker when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


def hostile_settings(port, pickle):
    url = f"http://127.0.0.1:{port}/w.safetensors"
    return [
        {"backbone_options": {**CHANNELS, "checkpoint_path": pickle}},
        {"backbone_options": {**CHANNELS, "pretrained_cfg_overlay": {"url": url}}, "pretrained": True},
        {"backbone_options": {**CHANNELS, "pretrained_cfg": {"url": url}}},
        {"backbone_options": {**CHANNELS, "cache_dir": pickle}},
        {"backbone": f"hf-hub:127.0.0.1:{port}/model"},
        {"backbone": f"local-dir:{pickle}"},
        {"backbone": url},
        {"backbone": "../../evil"},
        {"queries": 10**9},
        {"decoder_layers": 10**6},
        {"dim": True},
        {"dim": "32"},
        {"nms_iou": "0.5"},
        {"unknown": 1},
    ]


@pytest.mark.parametrize("number", range(14))
def test_hostile_settings_are_refused_before_anything_is_built(honest, listener, tmp_path, number):
    _, tensors, metadata = honest
    port, seen = listener
    marker, pickle = tmp_path / "marker", tmp_path / "evil.pth"
    torch.save(Bomb(str(marker)), pickle)
    changed = {**metadata, "settings": metadata["settings"] | hostile_settings(port, str(pickle))[number]}
    forge(tmp_path / "model.safetensors", tensors, changed)
    with pytest.raises(WeightsError, match="settings that this version does not support"):
        load(tmp_path / "model.safetensors")
    assert not marker.exists() and seen == []


def test_a_download_and_a_file_of_weights_are_never_asked_for(honest, listener, tmp_path):
    _, tensors, metadata = honest
    settings = metadata["settings"] | {"pretrained": True, "backbone_weights": str(tmp_path / "nowhere.safetensors")}
    forge(tmp_path / "model.safetensors", tensors, {**metadata, "settings": settings})
    load(tmp_path / "model.safetensors")
    assert listener[1] == []


@pytest.mark.parametrize(
    "entry",
    [
        {"thresholds": {"car": 7}},
        {"thresholds": {"car": "high"}},
        {"preprocessing": {"size": [64, 96]}},
        {"preprocessing": "none"},
        {"classes": "car"},
        {"prompt": [1]},
        {"provenance": None},
        {"architecture": {}},
        {"format": "1"},
    ],
)
def test_metadata_of_another_shape_is_one_message(honest, tmp_path, entry):
    _, tensors, metadata = honest
    forge(tmp_path / "model.safetensors", tensors, metadata | entry)
    with pytest.raises(WeightsError, match="has invalid metadata"):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "NaN", '{"format": Infinity}', "{", " " * (1 << 21)])
def test_metadata_that_are_too_deep_too_long_or_no_json(honest, tmp_path, text):
    _, tensors, _ = honest
    save_file(tensors, tmp_path / "model.safetensors", {"cahqp": text, "hash": ""})
    with pytest.raises(WeightsError, match="metadata"):
        load(tmp_path / "model.safetensors")


def test_weights_that_are_not_finite_are_refused(honest, tmp_path):
    _, tensors, metadata = honest
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    changed = {**tensors, name: torch.full_like(tensors[name], float("nan"))}
    forge(tmp_path / "model.safetensors", changed, metadata)
    with pytest.raises(WeightsError, match="not finite"):
        load(tmp_path / "model.safetensors")


def mutated(value, rng, port, pickle):
    """Return the metadata with one value, somewhere, replaced by something hostile."""
    strange = [
        None, True, -1, 10**12, 1e308, "", "x" * 5000, pickle, f"http://127.0.0.1:{port}/x", "hf-hub:a/b", [], {}, [[]],
        {"checkpoint_path": pickle}, {"url": f"http://127.0.0.1:{port}/x"}, "../../etc/passwd", "\x00", 0.5, [1] * 2000,
    ]  # fmt: skip
    value, node = copy.deepcopy(value), None
    node = value
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        if isinstance(node, dict) and rng.random() < 0.3:
            node[rng.choice(["checkpoint_path", "pretrained_cfg", "auto_map", "model", "url"])] = rng.choice(strange)
        else:
            node[key] = rng.choice(strange)
        break
    return value


def check_mutations(honest, listener, folder, count):
    _, tensors, metadata = honest
    port, seen = listener
    marker, pickle, path = folder / "marker", folder / "evil.pth", folder / "model.safetensors"
    torch.save(Bomb(str(marker)), pickle)
    rng, refused = random.Random(0), 0
    for _ in range(count):
        forge(path, tensors, mutated(metadata, rng, port, str(pickle)))
        try:
            load(path)
        except WeightsError:
            refused += 1
    assert not marker.exists() and seen == []
    assert refused > count / 2


def test_mutated_files_load_or_are_refused_and_nothing_else(honest, listener, tmp_path):
    check_mutations(honest, listener, tmp_path, 300)


@pytest.mark.long
def test_ten_thousand_mutated_files(honest, listener, tmp_path):
    check_mutations(honest, listener, tmp_path, 10_000)


@pytest.mark.parametrize(
    "entry",
    [
        {"auto_map": {"AutoModel": "evil.py"}},
        {"_attn_implementation": "evil/kernel"},
        {"use_pretrained_backbone": True},
        {"backbone": "hf-hub:evil/model"},
        {"backbone_config": {"backbone": "hf-hub:evil/model"}},
        {"backbone_config": {"auto_map": {"AutoModel": "evil.py"}}},
        {"backbone_kwargs": {"checkpoint_path": "evil.pth"}},
        {"decoder_layers": 100_000},
    ],
)
def test_transformers_settings_that_load_something_are_refused(tmp_path, entry):
    settings = {"classes": ["car"], "config": {"model_type": "rt_detr", **entry}, "pretrained": False}
    with pytest.raises(WeightsError, match="config that is not allowed"):
        check_settings(tmp_path / "m.safetensors", HuggingFaceDetector, settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 8192, "heads": 4, "ffn_dim": 65_536, "decoder_layers": 64},
        {"backbone_options": {"channels": [8, 16, 16, 8192], "stem_width": 8}},
    ],
    ids=["transformer", "backbone"],
)
def test_a_description_of_a_huge_detector_is_refused_before_it_takes_memory(honest, tmp_path, settings):
    _, tensors, metadata = honest
    path = tmp_path / "m.safetensors"
    forge(path, tensors, metadata | {"settings": metadata["settings"] | settings})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match="the file contains far fewer"):
        load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
