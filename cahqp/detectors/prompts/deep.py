"""Prompts inside the encoder and decoder. Each injection starts as an exact identity, as at the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cahqp.detectors.layers.basic import AttentionCall, Inject

InjectionKind = Literal["add", "concat", "tokens", "cross_attention"]


def exact_sum(x: Tensor, delta: Tensor) -> Tensor:
    """Return x + delta, bit for bit x where delta is zero of either sign.

    Written `x - (0 - d)`, because `x + d` turns -0.0 into 0.0 where d is 0.0.
    """
    return x - (0.0 - delta.to(x.dtype))


class DeepInjection(nn.Module):
    """Injection of a prompt into one layer. Subclasses define `delta`, or `attended` for dense attention only.

    Shapes: prompt (B, Dp), weighted components (B, M, Dp), tokens (B, N, D).
    """

    def delta(self, tokens: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        """Return the (B, N, D) or (B, 1, D) change of the tokens."""
        raise NotImplementedError

    def attended(self, prompt: Tensor, components: Tensor, call: AttentionCall) -> Tensor:
        """Return the (B, N, D) result of a dense self-attention with the prompt."""
        return exact_sum(call.attended, self.delta(call.tokens, prompt, components))


class AddInjection(DeepInjection):
    """Adds the projected prompt to every token. The projection starts at zero."""

    def __init__(self, dim: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.projection = nn.Linear(prompt_dim, dim)
        for parameter in self.projection.parameters():
            nn.init.zeros_(parameter)

    def delta(self, tokens: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        """Return (B, 1, D)."""
        projected: Tensor = self.projection(prompt)
        return projected[:, None]


class ConcatInjection(DeepInjection):
    """Concatenates the prompt to every token's channels and fuses both linearly, behind a gate that starts at zero."""

    def __init__(self, dim: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.fuse = nn.Linear(dim + prompt_dim, dim)
        self.gate = nn.Parameter(torch.zeros(dim))

    def delta(self, tokens: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        """Return (B, N, D)."""
        # W [x; p] = W_x x + W_p p: the prompt's part is the same for all tokens.
        token_weight, prompt_weight = self.fuse.weight.tensor_split([tokens.shape[-1]], 1)
        return (F.linear(tokens, token_weight, self.fuse.bias) + F.linear(prompt, prompt_weight)[:, None]) * self.gate


class CrossAttentionInjection(DeepInjection):
    """Cross-attention from tokens to components, separate from their self-attention (CVPT, Huang et al. 2025).

    The weights start as the layer's own: all of a dense self-attention, but only values and output of a deformable
    one, which has no queries and keys. They may train, unlike CVPT's, and the gate starts at zero: with the biases of
    a trained layer even prompts of zero would shift every token.
    """

    def __init__(self, dim: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.lift = nn.Linear(prompt_dim, dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.gate = nn.Parameter(torch.zeros(dim))

    def delta(self, tokens: Tensor, prompt: Tensor, components: Tensor) -> Tensor:
        """Return (B, N, D)."""
        lifted = self.lift(components.to(tokens.dtype))
        attended: Tensor = self.attention(tokens, lifted, lifted, need_weights=False)[0]
        return attended * self.gate

    @torch.no_grad()
    def copy_weights(self, layer: nn.Module) -> None:
        """Copy the weights of the layer's self-attention."""
        own, source = self.attention, layer.self_attn
        dense = getattr(source, "attention", None)
        if isinstance(dense, nn.MultiheadAttention):
            own.load_state_dict(dense.state_dict())
            return
        dim = own.embed_dim
        assert own.in_proj_weight is not None and own.in_proj_bias is not None
        own.in_proj_weight[2 * dim :].copy_(source.value_proj.weight)  # type: ignore[union-attr,arg-type]
        own.in_proj_bias[2 * dim :].copy_(source.value_proj.bias)  # type: ignore[union-attr,arg-type]
        own.out_proj.load_state_dict(source.output_proj.state_dict())  # type: ignore[union-attr]


class TokenInjection(DeepInjection):
    """Extra keys and values of a dense self-attention, made from the components.

    `plain + g (with tokens - plain)`: the gate g starts at zero, the prompts do not.
    """

    def __init__(self, dim: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.lift = nn.Linear(prompt_dim, dim)
        self.gate = nn.Parameter(torch.zeros(dim))

    def attended(self, prompt: Tensor, components: Tensor, call: AttentionCall) -> Tensor:
        """Return the gated result of the attention with the extra tokens."""
        extra, mask = self.lift(components.to(call.tokens.dtype)), call.mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_zeros(len(mask), extra.shape[1])], 1)
        keys, values = torch.cat([call.query, extra], 1), torch.cat([call.tokens, extra], 1)
        with_tokens: Tensor = call.attention(call.query, keys, values, attn_mask=mask, need_weights=False)[0]
        return exact_sum(call.attended, (with_tokens - call.attended) * self.gate)


DEEP_INJECTIONS: dict[str, type[DeepInjection]] = {
    "add": AddInjection,
    "concat": ConcatInjection,
    "tokens": TokenInjection,
    "cross_attention": CrossAttentionInjection,
}


@dataclass(frozen=True)
class DeepPrompts:
    """Prompts of one batch for the encoder and decoder layers.

    Attributes:
        prompts: (L, B, Dp) per feature level.
        components: (L, B, M, Dp) weighted components per level.
        encoder_injections: One per encoder layer; empty if the encoder gets no prompts.
        decoder_injections: One per decoder layer; empty if the decoder gets no prompts.
    """

    prompts: Tensor
    components: Tensor
    encoder_injections: nn.ModuleList
    decoder_injections: nn.ModuleList

    def encoder(self, index: int, tokens: Tensor, shapes: Sequence[tuple[int, int]], padding: Tensor) -> Tensor:
        """Return the (B, S, D) tokens that enter an encoder layer, each level with its prompt, padding unchanged."""
        if not self.encoder_injections:
            return tokens
        injection = cast("DeepInjection", self.encoder_injections[index])
        unpadded = tokens.masked_fill(padding[..., None], 0.0)
        parts = zip(torch.split(unpadded, [h * w for h, w in shapes], 1), self.prompts, self.components, strict=True)
        deltas = [injection.delta(part, prompt, components).expand_as(part) for part, prompt, components in parts]
        return exact_sum(tokens, torch.cat(deltas, 1).masked_fill(padding[..., None], 0.0))

    def decoder(self, index: int) -> Inject | None:
        """Return the change of a decoder layer's self-attention. Queries have no level and get the mean prompt."""
        if not self.decoder_injections:
            return None
        injection = cast("DeepInjection", self.decoder_injections[index])
        return partial(injection.attended, self.prompts.mean(0), self.components.mean(0))
