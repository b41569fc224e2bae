"""Packages in Python: without torch, and with the detections of the model file."""

import subprocess
import sys

import numpy as np
import pytest

import cahqp
from cahqp.errors import ConfigError

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import cahqp
print(len(list(cahqp.load(sys.argv[1]).predict(sys.argv[2], threshold=0.3))))
"""


def test_a_package_detects_as_its_model_file(edge):
    package, model = cahqp.load(edge / "student-package"), cahqp.load(edge / "student.safetensors")
    assert (package.classes, package.thresholds) == (model.classes, model.thresholds)
    pairs = zip(package.predict(edge / "frames", 0.3), model.predict(edge / "frames", 0.3), strict=True)
    counts = []
    for found, expected in pairs:
        assert (found.file, found.names) == (expected.file, expected.names)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        counts.append(len(found))
    assert len(counts) == 6 and sum(counts) > 6


def test_a_package_needs_no_torch(edge):
    arguments = [sys.executable, "-c", WITHOUT_TORCH, str(edge / "student-package"), str(edge / "frames")]
    assert subprocess.run(arguments, check=True, capture_output=True, text=True).stdout == "6\n"


def test_a_package_has_no_module_and_few_devices(edge):
    with pytest.raises(ConfigError, match="no PyTorch module"):
        cahqp.load(edge / "student-package").detector  # noqa: B018
    with pytest.raises(ConfigError, match="Give cpu or cuda"):
        cahqp.load(edge / "student-package", device="cuda:1")
