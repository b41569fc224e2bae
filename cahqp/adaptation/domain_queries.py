"""DQFA: learned domain queries gather the global features of an image, and a discriminator tells its domain.

This is the dense form (AQT, Huang et al. 2022; RT-DATR): a query attends to all tokens, from outside the detector. It
reads and is not read, so the detector's own numbers do not change, and at inference it is simply not there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cahqp.adaptation.domain_adversary import AlignmentFeatures, Discriminator, domain_loss, gradient_reversal
from cahqp.errors import ConfigError


def attend(attention: nn.MultiheadAttention, query: Tensor, tokens: Tensor, padding: Tensor | None) -> Tensor:
    """Return what `attention(query, tokens, tokens)` gives for one query, without projecting the tokens.

    With a single query, `q . (K x)` is `(K^T q) . x`, and the sum of `a V x` is `V` of the sum of `a x`: the tokens
    meet `heads` vectors instead of two D x D matrices. On one CPU core, with 4 x 1260 tokens
    of 128, that is 2 ms instead of 20, forward and backward.

    Args:
        attention: Holds the weights; the keys' bias shifts all scores alike and drops out of the softmax.
        query: (B, 1, D).
        tokens: (B, S, D).
        padding: (B, S) bool, true where a token is padding.
    """
    assert attention.in_proj_weight is not None and attention.in_proj_bias is not None
    heads = attention.num_heads
    to_query, to_key, to_value = attention.in_proj_weight.chunk(3)
    query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
    queries = F.linear(query[:, 0], to_query, query_bias).reshape(len(query), heads, -1)
    folded = torch.einsum("bhc,hcd->bhd", queries, to_key.reshape(heads, -1, to_key.shape[1]))
    scores = folded @ tokens.transpose(1, 2) / math.sqrt(queries.shape[-1])
    if padding is not None:
        scores = scores.masked_fill(padding[:, None], -torch.inf)
    gathered = scores.softmax(-1).to(tokens.dtype) @ tokens
    values = torch.einsum("bhd,hcd->bhc", gathered, to_value.reshape(heads, -1, to_value.shape[1])).flatten(1)
    output: Tensor = attention.out_proj(values + value_bias)
    return output[:, None]


class _QueryLayer(nn.Module):
    """`q <- LN(q + MHA(q, x, x))`, `q <- LN(q + MLP(q))`."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, query: Tensor, tokens: Tensor, padding: Tensor | None) -> Tensor:
        query = self.norm1(query + attend(self.attention, query, tokens, padding))
        updated: Tensor = self.norm2(query + self.mlp(query))
        return updated


class _Branch(nn.Module):
    """One query that passes on from layer to layer, and the discriminator that judges it after each."""

    def __init__(self, name: str, dim: int, layers: Sequence[int], heads: int, hidden: int) -> None:
        super().__init__()
        self.name = name
        self.chosen = tuple(layers)
        self.query = nn.Parameter(torch.randn(1, 1, dim))
        self.layers = nn.ModuleList(_QueryLayer(dim, heads, hidden) for _ in layers)
        self.discriminator = Discriminator(dim, hidden)

    def forward(
        self, outputs: Sequence[Tensor], padding: Tensor | None, domain: int, scale: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        check_layers(self.name, self.chosen, len(outputs))
        query = self.query.expand(len(outputs[0]), -1, -1)
        losses, accuracies = [], []
        for index, layer in zip(self.chosen, self.layers, strict=True):
            tokens = outputs[index]
            if padding is not None:
                # The attention's mask keeps values out, but 0 x NaN would still reach the gradients.
                tokens = tokens.masked_fill(padding[:, :, None], 0.0)
            query = layer(query, gradient_reversal(tokens, scale), padding)
            loss, accuracy = domain_loss(self.discriminator(query[:, 0]), domain)
            losses.append(loss)
            accuracies.append(accuracy)
        return torch.stack(losses).mean(), torch.stack(accuracies).mean()


def check_layers(name: str, chosen: Sequence[int], count: int) -> None:
    """Refuse layers that are not there.

    Args:
        name: `encoder` or `decoder`.
        chosen: Indices; negative ones from the end.
        count: How many layers there are.

    Raises:
        ConfigError: None is chosen, or one does not exist.
    """
    if not chosen:
        message = f"DQFA needs a layer: give {name}_layers, such as [0, -1], or switch it off."
        raise ConfigError(message)
    missing = [index for index in chosen if not -count <= index < count]
    if missing:
        message = f"{name}_layers of DQFA names {missing}; this {name} has {count} layers, from 0."
        raise ConfigError(message)


class DomainQueryAlignment(nn.Module):
    """Aligns the global features of encoder and decoder through one domain query each.

    The reversal sits on the features that enter a query's branch: the detector unlearns the domain there, while query,
    attention and discriminator learn to tell it. A reversal behind the query would let the query hide the domain
    alone. Tokens enter without position encodings: what tells domains apart in traffic is light and weather, and
    detectors do not hand theirs out.

    Args:
        dim: Length of a token.
        encoder_layers: Encoder layers the query visits, in this order; 0 is the first and -1 the last. The default is
            SFA's released choice. Empty leaves the branch out.
        decoder_layers: The same for the decoder.
        heads: Attention heads; must divide `dim`.
        hidden: Width of the discriminators and of the queries' multilayer perceptrons.

    Raises:
        ConfigError: No layer is chosen at all, or `heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        encoder_layers: Sequence[int] = (0, -1),
        decoder_layers: Sequence[int] = (0, -1),
        heads: int = 8,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        if not encoder_layers and not decoder_layers:
            message = "DQFA needs a layer: give encoder_layers or decoder_layers, or switch it off."
            raise ConfigError(message)
        if dim % heads:
            message = f"heads={heads} must divide dim={dim} in DQFA."
            raise ConfigError(message)
        chosen = {"encoder": encoder_layers, "decoder": decoder_layers}
        self.branches = nn.ModuleDict(
            {name: _Branch(name, dim, layers, heads, hidden) for name, layers in chosen.items() if layers}
        )

    def forward(
        self, features: AlignmentFeatures, domain: int, scale: float | Tensor = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and each discriminator's accuracy as `encoder_query` and `decoder_query`.

        The loss is the sum over the branches of the mean over their layers, as in SFA.

        Args:
            features: Of one domain.
            domain: 0 for source, 1 for target.
            scale: Of the reversed gradient.

        Raises:
            ConfigError: A chosen layer does not exist.
        """
        losses, accuracies = [], {}
        for name, branch in self.branches.items():
            outputs = features.encoder if name == "encoder" else features.decoder
            padding = features.padding if name == "encoder" else None
            loss, accuracies[f"{name}_query"] = branch(outputs, padding, domain, scale)
            losses.append(loss)
        return torch.stack(losses).sum(), accuracies
