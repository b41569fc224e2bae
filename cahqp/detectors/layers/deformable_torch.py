"""Sampling of deformable attention in plain PyTorch: with `grid_sample`, and with gathers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Shapes = list[tuple[int, int]]


def _per_level(value: Tensor, shapes: Shapes) -> tuple[Tensor, ...]:
    """Return per level (B * H, D, h * w) values.

    One `split` instead of a slice per level, whose backward pass fills a full-size gradient with zeros per level.
    """
    return torch.split(value.permute(0, 2, 3, 1).flatten(0, 1), [height * width for height, width in shapes], -1)


def _points(locations: Tensor, weights: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return per level (B * H, P, Q, 2) locations and (B * H, P, Q) weights.

    Queries are the last axis, along which a CPU vectorises. Sums along two to four points as the last axis took a third
    of the forward pass.
    """
    places = locations.permute(0, 2, 3, 4, 1, 5).flatten(0, 1).unbind(1)
    return places, weights.permute(0, 2, 3, 4, 1).flatten(0, 1).unbind(1)


def by_grid_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample with `grid_sample`; see `deformable_attention`."""
    places, shares = _points(2 * locations - 1, weights)
    parts = []
    # Level by level: on a CPU the samples of one level stay in cache, twice as fast as stacking all levels.
    for tokens, (height, width), place, share in zip(_per_level(value, shapes), shapes, places, shares, strict=True):
        image = tokens.view(*tokens.shape[:2], height, width).to(place.dtype)
        sampled = functional.grid_sample(image, place, "bilinear", "zeros", align_corners=False)
        parts.append((sampled * share[:, None]).sum(2))
    return _merge(parts, value)


def by_gathers(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample by reading the four cells around each location; see `deformable_attention`."""
    dim = value.shape[-1]
    places, shares = _points(locations, weights)
    parts = []
    for tokens, (height, width), place, share in zip(_per_level(value, shapes), shapes, places, shares, strict=True):
        x, y = place[..., 0] * width - 0.5, place[..., 1] * height - 0.5
        left, top = x.floor(), y.floor()
        for column, across in ((left, left + 1 - x), (left + 1, x - left)):
            for row, down in ((top, top + 1 - y), (top + 1, y - top)):
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                cell = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
                index = cell.long().flatten(1)[:, None].expand(-1, dim, -1)
                read = tokens.to(place.dtype).gather(2, index).view(-1, dim, *place.shape[1:3])
                parts.append((read * (across * down * inside * share)[:, None]).sum(2))
    return _merge(parts, value)


def _merge(parts: list[Tensor], value: Tensor) -> Tensor:
    """Return the sum of (B * H, D, Q) parts as (B, Q, H * D) in the precision of the values."""
    batch, _, heads, dim = value.shape
    out: Tensor = sum(parts[1:], parts[0])
    return out.reshape(batch, heads * dim, -1).transpose(1, 2).to(value.dtype)
