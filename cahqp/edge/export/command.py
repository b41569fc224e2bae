"""`cahqp export`: from a model file to a package that was seen to detect the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cahqp.detectors import model_file as model_files
from cahqp.detectors.base import Detector
from cahqp.edge.export.parity import Parity, synthetic_frames
from cahqp.edge.export.quantize import quantise
from cahqp.edge.export.to_onnx import OPSET, Sampling, input_size, require, to_onnx
from cahqp.edge.frames import is_stream
from cahqp.edge.latency import answers, batched, milliseconds, picture, readable
from cahqp.edge.package import MODEL, read_package, write_manifest
from cahqp.edge.runtime import Found, Runtime
from cahqp.edge.signing import fingerprint_of_private, sign
from cahqp.errors import ConfigError, WeightsError, check_numbers
from cahqp.evaluation.ground_truth import read_ground_truth
from cahqp.evaluation.metrics import average_precision
from cahqp.files import redact_url
from cahqp.predictor import Predictor
from cahqp.runs.directory import RunDirectory
from cahqp.runs.whole import whole_or_nothing


def export(
    weights: Path,
    output: Path,
    frames: list[str] | None = None,
    precision: Literal["float32", "int8"] = "float32",
    calibration: list[str] | None = None,
    labelled: list[Path] | None = None,
    frame_size: tuple[int, int] | None = None,
    batch: int = 1,
    sampling: Sampling = "grid_sample",
    key: Path | None = None,
    check_frames: int = 200,
    calibration_frames: int = 100,
    max_loss: float = 0.01,
    seed: int = 0,
) -> None:
    """Export a model file as an edge package, checked against PyTorch on frames.

    The package is a directory with `model.onnx`, `package.json` (classes, preprocessing, decoding, thresholds, hashes)
    and, with a key, `package.sig`. Nothing is written where ONNX and PyTorch disagree.

    Args:
        weights: Model file.
        output: Directory to make; never overwritten.
        frames: Folders, videos or COCO files to check on; synthetic frames, empty and crowded ones, where not given.
        precision: `int8` quantises the convolutions of backbone and encoder; decoder and heads stay in float.
        calibration: For `int8`, frames that ranges of activations are taken from; none of them may be in `labelled`.
        labelled: For `int8`, COCO files on which AP50 is measured beside float32.
        frame_size: Height and width of the camera's frames, for a model that keeps their aspect ratio.
        batch: Frames at once; fixed in the package.
        sampling: `gather` for runtimes that compute GridSample wrongly, such as some of TensorRT.
        key: Ed25519 private key (PEM) to sign with.
        check_frames: How many frames to check on.
        calibration_frames: How many frames to calibrate on.
        max_loss: AP50 in 0..1 that `int8` may lose on `labelled`.
        seed: Of the synthetic frames.
    """
    check_numbers({"max_loss": max_loss}, {"batch": batch, "check_frames": check_frames})
    calibrated, measured = _int8_inputs(precision, calibration, labelled)
    checked = _paths("--frames", frames)
    settings = {
        "precision": precision, "batch": batch, "sampling": sampling, "frame_size": frame_size, "max_loss": max_loss,
        "check_frames": check_frames, "calibration_frames": calibration_frames,
        "key": None if key is None else fingerprint_of_private(key),
    }  # fmt: skip
    inputs = {"weights": weights}
    for role, paths in (("frames", checked), ("calibration", calibrated), ("labelled", measured)):
        inputs |= {f"{role}.{number}": path for number, path in enumerate(paths)}
    run = RunDirectory(output, "export", settings, inputs, seed)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    with whole_or_nothing(run):
        figures = _export(run, settings, checked, calibrated, measured, key)
        run.finish(figures)
    _tell(output, figures)


def _export(
    run: RunDirectory, settings: dict[str, Any], checked: list[Path], calibrated: list[Path], measured: list[Path],
    key: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Write the package into the run's directory and return what was measured."""
    frame_size, batch, sampling = settings["frame_size"], settings["batch"], settings["sampling"]
    detector = model_files.load(run.inputs["weights"])
    size = input_size(detector.preprocessing, frame_size)
    to_onnx(detector, run.work / MODEL, size, batch, sampling)
    described = _described(detector, size, batch, sampling)
    write_manifest(run.work, described | {"precision": "float32"})
    runtime = Runtime(read_package(run.work))
    most = settings["check_frames"]
    pictures = list(islice(_pictures(checked, runtime, frame_size, most, run.seed), most))
    parity = _parity(Predictor(detector), runtime, pictures)
    parity.check(str(run.inputs["weights"]))
    figures: dict[str, Any] = {"parity": vars(parity) | {"frames_from": "files" if checked else "synthetic"}}
    if settings["precision"] == "int8":
        described["quantised"], figures["int8"] = _quantised(
            runtime, run.work, calibrated, measured, described, settings["calibration_frames"], settings["max_loss"]
        )
    data = write_manifest(run.work, described | {"precision": settings["precision"], "checked": figures})
    if key is not None:
        sign(run.work, data, key)
    Runtime(read_package(run.work))  # what is about to be finished loads
    return figures


