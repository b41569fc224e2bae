"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, section 4.1). The one place that samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cahqp.detectors.layers.deformable_torch import Shapes, by_gathers, by_grid_sample

__all__ = ["DeformableAttention", "Form", "Shapes", "deformable_attention", "sampling_form"]

Form = Literal["auto", "grid_sample", "gather", "triton"]
_form: Form = "auto"


@contextmanager
def sampling_form(form: Form) -> Iterator[None]:
    """Have every deformable attention computed in one form for a while; for exporters, tests and measurements.

    Args:
        form: `grid_sample`, the readable reference; `gather`, the same without that operator, which TensorRT computes
            wrongly and says nothing (NVIDIA/TensorRT #4646); `triton`, a kernel for GPUs, so far run in
            Triton's interpreter alone; `auto` is `grid_sample`.

    Raises:
        ValueError: The form is unknown.
    """
    global _form
    if form not in get_args(Form):
        message = f"form must be one of {', '.join(get_args(Form))}, got {form!r}."
        raise ValueError(message)
    before, _form = _form, form
    try:
        yield
    finally:
        _form = before


def _choose() -> Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]:
    # `auto` is to take the kernel on GPUs once it was measured on one; until then only who asks for it gets it.
    if _form == "triton":
        from cahqp.detectors.layers.deformable_triton import by_triton

        return by_triton
    return by_gathers if _form == "gather" else by_grid_sample


def deformable_attention(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample the values at the locations and add them up with the weights.

    Samples in the precision of the locations: in bfloat16 a location on a map of 160 cells is off by up to a third of
    a cell, so a caller in mixed precision hands over float32 locations.

    Args:
        value: (B, S, H, D) tokens of all levels, row by row, per head.
        shapes: Height and width of each level; their products sum to S.
        locations: (B, Q, H, L, P, 2) x and y, where 0..1 spans a whole level; outside it zeros are read.
        weights: (B, Q, H, L, P), summing to one over L and P.

    Returns:
        (B, Q, H * D) in the precision of the values.
    """
    return _choose()(value, shapes, locations, weights)


class DeformableAttention(nn.Module):
    """Attention that reads a few learned points around a reference on every level.

    Args:
        dim: Width of the tokens.
        heads: Number of heads; divides `dim`.
        levels: Number of feature levels.
        points: Points per head and level.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        if dim % heads:
            message = f"dim {dim} must be a multiple of heads {heads}."
            raise ValueError(message)
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.heads) * (2.0 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        distance = torch.arange(1, self.points + 1).view(1, 1, -1, 1)
        offsets = direction.view(self.heads, 1, 1, 2) * distance
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query: Tensor, reference: Tensor, tokens: Tensor, shapes: Shapes, padding: Tensor | None = None
    ) -> Tensor:
        """Return (B, Q, D).

        Args:
            query: (B, Q, D) with the position already added.
            reference: (B, Q, L or 1, 2) points or (..., 4) cxcywh boxes in 0..1 of each level.
            tokens: (B, S, D) what is read.
            shapes: Height and width of each level.
            padding: (B, S) true where tokens are padding; these read as zero.
        """
        batch, count, dim = query.shape
        value = self.value_proj(tokens)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        value = value.view(batch, -1, self.heads, dim // self.heads)
        offsets = self.sampling_offsets(query).view(batch, count, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(batch, count, self.heads, -1).softmax(-1)
        weights = weights.view(batch, count, self.heads, self.levels, self.points)
        centre = reference[:, :, None, :, None, :2]
        if reference.shape[-1] == 2:
            scale = torch.tensor([(w, h) for h, w in shapes], dtype=query.dtype, device=query.device)
            locations = centre + offsets / scale[:, None]
        else:
            locations = centre + offsets / self.points * reference[:, :, None, :, None, 2:] * 0.5
        out: Tensor = self.output_proj(deformable_attention(value, shapes, locations, weights))
        return out
