"""`cahqp benchmark attention`: the forms of deformable attention beside one another on this machine."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from cahqp.benchmarks.speed.phases import Way
from cahqp.benchmarks.speed.timer import alternate, peak
from cahqp.detectors.layers.deformable import Form, Shapes, deformable_attention, sampling_form
from cahqp.errors import ConfigError, check_numbers
from cahqp.files import write_json

STRIDES = (8, 16, 32, 64)
GPU_SIZE, CPU_SIZE = (800, 1333), (200, 334)
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REFERENCE: Form = "grid_sample"


def command(arguments: list[str]) -> None:
    """Run `cahqp benchmark attention`."""
    parser = ArgumentParser(prog="cahqp benchmark attention", exit_on_error=False)
    parser.add_function_arguments(attention, as_group=False)
    attention(**parser.parse_args(arguments[1:]).as_dict())


@dataclass(frozen=True)
class Sizes:
    """What is sampled: DINO's encoder, where every token is a query, or its decoder.

    Attributes:
        batch: Images.
        height: Of an image in pixels.
        width: Of an image in pixels.
        queries: Per image; all tokens where not given.
        heads: Attention heads.
        dim: Width of a head.
        points: Per head and level.
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
        """Return float64 values, locations and weights; locations lie about their level and a little outside."""
        tokens = sum(height * width for height, width in self.shapes)
        queries = self.queries or tokens
        generator = torch.Generator().manual_seed(0)
        table = (self.batch, queries, self.heads, len(STRIDES), self.points)
        value = torch.randn(self.batch, tokens, self.heads, self.dim, generator=generator, dtype=torch.float64)
        locations = torch.rand(*table, 2, generator=generator, dtype=torch.float64) * 1.1 - 0.05
        weights = torch.rand(table, generator=generator, dtype=torch.float64).flatten(3).softmax(-1).view(table)
        return value.to(device), locations.to(device), weights.to(device)


def attention(
    output: Path | None = None,
    batch_size: int = 2,
    size: tuple[int, int] | None = None,
    queries: int = 900,
    rounds: int = 5,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Time the forms of deformable attention, forward and backward, with their memory and their errors.

    Args:
        output: Folder for `attention.json` and `attention.md`; nothing is written where not given.
        batch_size: Images in a batch.
        size: Height and width of an image in pixels, at four levels from stride 8; 800,1333 on a GPU, 200,334 on a CPU.
        queries: Of the decoder.
        rounds: Times that each form is measured, by turns.
        device: `auto` takes a GPU where there is one.

    Raises:
        ConfigError: A GPU is asked for and there is none.
    """
    check_numbers(shares={}, counts={"--batch_size": batch_size, "--queries": queries, "--rounds": rounds})
    if device == "cuda" and not torch.cuda.is_available():
        message = "--device cuda: there is no GPU here. Leave it out to time the forms that run on a CPU."
        raise ConfigError(message)
    where = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    height, width = size or (GPU_SIZE if where.type == "cuda" else CPU_SIZE)
    rooms = {
        "encoder": Sizes(batch_size, height, width),
        "decoder": Sizes(batch_size, height, width, queries),
    }
    found = measure(rooms, rounds, where)
    if output is not None:
        write_json(output / "attention.json", found)
        (output / "attention.md").write_text(page(found), encoding="utf-8")
    print(page(found), end="")


def measure(rooms: dict[str, Sizes], rounds: int, device: torch.device) -> dict[str, Any]:
    """Return all that was measured, as it is written."""
    on_gpu = device.type == "cuda"
    triton = on_gpu and _triton_is_there()
    forms: list[Form] = ["grid_sample", "gather", *(["triton"] if triton else [])]  # type: ignore[list-item]
    types = list(TYPES) if on_gpu else ["float32"]
    why = "" if triton else "no GPU" if not on_gpu else "triton is not installed"
    return {
        "machine": {
            "device": device.type,
            "name": torch.cuda.get_device_name() if on_gpu else platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "triton": "measured" if triton else f"not measured: {why}",
        "memory": "tensors at the peak of forward and backward" if on_gpu else "what forward keeps for backward",
        "rooms": {
            name: {
                "sizes": {**vars(sizes), "levels": sizes.shapes},
                "types": {kind: _compare(sizes, forms, TYPES[kind], rounds, device) for kind in types},
            }
            for name, sizes in rooms.items()
        },
    }


def _triton_is_there() -> bool:
    try:
        import triton  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def _compare(sizes: Sizes, forms: list[Form], dtype: torch.dtype, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return seconds, memory and errors of each form."""
    exact = sizes.inputs(device)
    # Locations stay float32: `deformable_attention` says why.
    rounded = (exact[0].to(dtype), exact[1].float(), exact[2].to(dtype))
    truth = _both_ways(REFERENCE, tuple(one.double() for one in rounded), sizes.shapes)()
    runs = {form: _both_ways(form, rounded, sizes.shapes) for form in forms}
    times = alternate({form: Way(run) for form, run in runs.items()}, rounds, device)
    found = {}
    for form, run in runs.items():
        errors = [_error(one, other) for one, other in zip(run(), truth, strict=True)]
        names = ("output", "value", "locations", "weights")
        found[form] = {
            "seconds": times.seconds[form],
            "median": times.median(form),
            "times_as_fast": times.ratio(REFERENCE, form),
            "bytes": peak(run, device) if device.type == "cuda" else _kept(form, rounded, sizes.shapes),
            "errors": dict(zip(names, errors, strict=True)),
        }
    return {"order": times.order, "forms": found}


def _both_ways(form: Form, given: tuple[Tensor, ...], shapes: Shapes) -> Callable[[], list[Tensor]]:
    """Return what runs forward and backward and gives output and gradients."""

    def run() -> list[Tensor]:
        value, locations, weights = (one.detach().requires_grad_() for one in given)
        with sampling_form(form):
            out = deformable_attention(value, shapes, locations, weights)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [value, locations, weights])]

    return run


def _error(found: Tensor, truth: Tensor) -> float:
    """Return the norm of the difference as a share of the truth's."""
    return float((found.double() - truth).norm() / truth.norm())


def _kept(form: Form, given: tuple[Tensor, ...], shapes: Shapes) -> int:
    """Return the bytes of all storage that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    value, locations, weights = (one.detach().requires_grad_() for one in given)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), sampling_form(form):
        out = deformable_attention(value, shapes, locations, weights)
    del out
    return sum(kept.values())


def page(found: dict[str, Any]) -> str:
    """Return the table."""
    machine = found["machine"]
    rows = [f"Deformable attention, forward and backward, on {machine['name']}, {machine['threads']} threads", ""]
    rows += ["| where | type | form | ms | times as fast: min, median, max | MiB | largest error |", "|---" * 7 + "|"]
    for room, told in found["rooms"].items():
        for kind, compared in told["types"].items():
            for form, one in compared["forms"].items():
                ratio = ", ".join(f"{one['times_as_fast'][key]:.2f}" for key in ("min", "median", "max"))
                memory = "-" if one["bytes"] is None else f"{one['bytes'] / 2**20:.0f}"
                worst = max(one["errors"].values())
                rows.append(
                    f"| {room} | {kind} | {form} | {one['median'] * 1e3:.1f} | {ratio} | {memory} | {worst:.1e} |"
                )
    rows += [
        "",
        f"Triton: {found['triton']}. Memory: {found['memory']}. Errors: norm of the difference from float64 on the",
    ]
    rows += ["same rounded inputs, as a share, the largest of output and gradients."]
    return "\n".join([*rows, ""])
