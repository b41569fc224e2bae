"""Visual prompt: generated per feature level, injected by addition, concatenation or cross-attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from cahqp.detectors.layers.basic import to_tokens
from cahqp.detectors.prompts.deep import DEEP_INJECTIONS, CrossAttentionInjection, DeepPrompts, InjectionKind, exact_sum
from cahqp.detectors.prompts.generator import Attention, VisualPromptGenerator
from cahqp.detectors.prompts.query_centres import QueryCentres
from cahqp.errors import ConfigError

Place = Literal["input", "encoder", "decoder"]
Control = Literal["none", "constant", "other_image"]
_UNIT = 2**24


class _InputAdd(nn.Module):
    """Adds the prompt, projected per level, to every position. The projections start at zero."""

    def __init__(self, dim: int, levels: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(prompt_dim, dim) for _ in range(levels))
        for parameter in self.projections.parameters():
            nn.init.zeros_(parameter)

    def forward(self, level: int, features: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        delta: Tensor = self.projections[level](prompt)
        return delta[:, :, None, None].expand_as(features)


class _InputConcat(nn.Module):
    """Concatenates the prompt to every position and fuses by a 1x1 convolution (PromptIR, Potlapalli 2023).

    The levels share the convolution. Its result is added behind a gate per level and channel that starts at zero.
    """

    def __init__(self, dim: int, levels: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(dim + prompt_dim, dim, 1)
        self.gate = nn.Parameter(torch.zeros(levels, dim))

    def forward(self, level: int, features: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        spread = prompt.to(features.dtype)[:, :, None, None].expand(-1, -1, *features.shape[2:])
        delta: Tensor = self.fuse(torch.cat([features, spread], 1))
        return delta * self.gate[level][:, None, None]


class _InputCrossAttention(nn.Module):
    """Attention from every position to the weighted components, behind a gate per level and channel from zero.

    The levels share the attention. It starts from random weights: CVPT copies the neighbouring self-attention, but the
    encoder's is deformable and has no keys to copy.
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


_INPUT_INJECTIONS: dict[str, type[nn.Module]] = {
    "add": _InputAdd,
    "concat": _InputConcat,
    "cross_attention": _InputCrossAttention,
}


class PromptedFeatures(NamedTuple):
    """Result of a `VisualPrompt`.

    Attributes:
        features: (B, D, h, w) per level, with the prompts of the `input`.
        deep: Prompts for the encoder and decoder layers; `None` if neither gets any.
        attention: (levels, B, M) float32 weights of the components, detached.
    """

    features: list[Tensor]
    deep: DeepPrompts | None
    attention: Tensor


