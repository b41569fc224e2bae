"""Triton kernels compared with the reference in Triton's interpreter, without a GPU, in a separate process."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton comes with PyTorch on Linux alone")

# Locations outside the maps, a channel count that is no power of two, and more queries than one program has.
CODE = """
import torch
from cahqp.detectors.layers.deformable import deformable_attention, sampling_form

torch.manual_seed(0)
shapes, gradient = [(3, 5), (2, 2)], torch.randn(2, 33, 6)

def run(form, *arguments):
    with sampling_form(form):
        out = deformable_attention(arguments[0], shapes, *arguments[1:])
    return [out, *torch.autograd.grad(out, arguments, gradient.to(out))]

for kind, tolerance in ((torch.float32, 1e-6), (torch.float16, 2e-3)):
    value = torch.randn(2, 19, 2, 3).to(kind).requires_grad_()
    locations = (torch.rand(2, 33, 2, 2, 2, 2) * 1.4 - 0.2).requires_grad_()
    weights = torch.rand(2, 33, 2, 2, 2).requires_grad_()
    reference = run("grid_sample", *[t.detach().double().requires_grad_() for t in (value, locations, weights)])
    found = run("triton", value, locations, weights)
    assert [t.dtype for t in found] == [kind, kind, torch.float32, torch.float32], [t.dtype for t in found]
    for name, own, expected in zip(("output", "value", "locations", "weights"), found, reference):
        error = float((own.double() - expected).abs().max() / expected.abs().max())
        assert error < tolerance, (kind, name, error)
"""


def test_the_kernels_equal_the_reference():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
