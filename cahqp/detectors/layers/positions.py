"""Sine position embeddings of tokens and boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _interleave(angles: Tensor) -> Tensor:
    """Return the sine of even and the cosine of odd entries of the last axis."""
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-2)


def _frequencies(dim: int, temperature: float, device: torch.device) -> Tensor:
    index = torch.arange(dim, dtype=torch.float32, device=device)
    return temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / dim)


def sine_positions(padding_mask: Tensor, dim: int, temperature: float, offset: float = 0.0) -> Tensor:
    """Return (B, h, w, dim) sine positions of the cells, y first, normalised by each image's valid part.

    Args:
        padding_mask: (B, h, w) bool, true where padded.
        dim: Width of the position; a multiple of four.
        temperature: Base of the wavelengths: 20 in DINO, 10000 in detrex's DINO.
        offset: Added to the cell numbers 1, 2, ... before normalising: 0 in DINO, -0.5 in detrex's.
    """
    valid = (~padding_mask).float()
    scale, eps = 2 * math.pi, 1e-6
    y, x = valid.cumsum(1), valid.cumsum(2)
    y = (y + offset) / (y[:, -1:, :] + eps) * scale
    x = (x + offset) / (x[:, :, -1:] + eps) * scale
    frequencies = _frequencies(dim // 2, temperature, padding_mask.device)
    return torch.cat([_interleave(y[..., None] / frequencies), _interleave(x[..., None] / frequencies)], -1)


def box_positions(boxes: Tensor, dim: int) -> Tensor:
    """Return (..., 4 * dim) sine positions of cxcywh boxes in 0..1, in the order y, x, w, h (DAB-DETR)."""
    frequencies = _frequencies(dim, 10000.0, boxes.device)
    angles = boxes[..., [1, 0, 2, 3], None] * (2 * math.pi) / frequencies
    return _interleave(angles).flatten(-2)


def grid_positions(height: int, width: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Return (h * w, dim) positions of a grid's cells, row by row, for RT-DETR's encoder.

    The published grid runs column by column, but the tokens run row by row. On squares this swaps the axes, which
    trained weights rely on; on rectangles it mixes up the cells. This grid equals the published one on squares and is
    correct on rectangles: the first half of `dim` encodes the row, the second the column.
    """
    omega = 1.0 / 10000.0 ** (torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4))
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None] * omega
    columns = torch.arange(width, dtype=torch.float32, device=device)[:, None] * omega
    row_part = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(-1, width, -1)
    column_part = torch.cat([columns.sin(), columns.cos()], 1)[None].expand(height, -1, -1)
    return torch.cat([row_part, column_part], -1).reshape(height * width, dim)