def _int8_inputs(
    precision: str, calibration: list[str] | None, labelled: list[Path] | None
) -> tuple[list[Path], list[Path]]:
    if precision == "float32":
        if calibration or labelled:
            message = "--calibration and --labelled belong to --precision int8. Leave them out, or ask for int8."
            raise ConfigError(message)
        return [], []
    if not (calibration and labelled):
        message = (
            "--precision int8 needs --calibration (frames that ranges are taken from) and --labelled (other frames, "
            "with labels): no INT8 package is written without its AP50 beside that of float32."
        )
        raise ConfigError(message)
    return _paths("--calibration", calibration), [Path(path) for path in labelled]


def _paths(flag: str, given: list[str] | None) -> list[Path]:
    streams = [text for text in given or () if is_stream(text)]
    if streams:
        told = f"{flag} takes files and folders, which can be read twice"
        message = f"{told}; {redact_url(streams[0])} is a stream. Record it first."
        raise ConfigError(message)
    return [Path(text) for text in given or ()]


def _described(detector: Detector, size: tuple[int, int], batch: int, sampling: Sampling) -> dict[str, Any]:
    rule = detector.preprocessing
    return {
        "architecture": type(detector).__name__,
        "classes": list(detector.classes),
        "input": {
            "name": "images", "layout": "NCHW", "type": "float32", "batch": batch, "height": size[0], "width": size[1],
            "colour": "RGB", "divide_by": 255, "mean": list(rule.mean), "std": list(rule.std),
            "short_side": rule.short_side, "max_side": rule.max_side,
            "interpolation": "area where no side grows, else linear",
        },
        "output": {
            "logits": "(batch, queries, classes) before the sigmoid",
            "boxes": "(batch, queries, 4) cxcywh in 0..1 of the frame",
            "select": "best scores over all pairs of query and class, less what a better one of its class suppresses",
            "max_detections": detector.max_detections, "nms_iou": detector.nms_iou,
        },
        "thresholds": dict(detector.thresholds),
        "sampling": sampling,
        "opset": OPSET,
        "weights": detector.provenance.get("hash"),
    }  # fmt: skip


def _pictures(
    paths: list[Path], runtime: Runtime, frame_size: tuple[int, int] | None, count: int, seed: int
) -> Iterator[NDArray[np.uint8]]:
    rule = runtime.package.manifest["input"]
    if paths:
        for path in paths:
            for frame in readable(str(path)):
                yield np.ascontiguousarray(picture(frame)[:, :, ::-1])
    elif rule["short_side"] is None:
        yield from synthetic_frames(rule["height"], rule["width"], min(count, 24), seed)
    else:
        assert frame_size is not None  # else `input_size` has refused
        for image in synthetic_frames(*frame_size, min(count, 24), seed):
            yield np.ascontiguousarray(image[: frame_size[0], : frame_size[1]])


def _parity(predictor: Predictor, runtime: Runtime, pictures: list[NDArray[np.uint8]]) -> Parity:
    """Compare before suppression: two runtimes that differ in the last digit may keep either of two boxes."""
    parity = Parity()
    predictor.detector.nms_iou = None
    for image in pictures:
        expected = predictor.predict([image])[0]
        reference = Found(expected.boxes.numpy(), expected.scores.numpy(), expected.labels.numpy())
        parity.add(runtime.detect([image], suppress=False)[0], reference)
    return parity


