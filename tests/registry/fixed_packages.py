"""Packages whose models say the same of every frame, and what is done with them."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cahqp.__main__ import main
from cahqp.edge.package import MODEL, read_package, write_manifest
from cahqp.edge.signing import sign

CLASSES = ["car", "bus"]


def make_package(path, seed, classes=CLASSES, key=None):
    """A package whose model says the same of every frame."""
    path.mkdir()
    random = np.random.default_rng(seed)
    shapes = {"logits": (1, 3, len(classes)), "boxes": (1, 3, 4)}
    values = {name: random.uniform(0.2, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(v)) for n, v in values.items()]
    graph = helper.make_graph(
        nodes, "fixed", [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 12])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in shapes.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path / MODEL)
    rule = {"batch": 1, "height": 8, "width": 12, "mean": [0, 0, 0], "std": [1, 1, 1], "short_side": None}
    described = {
        "architecture": "RTDETR", "classes": classes, "input": {**rule, "max_side": None}, "thresholds": {},
        "output": {"max_detections": 3}, "precision": "float32", "weights": f"weights-{seed}",
    }  # fmt: skip
    data = write_manifest(path, described)
    if key is not None:
        sign(path, data, key)
    return path


def promote(root, package, *given):
    return main(["registry", "promote", f"--registry={root / 'registry'}", f"--package={root / package}", *given])


def flip(path, place=-20):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def decision_for(registry, package, published=True):
    path = package.parent / f"{package.name}-decision.json"
    now = registry.versions.read(registry.pointer.version)["package"]
    candidate = {"package": read_package(package).digest}
    said = {"published": published, "reason": "as measured", "candidate": candidate, "running": {"package": now}}
    path.write_text(json.dumps(said))
    return path
