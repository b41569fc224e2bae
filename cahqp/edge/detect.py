"""`cahqp detect`: detections of a package on frames, without torch."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cahqp.coco.image_folder import image_root
from cahqp.edge.capture import EdgeFrame, read_frames
from cahqp.edge.detections import EdgeDetections, Floats
from cahqp.edge.downgrade import running_no_older
from cahqp.edge.draw import draw
from cahqp.edge.isolation import isolate
from cahqp.edge.options import DetectOptions
from cahqp.edge.package import find_package, read_package
from cahqp.edge.prefetch import Prefetch
from cahqp.edge.runtime import RawOutput, Runtime
from cahqp.edge.streams import is_stream
from cahqp.errors import DataError, RunError, WeightsError
from cahqp.files import redact_url, writing
from cahqp.runs.directory import open_run

DETECTIONS = "detections.jsonl"

_SWITCH_INTERVAL = 0.0005
"""Longest time in seconds that a thread keeps Python's lock. With the default of 5 ms the model waited up to 6 ms for
its next frame after 10 ms of work."""


class _Batch(NamedTuple):
    frames: list[EdgeFrame]
    output: RawOutput | None  # `None` if no frame of the batch can be decoded
    start: float


def detect(options: DetectOptions) -> None:
    """Write the detections of a package, and print their number and the frame rate.

    Raises:
        DataError: The source cannot be read, or none of its frames can be decoded.
        RunError: The output exists or cannot be written.
        WeightsError: The package was changed, or inference fails.
    """
    output = options.output
    running = None
    if options.state is not None and options.trusted is not None:
        running = running_no_older(options.weights, options.trusted, options.state)
    if options.isolated:
        _isolate(options)
    package = read_package(options.weights, options.trusted)
    if running not in (None, package.path):
        message = f"{options.weights} got another running version during the start. Run the same command again."
        raise RunError(message)
    if options.expect not in (None, package.digest):
        message = f"{package.path} has the SHA-256 {package.digest}, not {options.expect} (--expect). Check its origin."
        raise WeightsError(message)
    runtime = Runtime(package, options.threads, options.providers)
    if is_stream(options.frames):  # it has no hash, so no run directory
        with _stream_output(output):
            counts, rate = _process(runtime, options, output)
    else:
        inputs = {"weights": find_package(options.weights), "frames": Path(options.frames)}
        settings: dict[str, Any] = {name: getattr(options, name) for name in ("threshold", "draw", "max_frames")}
        settings |= options.naming_settings
        if package.key is not None:  # detections made without the check are not those of a checked package
            settings |= {"key": package.key, "package": package.digest}
        with open_run(output, "detect", settings, inputs) as run:
            if run is None:
                return
            counts, rate = _process(runtime, options, run.work)
            run.metrics = dict(counts)
    print(f"{output / DETECTIONS}: {counts['detections']} detections on {counts['frames']} frames.")
    if counts["broken"]:
        print(f"{counts['broken']} frames could not be decoded. Their lines contain `error`.")
    alone = f"; the model alone reaches {_model_rate(runtime, counts['frames']):.1f}" if options.compare else ""
    print(f"{rate:.1f} frames/s{alone}")


def _isolate(options: DetectOptions) -> None:
    """Isolate this process from the network, and from all files that the command does not need."""
    frames = Path(options.frames)
    inputs = [options.weights, frames, *([] if options.trusted is None else [options.trusted])]
    if frames.suffix.lower() == ".json":
        inputs += [frames.parent, image_root(frames)]
    with writing(options.output):
        options.output.absolute().parent.mkdir(parents=True, exist_ok=True)
    isolate(inputs, [options.output.absolute().parent])


@contextmanager
def _stream_output(output: Path) -> Iterator[None]:
    """Make the output directory of a stream, and remove it if the stream ends before its first frame."""
    if output.exists():
        message = f"{output} exists, and detections are never overwritten. Choose another --output."
        raise RunError(message)
    with writing(output):
        output.mkdir(parents=True)
    try:
        yield
    except BaseException as error:
        lines = output / DETECTIONS
        kept = lines.is_file() and lines.stat().st_size > 0
        if not kept:
            shutil.rmtree(output)
        if isinstance(error, KeyboardInterrupt):
            message = f"{output} keeps the frames until now. Use another --output to continue."
            raise KeyboardInterrupt(message if kept else "No frame arrived.") from error
        raise


def _process(runtime: Runtime, options: DetectOptions, work: Path) -> tuple[dict[str, int], float]:
    """Write the detections of all frames to `work` and return the counts and the rate in frames per second."""
    thresholds = runtime.thresholds
    if options.threshold is not None:
        thresholds = np.full(len(runtime.classes), options.threshold, np.float32)
    counts = {"frames": 0, "broken": 0, "detections": 0}
    live, start = is_stream(options.frames), 0.0
    # Inference has its own thread: while it works on one batch, the batch before is decoded and written.
    with (
        writing(work / DETECTIONS),
        (work / DETECTIONS).open("w", encoding="utf-8") as file,
        _switch_interval(),
        Prefetch(_preprocessed(runtime, options), live=live) as inputs,
        Prefetch(
            _inferred(runtime, islice(inputs, options.max_frames), 1 if live else runtime.batch), size=1
        ) as batches,
    ):
        for batch in batches:
            start = start or batch.start  # the time to open the source does not count
            for frame, found in zip(batch.frames, _decoded(runtime, batch, thresholds), strict=True):
                file.write(format_line(frame, found, runtime.classes) + "\n")
                counts["frames"] += 1
                counts["broken"] += found is None
                counts["detections"] += 0 if found is None else len(found.scores)
                if options.draw and found is not None:
                    draw(frame, found, runtime.classes, work / "drawn")
            if live:
                file.flush()
    if counts["frames"] == counts["broken"]:
        source = redact_url(options.frames)
        message = f"None of the {counts['frames']} frames of {source} can be decoded. Check how they were written."
        raise DataError(message)
    return counts, counts["frames"] / (time.perf_counter() - start)


@contextmanager
def _switch_interval() -> Iterator[None]:
    default = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(default)


def format_line(frame: EdgeFrame, found: EdgeDetections | None, classes: tuple[str, ...]) -> str:
    """Return the detections of one frame as one line of JSON with COCO's keys.

    Args:
        frame: Frame of the detections.
        found: Detections; `None` if the frame cannot be decoded.
        classes: Class names by label. COCO category ids count from 1 in this order.
    """
    height, width = (0, 0) if frame.image is None else frame.image.shape[:2]
    image: dict[str, Any] = {"id": frame.id, "file_name": frame.name, "height": height, "width": width}
    if frame.timestamp is not None:
        image["timestamp"] = frame.timestamp
    if found is None:
        return json.dumps({"image": image, "detections": [], "error": "cannot be decoded"}, allow_nan=False)
    boxes = np.round(np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1), 2)
    detections = [
        {"category_id": int(label) + 1, "category": classes[label], "bbox": box, "score": round(float(score), 5)}
        for box, score, label in zip(boxes.astype(float).round(2).tolist(), found.scores, found.labels, strict=True)
    ]
    return json.dumps({"image": image, "detections": detections}, allow_nan=False)


def _preprocessed(runtime: Runtime, options: DetectOptions) -> Iterator[tuple[EdgeFrame, Floats | None]]:
    for frame in read_frames(options.frames, options.patience, naming=options.naming):
        yield frame, None if frame.image is None else runtime.preprocess(frame.image, bgr=True)


def _inferred(runtime: Runtime, inputs: Iterator[tuple[EdgeFrame, Floats | None]], size: int) -> Iterator[_Batch]:
    while batch := list(islice(inputs, size)):
        start = time.perf_counter()
        valid = [pixels for _, pixels in batch if pixels is not None]
        yield _Batch([frame for frame, _ in batch], runtime.infer_frames(valid) if valid else None, start)


def _decoded(runtime: Runtime, batch: _Batch, thresholds: Floats) -> Iterator[EdgeDetections | None]:
    rows = zip(*batch.output, strict=True) if batch.output is not None else iter(())
    for frame in batch.frames:
        if frame.image is None:
            yield None
        else:
            size = (frame.image.shape[0], frame.image.shape[1])
            yield runtime.decode(*next(rows), size, thresholds=thresholds)


def _model_rate(runtime: Runtime, frames: int) -> float:
    """Return frames per second of the model alone, on as many frames but for at most ten seconds."""
    rule = runtime.package.manifest["input"]
    images = np.zeros((runtime.batch, 3, rule["height"], rule["width"]), np.float32)
    start, done = time.perf_counter(), 0
    while done < frames and time.perf_counter() - start < 10:
        runtime.infer(images)
        done += runtime.batch
    return done / (time.perf_counter() - start)
