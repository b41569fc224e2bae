"""INT8 by onnxruntime's static quantisation: convolutions of backbone and encoder, decoder and heads in float.

A decoder in INT8 loses nearly everything (Ultralytics measured RT-DETR-L at 0.0002 mAP), because box coordinates and
sampling locations are smaller than a step of eight bits.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.edge.export.to_onnx import require
from cahqp.errors import ConfigError

SCOPES = ("/detector/backbone/", "/detector/encoder/", "/detector/encoder.", "/detector/input_proj")
OPERATORS = ("Conv",)


class _Reader:
    """Hands calibration frames to onnxruntime."""

    def __init__(self, batches: Iterator[NDArray[np.float32]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def quantise(
    source: Path, target: Path, batches: Iterator[NDArray[np.float32]], scopes: Sequence[str] = SCOPES
) -> list[str]:
    """Write an INT8 version of an ONNX model and return the names of the nodes that are in INT8.

    Args:
        source: A float model by `cahqp.edge.export.to_onnx.to_onnx`.
        target: The file to write.
        batches: (B, 3, h, w) inputs that the ranges of activations are taken from.
        scopes: How the names of nodes begin that may be in INT8.

    Raises:
        ConfigError: Nothing in the model can be, or onnxruntime is not installed.
    """
    onnx = require("onnx")
    quantization = require("onnxruntime.quantization")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        _fold(source, prepared)
        nodes = [
            node.name
            for node in onnx.load(str(prepared)).graph.node
            if node.op_type in OPERATORS and node.name.startswith(tuple(scopes))
        ]
        if not nodes:
            message = f"{source} has no convolution in {', '.join(scopes)} that could be in INT8. Export it in float32."
            raise ConfigError(message)
        quantization.quantize_static(
            str(prepared), str(target), _calibration(quantization, batches), nodes_to_quantize=nodes,
            op_types_to_quantize=list(OPERATORS), per_channel=True, quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            # Seven bits: x86 without VNNI adds two products in sixteen bits, where eight-bit weights overflow unseen.
            reduce_range=True,
        )  # fmt: skip
    return nodes


def _calibration(quantization: Any, batches: Iterator[NDArray[np.float32]]) -> Any:
    class Reader(_Reader, quantization.CalibrationDataReader):  # type: ignore[misc]
        """One that onnxruntime knows as its own."""

    return Reader(batches)


def _fold(source: Path, target: Path) -> None:
    """Write a model with its constants folded and its convolutions fused, in operators that every runtime has."""
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice to pre-process the model, which `_fold` has done, from the terminal."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)
