"""Prompts inside the encoder and the decoder. Every way in starts as an exact identity, as at the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cahqp.detectors.layers.basic import Inject

Injection = Literal["add", "concat", "tokens", "cross_attention"]


def exact_sum(x: Tensor, delta: Tensor) -> Tensor:
    """Return x + delta, bit for bit x where delta is zero of either sign.

    Written `x - (0 - d)`, because `x + d` turns -0.0 into 0.0 where d is 0.0.
    """
    return x - (0.0 - delta.to(x.dtype))


class DeepInjection(nn.Module):
    """One way into one layer. Subclasses return what is added to (B, N, D) tokens."""

    def delta(self, tokens: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        """Return (B, N, D) or (B, 1, D).

        Args:
            tokens: (B, N, D).
            prompt: (B, Dp).
            components: (B, M, Dp) the weighted components.
        """
        raise NotImplementedError

    def attended(
        self,
        prompt: Tensor,
        components: Tensor,
        attended: Tensor,
        query: Tensor,
        tokens: Tensor,
        attention: nn.MultiheadAttention,
        mask: Tensor | None,
    ) -> Tensor:
        """Return what a dense self-attention gave, with the prompt.

        Args:
            prompt: (B, Dp).
            components: (B, M, Dp).
            attended: (B, N, D) without the prompt.
            query: (B, N, D) tokens with their positions: query and key of the attention.
            tokens: (B, N, D) its values.
            attention: The layer's own.
            mask: (N, N) true where sight is barred.
        """
        return exact_sum(attended, self.delta(tokens, prompt, components))

    def share(self, layer: nn.Module) -> None:
        """Start from the weights of the layer's own attention, where there is something to share."""


class AddWay(DeepInjection):
    """The prompt, projected, is added to every token. The projection starts at zero."""

    def __init__(self, dim: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.projection = nn.Linear(prompt_dim, dim)
        for parameter in self.projection.parameters():
            nn.init.zeros_(parameter)

    def delta(self, tokens: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        """Return (B, 1, D)."""
        projected: Tensor = self.projection(prompt)
        return projected[:, None]


class ConcatenateWay(DeepInjection):
    """The prompt is laid beside every token's channels and fused by a linear layer, behind a gate from zero."""

    def __init__(self, dim: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.fuse = nn.Linear(dim + prompt_dim, dim)
        self.gate = nn.Parameter(torch.zeros(dim))

    def delta(self, tokens: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        """Return (B, N, D)."""
        # W [x; p] = W_x x + W_p p: the prompt's part is the same for all tokens.
        dim = tokens.shape[-1]
        of_tokens, of_prompt = self.fuse.weight[:, :dim], self.fuse.weight[:, dim:]
        fused = F.linear(tokens, of_tokens, self.fuse.bias) + F.linear(prompt, of_prompt)[:, None]
        return fused * self.gate


class CrossAttentionWay(DeepInjection):
    """Tokens attend to the components, apart from their attention to each other (CVPT, Huang et al. 2025).

    Weights start as the layer's own: queries, keys, values and output of a dense self-attention; of a deformable one,
    which has no queries and keys, values and output. Unlike CVPT's they may train, and the gate starts at zero: with
    the biases of a trained layer even prompts of zero would shift every token.
    """

    def __init__(self, dim: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.lift = nn.Linear(prompt_dim, dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.gate = nn.Parameter(torch.zeros(dim))

    def delta(self, tokens: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        """Return (B, N, D)."""
        lifted = self.lift(components.to(tokens.dtype))
        found: Tensor = self.attention(tokens, lifted, lifted, need_weights=False)[0]
        return found * self.gate

    @torch.no_grad()
    def share(self, layer: nn.Module) -> None:
        """Copy the weights of the layer's self-attention."""
        own, given = self.attention, layer.self_attn
        dense = getattr(given, "attention", None)
        if isinstance(dense, nn.MultiheadAttention):
            own.load_state_dict(dense.state_dict())
            return
        dim = own.embed_dim
        assert own.in_proj_weight is not None and own.in_proj_bias is not None
        own.in_proj_weight[2 * dim :].copy_(given.value_proj.weight)  # type: ignore[union-attr,arg-type]
        own.in_proj_bias[2 * dim :].copy_(given.value_proj.bias)  # type: ignore[union-attr,arg-type]
        own.out_proj.load_state_dict(given.output_proj.state_dict())  # type: ignore[union-attr]


class TokensWay(DeepInjection):
    """The components are extra keys and values of a dense self-attention.

    `plain + g (with tokens - plain)`: the gate g starts at zero, the prompts do not.
    """

    def __init__(self, dim: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.lift = nn.Linear(prompt_dim, dim)
        self.gate = nn.Parameter(torch.zeros(dim))

    def attended(
        self,
        prompt: Tensor,
        components: Tensor,
        attended: Tensor,
        query: Tensor,
        tokens: Tensor,
        attention: nn.MultiheadAttention,
        mask: Tensor | None,
    ) -> Tensor:
        """Return what the attention gives with extra tokens, as far as the gate is open."""
        extra = self.lift(components.to(tokens.dtype))
        if mask is not None:
            mask = torch.cat([mask, mask.new_zeros(len(mask), extra.shape[1])], 1)
        keys, values = torch.cat([query, extra], 1), torch.cat([tokens, extra], 1)
        found: Tensor = attention(query, keys, values, attn_mask=mask, need_weights=False)[0]
        return exact_sum(attended, (found - attended) * self.gate)


WAYS: dict[str, type[DeepInjection]] = {
    "add": AddWay,
    "concat": ConcatenateWay,
    "tokens": TokensWay,
    "cross_attention": CrossAttentionWay,
}


@dataclass(frozen=True)
class DeeperPrompts:
    """The prompts of one batch of images, on their way into encoder and decoder layers.

    Attributes:
        prompts: (L, B, Dp) per feature level.
        components: (L, B, M, Dp) weighted components per level.
        encoder_ways: One per encoder layer; none where the encoder is no place of prompts.
        decoder_ways: The same for the decoder.
    """

    prompts: Tensor
    components: Tensor
    encoder_ways: nn.ModuleList
    decoder_ways: nn.ModuleList

    def encoder(self, index: int, tokens: Tensor, shapes: Sequence[tuple[int, int]], padding: Tensor) -> Tensor:
        """Return the (B, S, D) tokens that enter an encoder layer, each level with its prompt; padding as it was."""
        if not self.encoder_ways:
            return tokens
        way = self.encoder_ways[index]
        assert isinstance(way, DeepInjection)
        unpadded = tokens.masked_fill(padding[..., None], 0.0)
        parts = zip(torch.split(unpadded, [h * w for h, w in shapes], 1), self.prompts, self.components, strict=True)
        deltas = [way.delta(part, prompt, components).expand_as(part) for part, prompt, components in parts]
        return exact_sum(tokens, torch.cat(deltas, 1).masked_fill(padding[..., None], 0.0))

    def decoder(self, index: int) -> Inject | None:
        """Return what a decoder layer does with its self-attention; queries belong to no level: they get the mean."""
        if not self.decoder_ways:
            return None
        way = self.decoder_ways[index]
        assert isinstance(way, DeepInjection)
        return partial(way.attended, self.prompts.mean(0), self.components.mean(0))
