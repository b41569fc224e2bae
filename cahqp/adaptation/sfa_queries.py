"""DQFA in the form of SFA (Wang et al. 2021): the domain queries go through the detector's own layers.

SFA adds one cell as a fifth feature level to the encoder and one query to the decoder. With its one-way masks on, no
token and no object query reads them, so what they become is computed here beside the detector, from what its layers
were given: the same numbers as inside, and the detector's own stay what they are, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from cahqp.adaptation.domain_adversary import AlignmentFeatures, Discriminator, domain_loss, gradient_reversal
from cahqp.adaptation.domain_queries import check_layers
from cahqp.detectors.dino import EncoderLayer
from cahqp.detectors.layers.decoder import DecoderLayer
from cahqp.detectors.layers.deformable import Shapes
from cahqp.structures import valid_sizes


class LayerFeatures(AlignmentFeatures, Protocol):
    """What the SFA form reads beside: what enters the first encoder layer."""

    @property
    def backbone(self) -> Sequence[Tensor]:
        """(B, D, h, w) per level."""


class _Branch(nn.Module):
    """A domain query on its way through copies of the detector's layers.

    Copies, not the layers themselves: query and attention learn to tell the domain, and a shared attention would teach
    the detector the same. They start where the detector stands.
    """

    def __init__(self, layers: nn.ModuleList, chosen: Sequence[int], dim: int, hidden: int) -> None:
        super().__init__()
        self.chosen = tuple(index % len(layers) for index in chosen)
        self.layers = copy.deepcopy(layers[: max(self.chosen) + 1]).requires_grad_(True)
        self.query = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 1, dim))
        self.discriminator = Discriminator(dim, hidden)

    def judge(self, queries: list[Tensor], domain: int) -> tuple[Tensor, Tensor]:
        """Return the mean loss and accuracy over the chosen layers; `queries` are (B, 1, D) per layer."""
        judged = [domain_loss(self.discriminator(queries[index][:, 0]), domain) for index in self.chosen]
        losses, accuracies = zip(*judged, strict=True)
        return torch.stack(losses).mean(), torch.stack(accuracies).mean()


class _EncoderBranch(_Branch):
    """The cell of the masked level: it reads the tokens that enter a layer round the middle of the image."""

    def forward(self, features: LayerFeatures, domain: int, scale: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the accuracy."""
        padding, shapes = features.padding, list(features.spatial_shapes)
        entering = [torch.cat([m.flatten(2).transpose(1, 2) for m in features.backbone], 1), *features.encoder]
        reference = 0.5 * _valid_ratios(padding, shapes)[:, None]
        query, queries = self.query.expand(len(padding), -1, -1), []
        for layer, tokens in zip(self.layers, entering, strict=False):
            assert isinstance(layer, EncoderLayer)
            read = gradient_reversal(tokens.masked_fill(padding[..., None], 0.0), scale)
            attended = layer.self_attn(query + self.position, reference, read, shapes, padding)
            query = layer.ffn(layer.norm(query + layer.dropout(attended)))
            queries.append(query)
        return self.judge(queries, domain)


class _DecoderBranch(_Branch):
    """One more query: it reads the object queries, itself and, with the whole image as its box, the memory."""

    def forward(self, features: LayerFeatures, domain: int, scale: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the accuracy. Denoising queries are not among the features, so none is read."""
        padding, shapes = features.padding, list(features.spatial_shapes)
        memory = gradient_reversal(features.encoder[-1].masked_fill(padding[..., None], 0.0), scale)
        ratios = _valid_ratios(padding, shapes)
        whole = torch.cat([0.5 * ratios, ratios], -1)[:, None]
        query, queries = self.query.expand(len(padding), -1, -1), []
        for layer, objects in zip(self.layers, features.decoder, strict=False):
            assert isinstance(layer, DecoderLayer)
            seen = torch.cat([gradient_reversal(objects, scale), query], 1)
            own, block = query + self.position, layer.self_attn
            attended = block.attention(own, torch.cat([seen[:, :-1], own], 1), seen, need_weights=False)[0]
            query = block.norm(query + block.dropout(attended))
            read = layer.cross_attn(query + self.position, whole, memory, shapes, padding)
            query = layer.ffn(layer.norm(query + layer.dropout(read)))
            queries.append(query)
        return self.judge(queries, domain)


def _valid_ratios(padding: Tensor, shapes: Shapes) -> Tensor:
    """Return (B, L, 2) shares of each level's width and height that are not padding."""
    levels = torch.split(padding, [height * width for height, width in shapes], 1)
    sizes = [valid_sizes(p.view(-1, *shape)).flip(1) for p, shape in zip(levels, shapes, strict=True)]
    return torch.stack(sizes, 1) / torch.tensor([(w, h) for h, w in shapes], device=padding.device)


class SFAQueryAlignment(nn.Module):
    """Aligns the global features of encoder and decoder through one domain query each, inside the detector's layers.

    The reversal sits on the features that enter a query's branch, as in `DomainQueryAlignment`. Two things differ from
    the inside of a DINO: domain queries have a learned position instead of one from a box, and the decoder's reads
    what object queries became in a layer, not what entered it.

    Args:
        encoder: The detector's encoder layers; copied.
        decoder: The same of the decoder.
        dim: Length of a token.
        layers: Layers after which the queries are judged; 0 is the first and -1 the last.
        hidden: Width of the discriminators.

    Raises:
        ConfigError: No layer is chosen, or one does not exist.
    """

    def __init__(
        self,
        encoder: nn.ModuleList,
        decoder: nn.ModuleList,
        dim: int,
        layers: Sequence[int] = (0, -1),
        hidden: int = 256,
    ) -> None:
        super().__init__()
        check_layers("encoder", layers, len(encoder))
        check_layers("decoder", layers, len(decoder))
        self.branches = nn.ModuleDict(
            {
                "encoder": _EncoderBranch(encoder, layers, dim, hidden),
                "decoder": _DecoderBranch(decoder, layers, dim, hidden),
            }
        )

    def forward(
        self, features: LayerFeatures, domain: int, scale: float | Tensor = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and each discriminator's accuracy as `encoder_query` and `decoder_query`.

        Args:
            features: Of one domain.
            domain: 0 for source, 1 for target.
            scale: Of the reversed gradient.
        """
        losses, accuracies = [], {}
        for name, branch in self.branches.items():
            loss, accuracies[f"{name}_query"] = branch(features, domain, scale)
            losses.append(loss)
        return torch.stack(losses).sum(), accuracies
