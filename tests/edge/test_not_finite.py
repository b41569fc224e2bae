"""Models that return NaN or infinity."""

import json

import numpy as np
import pytest

from cahqp.edge.capture import EdgeFrame
from cahqp.edge.detect import format_line
from cahqp.edge.detections import EdgeDetections
from cahqp.edge.export.parity import Parity
from cahqp.edge.package import read_package
from cahqp.edge.runtime import Runtime
from cahqp.errors import WeightsError


def detections(value):
    return EdgeDetections(np.full((3, 4), value, np.float32), np.full(3, value, np.float32), np.zeros(3, np.int64))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_of_nan_does_not_agree(value):
    for pair in ((value, value), (0.5, value), (value, 0.5)):
        with pytest.raises(WeightsError, match="NaN or infinity"):
            Parity().add(*map(detections, pair))


@pytest.mark.parametrize("bad", ["logits", "boxes"])
def test_a_runtime_refuses_values_that_are_not_finite(edge, monkeypatch, bad):
    runtime = Runtime(read_package(edge / "student-package"))
    output = dict(zip(("logits", "boxes"), runtime.infer(np.zeros((1, 3, 64, 96), np.float32)), strict=True))
    output[bad][0, -1, -1] = np.nan

    class Session:
        def run(self, *_):
            return output["logits"], output["boxes"]

    monkeypatch.setattr(runtime, "session", Session())
    with pytest.raises(WeightsError, match="not finite"):
        runtime.detect([np.zeros((64, 96, 3), np.uint8)])


def test_a_line_of_detections_is_valid_json_or_nothing():
    frame = EdgeFrame(1, "a.png", np.zeros((8, 8, 3), np.uint8), None)
    assert json.loads(format_line(frame, detections(0.5), ("car",)))
    with pytest.raises(ValueError, match="JSON"):
        format_line(frame, detections(np.nan), ("car",))
