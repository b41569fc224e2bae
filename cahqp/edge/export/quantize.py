"""INT8 by onnxruntime's static quantisation: convolutions of backbone and encoder, decoder and heads in float.

A decoder in INT8 loses nearly everything (Ultralytics measured RT-DETR-L at 0.0002 mAP), because box coordinates and
sampling locations are smaller than a step of eight bits.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.edge.export.to_onnx import require
from cahqp.errors import ConfigError

SCOPES = ("/detector/backbone/", "/detector/encoder/", "/detector/encoder.", "/detector/input_proj")
OPERATORS = ("Conv",)


def quantise(source: Path, target: Path, batches: Iterator[NDArray[np.float32]]) -> list[str]:
    """Write an INT8 version of an ONNX model and return the names of the INT8 nodes.

    Args:
        source: Float model that `cahqp.edge.export.to_onnx.to_onnx` wrote.
        target: File to write.
        batches: (B, 3, h, w) inputs from which activation ranges are measured.

    Raises:
        ConfigError: The model has no convolution to quantise, or onnxruntime is not installed.
    """
    onnx = require("onnx")
    quantization = require("onnxruntime.quantization")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, _quiet():
        folded = Path(folder) / "folded.onnx"
        _fold(source, folded)
        nodes = [
            node.name
            for node in onnx.load(str(folded)).graph.node
            if node.op_type in OPERATORS and node.name.startswith(SCOPES)
        ]
        if not nodes:
            message = f"{source} has no convolution in {', '.join(SCOPES)} to quantise. Export it in float32."
            raise ConfigError(message)
        quantization.quantize_static(
            str(folded), str(target), _reader(quantization, batches), nodes_to_quantize=nodes,
            op_types_to_quantize=list(OPERATORS), per_channel=True, quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            # Seven bits: x86 without VNNI adds two products in sixteen bits, where eight-bit weights overflow unseen.
            reduce_range=True,
        )  # fmt: skip
    return nodes


def _reader(quantization: Any, batches: Iterator[NDArray[np.float32]]) -> Any:
    """Return the batches as an instance of onnxruntime's base class, which is known only when it is installed."""

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": batch}

    return Reader()


def _fold(source: Path, target: Path) -> None:
    """Write a model with folded constants and fused convolutions, in operators that every runtime supports."""
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress onnxruntime's advice to pre-process the model, which `_fold` has done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
