"""Conversion of a detector to an ONNX model."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cahqp.detectors.base import Detector
from cahqp.detectors.layers.deformable import sampling_form
from cahqp.edge.options import Sampling
from cahqp.errors import ConfigError
from cahqp.structures import Preprocessing

OPSET = 17  # GridSample of 16, LayerNormalization of 17; TensorRT reads the GridSample of 20 wrongly


class _Graph(nn.Module):
    """Exported part of a detector: normalised images in, logits and boxes of the last layer out."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, Q, C) and cxcywh boxes (B, Q, 4) in 0..1."""
        output = self.detector(images)
        return output.pred_logits, output.pred_boxes


def input_size(preprocessing: Preprocessing, frame_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the fixed height and width of a package.

    Args:
        preprocessing: Preprocessing of the detector.
        frame_size: Height and width of the camera's frames. Required if the detector keeps the aspect ratio.

    Raises:
        ConfigError: `frame_size` is required and `None`.
    """
    if preprocessing.size is not None:
        return preprocessing.size
    if frame_size is None:
        message = (
            "This model keeps the aspect ratio of its frames, and a package has one size. Give --frame-size with the "
            "height and width of the camera's frames, such as --frame-size 1080 1920."
        )
        raise ConfigError(message)
    return preprocessing.target_size(*frame_size)


@torch.no_grad()
def to_onnx(detector: Detector, path: Path, size: tuple[int, int], batch: int, sampling: Sampling) -> None:
    """Write a detector as an ONNX model of a fixed shape.

    The tracing exporter is used: the newer one (torch 2.15 with onnxscript 0.7) optimises our clamps into a file that
    onnxruntime refuses, and takes seven times as long.

    Args:
        detector: Detector in eval mode.
        path: File to write.
        size: Height and width of the input.
        batch: Batch size.
        sampling: Implementation of deformable attention. `gather` serves runtimes that compute GridSample wrongly.

    Raises:
        ConfigError: `sampling` is `gather`, and the detector contains a GridSample of its own.
    """
    onnx = require("onnx")
    from torch.jit import TracerWarning  # type: ignore[attr-defined]

    images = torch.zeros(batch, 3, *size)
    graph = _Graph(detector).eval()
    with warnings.catch_warnings(), sampling_form(sampling):
        warnings.simplefilter("ignore", DeprecationWarning)  # of the tracing exporter
        warnings.simplefilter("ignore", TracerWarning)  # the shape is fixed, so constants from tracing are right
        warnings.simplefilter("ignore", UserWarning)  # constants that were not folded; onnxruntime folds them
        torch.onnx.export(
            graph, (images,), str(path), input_names=["images"], output_names=["logits", "boxes"],
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    model = onnx.load(str(path))
    if sampling == "gather" and any(node.op_type == "GridSample" for node in model.graph.node):
        message = f"{type(detector).__name__} samples with its own GridSample. Remove --sampling gather."
        raise ConfigError(message)
    _doubles_to_floats(model, onnx)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def require(name: str) -> Any:
    """Return a module of the extra `edge`.

    Raises:
        ConfigError: The module is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        message = f"Exporting needs {name}, which is not installed: pip install 'cahqp[edge]'."
        raise ConfigError(message) from error


def _doubles_to_floats(model: Any, onnx: Any) -> None:
    """Convert float64 to float32. Tracing computes map sizes in float64, for which onnxruntime has no GridSample."""
    double, single = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == double:
                attribute.i = single
            if attribute.HasField("t") and attribute.t.data_type == double:
                values = onnx.numpy_helper.to_array(attribute.t).astype("float32")
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values, attribute.t.name))
    del model.graph.value_info[:]  # it contains the old types
