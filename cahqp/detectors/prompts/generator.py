"""Visual Prompt Generator: one prompt vector per image from a small bank of learned components."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cahqp.errors import ConfigError

Attention = Literal["normalized", "softmax", "cosine"]
SPREAD = 2.0
"""Standard deviation of the initial logits of `normalized` for random queries and keys.

On the demo's teacher before training and without centres, prompts of day and night then differ by 20 to 60 % of their
length; at a quarter of it by 6 to 16 %.
"""


class CBAM(nn.Module):
    """Convolutional block attention: a gate per channel, then one per position (Woo et al. 2018).

    Unlike the original, the map of the spatial gate is normalised over the unpadded positions of its own image, not by
    BatchNorm. Batches are small and mix source with target, so batch statistics would leak one domain into the other
    and differ between training and evaluation.

    Args:
        dim: Number of channels.
        reduction: Channels per hidden unit of the channel gate, which has at least four units.
        kernel: Side of the spatial gate's convolution.
    """

    def __init__(self, dim: int, reduction: int = 16, kernel: int = 7) -> None:
        super().__init__()
        hidden = max(4, dim // reduction)
        self.channel = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.spatial = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.weight = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, padding_mask: Tensor) -> Tensor:
        """Return the gated features, zero where padded.

        Args:
            features: (B, D, h, w).
            padding_mask: (B, h, w) bool, true where padded.
        """
        padded = padding_mask[:, None]
        features = features.masked_fill(padded, 0.0)
        gate = self.channel(_mean(features, padding_mask)) + self.channel(_masked_max(features, padded))
        features = features * gate.sigmoid()[:, :, None, None].to(features.dtype)
        maps = torch.cat([features.amax(1, keepdim=True), features.mean(1, keepdim=True)], 1)
        return features * self._normalise(self.spatial(maps), padded).sigmoid().to(features.dtype)

    def _normalise(self, maps: Tensor, padded: Tensor) -> Tensor:
        maps, valid = maps.float(), (~padded).float()
        count = valid.sum((2, 3), keepdim=True).clamp(min=1)
        mean = (maps * valid).sum((2, 3), keepdim=True) / count
        variance = ((maps - mean).square() * valid).sum((2, 3), keepdim=True) / count
        return (maps - mean) * (variance + 1e-5).rsqrt() * self.weight + self.bias


def _mean(features: Tensor, padding_mask: Tensor) -> Tensor:
    """Return (B, D) means over the unpadded positions of (B, D, h, w) features that are zero where padded."""
    # Summed in float32: ten thousand positions in float16 pass 65504.
    total = features.sum((2, 3), dtype=torch.float32)
    return (total / (~padding_mask).sum((1, 2)).clamp(min=1)[:, None]).to(features.dtype)


def _masked_max(features: Tensor, padded: Tensor) -> Tensor:
    lowest = features.masked_fill(padded, torch.finfo(features.dtype).min).amax((2, 3))
    return lowest.masked_fill(padded.flatten(1).all(1, keepdim=True), 0.0)


class VisualPromptGenerator(nn.Module):
    """Weighted sum of a bank of learned components, with a query from the image.

    `q = Linear(GAP(CBAM(X)))`, `p = a V`. The weights `a` are one of

    - `normalized`: `softmax(t cos(q, K))` with a learned temperature t. `softmax` gave every image four equal
      weights, because its logits differed by 0.1 to 0.2.
    - `softmax`: `softmax(q K^T / sqrt(Dp))`, kept for model files that have it.
    - `cosine`: `cos(q * A_m, K_m)` of CODA-Prompt (Smith et al. 2023), in -1..1 and without a fixed sum.

    Arguments as in `VisualPrompt`: D is `dim`, Dp `prompt_dim`, M `components`.
    """

    def __init__(
        self, dim: int, prompt_dim: int = 128, components: int = 4, attention: Attention = "normalized"
    ) -> None:
        super().__init__()
        if attention not in get_args(Attention):
            message = f"attention must be one of {', '.join(get_args(Attention))}, got {attention!r}."
            raise ConfigError(message)
        self.attention = attention
        self.cbam = CBAM(dim)
        self.query = nn.Linear(dim, prompt_dim)
        self.keys = nn.Parameter(torch.randn(components, prompt_dim))
        # Not zero: the injection starts at zero, and would get no gradient from zero prompts.
        self.values = nn.Parameter(torch.randn(components, prompt_dim))
        # Under softmax the selectors A would only rescale the keys K.
        self.selectors = nn.Parameter(torch.randn(components, prompt_dim)) if attention == "cosine" else None
        # Cosines of random vectors have the standard deviation 1 / sqrt(Dp). Its logarithm is learned, as in CLIP.
        temperature = torch.tensor(SPREAD * math.sqrt(prompt_dim))
        self.log_temperature = nn.Parameter(temperature.log()) if attention == "normalized" else None

    def forward(self, features: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, Dp) prompts and the (B, M) weights of the components.

        Args:
            features: (B, D, h, w). `normalized` expects them as they are before the normalisation of the projection.
            padding_mask: (B, h, w) bool, true where padded; padded features have no influence.
        """
        return self.prompts(self.queries(features, padding_mask))

    def queries(self, features: Tensor, padding_mask: Tensor) -> Tensor:
        """Return the (B, Dp) queries; arguments as in `forward`."""
        queries: Tensor = self.query(_mean(self.cbam(features, padding_mask), padding_mask))
        return queries

    def prompts(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, Dp) prompts and the (B, M) weights of the components for (B, Dp) queries."""
        weights = self._weights(queries)
        return weights @ self.values, weights

    def _weights(self, query: Tensor) -> Tensor:
        if self.log_temperature is not None:
            # The lower limit of the length keeps the gradient of a query at its centre finite.
            similarity = F.normalize(query, dim=-1, eps=0.01) @ F.normalize(self.keys, dim=-1).T
            return (self.log_temperature.exp() * similarity).softmax(-1)
        if self.selectors is not None:
            return F.cosine_similarity(query[:, None] * self.selectors, self.keys[None], dim=-1)
        return (query @ self.keys.T / math.sqrt(query.shape[-1])).softmax(-1)


def attention_entropy(weights: Tensor) -> Tensor:
    """Return the mean entropy of component weights in 0..1: 0 for a single component, 1 for equal weights.

    Args:
        weights: (..., M). Signed cosine weights are replaced by their absolute values, normalised to a sum of one.
    """
    share = weights.detach().float().abs()
    share = share / share.sum(-1, keepdim=True).clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum(-1).mean()
    return entropy / math.log(max(weights.shape[-1], 2))
