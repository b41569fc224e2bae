"""Small blocks and functions of all detectors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Inject = Callable[[Tensor, Tensor, Tensor, nn.MultiheadAttention, Tensor | None], Tensor]
"""Change of a self-attention's result by a prompt; see `SelfAttentionBlock`."""


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
    """Linear layers with ReLU between them, as in DETR's box head.

    Args:
        in_dim: Width of the input.
        hidden_dim: Width between the layers.
        out_dim: Width of the output.
        depth: Number of linear layers.
    """

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


class ConvNorm(nn.Sequential):
    """Convolution without bias, BatchNorm, activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side of the kernel; padding keeps the size at stride 1.
        stride: Step of the kernel.
        activation: Final activation; none by default.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = activation if activation is not None else nn.Identity()


class SelfAttentionBlock(nn.Module):
    """Multi-head self-attention with residual, followed by LayerNorm.

    Args:
        dim: Width of the tokens.
        heads: Number of attention heads.
        dropout: Dropout on the attention's weights and output.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None = None, inject: Inject | None = None) -> Tensor:
        """Return (B, N, D).

        Args:
            x: (B, N, D).
            position: (B, N, D), added to queries and keys.
            mask: (N, N) true where a query (row) must not see a key (column).
            inject: Prompt injection; gets the result (B, N, D), queries, values, the attention and the mask.
        """
        query = x + position
        attended = self.attention(query, query, x, attn_mask=mask, need_weights=False)[0]
        if inject is not None:
            attended = inject(attended, query, x, self.attention, mask)
        out: Tensor = self.norm(x + self.dropout(attended))
        return out


class FeedForwardBlock(nn.Module):
    """Two linear layers with residual, followed by LayerNorm.

    Args:
        dim: Width of the tokens.
        hidden_dim: Width between the layers.
        activation: `relu` or `gelu`.
        dropout: Dropout between and after the layers.
    """

    def __init__(self, dim: int, hidden_dim: int, activation: str = "relu", dropout: float = 0.0) -> None:
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
