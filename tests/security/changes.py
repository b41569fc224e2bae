"""Changes of one file, by which attacks are described as data: functions of the folder and the file's name."""

import hashlib
import json
import os
import struct
import zlib

import cv2
import numpy as np
import onnx
from fuzz.model_targets import renew
from onnx import TensorProto, helper
from safetensors import safe_open
from safetensors.torch import save_file

from cahqp.detectors.model_file import weights_hash
from cahqp.edge.package import MANIFEST, MODEL


def put(place, value):
    """Set the value at a dotted place of a JSON file."""

    def change(folder, name):
        document = json.loads((folder / name).read_bytes())
        _set(document, place, value)
        (folder / name).write_text(json.dumps(document))

    return change


def put_each(rows, key, value):
    """Set a key of every row in a list of a JSON file; `{}` in the value is the old one."""

    def change(folder, name):
        document = json.loads((folder / name).read_bytes())
        for row in document[rows]:
            row[key] = value.replace("{}", str(row[key]))
        (folder / name).write_text(json.dumps(document))

    return change


def drop(place):
    """Remove the value at a dotted place of a JSON file."""

    def change(folder, name):
        document = json.loads((folder / name).read_bytes())
        parent, key = _find(document, place)
        del parent[key]
        (folder / name).write_text(json.dumps(document))

    return change


def text(content):
    """Replace the whole file by a text or by bytes."""

    def change(folder, name):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

    return change


def swap(old, new):
    """Replace a text in the file."""

    def change(folder, name):
        data = (folder / name).read_bytes()
        assert old.encode() in data, name
        (folder / name).write_bytes(data.replace(old.encode(), new.encode()))

    return change


def cut(share):
    """Keep the first part of a file."""

    def change(folder, name):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return change


def fifo(folder, name):
    """Put a pipe in place of the file."""
    (folder / name).unlink()
    os.mkfifo(folder / name)


def link(target):
    """Put a link in place of the file."""

    def change(folder, name):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def metadata(place, value):
    """Set a value in the metadata of a model file, and compute its hash again."""

    def change(folder, name):
        tensors, content = _read_model(folder / name)
        _set(content, place, value)
        save_file(tensors, folder / name, {"cahqp": json.dumps(content), "hash": weights_hash(tensors, content)})

    return change


def tensor(edit):
    """Change the first floating-point tensor of a model file, and compute its hash again."""

    def change(folder, name):
        tensors, content = _read_model(folder / name)
        first = min(key for key, value in tensors.items() if value.is_floating_point())
        tensors[first] = edit(tensors[first])
        save_file(tensors, folder / name, {"cahqp": json.dumps(content), "hash": weights_hash(tensors, content)})

    return change


def graph(edit):
    """Change the ONNX model of a package, and write its hash to the manifest."""

    def change(folder, name):
        model = onnx.load(folder / name / MODEL)
        edit(model)
        (folder / name / MODEL).write_bytes(model.SerializeToString())
        manifest = json.loads((folder / name / MANIFEST).read_text())
        manifest["files"][MODEL] = hashlib.sha256((folder / name / MODEL).read_bytes()).hexdigest()
        (folder / name / MANIFEST).write_text(json.dumps(manifest))

    return change


def pointer(place, value):
    """Set a value in the pointer of a registry, and compute its own hash again."""

    def change(folder, name):
        put(place, value)(folder, name)
        renew(folder)

    return change


def external(location):
    """Return a change of a model: weights in another file."""

    def edit(model):
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        model.graph.initializer.append(tensor)

    return edit


def constant(value):
    """Return a change of a model: all its outputs have this value."""

    def edit(model):
        for node in model.graph.node:
            array = onnx.numpy_helper.to_array(node.attribute[0].t)
            changed = onnx.numpy_helper.from_array(np.full_like(array, value))
            node.attribute[0].t.CopyFrom(changed)

    return edit


def node(operator, domain=""):
    """Return a change of a model: one more node."""

    def edit(model):
        model.graph.node.append(helper.make_node(operator, [], ["extra"], domain=domain))

    return edit


def picture(suffix):
    """Return the bytes of a valid image in the format of this suffix."""
    return cv2.imencode(suffix, np.full((24, 32, 3), 90, np.uint8))[1].tobytes()


def png_header(width, height):
    """Return a small PNG whose header claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _read_model(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}, json.loads(file.metadata()["cahqp"])


def _find(document, place):
    *parents, last = place.split(".")
    for part in parents:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document, int(last) if isinstance(document, list) else last


def _set(document, place, value):
    parent, key = _find(document, place)
    parent[key] = value
