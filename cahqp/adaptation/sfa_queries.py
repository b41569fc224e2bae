"""DQFA in the form of SFA (Wang et al. 2021): domain queries pass through copies of the detector's layers.

SFA adds one cell as a fifth feature level to the encoder and one query to the decoder. Its one-way masks hide both from
tokens and object queries. So they are computed here beside the detector, from the inputs of its layers: the numbers are
the same as inside, and detector outputs are unchanged, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cahqp.adaptation.domain_adversary import Discriminator, gradient_reversal
from cahqp.adaptation.domain_queries import QueryAlignment, check_layers, mean_over_layers
from cahqp.adaptation.query_memory import QueryMemory
from cahqp.detectors.base import AlignmentFeatures
from cahqp.detectors.dino import EncoderLayer
from cahqp.detectors.layers.decoder import DecoderLayer
from cahqp.detectors.layers.deformable import Shapes
from cahqp.structures import valid_sizes


class _CopiedBranch(nn.Module):
    """Domain query that passes through copies of the detector's layers.

    The layers are copied because query and attention learn to separate the domains; shared weights would teach the
    detector the same. The copies start from the detector's weights.
    """

    def __init__(self, layers: nn.ModuleList, chosen: Sequence[int], dim: int, hidden: int, memory: int) -> None:
        super().__init__()
        self.memory = QueryMemory(memory)
        self.chosen = tuple(index % len(layers) for index in chosen)
        self.layers = copy.deepcopy(layers[: max(self.chosen) + 1]).requires_grad_(True)
        self.query = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 1, dim))
        self.discriminator = Discriminator(dim, hidden)

    def forward(self, features: AlignmentFeatures, domain: int, scale: float | Tensor) -> tuple[Tensor, Tensor]:
        queries = self.queries(features, self.memory.reversal(domain, scale))
        return mean_over_layers(
            [self.memory.judge(self.discriminator, n, queries[n][:, 0], domain) for n in self.chosen]
        )

    def queries(self, features: AlignmentFeatures, scale: float | Tensor) -> list[Tensor]:
        """Return the (B, 1, D) query after each layer."""
        raise NotImplementedError


class _EncoderBranch(_CopiedBranch):
    """Cell of the masked level; it reads the tokens that enter a layer around the middle of the image."""

    def queries(self, features: AlignmentFeatures, scale: float | Tensor) -> list[Tensor]:
        padding, shapes = features.padding, list(features.spatial_shapes)
        entering = [torch.cat([m.flatten(2).transpose(1, 2) for m in features.backbone], 1), *features.encoder]
        reference = 0.5 * _valid_ratios(padding, shapes)[:, None]
        query, queries = self.query.expand(len(padding), -1, -1), []
        for layer, tokens in zip(self.layers, entering, strict=False):
            assert isinstance(layer, EncoderLayer)
            visible = gradient_reversal(tokens.masked_fill(padding[..., None], 0.0), scale)
            attended = layer.self_attn(query + self.position, reference, visible, shapes, padding)
            query = layer.ffn(layer.norm(query + layer.dropout(attended)))
            queries.append(query)
        return queries


class _DecoderBranch(_CopiedBranch):
    """One more query; it reads the object queries without denoising, itself and, as a full-image box, the memory."""

    def queries(self, features: AlignmentFeatures, scale: float | Tensor) -> list[Tensor]:
        padding, shapes = features.padding, list(features.spatial_shapes)
        memory = gradient_reversal(features.encoder[-1].masked_fill(padding[..., None], 0.0), scale)
        ratios = _valid_ratios(padding, shapes)
        whole = torch.cat([0.5 * ratios, ratios], -1)[:, None]
        query, queries = self.query.expand(len(padding), -1, -1), []
        for layer, objects in zip(self.layers, features.decoder, strict=False):
            assert isinstance(layer, DecoderLayer)
            values = torch.cat([gradient_reversal(objects, scale), query], 1)
            own, block = query + self.position, layer.self_attn
            attended = block.attention(own, torch.cat([values[:, :-1], own], 1), values, need_weights=False)[0]
            query = block.norm(query + block.dropout(attended))
            attended = layer.cross_attn(query + self.position, whole, memory, shapes, padding)
            query = layer.ffn(layer.norm(query + layer.dropout(attended)))
            queries.append(query)
        return queries


def _valid_ratios(padding: Tensor, shapes: Shapes) -> Tensor:
    """Return (B, L, 2) shares of each level's width and height that are not padding."""
    levels = torch.split(padding, [height * width for height, width in shapes], 1)
    sizes = [valid_sizes(p.view(-1, *shape)).flip(1) for p, shape in zip(levels, shapes, strict=True)]
    return torch.stack(sizes, 1) / torch.tensor([(w, h) for h, w in shapes], device=padding.device)


class SFAQueryAlignment(QueryAlignment):
    """SFA form of DQFA.

    The reversal sits on the features that enter a query's branch, as in `DomainQueryAlignment`. Two things differ from
    a query inside a DINO: domain queries have a learned position instead of one from a box, and the decoder's query
    reads the object queries after a layer, not before it.

    Args:
        encoder: The detector's encoder layers; copied.
        decoder: The detector's decoder layers; copied.
        dim: Length of a token.
        layers: Layers after which the queries are judged; 0 is the first and -1 the last.
        hidden: Width of the discriminators.
        memory: Past queries per domain and layer that train the discriminators; see `QueryMemory`.

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
        memory: int = 0,
    ) -> None:
        check_layers("encoder", layers, len(encoder))
        check_layers("decoder", layers, len(decoder))
        branches = {
            "encoder": _EncoderBranch(encoder, layers, dim, hidden, memory),
            "decoder": _DecoderBranch(decoder, layers, dim, hidden, memory),
        }
        super().__init__(branches)
