"""RT-DETR's hybrid encoder (arXiv 2304.08069, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cahqp.detectors.layers.basic import ConvNorm, FeedForwardBlock, SelfAttentionBlock, to_tokens
from cahqp.detectors.layers.positions import grid_positions


class _RepVgg(nn.Module):
    """Sum of a 3x3 and a 1x1 convolution, each with BatchNorm (arXiv 2101.03697)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3, self.conv1 = ConvNorm(channels, channels, 3), ConvNorm(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.conv3(x) + self.conv1(x))


class _Fusion(nn.Module):
    """Cross-stage partial block of RepVGG blocks that merges two maps."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, expansion: float) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.conv1 = ConvNorm(in_channels, hidden, 1, 1, nn.SiLU())
        self.conv2 = ConvNorm(in_channels, hidden, 1, 1, nn.SiLU())
        self.blocks = nn.Sequential(*[_RepVgg(hidden) for _ in range(blocks)])
        self.conv3 = ConvNorm(hidden, out_channels, 1, 1, nn.SiLU()) if hidden != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(self.blocks(self.conv1(x)) + self.conv2(x))
        return out


class HybridEncoder(nn.Module):
    """Attention within the coarsest map, then top-down and bottom-up fusion of the maps.

    Arguments as in `RTDETR`; `channels` are the backbone's, `dim` is the encoder's.
    """

    def __init__(
        self, channels: Sequence[int], dim: int, heads: int, ffn_dim: int, blocks: int, expansion: float, dropout: float
    ) -> None:
        super().__init__()
        steps = len(channels) - 1
        self.input_proj = nn.ModuleList(ConvNorm(c, dim, 1) for c in channels)
        self.attention = SelfAttentionBlock(dim, heads, dropout)
        self.ffn = FeedForwardBlock(dim, ffn_dim, "gelu", dropout)
        self.lateral = nn.ModuleList(ConvNorm(dim, dim, 1, 1, nn.SiLU()) for _ in range(steps))
        self.top_down = nn.ModuleList(_Fusion(2 * dim, dim, blocks, expansion) for _ in range(steps))
        self.downsample = nn.ModuleList(ConvNorm(dim, dim, 3, 2, nn.SiLU()) for _ in range(steps))
        self.bottom_up = nn.ModuleList(_Fusion(2 * dim, dim, blocks, expansion) for _ in range(steps))

    def attend(self, x: Tensor) -> Tensor:
        """Return the coarsest map (B, D, h, w) after self-attention."""
        height, width = x.shape[-2:]
        position = grid_positions(height, width, x.shape[1], x.device).to(x.dtype)
        tokens: Tensor = self.ffn(self.attention(to_tokens(x), position[None]))
        return tokens.transpose(1, 2).reshape(x.shape)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the fused maps of projected maps, at the same sizes."""
        inner = [self.attend(maps[-1])]
        for step, low in enumerate(reversed(maps[:-1])):
            inner[0] = self.lateral[step](inner[0])
            upsampled = functional.interpolate(inner[0], size=low.shape[-2:], mode="nearest")
            inner.insert(0, self.top_down[step](torch.cat([upsampled, low], 1)))
        outer = [inner[0]]
        for step, high in enumerate(inner[1:]):
            height, width = high.shape[-2:]
            # This rounds half of an odd side up. Backbones without padding, such as ConvNeXt, round down.
            halved = self.downsample[step](outer[-1])[..., :height, :width]
            outer.append(self.bottom_up[step](torch.cat([halved, high], 1)))
        return outer
