"""INT8 version of a package, with its AP50 compared to float32."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.edge.capture import read_valid_frames
from cahqp.edge.export.quantize import quantise
from cahqp.edge.export.to_onnx import require
from cahqp.edge.options import ExportOptions
from cahqp.edge.package import MODEL, read_package, write_manifest
from cahqp.edge.predictions import batched, measure_milliseconds, predict
from cahqp.edge.runtime import Runtime
from cahqp.errors import ConfigError, WeightsError
from cahqp.evaluation.ground_truth import read_ground_truth
from cahqp.evaluation.metrics import average_precision


def convert_to_int8(
    runtime: Runtime, work: Path, content: dict[str, Any], options: ExportOptions
) -> tuple[list[str], dict[str, float]]:
    """Replace the float model in `work` by its INT8 version.

    Args:
        runtime: Runtime of the float package.
        work: Directory of the float package.
        content: Manifest of the package, without its precision.
        options: Options with calibration frames, labelled frames and the largest loss.

    Returns:
        Names of the INT8 nodes, and AP50 in 0..1 of both precisions.

    Raises:
        ConfigError: A frame is in both sets, there is no object to measure on, or nothing can be quantised.
        WeightsError: INT8 loses more AP50 than `max_loss`.
    """
    digests: set[str] = set()
    batches = list(_calibration_batches(runtime, options, digests))
    _check_disjoint(options.labelled, digests)
    nodes = quantise(work / MODEL, work / "int8.onnx", iter(batches))
    # onnxruntime's file is not deterministic; the package's hash must depend on its content alone.
    model = require("onnx").load(str(work / "int8.onnx"))
    (work / "int8.onnx").write_bytes(model.SerializeToString(deterministic=True))
    (work / "int8.onnx").replace(work / MODEL)
    write_manifest(work, content | {"precision": "int8"})
    small = Runtime(read_package(work))
    before, after = _mean_ap50([runtime, small], options.labelled)
    if before - after > options.max_loss:
        message = (
            f"INT8 loses {100 * (before - after):.1f} points of AP50 ({100 * before:.1f} in float32, {100 * after:.1f} "
            f"in INT8; allowed: {100 * options.max_loss:g}). Nothing was written. Calibrate on more frames like those "
            "to come, or export float32."
        )
        raise WeightsError(message)
    slow, fast = (1000 * runtime.batch / taken for taken in measure_milliseconds([runtime, small]))
    # Printed only: the package's hash must not depend on the load of this machine.
    print(f"At one thread INT8 reaches {fast:.1f} frames/s, float32 {slow:.1f}.")
    return nodes, {"ap50_float32": before, "ap50_int8": after}


def _calibration_batches(
    runtime: Runtime, options: ExportOptions, digests: set[str]
) -> Iterator[NDArray[np.float32]]:  # fmt: skip
    """Yield model inputs from frames spread over each source, and add the digest of each frame to `digests`."""
    for path in options.calibration:
        total = sum(1 for _ in read_valid_frames(path))
        step = max(1, total // max(1, options.calibration_frames // len(options.calibration)))
        for frames in batched(islice(read_valid_frames(path), 0, None, step), runtime.batch):
            digests |= {frame.digest() for frame in frames}
            inputs = [runtime.preprocess(frame.pixels(), bgr=True) for frame in frames]
            yield np.stack([*inputs, *[inputs[-1]] * (runtime.batch - len(inputs))])


def _check_disjoint(paths: list[Path], digests: set[str]) -> None:
    shared = [f.name for path in paths for f in read_valid_frames(str(path)) if f.digest() in digests]
    if shared:
        message = (
            f"{len(shared)} frames are in both --calibration and --labelled, such as {shared[0]}: INT8 would be "
            "measured on its calibration frames. Give other recordings."
        )
        raise ConfigError(message)


def _mean_ap50(runtimes: list[Runtime], paths: list[Path]) -> list[float]:
    """Return the AP50 of each package in 0..1, as the mean over the files that contain objects."""
    truths = [(path, read_ground_truth(path, runtimes[0].classes)) for path in paths]
    values = [[average_precision(truth, predict(runtime, path)).ap50 for path, truth in truths] for runtime in runtimes]
    measured = [row for row in zip(*values, strict=True) if None not in row]
    if not measured:
        message = "--labelled contains no object, so the loss by INT8 cannot be measured. Give frames with objects."
        raise ConfigError(message)
    return [float(np.mean(column)) for column in zip(*measured, strict=True)]
