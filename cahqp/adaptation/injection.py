"""How a prompt enters the detector: added, concatenated or by cross-attention. Each starts as an exact identity."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cahqp.adaptation.prompts import Attention, VisualPromptGenerator
from cahqp.detectors.layers.basic import to_tokens
from cahqp.errors import ConfigError

Injection = Literal["add", "concat", "cross_attention"]


class _Add(nn.Module):
    """The prompt, projected per level, is added to every position. The projections start at zero."""

    def __init__(self, dim: int, levels: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(prompt_dim, dim) for _ in range(levels))
        for parameter in self.projections.parameters():
            nn.init.zeros_(parameter)

    def forward(self, level: int, features: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        delta: Tensor = self.projections[level](prompt)
        return delta[:, :, None, None].expand_as(features)


class _Concatenate(nn.Module):
    """The prompt is laid beside every position's channels and fused by a 1x1 convolution (PromptIR, Potlapalli 2023).

    The convolution is shared by the levels; what it gives is added behind a gate per level and channel that starts at
    zero.
    """

    def __init__(self, dim: int, levels: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(dim + prompt_dim, dim, 1)
        self.gate = nn.Parameter(torch.zeros(levels, dim))

    def forward(self, level: int, features: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        spread = prompt.to(features.dtype)[:, :, None, None].expand(-1, -1, *features.shape[2:])
        delta: Tensor = self.fuse(torch.cat([features, spread], 1))
        return delta * self.gate[level][:, None, None]


class _CrossAttention(nn.Module):
    """Every position attends to the weighted components, behind a gate per level and channel that starts at zero.

    The attention is shared by the levels. It is a new one: CVPT starts it from the self-attention beside it, but the
    encoder's is deformable and has no keys to share.
    """

    def __init__(self, dim: int, levels: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, kdim=prompt_dim, vdim=prompt_dim, batch_first=True)
        self.gate = nn.Parameter(torch.zeros(levels, dim))

    def forward(self, level: int, features: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        tokens = to_tokens(features)
        components = components.to(tokens.dtype)
        delta, _ = self.attention(tokens, components, components, need_weights=False)
        gated: Tensor = delta * self.gate[level]
        return gated.transpose(1, 2).reshape(features.shape)


_INJECTIONS: dict[str, type[nn.Module]] = {"add": _Add, "concat": _Concatenate, "cross_attention": _CrossAttention}


class VisualPrompt(nn.Module):
    """Generates a prompt from each level of an image's features and injects it there.

    One generator serves all levels, so that the bank learns from all of them and stays small; each level asks it with
    its own features and gets a prompt of its own. Freshly made, the module returns its input bit for bit, in training
    as in evaluation.

    Args:
        dim: Channels of the features.
        levels: Number of feature levels.
        prompt_dim: Length of a prompt.
        components: Number of components in the bank.
        attention: How the components are weighed: softmax, or CODA's cosine.
        injection: How the prompt enters. `concat` and `cross_attention` also mix the features themselves, so they are
            adapters as much as prompts.
        heads: Heads of the cross-attention; must divide `dim`.

    Attributes:
        last_attention: (levels, B, M) weights of the components in the last forward, detached; `None` before it.
    """

    def __init__(
        self,
        dim: int,
        levels: int,
        prompt_dim: int = 128,
        components: int = 4,
        attention: Attention = "softmax",
        injection: Injection = "add",
        heads: int = 8,
    ) -> None:
        super().__init__()
        self._check(dim, injection, heads)
        self._settings = {
            "dim": dim,
            "levels": levels,
            "prompt_dim": prompt_dim,
            "components": components,
            "attention": attention,
            "injection": injection,
            "heads": heads,
        }
        self.generator = VisualPromptGenerator(dim, prompt_dim, components, attention)
        self.injection = _INJECTIONS[injection](dim, levels, prompt_dim, heads)
        self.last_attention: Tensor | None = None

    @staticmethod
    def _check(dim: int, injection: str, heads: int) -> None:
        if injection not in _INJECTIONS:
            message = f"injection must be one of {', '.join(get_args(Injection))}, got {injection!r}."
            raise ConfigError(message)
        if injection == "cross_attention" and dim % heads:
            message = f"heads={heads} must divide dim={dim} for injection 'cross_attention'."
            raise ConfigError(message)

    def describe(self) -> dict[str, Any]:
        """Return the constructor's arguments: `VisualPrompt(**prompt.describe())` is built alike."""
        return dict(self._settings)

    def forward(self, features: list[Tensor], padding_masks: list[Tensor]) -> list[Tensor]:
        """Return the features with their prompts. Padded positions pass unchanged and have no influence.

        Args:
            features: (B, D, h, w) per level.
            padding_masks: (B, h, w) bool per level, true where padded.
        """
        prompted, attention = [], []
        for level, (feature, padding_mask) in enumerate(zip(features, padding_masks, strict=True)):
            prompt, weights = self.generator(feature, padding_mask)
            attention.append(weights.detach().float())
            components = weights[:, :, None] * self.generator.values
            unpadded = feature.masked_fill(padding_mask[:, None], 0.0)
            delta = self.injection(level, unpadded, prompt, components)
            prompted.append(_inject(feature, delta, padding_mask))
        self.last_attention = torch.stack(attention)
        return prompted


def _inject(features: Tensor, delta: Tensor, padding_mask: Tensor) -> Tensor:
    """Return features + delta where not padded, bit for bit the features where delta is zero of either sign.

    Written `x - (0 - d)`, because `x + d` turns -0.0 into 0.0 where d is 0.0.
    """
    delta = delta.to(features.dtype).masked_fill(padding_mask[:, None], 0.0)
    return features - (0.0 - delta)
