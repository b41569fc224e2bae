"""Targets of model files, published checkpoints, packages and registries."""

import hashlib
import json
import shutil

import cv2
import numpy as np
import torch
from fuzz.packages import make_package
from fuzz.target import Target, attempt, command
from safetensors import safe_open
from safetensors.torch import save_file

from cahqp.detectors import RTDETR
from cahqp.detectors.model_file import count_parameters, load, read_metadata, save, weights_hash
from cahqp.detectors.published.checkpoint_file import read_checkpoint
from cahqp.edge.options import KeygenOptions
from cahqp.edge.package import MANIFEST, MODEL, package_files, read_package
from cahqp.edge.pointer import RUNNING
from cahqp.edge.runtime import Runtime
from cahqp.edge.signing import keygen
from cahqp.registry.registry import PromotionRequest, Registry

SMALL = {
    "backbone": "resnet10t", "backbone_options": {"channels": [4, 4, 8, 8], "stem_width": 4}, "dim": 8, "heads": 2,
    "ffn_dim": 8, "fusion_blocks": 1, "decoder_layers": 1, "queries": 4, "size": (32, 64), "max_detections": 4,
}  # fmt: skip


def make_model(folder, classes=("car", "bus")):
    save(folder / "model.safetensors", RTDETR(list(classes), **SMALL), {"seed": 1})


def read_model(folder, output, mutator):
    path = folder / "model.safetensors"
    attempt(mutator, lambda: read_metadata(path), lambda: count_parameters(path), lambda: load(path))


def forge(folder, mutator):
    """Change metadata and tensors of a model file, and compute its hash again, as anyone can."""
    if mutator.random.random() < 0.3:
        return
    path = folder.with_name("valid") / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = json.loads(file.metadata()["cahqp"])
    if mutator.random.random() < 0.9:
        metadata = mutator.value(metadata)
    else:
        name = mutator.random.choice(sorted(tensors))
        strange = (
            torch.zeros(0),
            torch.full_like(tensors[name], 2).to(torch.float64),
            tensors[name][None],
            torch.ones(3),
        )
        tensors[name] = mutator.random.choice(strange)
    try:
        header = {"cahqp": json.dumps(metadata), "hash": weights_hash(tensors, metadata)}
        save_file(tensors, folder / "model.safetensors", header)
    except UnicodeEncodeError:  # the library writes no half of a surrogate pair
        return


def make_checkpoint(folder):
    tensors = {"backbone.weight": torch.zeros(2, 3), "head.bias": torch.ones(2)}
    torch.save({"ema": {"module": tensors}, "epoch": 3, "args": [1, "x"]}, folder / "best.pth")
    (folder / "hub").mkdir()
    save_file(tensors, folder / "hub" / "model.safetensors")
    (folder / "hub" / "config.json").write_text(json.dumps({"model_type": "rt_detr", "num_labels": 2, "d_model": 8}))


def read_checkpoints(folder, output, mutator):
    attempt(
        mutator,
        lambda: read_checkpoint(folder / "best.pth"), lambda: read_checkpoint(folder / "hub"),
        lambda: command("convert", folder / "hub", output / "m.safetensors", accept=(1,)),
        lambda: command("convert", folder / "best.pth", output / "m.safetensors", accept=(1,)),
    )  # fmt: skip


def make_packages(folder):
    make_package(folder / "package", 1)
    (folder / "frames").mkdir()
    cv2.imwrite(str(folder / "frames" / "a.png"), np.full((8, 12, 3), 90, np.uint8))


def read_packages(folder, output, mutator):
    def run():
        Runtime(read_package(folder / "package")).detect([np.full((8, 12, 3), 90, np.uint8)])

    detect = [f"--weights={folder / 'package'}", f"--frames={folder / 'frames'}", f"--output={output / 'o'}"]
    attempt(mutator, lambda: package_files(folder / "package"), run, lambda: command("detect", *detect, "--draw"))


def rehash(folder, mutator):
    """Write the hash of the changed model to the manifest, as anyone can without a signature."""
    if mutator.random.random() < 0.3:
        return
    path = folder / "package" / MANIFEST
    valid = json.loads(mutator.files[f"package/{MANIFEST}"])
    manifest = mutator.value(valid) if mutator.random.random() < 0.4 else valid
    if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict):
        manifest["files"][MODEL] = hashlib.sha256((folder / "package" / MODEL).read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))


def make_registry(folder):
    keygen(KeygenOptions(output=folder / "keys"))
    registry = Registry(folder / "registry")
    for seed in (1, 2):
        make_package(folder / f"p{seed}", seed, key=folder / "keys" / "private.pem")
        registry.promote(folder / f"p{seed}", PromotionRequest(reason="x", parents=["a"], data={"labels": "a" * 64}))
    make_package(folder / "p3", 3)


def read_registry(folder, output, mutator):
    at = f"--registry={folder / 'registry'}"
    key = f"--trusted={folder / 'keys' / 'public.pem'}"
    attempt(
        mutator,
        lambda: command("registry", "list", at),
        lambda: command("registry", "show", at),
        lambda: command("registry", "verify", key, at),
        lambda: read_package(folder / "registry"),
        lambda: command("registry", "rollback", at),
        lambda: command("registry", "promote", f"--package={folder / 'p3'}", "--reason=x", at),
        lambda: command("registry", "gc", "--keep=1", at),
        lambda: command("registry", "push", f"--to=file://{output / 'pushed'}", at),
    )  # fmt: skip


def repoint(folder, mutator):
    """Make the pointer agree with its own hash, and sometimes remove a version."""
    renew(folder)
    if mutator.random.random() < 0.2:
        shutil.rmtree(folder / "registry" / "versions" / mutator.random.choice(("0001", "0002")), ignore_errors=True)


def renew(folder):
    """Make the pointer of a registry agree with its own hash, as anyone can."""
    path = folder / "registry" / RUNNING
    try:
        content = json.loads(path.read_bytes())
        content.pop("sha256")
        content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(content))
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return  # it is no pointer any more


TARGETS = [
    Target("model-file", make_model, read_model, disguise=forge),
    Target("checkpoint", make_checkpoint, read_checkpoints),
    Target("package", make_packages, read_packages, fixed=("frames/",), disguise=rehash),
    Target("registry", make_registry, read_registry, fixed=("p1/", "p2/", "p3/"), disguise=repoint),
]
