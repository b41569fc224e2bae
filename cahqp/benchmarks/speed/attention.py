"""`cahqp benchmark attention`: time, memory and errors of the forms of deformable attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from cahqp.benchmarks.markdown import render
from cahqp.benchmarks.options import AttentionBenchmarkOptions
from cahqp.benchmarks.speed.timer import Workload, alternate, describe_machine, peak
from cahqp.detectors.layers.deformable import Form, Shapes, deformable_attention, sampling_form
from cahqp.errors import ConfigError
from cahqp.files import write_json

STRIDES = (8, 16, 32, 64)
GPU_SIZE, CPU_SIZE = (800, 1333), (200, 334)
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REFERENCE: Form = "grid_sample"


@dataclass(frozen=True)
class Sizes:
    """Sizes of one attention layer: DINO's encoder, where every token is a query, or its decoder.

    Attributes:
        batch: Images.
        height: Image height in pixels.
        width: Image width in pixels.
        queries: Queries per image. Default: all tokens.
        heads: Attention heads.
        dim: Width of a head.
        points: Sampling points per head and level.
    """

    batch: int
    height: int
    width: int
    queries: int | None = None
    heads: int = 8
    dim: int = 32
    points: int = 4

    @property
    def shapes(self) -> Shapes:
        """Height and width of each of the four levels."""
        return [(-(-self.height // stride), -(-self.width // stride)) for stride in STRIDES]

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return random float64 values, sampling locations in -0.05..1.05 and attention weights."""
        tokens = sum(height * width for height, width in self.shapes)
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, self.queries or tokens, self.heads, len(STRIDES), self.points)
        value = torch.randn(self.batch, tokens, self.heads, self.dim, generator=generator, dtype=torch.float64)
        locations = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 1.1 - 0.05
        weights = torch.rand(shape, generator=generator, dtype=torch.float64).flatten(3).softmax(-1).view(shape)
        return value.to(device), locations.to(device), weights.to(device)


def attention(options: AttentionBenchmarkOptions) -> None:
    """Run `cahqp benchmark attention`.

    Raises:
        ConfigError: `device` is `cuda` on a machine without a GPU.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        message = "--device cuda: there is no GPU here. Omit the option to time the forms that run on a CPU."
        raise ConfigError(message)
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    height, width = options.size or (GPU_SIZE if device.type == "cuda" else CPU_SIZE)
    layers = {
        "encoder": Sizes(options.batch_size, height, width),
        "decoder": Sizes(options.batch_size, height, width, options.queries),
    }
    measured = measure_attention(layers, options.rounds, device)
    page = render("attention.md.j2", measured)
    if options.output is not None:
        write_json(options.output / "attention.json", measured)
        (options.output / "attention.md").write_text(page, encoding="utf-8")
    print(page, end="")


def measure_attention(layers: dict[str, Sizes], rounds: int, device: torch.device) -> dict[str, Any]:
    """Return the content of `attention.json`."""
    on_gpu = device.type == "cuda"
    reason = "no GPU" if not on_gpu else "" if find_spec("triton") else "triton is not installed"
    forms: list[Form] = [REFERENCE, "gather"] if reason else [REFERENCE, "gather", "triton"]
    types = list(TYPES) if on_gpu else ["float32"]
    return {
        "machine": describe_machine(device),
        "triton": f"not measured: {reason}" if reason else "measured",
        "memory": "tensors at the peak of forward and backward" if on_gpu else "what forward keeps for backward",
        "rooms": {
            name: {
                "sizes": {**vars(sizes), "levels": sizes.shapes},
                "types": {kind: _compare(sizes, forms, TYPES[kind], rounds, device) for kind in types},
            }
            for name, sizes in layers.items()
        },
    }


def _compare(sizes: Sizes, forms: list[Form], dtype: torch.dtype, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return seconds, memory and errors of each form."""
    value, locations, weights = sizes.inputs(device)
    # Locations stay float32, as `deformable_attention` requires.
    rounded = (value.to(dtype), locations.float(), weights.to(dtype))
    exact = _forward_backward(REFERENCE, tuple(tensor.double() for tensor in rounded), sizes.shapes)()
    runs = {form: _forward_backward(form, rounded, sizes.shapes) for form in forms}
    times = alternate({form: Workload(run) for form, run in runs.items()}, rounds, device)
    names = ("output", "value", "locations", "weights")
    return {
        "order": times.order,
        "forms": {
            form: {
                "seconds": times.seconds[form],
                "median": times.median(form),
                "times_as_fast": times.ratio(REFERENCE, form),
                "errors": {name: _error(a, b) for name, a, b in zip(names, run(), exact, strict=True)},
                "bytes": peak(run, device) if device.type == "cuda" else _saved_bytes(form, rounded, sizes.shapes),
            }
            for form, run in runs.items()
        },
    }


def _forward_backward(form: Form, inputs: tuple[Tensor, ...], shapes: Shapes) -> Callable[[], list[Tensor]]:
    """Return a function that runs forward and backward and returns the output and the gradients."""

    def run() -> list[Tensor]:
        value, locations, weights = (tensor.detach().requires_grad_() for tensor in inputs)
        with sampling_form(form):
            output = deformable_attention(value, shapes, locations, weights)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), [value, locations, weights])]

    return run


def _error(approximate: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference relative to the exact norm."""
    return float((approximate.double() - exact).norm() / exact.norm())


def _saved_bytes(form: Form, inputs: tuple[Tensor, ...], shapes: Shapes) -> int:
    """Return the bytes of all storage that a forward pass keeps for the backward pass."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    value, locations, weights = (tensor.detach().requires_grad_() for tensor in inputs)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), sampling_form(form):
        output = deformable_attention(value, shapes, locations, weights)
    del output
    return sum(saved.values())
