"""Deformable attention of RT-DETRv2 (arXiv 2407.17140): points per level, and discrete sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cahqp.detectors.layers.deformable import DeformableAttention, Shapes, deformable_attention


class LevelwiseDeformableAttention(DeformableAttention):
    """Deformable attention around boxes with its own number of points on each level.

    Args:
        dim: Width of the tokens.
        heads: Number of heads; divides `dim`.
        points: Points per head, one number for each level.
        sampling: `bilinear`, or `discrete`: the cell that the point rounds to, which needs no interpolation on the edge
            device. Discrete sampling does not train the offsets, because rounding has no gradient.
        offset_scale: Largest offset, as a share of the box's sides.

    Raises:
        ValueError: `sampling` is unknown, or a level has no point.
    """

    reach: Tensor
    slots: Tensor
    filled: Tensor

    def __init__(
        self, dim: int, heads: int, points: Sequence[int], sampling: str = "bilinear", offset_scale: float = 0.5
    ) -> None:
        if sampling not in ("bilinear", "discrete"):
            message = f"sampling must be bilinear or discrete, got {sampling!r}."
            raise ValueError(message)
        if min(points, default=0) < 1:
            message = f"points must be at least 1 on every level, got {list(points)}."
            raise ValueError(message)
        super().__init__(dim, heads, len(points), max(points))
        self.per_level, self.sampling, self.offset_scale = list(points), sampling, offset_scale
        total = sum(points)
        self.sampling_offsets = nn.Linear(dim, heads * total * 2)
        self.attention_weights = nn.Linear(dim, heads * total)
        self._reset_sampling(points)
        self.register_buffer("reach", torch.tensor([1 / n for n in points for _ in range(n)]), persistent=False)
        # Index among all points of each slot in a (level, largest count) table; empty slots have weight zero.
        starts = [sum(points[:level]) for level in range(len(points))]
        slots = [[start + min(i, n - 1) for i in range(max(points))] for start, n in zip(starts, points, strict=True)]
        filled = [[float(i < n) for i in range(max(points))] for n in points]
        self.register_buffer("slots", torch.tensor(slots).flatten(), persistent=False)
        self.register_buffer("filled", torch.tensor(filled).flatten(), persistent=False)
        self.sampling_offsets.requires_grad_(sampling == "bilinear")

    def forward(
        self, query: Tensor, reference: Tensor, tokens: Tensor, shapes: Shapes, padding: Tensor | None = None
    ) -> Tensor:
        """Return (B, Q, D); arguments as in `DeformableAttention`, but `reference` (B, Q, 1, 4) are boxes."""
        value, offsets, weights = self._project(query, tokens, padding)
        scaled = offsets * self.reach[:, None] * reference[:, :, None, :, 2:] * self.offset_scale
        locations = reference[:, :, None, :, :2] + scaled
        if self.sampling == "discrete":
            sampled = discrete_attention(value, shapes, locations, weights, self.per_level)
        else:
            table = (*query.shape[:2], self.heads, self.levels, self.points)
            locations = locations[..., self.slots, :].view(*table, 2)
            weights = (weights[..., self.slots] * self.filled).view(table)
            sampled = deformable_attention(value, shapes, locations, weights)
        out: Tensor = self.output_proj(sampled)
        return out


def discrete_attention(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, points: Sequence[int]
) -> Tensor:
    """Return the weighted sum of the cells that the locations round to.

    The published code bounds both coordinates by a map's height. Here each has its own bound, which is equal on
    squares, the only published shape.

    Args:
        value: (B, S, H, D) tokens of all levels, row by row, per head.
        shapes: Height and width of each level; their products sum to S.
        locations: (B, Q, H, N, 2) x and y, where 0..1 spans a whole level; the points of the first level come first.
        weights: (B, Q, H, N).
        points: Number of points of each level, N in all.

    Returns:
        (B, Q, H * D).
    """
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    out = value.new_zeros(batch, heads, queries, dim)
    first_token = first_point = 0
    for (height, width), count in zip(shapes, points, strict=True):
        tokens = value[:, first_token : first_token + height * width].permute(0, 2, 1, 3)
        place = locations[:, :, :, first_point : first_point + count].permute(0, 2, 1, 3, 4)
        share = weights[:, :, :, first_point : first_point + count].permute(0, 2, 1, 3)
        cell = (place * place.new_tensor([width, height]) + 0.5).long()
        index = cell[..., 1].clamp(0, height - 1) * width + cell[..., 0].clamp(0, width - 1)
        read = tokens.gather(2, index.flatten(2)[..., None].expand(-1, -1, -1, dim))
        out = out + (read.view(batch, heads, queries, count, dim) * share[..., None]).sum(3)
        first_token, first_point = first_token + height * width, first_point + count
    return out.transpose(1, 2).reshape(batch, queries, heads * dim)
