"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
    """Set the implementation of all deformable attention inside the block, for exports, tests and benchmarks.

    Args:
        form: `grid_sample`, the readable reference; `gather`, the same without that operator, which TensorRT computes
            wrongly without an error (NVIDIA/TensorRT #4646); `triton`, a GPU kernel, so far run in Triton's interpreter
            alone; `auto` is `grid_sample`.

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
    # `auto` does not select the kernel on GPUs until it has been measured on one.
    if _form == "triton":
        from cahqp.detectors.layers.deformable_triton import by_triton

        return by_triton
    return by_gathers if _form == "gather" else by_grid_sample


def deformable_attention(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of the values at the locations.

    The precision is that of the locations. In bfloat16 a location on a map of 160 cells is off by up to a third of a
    cell, so callers in mixed precision pass float32 locations.

    Args:
        value: (B, S, H, D) tokens of all levels, row by row, per head.
        shapes: Height and width of each level; their products sum to S.
        locations: (B, Q, H, L, P, 2) x and y, where 0..1 spans a whole level; values outside it are zero.
        weights: (B, Q, H, L, P), summing to one over L and P.

    Returns:
        (B, Q, H * D) in the precision of the values.
    """
    return _choose()(value, shapes, locations, weights)


class DeformableAttention(nn.Module):
    """Attention to a few learned points around a reference on every level.

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
        self._reset_sampling([points] * levels)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def _reset_sampling(self, points: Sequence[int]) -> None:
        """Point each head in its own direction, further with every point of a level; all weights start equal."""
        for zeros in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(zeros)
        angle = torch.arange(self.heads) * (2.0 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        distance = torch.cat([torch.arange(1, count + 1) for count in points])
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((direction[:, None] * distance[:, None]).flatten())

    def _project(self, query: Tensor, tokens: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return values (B, S, H, D), offsets (B, Q, H, N, 2) and weights (B, Q, H, N) for N points of all levels."""
        batch, count, dim = query.shape
        value = self.value_proj(tokens)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        value = value.view(batch, -1, self.heads, dim // self.heads)
        offsets = self.sampling_offsets(query).view(batch, count, self.heads, -1, 2)
        return value, offsets, self.attention_weights(query).view(batch, count, self.heads, -1).softmax(-1)

    def forward(
        self, query: Tensor, reference: Tensor, tokens: Tensor, shapes: Shapes, padding: Tensor | None = None
    ) -> Tensor:
        """Return (B, Q, D).

        Args:
            query: (B, Q, D) with the position added.
            reference: (B, Q, L or 1, 2) points or (..., 4) cxcywh boxes in 0..1 of each level.
            tokens: (B, S, D) tokens to sample.
            shapes: Height and width of each level.
            padding: (B, S) true where tokens are padding; their values are zero.
        """
        value, offsets, weights = self._project(query, tokens, padding)
        table = (*query.shape[:2], self.heads, self.levels, self.points)
        offsets, weights = offsets.view(*table, 2), weights.view(table)
        centre = reference[:, :, None, :, None, :2]
        if reference.shape[-1] == 2:
            scale = torch.tensor([(w, h) for h, w in shapes], dtype=query.dtype, device=query.device)
            locations = centre + offsets / scale[:, None]
        else:
            locations = centre + offsets / self.points * reference[:, :, None, :, None, 2:] * 0.5
        out: Tensor = self.output_proj(deformable_attention(value, shapes, locations, weights))
        return out
