"""Decoder layer and anchors of the encoder proposals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cahqp.detectors.layers.basic import FeedForwardBlock, Inject, SelfAttentionBlock
from cahqp.detectors.layers.deformable import DeformableAttention, Shapes


class DecoderLayer(nn.Module):
    """Self-attention of queries, deformable attention to tokens and feed-forward block, each with LayerNorm.

    Arguments as in `DeformableAttention` and `FeedForwardBlock`.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int, ffn_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn = SelfAttentionBlock(dim, heads, dropout)
        self.cross_attn = DeformableAttention(dim, heads, levels, points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForwardBlock(dim, ffn_dim, "relu", dropout)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        reference: Tensor,
        tokens: Tensor,
        shapes: Shapes,
        padding: Tensor | None = None,
        mask: Tensor | None = None,
        inject: Inject | None = None,
    ) -> Tensor:
        """Return (B, Q, D). Arguments as in `DeformableAttention` and `SelfAttentionBlock`."""
        queries = self.self_attn(queries, position, mask, inject)
        read = self.cross_attn(queries + position, reference, tokens, shapes, padding)
        queries = self.norm(queries + self.dropout(read))
        out: Tensor = self.ffn(queries)
        return out


def anchor_proposals(shapes: Shapes, valid: Tensor, padding: Tensor, eps: float = 0.01) -> tuple[Tensor, Tensor]:
    """Return one anchor box per token, centred on its cell, with sides of 0.05 * 2^level.

    Args:
        shapes: Height and width of each level.
        valid: (B, L, 2) width and height of each level's valid part, in cells.
        padding: (B, S) true where padded.
        eps: A token proposes nothing if a coordinate of its anchor is outside (eps, 1 - eps).

    Returns:
        Anchors (B, S, 4) cxcywh before the sigmoid, infinite where nothing is proposed, and a mask (B, S) of the
        proposed ones.
    """
    anchors = []
    for level, (height, width) in enumerate(shapes):
        y = torch.arange(height, dtype=torch.float32, device=valid.device) + 0.5
        x = torch.arange(width, dtype=torch.float32, device=valid.device) + 0.5
        centre = cell_grid(x, y) / valid[:, None, level]
        anchors.append(torch.cat([centre, torch.full_like(centre, 0.05 * 2.0**level)], -1))
    boxes = torch.cat(anchors, 1)
    proposed = ((boxes > eps) & (boxes < 1 - eps)).all(-1) & ~padding
    logits = torch.log(boxes / (1 - boxes))
    return logits.masked_fill(~proposed[..., None], torch.inf), proposed


def cell_grid(x: Tensor, y: Tensor) -> Tensor:
    """Return (1, h * w, 2) coordinates of a grid's cells, row by row, for (w,) columns and (h,) rows."""
    return torch.stack([x[None].expand(y.shape[0], -1), y[:, None].expand(-1, x.shape[0])], -1).reshape(1, -1, 2)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return (B, K, D) rows of (B, S, D) at the (B, K) indices of each image."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
