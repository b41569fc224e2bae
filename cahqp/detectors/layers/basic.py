"""Small blocks and functions of all detectors. Tokens are (B, N, D) unless stated otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class AttentionCall(NamedTuple):
    """Inputs and result of a dense self-attention.

    Attributes:
        attended: (B, N, D) result.
        query: (B, N, D) tokens with their positions: queries and keys.
        tokens: (B, N, D) values.
        attention: The layer.
        mask: (N, N) true where a query (row) must not see a key (column).
    """

    attended: Tensor
    query: Tensor
    tokens: Tensor
    attention: nn.MultiheadAttention
    mask: Tensor | None


Inject = Callable[[AttentionCall], Tensor]
"""Prompt injection: returns the changed (B, N, D) result of a self-attention."""


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """Return log(x / (1 - x)) with both parts at least `eps`; DINO uses 1e-3, RT-DETR 1e-5."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def to_tokens(maps: Tensor) -> Tensor:
    """Return (B, h * w, D) tokens, row by row, for (B, D, h, w) maps.

    Not `flatten(2).transpose(1, 2)`: for one image, the BatchNorm before it then gets a gradient whose strides the CPU
    kernel misreads, and all earlier gradients are silently wrong (torch 2.15).
    """
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


class MLP(nn.Module):
    """`depth` linear layers with ReLU between them, as in DETR's box head."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, depth: int) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (depth - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_dim) for (..., in_dim)."""
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        last: Tensor = self.layers[-1](x)
        return last


class ClassHead(nn.Linear):
    """Linear layer with one logit per class. The logit of a union is the largest logit of its members.

    With the largest logit, a merged detector returns exactly the merged detections of its parts. A mean of the members'
    rows would lower the score of a clear car because it is neither a bus nor a truck.

    Args:
        dim: Width of the queries.
        classes: Number of classes.
        members: Rows of the layer that belong to each class, in order; one each by default.

    Raises:
        ValueError: `members` has another length than the classes, or a class has no row.
    """

    def __init__(self, dim: int, classes: int, members: Sequence[int] | None = None) -> None:
        counts = [1] * classes if members is None else list(members)
        if len(counts) != classes or min(counts, default=1) < 1:
            message = f"members must be {classes} numbers of at least 1, one per class, got {counts}."
            raise ValueError(message)
        super().__init__(dim, sum(counts))
        self.members = counts

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., classes) logits for (..., dim)."""
        logits = super().forward(input)
        if len(self.members) == self.out_features:
            return logits
        return torch.stack([rows.amax(-1) for rows in torch.split(logits, self.members, -1)], -1)


class ConvNorm(nn.Sequential):
    """Convolution without bias, BatchNorm and optional activation. Padding keeps the size at stride 1."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = activation if activation is not None else nn.Identity()


class SelfAttentionBlock(nn.Module):
    """Multi-head self-attention with residual, followed by LayerNorm. Dropout is on its weights and output."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None = None, inject: Inject | None = None) -> Tensor:
        """Return (B, N, D); `position` (B, N, D) is added to queries and keys, `mask` as in `AttentionCall`."""
        query = x + position
        attended = self.attention(query, query, x, attn_mask=mask, need_weights=False)[0]
        if inject is not None:
            attended = inject(AttentionCall(attended, query, x, self.attention, mask))
        out: Tensor = self.norm(x + self.dropout(attended))
        return out


class FeedForwardBlock(nn.Module):
    """Two linear layers with residual, followed by LayerNorm. Dropout is between and after the layers."""

    def __init__(
        self, dim: int, hidden_dim: int, activation: Literal["relu", "gelu"] = "relu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.activation = {"relu": nn.ReLU(), "gelu": nn.GELU()}[activation]
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape (..., D)."""
        hidden = self.dropout(self.activation(self.linear1(x)))
        out: Tensor = self.norm(x + self.dropout(self.linear2(hidden)))
        return out
