"""How a prompt enters the detector: added, concatenated or by cross-attention. Each starts as an exact identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cahqp.detectors.layers.basic import to_tokens
from cahqp.detectors.prompts.deep import WAYS, CrossAttentionWay, DeeperPrompts, Injection, exact_sum
from cahqp.detectors.prompts.generator import Attention, VisualPromptGenerator
from cahqp.errors import ConfigError

Place = Literal["input", "encoder", "decoder"]
Control = Literal["none", "constant", "other_image"]
_UNIT = 2**24


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


_INPUT_WAYS: dict[str, type[nn.Module]] = {"add": _Add, "concat": _Concatenate, "cross_attention": _CrossAttention}


class VisualPrompt(nn.Module):
    """Generates a prompt from each level of an image's features and injects it there, and deeper where asked.

    One generator serves all levels, so that the bank learns from all of them and stays small; each level asks it with
    its own features and gets a prompt of its own. Freshly made, the module changes nothing, bit for bit, in training
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
        places: Where it enters: the `input` of the encoder, each layer of the `encoder`, each layer of the `decoder`.
        encoder_layers: Number of the encoder's layers, where it is a place.
        decoder_layers: Number of the decoder's layers, where it is a place.
        control: For comparisons: `constant` shows the generator no image. `other_image` gives an image the prompt of
            the next one of its batch; in evaluation, all images that of the first image of the last batch in training.

    Attributes:
        last_attention: (levels, B, M) weights of the components in the last forward, detached; `None` before it.
        other_weights: (levels, M) int32 weights of the components for that first image, in units of 2^-24; zero before
            training. Only `other_image` has it. It is whole numbers, because EMA copies them: an average of floats
            would be the prompt of no image.
    """

    other_weights: Tensor

    def __init__(
        self,
        dim: int,
        levels: int,
        prompt_dim: int = 128,
        components: int = 4,
        attention: Attention = "softmax",
        injection: Injection = "add",
        heads: int = 8,
        places: Sequence[Place] = ("input",),
        encoder_layers: int = 0,
        decoder_layers: int = 0,
        control: Control = "none",
    ) -> None:
        super().__init__()
        self._check(dim, injection, heads, places)
        self._settings = {
            "dim": dim,
            "levels": levels,
            "prompt_dim": prompt_dim,
            "components": components,
            "attention": attention,
            "injection": injection,
            "heads": heads,
            "places": list(places),
            "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers,
            "control": control,
        }
        self.generator = VisualPromptGenerator(dim, prompt_dim, components, attention)
        at_input = "input" in places
        self.injection = _INPUT_WAYS[injection](dim, levels, prompt_dim, heads) if at_input else None
        self.encoder_ways = nn.ModuleList(
            WAYS[injection](dim, prompt_dim, heads) for _ in range(encoder_layers if "encoder" in places else 0)
        )
        self.decoder_ways = nn.ModuleList(
            WAYS[injection](dim, prompt_dim, heads) for _ in range(decoder_layers if "decoder" in places else 0)
        )
        self.control = control
        self.last_attention: Tensor | None = None
        if control == "other_image":
            self.register_buffer("other_weights", torch.zeros(levels, components, dtype=torch.int32))

    @staticmethod
    def _check(dim: int, injection: str, heads: int, places: Sequence[str]) -> None:
        if injection not in WAYS:
            message = f"injection must be one of {', '.join(get_args(Injection))}, got {injection!r}."
            raise ConfigError(message)
        if not places or not set(places) <= set(get_args(Place)):
            message = f"places must name some of {', '.join(get_args(Place))}, got {list(places)}."
            raise ConfigError(message)
        if injection == "tokens" and list(places) != ["decoder"]:
            message = "injection 'tokens' needs a dense attention, which the decoder alone has: places=['decoder']."
            raise ConfigError(message)
        if injection == "cross_attention" and dim % heads:
            message = f"heads={heads} must divide dim={dim} for injection 'cross_attention'."
            raise ConfigError(message)

    def describe(self) -> dict[str, Any]:
        """Return the constructor's arguments: `VisualPrompt(**prompt.describe())` is built alike."""
        return dict(self._settings)

    def share(self, encoder: nn.ModuleList, decoder: nn.ModuleList) -> None:
        """Let cross-attention start from the weights of the layers it stands beside (CVPT)."""
        for ways, layers in ((self.encoder_ways, encoder), (self.decoder_ways, decoder)):
            for way, layer in zip(ways, layers, strict=bool(ways)):
                if isinstance(way, CrossAttentionWay):
                    way.share(layer)

    def forward(self, features: list[Tensor], padding_masks: list[Tensor]) -> list[Tensor]:
        """Return the features with their prompts. Padded positions pass unchanged and have no influence.

        Args:
            features: (B, D, h, w) per level.
            padding_masks: (B, h, w) bool per level, true where padded.
        """
        return self.begin(features, padding_masks)[0]

    def begin(self, features: list[Tensor], padding_masks: list[Tensor]) -> tuple[list[Tensor], DeeperPrompts | None]:
        """Return the same, and what encoder and decoder are to do; `None` where they are no places of prompts.

        Args:
            features: (B, D, h, w) per level.
            padding_masks: (B, h, w) bool per level, true where padded.

        Raises:
            ConfigError: The control `other_image` trains on a batch of one.
        """
        made = [
            self._generate(level, feature, mask)
            for level, (feature, mask) in enumerate(zip(features, padding_masks, strict=True))
        ]
        self.last_attention = torch.stack([weights.detach().float() for _, weights in made])
        components = [weights[:, :, None] * self.generator.values for _, weights in made]
        if self.injection is not None:
            features = [
                self._at_input(level, feature, mask, made[level][0], components[level])
                for level, (feature, mask) in enumerate(zip(features, padding_masks, strict=True))
            ]
        if not (self.encoder_ways or self.decoder_ways):
            return features, None
        prompts = torch.stack([prompt for prompt, _ in made])
        return features, DeeperPrompts(prompts, torch.stack(components), self.encoder_ways, self.decoder_ways)

    def _generate(self, level: int, feature: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, Dp) prompts of a level and the (B, M) weights of the components."""
        if self.control == "other_image" and not self.training:
            values = self.generator.values
            weights = (self.other_weights[level] / _UNIT).to(values.dtype).expand(len(feature), -1)
            return weights @ values, weights
        if self.control == "constant":
            feature = torch.zeros_like(feature)
        prompt, weights = self.generator(feature, padding_mask)
        return self._of_next_image(level, prompt, weights) if self.control == "other_image" else (prompt, weights)

    def _of_next_image(self, level: int, prompt: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return prompts and weights of the next image each, and keep the first image's for evaluation."""
        if len(prompt) < 2:
            message = (
                "prompt.control: other_image gives an image the prompt of another one of its batch, and a batch of one "
                "has none: set data.batch_size, and data.target_batch_size where it is given, to 2 or more."
            )
            raise ConfigError(message)
        self.other_weights[level] = (weights[0].detach().float() * _UNIT).round().int()
        return prompt.roll(1, 0), weights.roll(1, 0)

    def _at_input(
        self, level: int, feature: Tensor, padding_mask: Tensor, prompt: Tensor, components: Tensor
    ) -> Tensor:
        assert self.injection is not None
        padded = padding_mask[:, None]
        delta = self.injection(level, feature.masked_fill(padded, 0.0), prompt, components)
        return exact_sum(feature, delta.to(feature.dtype).masked_fill(padded, 0.0))
