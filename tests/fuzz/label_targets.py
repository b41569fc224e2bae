"""Targets of labels: COCO, YOLO, CVAT, Label Studio, calibrations and soft-label stores."""

import json

import cv2
import numpy as np
from fuzz.target import Target, attempt

from cahqp.coco.reader import class_indices, read_coco, read_coco_frames
from cahqp.data.frames import open_frames
from cahqp.edge.capture import read_frames
from cahqp.evaluation.ground_truth import read_ground_truth
from cahqp.frame import Frame, View
from cahqp.labels.calibration.file import fit_calibration, read_calibration, write_calibration
from cahqp.labels.external import ExternalPredictions
from cahqp.labels.formats import read_format, write_format
from cahqp.labels.formats.coco import read_label_file, write_coco
from cahqp.labels.formats.review import accept, merge_review, unique_images
from cahqp.training.distillation.records import RecordLayout, SoftView
from cahqp.training.distillation.store import SoftLabelStore, SoftLabelWriter, StoreKey, _StoreRecord

CLASSES = ("car", "person")


def write_labels(folder, frames=4):
    """Write a COCO file with boxes of a model and of a person, and its images."""
    (folder / "images" / "north").mkdir(parents=True)
    images, boxes = [], []
    for number in range(1, frames + 1):
        name = f"north/{number}.png"
        cv2.imwrite(str(folder / "images" / name), np.full((24, 32, 3), 40 * number, np.uint8))
        entry = {"id": number, "file_name": name, "height": 24, "width": 32, "camera": "north", "frame": number}
        images.append(entry | {"recording": "north-1", "timestamp": 0.5 * number, "reviewed": number == 1})
        for row in range(2):
            box = {"id": len(boxes) + 1, "image_id": number, "category_id": row + 1, "bbox": [4 + row, 6.5, 10, 8.25]}
            box |= {"area": 82.5, "iscrowd": int(row and number == 2), "score": 0.75, "track_id": row, "weight": 0.5}
            boxes.append(box | ({"origin": "human"} if number == 1 else {"origin": "model", "uncertainty": 0.1}))
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    document = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(document))
    (folder / "source.json").write_text(json.dumps({"root": "images"}))


def read_coco_file(folder, output, mutator):
    path = folder / "labels.json"

    def external():
        predictions = ExternalPredictions(path, CLASSES)
        predictions.check(["north/1.png"])
        predictions.predict("north/1.png", (24, 32), 0.1)

    def frames():
        source = open_frames([path])
        for position in range(len(source)):
            source.read(position)

    def convert():
        labels = read_label_file(path)
        for kind in ("yolo", "cvat", "label-studio"):
            write_format(path, kind, output / kind)
        write_coco(accept(unique_images(labels)), output / "labels.json")

    attempt(
        mutator,
        lambda: class_indices(read_coco(path), CLASSES), lambda: read_coco_frames(path, sizes=False),
        lambda: read_ground_truth(path), lambda: read_ground_truth(path, CLASSES), external, frames, convert,
        lambda: [frame.image for frame in read_frames(str(path))],
    )  # fmt: skip


def exported(kind):
    """Return a writer of labels in a format, beside the COCO file that they were made from."""

    def make(folder):
        (folder / "sent").mkdir()
        write_labels(folder / "sent")
        write_format(folder / "sent" / "labels.json", kind, folder / kind)

    return make


def read_back(kind):
    """Return a reader of labels that come back from a review."""

    def read(folder, output, mutator):
        like = read_label_file(folder / "sent" / "labels.json")
        labels = unique_images(read_format(folder / kind, kind, like))
        attempt(
            mutator,
            lambda: write_coco(merge_review(labels, like), output / "merged.json"),
            lambda: write_coco(merge_review(labels, like, reviewed=True), output / "reviewed.json"),
            lambda: [
                write_coco(accept(labels), output / "accepted.json"),
                *(write_format(output / "accepted.json", other, output / other) for other in ("yolo", "cvat")),
            ],
        )

    return read


def make_calibration(folder):
    rng = np.random.default_rng(0)
    scores = {name: np.round(rng.uniform(0, 1, 30), 2) for name in CLASSES}
    hits = {name: rng.uniform(0, 1, 30) < scores[name] for name in CLASSES}
    scope = {"models": ["a" * 64], "views": [1]}
    found = fit_calibration(scope, "isotonic", scores, hits, {name: 20 for name in CLASSES})
    write_calibration(folder / "calibration.json", found, {"car": {"before": 0.1, "after": 0.05}})


def read_calibration_file(folder, output, mutator):
    for scope in ({"models": ["a" * 64], "views": [1]}, None):
        calibration = read_calibration(folder, scope, CLASSES)
        thresholds = calibration.thresholds(0.8)
        calibration.means(thresholds)
        for name in CLASSES:
            calibrated = calibration.curves[name](np.array([0.1, 0.9]))
            assert ((calibrated >= 0) & (calibrated <= 1)).all(), calibrated


FRAMES = [Frame(n, f"{n}.png", (0, 0), recording="one", index=n) for n in range(3)]


def soft_key():
    layout = RecordLayout(4, 2, 2, "packed")
    return StoreKey("t" * 64, None, CLASSES, 2, 0, "strong", layout)


def make_store(folder):
    writer = SoftLabelWriter(folder / "soft", soft_key(), "../images", FRAMES)
    rng = np.random.default_rng(0)
    for frame in range(3):
        for view in range(2):
            found = SoftView(
                View(3, 5, 90, 60, True), 7, rng.random((6, 2), np.float32), rng.random((6, 4), np.float32)
            )
            writer.write(frame, view, found)
    writer.finish()


def read_store(folder, output, mutator):
    def read():
        store = SoftLabelStore(folder / "soft")
        for index in range(len(store)):
            for view in range(store.key.views):
                store.read(index, view)

    attempt(mutator, read, lambda: SoftLabelWriter(folder / "soft", soft_key(), "../images", FRAMES).done())


def with_marks(folder, mutator):
    """Make the header and the size of the shard fit the changed index, as anyone can."""
    index, shard = folder / "soft" / "store.json", folder / "soft" / "shard-00000.bin"
    try:
        record = _StoreRecord.model_validate(json.loads(index.read_bytes()))
    except (ValueError, RecursionError):
        return  # it is refused anyway
    key = record.key.key()
    size = len(record.frames) * key.views * key.layout.dtype.itemsize
    if mutator.random.random() < 0.5 and size < 1 << 20:
        header = (b"cahqpsoft" + key.digest).ljust(64, b"\0")
        shard.write_bytes(header + shard.read_bytes()[64:].ljust(size, b"\0")[:size])


TARGETS = [
    Target("coco", write_labels, read_coco_file, fixed=("images/",)),
    *(Target(kind, exported(kind), read_back(kind), fixed=("sent/",)) for kind in ("yolo", "cvat", "label-studio")),
    Target("calibration", make_calibration, read_calibration_file),
    Target("soft-labels", make_store, read_store, disguise=with_marks),
]
