"""Triton kernels for the sampling of deformable attention on GPUs, one forward and one backward.

They keep no samples in memory. The reference keeps every sample, which is most of its memory at DINO's sizes: 900
queries on 20,000 tokens in the decoder, 20,000 on 20,000 in the encoder.
"""

# Triton infers the types of kernel arguments at the call.
# ruff: noqa: ANN001, ANN202
from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cahqp.detectors.layers.deformable_torch import Shapes

BLOCK = 32  # queries of one program


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    value, levels, locations, weights, out, tokens, queries,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Sum one head's samples for BLOCK_Q queries of one image."""
    image, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channel = tl.arange(0, WIDE)
    real, wide = query < queries, channel < DIM
    row = (image.to(tl.int64) * queries + query) * HEADS + head
    base = value + image.to(tl.int64) * tokens * HEADS * DIM + head * DIM + channel[None, :]
    total = tl.zeros((BLOCK_Q, WIDE), dtype=tl.float32)
    for level in range(LEVELS):
        height = tl.load(levels + level * 3)
        width = tl.load(levels + level * 3 + 1)
        start = tl.load(levels + level * 3 + 2)
        for point in range(POINTS):
            place = (row * LEVELS + level) * POINTS + point
            x = tl.load(locations + place * 2, mask=real, other=0.0).to(tl.float32) * width - 0.5
            y = tl.load(locations + place * 2 + 1, mask=real, other=0.0).to(tl.float32) * height - 0.5
            share = tl.load(weights + place, mask=real, other=0.0).to(tl.float32)
            left, top = tl.floor(x), tl.floor(y)
            for corner in tl.static_range(4):
                column, line = left + corner % 2, top + corner // 2
                part = (1.0 - tl.abs(x - column)) * (1.0 - tl.abs(y - line)) * share
                inside = real & (column >= 0) & (column < width) & (line >= 0) & (line < height)
                cell = start + tl.where(inside, line * width + column, 0.0).to(tl.int32)
                where = base + cell.to(tl.int64)[:, None] * (HEADS * DIM)
                read = tl.load(where, mask=inside[:, None] & wide[None, :], other=0.0).to(tl.float32)
                total += read * part[:, None]
    tl.store(out + row[:, None] * DIM + channel[None, :], total, mask=real[:, None] & wide[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    gradient, value, levels, locations, weights, value_grad, location_grad, weight_grad, tokens, queries,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Propagate one head's gradient for BLOCK_Q queries of one image to values, locations and weights."""
    image, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channel = tl.arange(0, WIDE)
    real, wide = query < queries, channel < DIM
    row = (image.to(tl.int64) * queries + query) * HEADS + head
    offset = image.to(tl.int64) * tokens * HEADS * DIM + head * DIM + channel[None, :]
    seen = real[:, None] & wide[None, :]
    incoming = tl.load(gradient + row[:, None] * DIM + channel[None, :], mask=seen, other=0.0).to(tl.float32)
    for level in range(LEVELS):
        height = tl.load(levels + level * 3)
        width = tl.load(levels + level * 3 + 1)
        start = tl.load(levels + level * 3 + 2)
        for point in range(POINTS):
            place = (row * LEVELS + level) * POINTS + point
            x = tl.load(locations + place * 2, mask=real, other=0.0).to(tl.float32) * width - 0.5
            y = tl.load(locations + place * 2 + 1, mask=real, other=0.0).to(tl.float32) * height - 0.5
            share = tl.load(weights + place, mask=real, other=0.0).to(tl.float32)
            left, top = tl.floor(x), tl.floor(y)
            by_x = tl.zeros((BLOCK_Q,), dtype=tl.float32)
            by_y = tl.zeros((BLOCK_Q,), dtype=tl.float32)
            by_share = tl.zeros((BLOCK_Q,), dtype=tl.float32)
            for corner in tl.static_range(4):
                column, line = left + corner % 2, top + corner // 2
                across, down = 1.0 - tl.abs(x - column), 1.0 - tl.abs(y - line)
                inside = real & (column >= 0) & (column < width) & (line >= 0) & (line < height)
                cell = start + tl.where(inside, line * width + column, 0.0).to(tl.int32)
                where = offset + cell.to(tl.int64)[:, None] * (HEADS * DIM)
                mask = inside[:, None] & wide[None, :]
                read = tl.load(value + where, mask=mask, other=0.0).to(tl.float32)
                agreement = tl.sum(read * incoming, 1)
                by_share += across * down * agreement
                # Moving right raises the share of the two right corners and lowers that of the two left corners.
                by_x += (2.0 * (corner % 2) - 1.0) * down * agreement
                by_y += (2.0 * (corner // 2) - 1.0) * across * agreement
                tl.atomic_add(value_grad + where, incoming * (across * down * share)[:, None], mask=mask)
            tl.store(location_grad + place * 2, by_x * share * width, mask=real)
            tl.store(location_grad + place * 2 + 1, by_y * share * height, mask=real)
            tl.store(weight_grad + place, by_share, mask=real)


@lru_cache(maxsize=64)
def _levels(shapes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return (L, 3) int32 heights, widths and first tokens. Cached, because each copy to a GPU blocks it."""
    rows, start = [], 0
    for height, width in zip(shapes[::2], shapes[1::2], strict=True):
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _launch(value: Tensor, locations: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the grid of programs and the compile-time sizes of the kernels."""
    batch, _, heads, dim = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    sizes = {"HEADS": heads, "DIM": dim, "WIDE": triton.next_power_of_2(dim), "LEVELS": levels, "POINTS": points}
    return (triton.cdiv(queries, BLOCK), batch * heads), {**sizes, "BLOCK_Q": BLOCK}


# Custom operators, so that `torch.compile` does not break the graph.
@torch.library.custom_op("cahqp::deformable_forward", mutates_args=())
def _forward_op(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    batch, tokens, heads, dim = value.shape
    queries = locations.shape[1]
    out = value.new_empty(batch, queries, heads * dim)
    grid, sizes = _launch(value, locations)
    _forward[grid](value, _levels(tuple(shapes), value.device), locations, weights, out, tokens, queries, **sizes)
    return out


@torch.library.custom_op("cahqp::deformable_backward", mutates_args=())
def _backward_op(
    gradient: Tensor, value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    gradient, value = gradient.contiguous(), value.contiguous()
    locations, weights = locations.contiguous(), weights.contiguous()
    tokens, queries = value.shape[1], locations.shape[1]
    # Thousands of samples fall on one token; in half precision their sum would lose the small ones.
    by_value = torch.zeros_like(value, dtype=torch.float32)
    by_location, by_weight = torch.empty_like(locations), torch.empty_like(weights)
    grid, sizes = _launch(value, locations)
    levels = _levels(tuple(shapes), value.device)
    _backward[grid](
        gradient, value, levels, locations, weights, by_value, by_location, by_weight, tokens, queries, **sizes
    )
    return by_value.to(value.dtype), by_location, by_weight


@_forward_op.register_fake
def _(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@_backward_op.register_fake
def _(
    gradient: Tensor, value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(locations), torch.empty_like(weights)


def _save_context(ctx: Any, inputs: tuple[Tensor, list[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    by_value, by_location, by_weight = _backward_op(gradient, value, ctx.shapes, locations, weights)
    return by_value, None, by_location, by_weight


_forward_op.register_autograd(_gradients, setup_context=_save_context)


def by_triton(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample with the kernels, summing in float32; see `deformable_attention`."""
    flat = [side for shape in shapes for side in shape]
    out: Tensor = _forward_op(value, flat, locations, weights)
    return out
