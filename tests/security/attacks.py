"""Attacks as data: kind, command, changed file, change, and part of the message that must follow."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import NamedTuple

import torch
from security.changes import (
    constant,
    cut,
    external,
    fifo,
    graph,
    link,
    metadata,
    node,
    picture,
    png_header,
    pointer,
    put,
    put_each,
    swap,
    tensor,
    text,
)


class Attack(NamedTuple):
    """One attack.

    Attributes:
        kind: Number of the kind of finding in docs/security.md.
        command: Name in `security.commands.COMMANDS`.
        file: Changed file.
        change: Change of the file.
        message: Part of the message of the command.
    """

    kind: int
    command: str
    file: str
    change: Callable
    message: str


MODEL = "model.safetensors"
URL = "http://127.0.0.1:9/w"

# A model file names files, URLs, hubs and code, or asks for more than a machine has.
_SETTINGS = {
    "backbone": [
        "hf-hub:a/b",
        "hf_hub:a/b",
        "local-dir:/tmp",
        "timm/../../x",
        "resnet10t:x",
        "/etc/passwd",
        URL,
        "",
        "RESNET",
    ],
    "backbone_options": [
        {key: value}
        for key, value in {
            "checkpoint_path": "evil.pth",
            "pretrained": True,
            "pretrained_cfg": {"url": URL},
            "scriptable": True,
            "pretrained_cfg_overlay": {"url": URL},
            "cache_dir": "/tmp",
            "num_classes": 10**9,
            "act_layer": "os.system",
            "channels": [10**9],
            "stem_type": "a" * 500,
            "__class__": "x",
            "features_only": False,
        }.items()
    ],
    "dim": [0.5, -2, 10**9, "32", None],
    "queries": [10**9, True, []],
    "decoder_layers": [10**6, -5],
    "size": [[10**9, 1], "x"],
    "heads": [0, 7],
    "max_detections": [10**12],
    "classes": [["car", "car"], [], [1]],
    "file": ["/etc/passwd"],
}
_METADATA = {
    "format": [2, "1", None],
    "architecture": ["os.system", "", 7, "HuggingFaceDetector"],
    "classes": [[], ["x" * 300], "car"],
    "thresholds": [{"car": 2}, {"car": "x"}, []],
    "preprocessing": [{}, None, {"size": [0, 0]}],
    "prompt": [[], {"dim": 9}],
    "provenance": [[], "x"],
}
MODELS = [
    *(Attack(1, "evaluate", MODEL, metadata(f"settings.{k}", v), "model") for k, vs in _SETTINGS.items() for v in vs),
    *(Attack(12, "evaluate", MODEL, metadata(k, v), "model") for k, vs in _METADATA.items() for v in vs),
    Attack(8, "evaluate", MODEL, tensor(lambda x: torch.full_like(x, float("nan"))), "not finite"),
    Attack(8, "evaluate", MODEL, tensor(lambda x: torch.full_like(x, float("inf"))), "not finite"),
    Attack(1, "evaluate", MODEL, tensor(lambda x: x[None]), "does not fit"),
    Attack(1, "evaluate", MODEL, tensor(lambda x: torch.zeros(0)), "does not fit"),
    Attack(12, "evaluate", MODEL, cut(0.5), "safetensors"),
    Attack(12, "evaluate", MODEL, text(b"\xff" * 64), "safetensors"),
    Attack(12, "evaluate", MODEL, text(b""), "safetensors"),
]

# Evidence about something else, or of another kind.
_DECISION = {
    "published": ["true", 1, None, "false"],
    "reason": [None, 7, "x" * 200_000],
    "candidate": [None, {}, {"package": "0" * 64}],
    "running": [{"package": None}, {"package": "0" * 64}],
    "mean_difference": [2, "x"],
    "sets": [{"a": {"candidate_ap50": 1.5, "running_ap50": 0, "difference": 0}}, [], {"a": None}],
    "candidate.package": ["A" * 64, 7, "0" * 63],
    "frames": [{"a": "b"}],
}
_AP50 = "models.student-new.target-test.ap50"
_METRICS = {
    _AP50: [1.01, -1, "0.9", True, [0.9]],
    "models.student-new": [{}, [], None],
    "models": [{}, [], None],
    "inputs": [None, {}, {"weights": {}, "frames": {}}],
    "inputs.weights.student-new": ["0" * 64, 7, ""],
}
EVIDENCE = [
    *(Attack(2, "promote-decision", "decision.json", put(k, v), "decision") for k, vs in _DECISION.items() for v in vs),
    *(Attack(2, "publish", "metrics.json", put(k, v), "metrics.json") for k, vs in _METRICS.items() for v in vs),
    Attack(2, "publish", "new.safetensors", text("other"), "another model"),
    Attack(2, "promote-decision", "new/package.json", put("thresholds", {"car": 0.1}), "another package"),
]

# External names that lead out of a folder.
_NAMES = [
    "../x.png",
    "/etc/hostname",
    "a/../../x.png",
    "C:x.png",
    "a\\..\\x.png",
    "x\0.png",
    "\ud800.png",
    "é" * 200 + ".png",
]
_REFUSED = "not a name inside a folder"


def _message(name: str, file: str) -> str:
    """Return the message about a name; half of a surrogate pair is refused with the whole file."""
    return file if "\ud800" in name else _REFUSED


NAMES = [
    *(Attack(3, "to-yolo", "labels.json", put("images.0.file_name", n), "outside the folder") for n in _NAMES[:6]),
    *(Attack(3, "evaluate", "labels.json", put("images.0.file_name", name), "labels.json") for name in _NAMES),
    *(
        Attack(3, command, file, put(f"images.{row}.file_name", name), _message(name, file))
        for command, file, row in (("sample", "night/signals.json", 3), ("replay", "buffer/day/train.json", 0))
        for name in _NAMES
    ),
    *(
        Attack(3, "replay", "night/labels.json", put_each("images", "file_name", f"{prefix}/{{}}"), _REFUSED)
        for prefix in ("..", "/tmp", "a/../..", "a\\b", "C:", "a\0")
    ),
    *(
        Attack(3, "sample", "night/signals.json", put_each("images", "recording", name), message)
        for name, message in (("..", _REFUSED), ("\0", _REFUSED), ("x" * 300, _REFUSED), ("\ud800", "signals.json"))
    ),
    *(Attack(3, "replay", "buffer/buffer.json", put("domains.0.name", n), _REFUSED) for n in ("../day", "/tmp", "\0")),
    *(Attack(3, "replay", "buffer/buffer.json", put("domains.0.name", n), "buffer.json") for n in ("", "x" * 300)),
    *(Attack(3, "to-coco", "source.json", put("root", n), "source.json") for n in ("/etc", "../nowhere", 7, None)),
    Attack(3, "to-coco", "source.json", put("root", "x" * 300), "cannot be used"),
    *(
        Attack(3, "fetch", "before/taken.json", put("files", {name: 1}), "taken.json")
        for name in ("../x.png", "/x.png", "\0", "a\\b.png", "x" * 300, "", "\ud800")
    ),
]

# Weights outside the hash, and models that are no models.
PACKAGES = [
    *(
        Attack(4, "detect", "package", graph(external(name)), "another file")
        for name in ("w.bin", "../w.bin", "/etc/hostname", "")
    ),
    Attack(4, "detect", "package", graph(node("EPContext", "com.microsoft")), "another file"),
    Attack(8, "detect", "package", graph(constant(float("nan"))), "not finite"),
    Attack(8, "detect", "package", graph(constant(float("inf"))), "not finite"),
    Attack(4, "detect", "package/model.onnx", text(b"ORTM" * 9), "hash"),
    Attack(
        4, "detect", "package/package.json", put("files", {"../x": "0" * 64, "model.onnx": "0" * 64}), "plain file name"
    ),
    Attack(
        4,
        "detect",
        "package/package.json",
        put("files", {"/etc/hostname": "0" * 64, "model.onnx": "0" * 64}),
        "plain file",
    ),
    Attack(12, "detect", "package/package.json", put("files", {}), "model.onnx"),
    *(
        Attack(12, "detect", "package/package.json", put(place, value), "package.json")
        for place, value in [
            ("input.batch", 0),
            ("input.batch", 10**9),
            ("input.height", -1),
            ("input.width", "12"),
            ("input.mean", [0, 0]),
            ("input.std", [0, 1, 1]),
            ("output.max_detections", 10**9),
            ("output.nms_iou", 2),
            ("classes", []),
            ("classes", ["car", "car"]),
            ("thresholds", {"car": -1}),
            ("precision", 8),
            ("format", 2),
            ("format", "1"),
        ]
    ),
    Attack(9, "detect", "package/model.onnx", fifo, "regular file"),
    Attack(9, "detect", "package/package.json", fifo, "neither a package"),
]

# Files on which two readers could disagree, and images of any size.
_GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
READERS = [
    *(
        Attack(5, command, file, text(content), "be decoded")
        for command, file in (("detect", "frames/a.png"), ("evaluate", "images/north/1.png"))
        for content in (
            _GIF,
            picture(".tiff"),
            b"",
            b"\0" * 99,
            picture(".jpg")[:300],
            picture(".png")[:60],
            png_header(1, 1)[:40],
        )
    ),
    *(
        Attack(9, "detect", "frames/a.png", text(png_header(*size)), "can be decoded")
        for size in ((20_000, 20_000), (2**31 - 1, 1), (0, 5))
    ),
    Attack(9, "detect", "frames/a.png", fifo, "can be decoded"),
    Attack(5, "evaluate", "labels.json", swap('"images":', '"images": [], "images":'), "more than once"),
    Attack(5, "evaluate", "labels.json", swap('"image_id": 1', '"image_id": 1, "image_id": 2'), "more than once"),
    Attack(5, "detect", "package/package.json", swap('"batch"', '"batch": 2, "batch"'), "more than once"),
]

# Signatures and pointers of a registry with a key.
_RUNNING = "registry/running.json"
REGISTRY = [
    *(
        Attack(10, command, _RUNNING, pointer(place, value), "running.json")
        for command in ("verify", "promote")
        for place, value in [
            ("version", "../../p3"),
            ("version", "0001-zzzzzzzz"),
            ("manifest", "0" * 63),
            ("generation", 0),
            ("generation", 2**70),
            ("before", "0001"),
            ("before", ["../x"]),
            ("classes", "car"),
            ("key", "x"),
            ("key", 7),
            ("manifests", {"../x": "0" * 64}),
        ]
    ),
    *(
        Attack(10, command, _RUNNING, put("generation", 7), "running.json")
        for command in ("list", "show", "promote", "push")
    ),
    Attack(9, "verify", _RUNNING, fifo, "regular file"),
    Attack(9, "verify", _RUNNING, link("/dev/zero"), "regular file"),
]

# JSON of another size, depth or shape, in every file that a command reads.
_TEXTS = [
    "",
    "[]",
    "7",
    "null",
    "[" * 100_000,
    '{"a":' * 60 + "1" + "}" * 60,
    "{" + '"a": 1,' * 2 + '"b": 2}',
    b"\xff\xfe{}",
]
_FILES = [
    ("publish", "metrics.json"),
    ("promote-decision", "decision.json"),
    ("replay", "buffer/buffer.json"),
    ("replay", "night/signals.json"),
    ("replay", "night/labels.json"),
    ("replay", "buffer/day/train.json"),
    ("drift", "night/signals.json"),
    ("sample", "night/signals.json"),
    ("fetch", "before/taken.json"),
    ("verify", _RUNNING),
    ("evaluate", "labels.json"),
    ("from-label-studio", "label-studio/tasks.json"),
    ("status", "plan.yaml"),
    ("from-cvat", "cvat/annotations.xml"),
    ("from-yolo", "yolo/data.yaml"),
]
SHAPES = [
    Attack(12, command, file, text(content), PurePosixPath(file).name)
    for command, file in _FILES
    for content in _TEXTS
    if (file, content) != ("label-studio/tasks.json", "[]")  # nothing has come back
]
SHAPES += [
    *(
        Attack(12, "replay", "buffer/buffer.json", put(f"domains.0.{k}", v), "buffer.json")
        for k, v in (
            ("frames", "4"),
            ("frames", 0),
            ("held", -1),
            ("held", 10**6),
            ("domain", None),
            ("extra", [[[]]]),
        )[:5]
    ),
    *(
        Attack(12, "drift", "night/signals.json", put(f"images.0.{k}", v), "signals.json")
        for k, v in (("camera", None), ("frame", "1"), ("timestamp", "now"), ("recording", []))
    ),
    *(
        Attack(12, "drift", "night/features.npz", change, "features.npz")
        for change in (text(b""), text(b"PK"), cut(0.5))
    ),
    *(
        Attack(12, "from-label-studio", "label-studio/tasks.json", put(f"0.{k}", v), "tasks.json")
        for k, v in (
            ("data", None),
            ("annotations", 7),
            ("annotations.0.result.0.value.rectanglelabels", [{}]),
            ("annotations.0.result.0.value.x", "1"),
            ("annotations.0.result.0.meta", {"track_id": "x"}),
        )
    ),
    *(
        Attack(12, "from-cvat", "cvat/annotations.xml", swap(*pair), "annotations.xml")
        for pair in (
            ('xtl="', 'xtl="nan'),
            ('width="32"', 'width="x"'),
            ("<annotations>", "<!DOCTYPE a><annotations>"),
            ("<annotations>", "<annotation>"),
            ('label="car"', 'label=""'),
        )
    ),
    *(
        Attack(12, "from-yolo", "yolo/labels/train/north/1.txt", text(content), "1.txt")
        for content in ("0 nan 0 0 0", "x", "9 0 0 0 0", "0 1e999 0 0 0", "0 0 0 0 0 0 0 0 0")
    ),
    *(
        Attack(9, command, file, change, "plan")
        for command, file in (("status", "plan.yaml"), ("status-rounds", "rounds.yaml"))
        for change in (
            swap("seed: 3", "seed: &a [*a]"),
            swap("seed: 3", "seed: !!python/name:os.system"),
            swap("seed: 3", "seed: " + "9" * 400),
            swap("name:", "name: &a ../../x #"),
        )
    ),
    Attack(3, "status", "plan.yaml", swap("name: tiny", "name: ../../x"), "name"),
]

ATTACKS = [*MODELS, *EVIDENCE, *NAMES, *PACKAGES, *READERS, *REGISTRY, *SHAPES]