class VisualPrompt(nn.Module):
    """Generates a prompt from each level of an image's features and injects it.

    All levels share one generator, so the bank learns from all of them and stays small. Each level queries it with its
    own features and gets its own prompt. A new module changes no bit of the detector's output, in training or
    evaluation.

    Args:
        dim: Channels of the features.
        levels: Number of feature levels.
        prompt_dim: Length of a prompt.
        components: Number of components in the bank.
        attention: Weighting of the components; see `VisualPromptGenerator`.
        injection: Kind of injection. `concat` and `cross_attention` also mix the features themselves, so they are
            adapters as much as prompts.
        heads: Heads of the cross-attention; must divide `dim`.
        places: Injection points: the `input` of the encoder, each layer of the `encoder`, each layer of the `decoder`.
        encoder_layers: Number of encoder layers; needed for the place `encoder`.
        decoder_layers: Number of decoder layers; needed for the place `decoder`.
        control: Control experiment. `constant`: the generator sees no image. `other_image`: an image gets the prompt
            of the next image of its batch; in evaluation all images get the prompt of the first image of the last
            training batch.

    Attributes:
        other_weights: (levels, M) int32 component weights of that first image, in units of 2^-24; zero before training.
            Only `other_image` has it. It is integer because EMA copies integers: an average of floats would be the
            prompt of no image.
        centres: Centre of each level's queries, which `attention: normalized` subtracts; see `QueryCentres`.
    """

    other_weights: Tensor

    def __init__(
        self,
        dim: int,
        levels: int,
        prompt_dim: int = 128,
        components: int = 4,
        attention: Attention = "normalized",
        injection: InjectionKind = "add",
        heads: int = 8,
        places: Sequence[Place] = ("input",),
        encoder_layers: int = 0,
        decoder_layers: int = 0,
        control: Control = "none",
    ) -> None:
        settings = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        self._check(dim, injection, heads, places)
        self._settings = {**settings, "places": list(places)}
        self.generator = VisualPromptGenerator(dim, prompt_dim, components, attention)
        at_input = "input" in places
        self.injection = _INPUT_INJECTIONS[injection](dim, levels, prompt_dim, heads) if at_input else None
        # These two names are keys of existing model files.
        self.encoder_ways, self.decoder_ways = (
            nn.ModuleList(DEEP_INJECTIONS[injection](dim, prompt_dim, heads) for _ in range(count * (place in places)))
            for place, count in (("encoder", encoder_layers), ("decoder", decoder_layers))
        )
        self.centres = QueryCentres(levels, prompt_dim) if attention == "normalized" else None
        self.control = control
        if control == "other_image":
            self.register_buffer("other_weights", torch.zeros(levels, components, dtype=torch.int32))

    @staticmethod
    def _check(dim: int, injection: str, heads: int, places: Sequence[str]) -> None:
        message = None
        if injection not in DEEP_INJECTIONS:
            message = f"injection must be one of {', '.join(DEEP_INJECTIONS)}, got {injection!r}."
        elif not places or not set(places) <= set(get_args(Place)):
            message = f"places must name some of {', '.join(get_args(Place))}, got {list(places)}."
        elif injection == "tokens" and list(places) != ["decoder"]:
            message = "injection 'tokens' needs a dense attention. Only the decoder has one: set places=['decoder']."
        elif injection == "cross_attention" and dim % heads:
            message = f"heads={heads} must divide dim={dim} for injection 'cross_attention'."
        if message is not None:
            raise ConfigError(message)

    def describe(self) -> dict[str, Any]:
        """Return the constructor's arguments: `VisualPrompt(**prompt.describe())` builds an equal module."""
        return dict(self._settings)

    def copy_weights(self, encoder: nn.ModuleList, decoder: nn.ModuleList) -> None:
        """Start each deep cross-attention from the self-attention of its layer (CVPT)."""
        for injections, layers in ((self.encoder_ways, encoder), (self.decoder_ways, decoder)):
            for injection, layer in zip(injections, layers, strict=bool(injections)):
                if isinstance(injection, CrossAttentionInjection):
                    injection.copy_weights(layer)

    def commit(self) -> None:
        """Update the centres of the queries. Every process must call this equally often."""
        if self.centres is not None:
            self.centres.commit()

    def forward(
        self, features: list[Tensor], padding_masks: list[Tensor], projected: list[Tensor] | None = None
    ) -> PromptedFeatures:
        """Generate the prompts and inject them at the input. Padded positions are unchanged and have no influence.

        Args:
            features: (B, D, h, w) per level.
            padding_masks: (B, h, w) bool per level, true where padded.
            projected: (B, D, h, w) per level, the same features before the normalisation of their projection. The query
                of `attention: normalized` is made from them: GroupNorm halves the difference of day and night.

        Raises:
            ConfigError: The control `other_image` trains on a batch of one.
        """
        outputs, prompts, components, attention = [], [], [], []
        queried = features if projected is None or self.generator.attention != "normalized" else projected
        for level, (feature, seen, mask) in enumerate(zip(features, queried, padding_masks, strict=True)):
            prompt, weights = self._generate(level, seen, mask)
            weighted = weights[:, :, None] * self.generator.values
            outputs.append(self._inject(level, feature, mask, prompt, weighted))
            prompts.append(prompt)
            components.append(weighted)
            attention.append(weights.detach().float())
        deep = None
        if self.encoder_ways or self.decoder_ways:
            deep = DeepPrompts(torch.stack(prompts), torch.stack(components), self.encoder_ways, self.decoder_ways)
        return PromptedFeatures(outputs, deep, torch.stack(attention))

    def _generate(self, level: int, feature: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, Dp) prompts of a level and the (B, M) weights of the components."""
        if self.control == "other_image" and not self.training:
            values = self.generator.values
            weights = (self.other_weights[level] / _UNIT).to(values.dtype).expand(len(feature), -1)
            return weights @ values, weights
        if self.control == "constant":
            feature = torch.zeros_like(feature)
        queries = self.generator.queries(feature, padding_mask)
        prompt, weights = self.generator.prompts(queries if self.centres is None else self.centres(level, queries))
        return self._roll(level, prompt, weights) if self.control == "other_image" else (prompt, weights)

    def _roll(self, level: int, prompt: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Give each image the prompt and weights of the next one, and keep the first image's for evaluation."""
        if len(prompt) < 2:
            message = (
                "prompt.control: other_image needs a second image in each batch, got a batch of one. Set "
                "data.batch_size, and data.target_batch_size if it is set, to 2 or more."
            )
            raise ConfigError(message)
        self.other_weights[level] = (weights[0].detach().float() * _UNIT).round().int()
        return prompt.roll(1, 0), weights.roll(1, 0)

    def _inject(self, level: int, feature: Tensor, padding_mask: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        if self.injection is None:
            return feature
        padded = padding_mask[:, None]
        delta = self.injection(level, feature.masked_fill(padded, 0.0), prompt, components)
        return exact_sum(feature, delta.to(feature.dtype).masked_fill(padded, 0.0))


@contextmanager
def record_attention(prompt: nn.Module | None) -> Iterator[list[Tensor]]:
    """Collect the (levels, B, M) component weights of every forward pass of a `VisualPrompt` inside the block.

    Args:
        prompt: The prompt; `None` records nothing.
    """
    recorded: list[Tensor] = []
    if prompt is None:
        yield recorded
        return
    handle = prompt.register_forward_hook(lambda _, __, output: recorded.append(output.attention))
    try:
        yield recorded
    finally:
        handle.remove()