def _quantised(
    runtime: Runtime, work: Path, calibrated: list[Path], measured: list[Path], described: dict[str, Any],
    count: int, max_loss: float,
) -> tuple[list[str], dict[str, Any]]:  # fmt: skip
    """Replace the float model in `work` by its INT8 version and return the INT8 nodes and what was measured."""
    seen: set[str] = set()
    batches = list(_calibration(runtime, calibrated, count, seen))
    twice = [name for path in measured for name, digest in _digests(path) if digest in seen]
    if twice:
        message = (
            f"{len(twice)} frames stand in both --calibration and --labelled, {twice[0]} among them: INT8 would be "
            "measured on what it was fitted to. Give other recordings."
        )
        raise ConfigError(message)
    nodes = quantise(work / MODEL, work / "int8.onnx", iter(batches))
    _same_bytes(work / "int8.onnx")
    (work / "int8.onnx").replace(work / MODEL)
    write_manifest(work, described | {"precision": "int8"})
    small = Runtime(read_package(work))
    ground_truths = [(path, read_ground_truth(path, runtime.classes)) for path in measured]
    floats, ints = ([average_precision(t, answers(r, p)).ap50 for p, t in ground_truths] for r in (runtime, small))
    pairs = [(a, b) for a, b in zip(floats, ints, strict=True) if a is not None and b is not None]
    if not pairs:
        message = "--labelled holds no object, so the loss by INT8 cannot be measured. Give frames with objects."
        raise ConfigError(message)
    before, after = (float(np.mean(values)) for values in zip(*pairs, strict=True))
    if before - after > max_loss:
        message = (
            f"INT8 loses {100 * (before - after):.1f} points of AP50 ({100 * before:.1f} in float32, {100 * after:.1f} "
            f"in INT8; allowed: {100 * max_loss:g}). Nothing was written. Calibrate on more frames that are like those "
            "to come, or export float32."
        )
        raise WeightsError(message)
    slow, fast = (1000 * runtime.batch / taken for taken in milliseconds([runtime, small]))
    # Told, not kept: a package's hash must not depend on how busy the machine was.
    print(f"At one thread INT8 reaches {fast:.1f} frames/s, float32 {slow:.1f}.")
    return nodes, {"ap50_float32": before, "ap50_int8": after}


def _calibration(runtime: Runtime, paths: list[Path], count: int, seen: set[str]) -> Iterator[NDArray[np.float32]]:
    """Yield inputs of the model from frames spread over each source, noting each frame's digest in `seen`."""
    for path in paths:
        total = sum(1 for _ in readable(str(path)))
        step = max(1, total // max(1, count // len(paths)))
        chosen = islice(readable(str(path)), 0, None, step)
        for frames in batched(chosen, runtime.batch):
            seen |= {_digest(picture(frame)) for frame in frames}
            prepared = [runtime.prepare(picture(frame), bgr=True) for frame in frames]
            yield np.stack([*prepared, *[prepared[-1]] * (runtime.batch - len(prepared))])


def _digests(path: Path) -> Iterator[tuple[str, str]]:
    for frame in readable(str(path)):
        yield frame.name, _digest(picture(frame))


def _digest(image: NDArray[np.uint8]) -> str:
    return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()


def _same_bytes(path: Path) -> None:
    """Write a model again so that its bytes depend on its content alone."""
    model = require("onnx").load(str(path))
    path.write_bytes(model.SerializeToString(deterministic=True))


def _tell(output: Path, figures: dict[str, Any]) -> None:
    parity = figures["parity"]
    print(
        f"{output}: ONNX agrees with PyTorch on {parity['frames']} frames ({parity['detections']} detections above 0.3 "
        f"within {parity['pixels']:.3f} px and {max(parity['scores'], parity['ranked']):.1e} of score)."
    )
    if "int8" in figures:
        said = figures["int8"]
        print(f"INT8: AP50 {100 * said['ap50_int8']:.1f} ({100 * said['ap50_float32']:.1f} in float32).")
