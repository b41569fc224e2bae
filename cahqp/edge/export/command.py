"""`cahqp export`: conversion of a model file to a package that is checked to detect the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.detectors import model_file as model_files
from cahqp.detectors.base import Detector
from cahqp.edge.capture import read_valid_frames
from cahqp.edge.detections import EdgeDetections
from cahqp.edge.export.int8 import convert_to_int8
from cahqp.edge.export.parity import Parity, synthetic_frames
from cahqp.edge.export.to_onnx import OPSET, input_size, to_onnx
from cahqp.edge.options import ExportOptions
from cahqp.edge.package import MODEL, read_package, write_manifest
from cahqp.edge.runtime import Runtime
from cahqp.edge.signing import private_fingerprint, sign
from cahqp.errors import WeightsError
from cahqp.predictor import Predictor
from cahqp.runs.directory import open_run
from cahqp.runs.evidence import ANALYSIS_ONLY

_SETTINGS = ("precision", "batch", "sampling", "frame_size", "max_loss", "check_frames", "calibration_frames")
_MAX_SYNTHETIC_FRAMES = 24


def export(options: ExportOptions) -> None:
    """Write a package and print how closely it matches the model file.

    Raises:
        ConfigError: The options do not fit the model file, or an optional dependency is missing.
        DataError: A frame or a label file cannot be read.
        WeightsError: ONNX and PyTorch differ, INT8 loses too much AP50, or the model is for analysis only.
    """
    settings = {name: getattr(options, name) for name in _SETTINGS}
    settings["key"] = None if options.key is None else private_fingerprint(options.key)
    inputs = {"weights": options.weights}
    for role in ("frames", "calibration", "labelled"):
        inputs |= {f"{role}.{number}": Path(path) for number, path in enumerate(getattr(options, role))}
    with open_run(options.output, "export", settings, inputs, options.seed) as run:
        if run is None:
            return
        run.metrics = _write_package(options, run.work)
    _report(options.output, run.metrics)


def _write_package(options: ExportOptions, work: Path) -> dict[str, Any]:
    """Write the package to `work` and return the measurements."""
    detector = model_files.load(options.weights)
    if detector.provenance.get(ANALYSIS_ONLY):
        message = f"{options.weights} was trained on repaired target labels, for analysis only. Export another model."
        raise WeightsError(message)
    size = input_size(detector.preprocessing, options.frame_size)
    to_onnx(detector, work / MODEL, size, options.batch, options.sampling)
    content = _manifest(detector, size, options)
    write_manifest(work, content | {"precision": "float32"})
    runtime = Runtime(read_package(work))
    images = list(islice(_images(options, runtime), options.check_frames))
    parity = _compare(Predictor(detector), runtime, images)
    parity.check(str(options.weights))
    source = "files" if options.frames else "synthetic"
    metrics: dict[str, Any] = {"parity": asdict(parity) | {"frames_from": source}}
    if options.precision == "int8":
        content["quantised"], metrics["int8"] = convert_to_int8(runtime, work, content, options)
    data = write_manifest(work, content | {"precision": options.precision, "checked": metrics})
    if options.key is not None:
        sign(work, data, options.key)
    Runtime(read_package(work))  # the final package must load
    return metrics


def _manifest(detector: Detector, size: tuple[int, int], options: ExportOptions) -> dict[str, Any]:
    rule = detector.preprocessing
    return {
        "architecture": type(detector).__name__,
        "classes": list(detector.classes),
        "input": {
            "name": "images", "layout": "NCHW", "type": "float32", "batch": options.batch, "height": size[0],
            "width": size[1], "colour": "RGB", "divide_by": 255, "mean": list(rule.mean), "std": list(rule.std),
            "short_side": rule.short_side, "max_side": rule.max_side,
            "interpolation": "area if no side grows, else linear",
        },
        "output": {
            "logits": "(batch, queries, classes) before the sigmoid",
            "boxes": "(batch, queries, 4) cxcywh in 0..1 of the frame",
            "select": "best scores over all query-class pairs, then non-maximum suppression per class",
            "max_detections": detector.max_detections, "nms_iou": detector.nms_iou,
        },
        "thresholds": dict(detector.thresholds),
        "sampling": options.sampling,
        "opset": OPSET,
        "weights": detector.provenance.get("hash"),
    }  # fmt: skip


def _images(options: ExportOptions, runtime: Runtime) -> Iterator[NDArray[np.uint8]]:
    """Yield RGB images for the check: the given frames, or synthetic ones that fit the package."""
    rule, count = runtime.package.manifest["input"], min(options.check_frames, _MAX_SYNTHETIC_FRAMES)
    if options.frames:
        for path in options.frames:
            for frame in read_valid_frames(path):
                yield np.ascontiguousarray(frame.pixels()[:, :, ::-1])
    elif rule["short_side"] is None:
        yield from synthetic_frames(rule["height"], rule["width"], count, options.seed)
    else:
        assert options.frame_size is not None  # checked by `input_size`
        height, width = options.frame_size
        for image in synthetic_frames(height, width, count, options.seed):
            yield np.ascontiguousarray(image[:height, :width])


def _compare(predictor: Predictor, runtime: Runtime, images: list[NDArray[np.uint8]]) -> Parity:
    """Compare before suppression: if two boxes tie, the last digit decides which one it keeps."""
    parity = Parity()
    predictor.detector.nms_iou = None
    for image in images:
        reference = EdgeDetections(*predictor.detect([image])[0])
        parity.add(runtime.detect([image], suppress=False)[0], reference)
    return parity


def _report(output: Path, metrics: dict[str, Any]) -> None:
    parity = metrics["parity"]
    print(
        f"{output}: ONNX agrees with PyTorch on {parity['frames']} frames ({parity['detections']} detections above 0.3 "
        f"within {parity['pixels']:.3f} px and {max(parity['scores'], parity['ranked']):.1e} of score)."
    )
    if "int8" in metrics:
        int8 = metrics["int8"]
        print(f"INT8: AP50 {100 * int8['ap50_int8']:.1f} ({100 * int8['ap50_float32']:.1f} in float32).")
