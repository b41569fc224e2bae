"""`cahqp detect`: a package over frames, on onnxruntime alone."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cahqp.edge.draw import Drawing
from cahqp.edge.frames import EdgeFrame, is_stream, read_frames
from cahqp.edge.package import find_package, read_package
from cahqp.edge.prefetch import Prefetch
from cahqp.edge.runtime import Answer, Found, Runtime
from cahqp.errors import DataError, RunError, check_numbers
from cahqp.files import redact_url, writing
from cahqp.runs.directory import RunDirectory
from cahqp.runs.whole import whole_or_nothing

DETECTIONS = "detections.jsonl"

_HANDOVER = 0.0005
"""Seconds for which a thread may keep Python's lock. With its own 5 ms the model, done with a frame of 10 ms, waited
up to 6 ms for its next one."""


@dataclass(frozen=True)
class _Prepared:
    frame: EdgeFrame
    pixels: NDArray[np.float32] | None
    size: tuple[int, int]


@dataclass(frozen=True)
class _Answered:
    batch: list[_Prepared]
    answer: Answer | None  # `None` where no frame of the batch could be decoded
    began: float


def detect(
    weights: Path,
    frames: str,
    output: Path,
    threshold: float | None = None,
    draw: bool = False,
    threads: int = 1,
    providers: list[str] | None = None,
    trusted: Path | None = None,
    patience: float = 60.0,
    max_frames: int | None = None,
    compare: bool = False,
) -> None:
    """Detect with a package: a line of JSON for each frame, and pictures where asked for.

    Args:
        weights: A package, or a registry whose running version is taken.
        frames: A folder, an image, a COCO file, a video, or the URL of a stream (rtsp://...), which is opened anew
            whenever it breaks.
        output: Directory for `detections.jsonl`; never overwritten.
        threshold: Lowest score that is written; without it the package's own of each class.
        draw: Also write the frames with their boxes to `drawn/`.
        threads: Threads of onnxruntime.
        providers: Execution providers of onnxruntime in the order of preference; the CPU's where not given.
        trusted: Ed25519 public key (PEM) that the package must be signed with.
        patience: Seconds without a frame after which a stream is given up.
        max_frames: Stop after this many frames.
        compare: Afterwards run the model alone for as many frames, and print that rate, too.
    """
    check_numbers({"threshold": threshold}, {"threads": threads, "max_frames": max_frames})
    runtime = Runtime(read_package(weights, trusted), threads, providers or ["CPUExecutionProvider"])
    run = _run(weights, frames, output, {"threshold": threshold, "draw": draw, "max_frames": max_frames})
    if run is not None and not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    with whole_or_nothing(run) if run is not None else _streaming(output):
        place = output if run is None else run.work
        limits = runtime.thresholds if threshold is None else np.full(len(runtime.classes), threshold, np.float32)
        with writing(place / DETECTIONS), (place / DETECTIONS).open("w", encoding="utf-8") as file:
            drawing = Drawing(place / "drawn", runtime.classes) if draw else None
            figures, rate = _work(runtime, frames, limits, file, drawing, patience, max_frames)
        if run is not None:
            run.finish(figures)
    print(f"{output / DETECTIONS}: {figures['detections']} detections on {figures['frames']} frames.")
    if figures["broken"]:
        print(f"{figures['broken']} frames could not be decoded; they stand in the file with `error`.")
    print(f"{rate:.1f} frames/s" + (f"; the model alone reaches {_bare(runtime, figures['frames']):.1f}" * compare))


def _run(weights: Path, frames: str, output: Path, settings: dict[str, Any]) -> RunDirectory | None:
    """Return the run's directory; `None` for a stream, which cannot be hashed and so never is finished already."""
    if not is_stream(frames):
        inputs = {"weights": find_package(weights), "frames": Path(frames)}
        return RunDirectory(output, "detect", settings, inputs, seed=0)
    if output.exists():
        message = f"{output} exists, and detections are never overwritten. Choose another --output."
        raise RunError(message)
    return None


@contextmanager
def _streaming(output: Path) -> Iterator[None]:
    """Make a stream's output, and remove it where the stream ends before its first frame."""
    with writing(output):
        output.mkdir(parents=True)
    try:
        yield
    except BaseException as error:
        lines = output / DETECTIONS
        seen = lines.is_file() and lines.stat().st_size > 0
        if not seen:
            shutil.rmtree(output)
        if isinstance(error, KeyboardInterrupt):
            kept = f"{output} keeps what was seen until now; another --output takes more." if seen else "No frame came."
            raise KeyboardInterrupt(kept) from error
        raise


def _work(
    runtime: Runtime, source: str, limits: NDArray[np.float32], file: IO[str], drawing: Drawing | None,
    patience: float, max_frames: int | None,
) -> tuple[dict[str, int], float]:  # fmt: skip
    figures = {"frames": 0, "broken": 0, "detections": 0}
    live = is_stream(source)
    start = None
    # The model has a thread of its own: while it works on a frame, the one before is read out and written.
    with (
        _quick_handover(),
        Prefetch(_prepared(runtime, source, patience), live=live) as items,
        Prefetch(_answered(runtime, _batches(items, 1 if live else runtime.batch, max_frames)), size=1) as answers,
    ):
        for answered in answers:
            start = start or answered.began  # opening a source is not detecting on it
            for item, kept in zip(answered.batch, _found(runtime, answered, limits), strict=True):
                file.write(line(item.frame, item.size, kept, runtime.classes) + "\n")
                figures["frames"] += 1
                figures["broken"] += kept is None
                figures["detections"] += 0 if kept is None else len(kept.scores)
                if drawing is not None and kept is not None:
                    drawing.add(item.frame, kept)
            if live:
                file.flush()
    if figures["frames"] == figures["broken"]:
        message = (
            f"None of the {figures['frames']} frames of {redact_url(source)} can be decoded. Check what wrote them."
        )
        raise DataError(message)
    return figures, figures["frames"] / (time.perf_counter() - (start or 0.0))


@contextmanager
def _quick_handover() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_HANDOVER)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def line(frame: EdgeFrame, size: tuple[int, int], found: Found | None, classes: tuple[str, ...]) -> str:
    """Return one frame's detections as one line of JSON, in COCO's words.

    Args:
        frame: Where they were found.
        size: Height and width of the frame.
        found: `None` where it could not be decoded.
        classes: Class names by label; COCO category ids count from 1 in their order.
    """
    image: dict[str, Any] = {"id": frame.id, "file_name": frame.name, "height": size[0], "width": size[1]}
    if frame.timestamp is not None:
        image["timestamp"] = frame.timestamp
    if found is None:
        return json.dumps({"image": image, "detections": [], "error": "cannot be decoded"})
    boxes = np.round(np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1), 2)
    detections = [
        {"category_id": int(label) + 1, "category": classes[label], "bbox": box, "score": round(float(score), 5)}
        for box, score, label in zip(boxes.astype(float).round(2).tolist(), found.scores, found.labels, strict=True)
    ]
    return json.dumps({"image": image, "detections": detections})


