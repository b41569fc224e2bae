"""A package at work: NumPy, OpenCV and onnxruntime, and nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.edge.package import Package
from cahqp.errors import ConfigError, DataError, WeightsError

Image = NDArray[np.uint8]
Answer = tuple[NDArray[np.float32], NDArray[np.float32]]
"""(N, Q, C) logits and (N, Q, 4) boxes, cxcywh in 0..1."""


class Found(NamedTuple):
    """What a package says of one frame, best first.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels of the frame.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64 class indices.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    def above(self, thresholds: NDArray[np.float32]) -> Found:
        """Return those whose score reaches the threshold of their class.

        Args:
            thresholds: (C,) one for each class.
        """
        kept = self.scores >= thresholds[self.labels]
        return Found(self.boxes[kept], self.scores[kept], self.labels[kept])


class Runtime:
    """A package's model, loaded.

    Args:
        package: Read and checked.
        threads: Threads of onnxruntime.
        providers: Execution providers of onnxruntime in the order of preference.

    Raises:
        WeightsError: onnxruntime refuses the model, or it is not what its manifest says.
    """

    def __init__(
        self, package: Package, threads: int = 1, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        self.package = package
        self._read_rules()
        self.session = open_session(package.model, threads, providers, str(package.path))
        self._check_shape()

    @property
    def batch(self) -> int:
        """Number of frames the model takes at once."""
        return int(self._input["batch"])

    @property
    def thresholds(self) -> NDArray[np.float32]:
        """The (C,) scores above which a detection is believed; 0.5 for a class whose threshold was never measured."""
        known: Mapping[str, float] = self.package.manifest["thresholds"]
        return np.array([known.get(name, 0.5) for name in self.classes], np.float32)

    def detect(self, images: Sequence[Image], suppress: bool = True) -> list[Found]:
        """Return what is found on each frame.

        Args:
            images: (H, W, 3) uint8 RGB of any size; no more than `batch`.
            suppress: Drop what the manifest's `nms_iou` says.

        Raises:
            DataError: A frame is none, or has another shape than the package was exported for.
        """
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        return self.run([self.prepare(image) for image in images], sizes, suppress)

    def prepare(self, image: Image, bgr: bool = False) -> NDArray[np.float32]:
        """Return a frame as the model wants it: (3, h, w) float32, resized and normalised.

        Args:
            image: (H, W, 3) uint8.
            bgr: The channels are in OpenCV's order.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            message = f"A frame must be (H, W, 3) uint8, got {image.shape} {image.dtype}."
            raise DataError(message)
        height, width = self._size(image.shape[0], image.shape[1])
        view: Any = image
        if image.shape[:2] != (height, width):
            smaller = height <= image.shape[0] and width <= image.shape[1]
            view = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
        planes = (view[:, :, ::-1] if bgr else view).transpose(2, 0, 1)
        pixels = np.ascontiguousarray(planes, np.float32)
        pixels /= np.float32(255)
        if self._mean.any():
            pixels -= self._mean
        if (self._std != 1).any():
            pixels /= self._std
        return pixels

    def run(
        self, prepared: Sequence[NDArray[np.float32]], sizes: Sequence[tuple[int, int]], suppress: bool = True
    ) -> list[Found]:
        """Return what is found on frames that `prepare` made ready.

        Args:
            prepared: (3, h, w) each, no more than `batch`.
            sizes: Height and width in pixels that the boxes are scaled to.
            suppress: Drop what the manifest's `nms_iou` says.

        Raises:
            DataError: There are too many.
            WeightsError: The model fails.
        """
        rows = zip(*self.answer_some(prepared), sizes, strict=True)
        return [self.read(logits, boxes, size, suppress) for logits, boxes, size in rows]

    def read(
        self,
        logits: NDArray[np.float32],
        boxes: NDArray[np.float32],
        size: tuple[int, int],
        suppress: bool = True,
        limits: NDArray[np.float32] | None = None,
    ) -> Found:
        """Return what the model's answer for one frame says.

        Args:
            logits: (Q, C) before the sigmoid.
            boxes: (Q, 4) cxcywh in 0..1.
            size: Height and width in pixels that the boxes are scaled to.
            suppress: Drop what the manifest's `nms_iou` says.
            limits: (C,) scores that a detection of each class has to reach; all are returned without.
        """
        return decode(logits, boxes, size, self._most, self._nms_iou if suppress else None, limits)

    def answer_some(self, prepared: Sequence[NDArray[np.float32]]) -> Answer:
        """Return what the model itself says of frames that `prepare` made ready.

        Args:
            prepared: (3, h, w) each, at least one and no more than `batch`.

        Raises:
            DataError: There are too many.
            WeightsError: The model fails.
        """
        if len(prepared) > self.batch:
            message = f"{self.package.path} takes {self.batch} frames at once, got {len(prepared)}."
            raise DataError(message)
        missing = [np.zeros_like(prepared[0])] * (self.batch - len(prepared))  # the batch is fixed: fill it up
        logits, boxes = self.answer(np.stack([*prepared, *missing]))
        return logits[: len(prepared)], boxes[: len(prepared)]

    def answer(self, images: NDArray[np.float32]) -> Answer:
        """Return what the model itself says of a whole batch.

        Args:
            images: (batch, 3, h, w) that `prepare` made ready.

        Returns:
            (batch, Q, C) logits and (batch, Q, 4) boxes, cxcywh in 0..1.

        Raises:
            WeightsError: The model fails, or says something of another shape.
        """
        try:
            logits, boxes = self.session.run(["logits", "boxes"], {"images": images})
        except Exception as error:  # onnxruntime's errors have no other base in common
            message = f"The model of {self.package.path} fails at work ({_first_line(error)}). Export it again."
            raise WeightsError(message) from error
        shapes = np.shape(logits), np.shape(boxes)
        queries = shapes[0][1] if len(shapes[0]) == 3 else 0
        wanted = (self.batch, queries, len(self.classes)), (self.batch, queries, 4)
        if shapes != wanted or {logits.dtype.kind, boxes.dtype.kind} != {"f"}:
            message = (
                f"The model of {self.package.path} says logits {shapes[0]} {logits.dtype} and boxes {shapes[1]} "
                f"{boxes.dtype}; wanted are floats of {self.batch} frames, {len(self.classes)} classes and 4 "
                "coordinates for as many queries. Export it again."
            )
            raise WeightsError(message)
        return logits, boxes

    def _size(self, height: int, width: int) -> tuple[int, int]:
        fixed, (short, long) = self._fixed, self._sides
        if short is not None:
            low, high = sorted((height, width))
            if long is not None and high / low * short > long:
                short = round(long * low / high)
            sides = (short, int(short * high / low))  # as `Preprocessing.target_size`
            if (sides if height <= width else sides[::-1]) != fixed:
                message = (
                    f"A frame of {width}x{height} pixels does not keep its aspect ratio at {fixed[1]}x{fixed[0]}, for "
                    f"which {self.package.path} was exported. Export one with --frame_size {height} {width}."
                )
                raise DataError(message)
        return fixed

    def _read_rules(self) -> None:
        manifest, channels = self.package.manifest, (3, 1, 1)
        try:
            self.classes = self.package.classes
            self._input: dict[str, Any] = manifest["input"]
            self._sides = tuple(self._input[name] for name in ("short_side", "max_side"))
            self._fixed = (int(self._input["height"]), int(self._input["width"]))
            self._mean = np.array(self._input["mean"], np.float32).reshape(channels)
            self._std = np.array(self._input["std"], np.float32).reshape(channels)
            self._most = int(manifest["output"]["max_detections"])
            overlap = manifest["output"].get("nms_iou")
            self._nms_iou = None if overlap is None else float(overlap)
            _ = self.batch, self.thresholds
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            message = f"{self.package.path} has rules that cannot be read ({error!r}). Export it again."
            raise WeightsError(message) from error

    def _check_shape(self) -> None:
        wanted = [self.batch, 3, *self._fixed]
        found = {i.name: i.shape for i in self.session.get_inputs()}
        outputs = {o.name: o.shape for o in self.session.get_outputs()}
        classes = outputs.get("logits", [0])[-1]
        if found != {"images": wanted} or outputs.keys() != {"logits", "boxes"} or classes != len(self.classes):
            message = (
                f"{self.package.path} holds another model than its manifest says: input {found} for {wanted}, "
                f"{classes} classes for {len(self.classes)}. Export it again."
            )
            raise WeightsError(message)


def open_session(model: bytes, threads: int, providers: Sequence[str], name: str) -> Any:
    """Return an onnxruntime session over the bytes of a model.

    Raises:
        ConfigError: onnxruntime is not installed or lacks a provider.
        WeightsError: It refuses the model.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        message = "Packages run on onnxruntime, which is not installed: pip install 'cahqp[edge]'."
        raise ConfigError(message) from error
    unknown = sorted(set(providers) - set(onnxruntime.get_available_providers()))
    if unknown:
        known = ", ".join(onnxruntime.get_available_providers())
        message = f"This onnxruntime has no {', '.join(unknown)}; it has {known}."
        raise ConfigError(message)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings speak of graph optimisations that nobody here can act upon
    try:
        return onnxruntime.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # onnxruntime's errors have no other base in common
        message = f"onnxruntime refuses the model of {name} ({_first_line(error)}). Export it again."
        raise WeightsError(message) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def decode(
    logits: NDArray[np.float32],
    boxes: NDArray[np.float32],
    size: tuple[int, int],
    max_detections: int,
    nms_iou: float | None = None,
    limits: NDArray[np.float32] | None = None,
) -> Found:
    """Return the best-scored query-class pairs of a frame, best first.

    Args:
        logits: (Q, C) before the sigmoid.
        boxes: (Q, 4) cxcywh in 0..1.
        size: Height and width in pixels that the boxes are scaled to.
        max_detections: Number of pairs kept.
        nms_iou: Overlap above which the lower-scored of two of one class is dropped; `None` keeps both.
        limits: (C,) scores that a detection of each class has to reach; all are returned without.
    """
    flat = logits.reshape(-1)
    best = np.argsort(-flat, kind="stable")[:max_detections]
    query, labels = np.divmod(best, logits.shape[1])
    centre, half = boxes[query, :2], boxes[query, 2:] * np.float32(0.5)
    scale = np.array([size[1], size[0], size[1], size[0]], np.float32)
    scores = 1 / (1 + np.exp(-flat[best].astype(np.float64)))
    found = Found(np.concatenate([centre - half, centre + half], 1) * scale, scores.astype(np.float32), labels)
    if limits is not None:  # before suppression: what is too low drops nothing that is not lower still
        found = found.above(limits)
    return found if nms_iou is None else _suppressed(found, nms_iou)


def _suppressed(found: Found, nms_iou: float) -> Found:
    """Return what no better-scored detection of the same class overlaps by more; OpenCV's own suppression errs."""
    left, top, right, bottom = found.boxes.astype(np.float64).T
    areas = (right - left) * (bottom - top)
    wide = np.minimum(right, right[:, None]) - np.maximum(left, left[:, None])
    high = np.minimum(bottom, bottom[:, None]) - np.maximum(top, top[:, None])
    shared = np.maximum(wide, 0) * np.maximum(high, 0)
    over = shared > nms_iou * (areas + areas[:, None] - shared)
    worse = np.triu(over & (found.labels == found.labels[:, None]), 1)
    alive = np.ones(len(areas), np.bool_)
    for one in np.flatnonzero(worse.any(1)):
        if alive[one]:
            alive &= ~worse[one]
    return Found(found.boxes[alive], found.scores[alive], found.labels[alive])
