"""Inference with a package: NumPy, OpenCV and onnxruntime, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cahqp.edge.detections import EdgeDetections, Floats, decode
from cahqp.edge.package import Package
from cahqp.errors import ConfigError, DataError, WeightsError

_MAX_QUERIES = 10_000
MAX_MEMORY = 8 << 30
"""Bytes of memory of the CPU for the weights and tensors of all models in a process."""

Image = NDArray[np.uint8]
RawOutput = tuple[Floats, Floats]
"""(N, Q, C) logits before the sigmoid and (N, Q, 4) boxes, cxcywh in 0..1."""


class Runtime:
    """A loaded package.

    Args:
        package: Package whose hashes were checked.
        threads: Number of threads of onnxruntime.
        providers: Execution providers of onnxruntime in order of preference.

    Raises:
        ConfigError: onnxruntime is not installed or lacks a provider.
        WeightsError: onnxruntime cannot load the model, or the model does not match the manifest.
    """

    def __init__(
        self, package: Package, threads: int = 1, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        self.package = package
        self._read_manifest()
        self.session = _open_session(package, threads, providers)
        self._check_shapes()
        self._run_options: Any = None

    def stop_at(self, options: Any) -> None:
        """Pass options to every later run: `options.terminate = True` in another thread ends the run in progress.

        Args:
            options: `onnxruntime.RunOptions`.
        """
        self._run_options = options

    @property
    def batch(self) -> int:
        """Fixed batch size of the model."""
        return int(self._input["batch"])

    @property
    def thresholds(self) -> Floats:
        """(C,) operating thresholds. A class without a measured threshold gets 0.5."""
        known: Mapping[str, float] = self.package.manifest["thresholds"]
        return np.array([known.get(name, 0.5) for name in self.classes], np.float32)

    def detect(self, images: Sequence[Image], suppress: bool = True, bgr: bool = False) -> list[EdgeDetections]:
        """Return the detections of each frame, without a score threshold.

        Args:
            images: (H, W, 3) uint8 of any size, at least one and at most `batch`.
            suppress: Apply the manifest's `nms_iou`.
            bgr: The channels are in OpenCV's order, not RGB.

        Raises:
            DataError: A frame is not an image or has a shape that the package was not exported for.
            WeightsError: Inference fails.
        """
        output = self.infer_frames([self.preprocess(image, bgr) for image in images])
        rows = zip(*output, images, strict=True)
        return [self.decode(logits, boxes, (image.shape[0], image.shape[1]), suppress) for logits, boxes, image in rows]

    def preprocess(self, image: Image, bgr: bool = False) -> Floats:
        """Return a frame as model input: (3, h, w) float32 RGB, resized and normalised.

        Args:
            image: (H, W, 3) uint8.
            bgr: The channels are in OpenCV's order, not RGB.

        Raises:
            DataError: The frame is not an image or has a shape that the package was not exported for.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            message = f"A frame must be (H, W, 3) uint8, got {image.shape} {image.dtype}."
            raise DataError(message)
        height, width = self._input_size(image.shape[0], image.shape[1])
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

    def decode(
        self,
        logits: Floats,
        boxes: Floats,
        size: tuple[int, int],
        suppress: bool = True,
        thresholds: Floats | None = None,
    ) -> EdgeDetections:
        """Return the detections of one frame from its raw output.

        Args:
            logits: (Q, C) before the sigmoid.
            boxes: (Q, 4) cxcywh in 0..1.
            size: Height and width in pixels to scale the boxes to.
            suppress: Apply the manifest's `nms_iou`.
            thresholds: (C,) minimum score per class. `None` keeps all scores.

        Raises:
            WeightsError: A coordinate is not finite.
        """
        nms_iou = self._nms_iou if suppress else None
        found = decode(logits, boxes, size, self._max_detections, nms_iou, thresholds)
        if not np.isfinite(found.boxes).all():
            raise self._not_finite()
        return found

    def _not_finite(self) -> WeightsError:
        message = f"{self.package.path} returns boxes or scores that are not finite. Export another model."
        return WeightsError(message)

    def infer_frames(self, inputs: Sequence[Floats]) -> RawOutput:
        """Return the raw output for preprocessed frames.

        Args:
            inputs: (3, h, w) each, at least one and at most `batch`.

        Raises:
            DataError: There are more than `batch`.
            WeightsError: Inference fails.
        """
        if len(inputs) > self.batch:
            message = f"{self.package.path} takes at most {self.batch} frames at once, got {len(inputs)}."
            raise DataError(message)
        padding = [np.zeros_like(inputs[0])] * (self.batch - len(inputs))
        logits, boxes = self.infer(np.stack([*inputs, *padding]))
        return logits[: len(inputs)], boxes[: len(inputs)]

    def infer(self, images: Floats) -> RawOutput:
        """Return the raw output for one full batch.

        Args:
            images: (batch, 3, h, w) preprocessed frames.

        Raises:
            WeightsError: Inference fails, or returns a wrong shape or type, or values that are not finite.
        """
        try:
            logits, boxes = self.session.run(["logits", "boxes"], {"images": images}, self._run_options)
        except Exception as error:  # onnxruntime's errors have no other common base
            message = f"The model of {self.package.path} failed ({_first_line(error)}). Export it again."
            raise WeightsError(message) from error
        shapes = np.shape(logits), np.shape(boxes)
        queries = shapes[0][1] if len(shapes[0]) == 3 else 0
        expected = (self.batch, queries, len(self.classes)), (self.batch, queries, 4)
        if shapes != expected or {logits.dtype.kind, boxes.dtype.kind} != {"f"}:
            message = (
                f"The model of {self.package.path} returns logits {shapes[0]} {logits.dtype} and boxes {shapes[1]} "
                f"{boxes.dtype}. Expected floats ({self.batch}, Q, {len(self.classes)}) and ({self.batch}, Q, 4). "
                "Export it again."
            )
            raise WeightsError(message)
        if np.isnan(logits).any() or not np.isfinite(boxes).all():
            raise self._not_finite()
        return logits, boxes

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the fixed input size; refuse a frame whose aspect ratio would change although the model keeps it."""
        if self._short_side is not None:
            low, high = sorted((height, width))
            short = self._short_side
            if self._max_side is not None and high / low * short > self._max_side:
                short = round(self._max_side * low / high)
            sides = (short, int(short * high / low))  # as `Preprocessing.target_size`
            if (sides if height <= width else sides[::-1]) != self._size:
                message = (
                    f"A frame of {width}x{height} pixels does not keep its aspect ratio at "
                    f"{self._size[1]}x{self._size[0]}, the input size of {self.package.path}. "
                    f"Export a package with --frame-size {height} {width}."
                )
                raise DataError(message)
        return self._size

    def _read_manifest(self) -> None:
        manifest = self.package.manifest
        try:
            self.classes = self.package.classes
            self._input: dict[str, Any] = manifest["input"]
            self._short_side, self._max_side = self._input["short_side"], self._input["max_side"]
            self._size = (int(self._input["height"]), int(self._input["width"]))
            self._mean = np.array(self._input["mean"], np.float32).reshape(3, 1, 1)
            self._std = np.array(self._input["std"], np.float32).reshape(3, 1, 1)
            self._max_detections = int(manifest["output"]["max_detections"])
            nms_iou = manifest["output"].get("nms_iou")
            self._nms_iou = None if nms_iou is None else float(nms_iou)
            _ = self.batch, self.thresholds
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            message = f"The manifest of {self.package.path} has invalid entries ({error!r}). Export the package again."
            raise WeightsError(message) from error

    def _check_shapes(self) -> None:
        expected = {"images": [self.batch, 3, *self._size]}
        try:
            inputs = {i.name: i.shape for i in self.session.get_inputs()}
            outputs = {o.name: o.shape for o in self.session.get_outputs()}
        except UnicodeDecodeError as error:
            message = f"The model of {self.package.path} has a name that is not UTF-8 ({error}). Export it again."
            raise WeightsError(message) from error
        classes = (outputs.get("logits") or [0])[-1]
        if any(isinstance(shape[1], int) and shape[1] > _MAX_QUERIES for shape in outputs.values() if len(shape) == 3):
            message = f"The model of {self.package.path} has more than {_MAX_QUERIES:,} queries. Export another model."
            raise WeightsError(message)
        if inputs != expected or outputs.keys() != {"logits", "boxes"} or classes != len(self.classes):
            message = (
                f"The model of {self.package.path} does not match its manifest: input {inputs}, expected {expected}; "
                f"{classes} classes, expected {len(self.classes)}. Export it again."
            )
            raise WeightsError(message)


def _open_session(package: Package, threads: int, providers: Sequence[str]) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        message = "Packages run on onnxruntime, which is not installed: pip install 'cahqp[edge]'."
        raise ConfigError(message) from error
    available = onnxruntime.get_available_providers()
    unknown = sorted(set(providers) - set(available))
    if unknown:
        message = f"This onnxruntime has no provider {', '.join(unknown)}. Available: {', '.join(available)}."
        raise ConfigError(message)
    _limit_memory(onnxruntime)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # the warnings are about graph optimisations that a user cannot change
    try:
        return onnxruntime.InferenceSession(package.model, options, providers=list(providers))
    except Exception as error:  # onnxruntime's errors have no other common base
        message = f"onnxruntime refuses the model of {package.path} ({_first_line(error)}). Export it again."
        raise WeightsError(message) from error


@cache
def _limit_memory(onnxruntime: Any) -> None:
    """Limit the memory of all models in this process: one operator can ask for any amount."""
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    place = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    # -1 and 0 are onnxruntime's defaults.
    defaults = {"arena_extend_strategy": 0, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg({"max_mem": MAX_MEMORY, **defaults}))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