def _prepared(runtime: Runtime, source: str, patience: float) -> Iterator[_Prepared]:
    for frame in read_frames(source, patience):
        image = frame.image
        if image is None:
            yield _Prepared(frame, None, (0, 0))
        else:
            yield _Prepared(frame, runtime.prepare(image, bgr=True), (image.shape[0], image.shape[1]))


def _batches(items: Iterator[_Prepared], size: int, max_frames: int | None) -> Iterator[list[_Prepared]]:
    batch: list[_Prepared] = []
    for number, item in enumerate(items, start=1):
        batch.append(item)
        if len(batch) == size or number == max_frames:
            yield batch
            batch = []
        if number == max_frames:
            return
    if batch:
        yield batch


def _answered(runtime: Runtime, batches: Iterator[list[_Prepared]]) -> Iterator[_Answered]:
    for batch in batches:
        began = time.perf_counter()
        good = [item.pixels for item in batch if item.pixels is not None]
        yield _Answered(batch, runtime.answer_some(good) if good else None, began)


def _found(runtime: Runtime, answered: _Answered, limits: NDArray[np.float32]) -> list[Found | None]:
    if answered.answer is None:
        return [None] * len(answered.batch)
    rows = zip(*answered.answer, strict=True)
    return [
        None if item.pixels is None else runtime.read(*next(rows), item.size, limits=limits) for item in answered.batch
    ]


def _bare(runtime: Runtime, frames: int) -> float:
    """Return frames per second of the model alone, over as many frames but for no more than ten seconds."""
    rule = runtime.package.manifest["input"]
    images = np.zeros((runtime.batch, 3, rule["height"], rule["width"]), np.float32)
    start, done = time.perf_counter(), 0
    while done < frames and time.perf_counter() - start < 10:
        runtime.answer(images)
        done += runtime.batch
    return done / (time.perf_counter() - start)
