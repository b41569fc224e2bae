"""DINO (arXiv 2203.03605), the teacher: contrastive denoising, mixed query selection, look forward twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cahqp.detectors.backbones import TimmBackbone
from cahqp.detectors.base import AlignmentFeatures, AlignmentShape, Output
from cahqp.detectors.layers.basic import MLP, FeedForwardBlock, inverse_sigmoid, to_tokens
from cahqp.detectors.layers.checkpointing import checkpointed
from cahqp.detectors.layers.decoder import DecoderLayer, cell_grid
from cahqp.detectors.layers.deformable import DeformableAttention, Shapes
from cahqp.detectors.layers.denoising import DenoisingQueries
from cahqp.detectors.layers.positions import box_positions, sine_positions
from cahqp.detectors.prompts.deep import DeepPrompts
from cahqp.detectors.two_stage import TwoStageDetector, constructor_arguments
from cahqp.structures import Preprocessing, Targets, valid_sizes

EPS = 1e-3  # of the inverse sigmoid, in the official code and in detrex
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward block, each with residual and LayerNorm.

    Arguments as in `DeformableAttention` and `FeedForwardBlock`.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, heads, levels, points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForwardBlock(dim, ffn_dim, "relu", dropout)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, shapes: Shapes, padding: Tensor) -> Tensor:
        """Return (B, S, D)."""
        attended = self.self_attn(x + position, reference, x, shapes, padding)
        out: Tensor = self.ffn(self.norm(x + self.dropout(attended)))
        return out


class DINO(TwoStageDetector):
    """DINO with any timm backbone.

    Args:
        classes: Class names in the order of their indices.
        backbone: Name of a timm model.
        backbone_options: Further arguments of the timm model.
        backbone_weights: Local file with the backbone's weights in timm's names, read once at the start of training.
        pretrained: Download timm's weights for the backbone.
        freeze_norm: Keep the backbone's BatchNorm statistics and scales unchanged.
        frozen_stages: Number of first backbone stages that do not train.
        strides: Strides of the backbone maps in use.
        levels: Number of feature levels; those beyond the maps come from stride-2 convolutions.
        dim: Width of tokens and queries.
        heads: Attention heads.
        points: Sampling points per head and level.
        encoder_layers: Number of encoder layers.
        decoder_layers: Number of decoder layers.
        ffn_dim: Hidden width of the feed-forward blocks.
        dropout: Dropout in encoder and decoder.
        queries: Number of object queries.
        max_detections: Detections kept per image.
        nms_iou: IoU above which the lower-scored of two detections of one class is dropped; by default none is, as
            published. One-to-one matching teaches not to repeat an object, but only in a long training.
        short_side: Length in pixels that the shorter side is resized to.
        max_side: Longest length in pixels of the longer side.
        size: Fixed height and width instead; does not keep the aspect ratio.
        shared_heads: One class head and one box head for all decoder layers (official) or one each (detrex).
        position_temperature: 20 (official) or 10000 (detrex).
        position_offset: 0 (official) or -0.5 (detrex).
        denoising: Requested number of positive denoising queries; 0 for none.
        label_noise: Half of this share of the denoising labels is replaced.
        box_noise: Scale of the denoising box noise. The official scripts override the 0.4 of their config with 1.0.
        members: Number of class-head rows per class; the largest logit counts. One each by default.
        activation_checkpointing: Recompute activations of backbone stages and encoder layers in the backward pass. It
            needs less memory and more time, and gradients are equal. Model files do not contain it.
    """

    def __init__(
        self,
        classes: list[str],
        backbone: str = "resnet50",
        backbone_options: dict[str, Any] | None = None,
        backbone_weights: Path | None = None,
        pretrained: bool = False,
        freeze_norm: bool = True,
        frozen_stages: int = 0,
        strides: Sequence[int] = (8, 16, 32),
        levels: int = 4,
        dim: int = 256,
        heads: int = 8,
        points: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        ffn_dim: int = 2048,
        dropout: float = 0.0,
        queries: int = 900,
        max_detections: int = 300,
        nms_iou: float | None = None,
        short_side: int = 800,
        max_side: int | None = 1333,
        size: tuple[int, int] | None = None,
        shared_heads: bool = True,
        position_temperature: float = 20.0,
        position_offset: float = 0.0,
        denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        members: list[int] | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        settings = constructor_arguments(locals(), "activation_checkpointing")
        rule: dict[str, Any] = {"size": size} if size else {"short_side": short_side, "max_side": max_side}
        super().__init__(settings, Preprocessing(**rule, mean=IMAGENET_MEAN, std=IMAGENET_STD), "focal", EPS)
        self.position = (position_temperature, position_offset)
        self.activation_checkpointing = activation_checkpointing
        self.backbone = TimmBackbone(
            backbone, strides, pretrained=pretrained, weights=backbone_weights, freeze_norm=freeze_norm,
            frozen_stages=frozen_stages, options=backbone_options,
        )  # fmt: skip
        channels = self.backbone.channels
        convs = [nn.Conv2d(width, dim, 1) for width in channels[:levels]]
        for level in range(len(channels), levels):
            convs.append(nn.Conv2d(channels[-1] if level == len(channels) else dim, dim, 3, 2, 1))
        self.input_proj = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, dim)) for conv in convs)
        self.level_embed = nn.Parameter(torch.empty(levels, dim))
        layer = (dim, heads, levels, points, ffn_dim, dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(decoder_layers))
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_position = MLP(2 * dim, dim, dim, 2)
        self.query_content = nn.Embedding(queries, dim)
        self._add_heads(dim, 1 if shared_heads else decoder_layers, members)
        self._reset_parameters()

    @property
    def alignment_shape(self) -> AlignmentShape:
        """Sizes of the features for alignment."""
        levels, dim = self.level_embed.shape
        return AlignmentShape(dim, levels, dim, levels, self.settings["heads"], len(self.encoder), len(self.decoder))

    def _reset_parameters(self) -> None:
        for layer in [*self.encoder, *self.decoder]:
            for name, parameter in layer.named_parameters():
                if parameter.dim() > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
                    nn.init.xavier_uniform_(parameter)
        for conv in self.input_proj.modules():
            if isinstance(conv, nn.Conv2d) and conv.bias is not None:
                nn.init.xavier_uniform_(conv.weight)
                nn.init.zeros_(conv.bias)
        nn.init.normal_(self.level_embed)
        nn.init.normal_(self.query_content.weight)
        self._reset_heads()

    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, targets: list[Targets] | None = None
    ) -> Output:
        """Detect; see `Detector.forward`."""
        if padding_mask is None:
            padding_mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
        sizes = valid_sizes(padding_mask)
        projected, maps, masks = self._project(images, padding_mask)
        deep = None
        if self.prompt is not None:
            maps, deep, _ = self.prompt(maps, masks, projected)
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        padding = torch.cat([m.flatten(1) for m in masks], 1)
        valid = torch.stack([valid_sizes(m).flip(1) for m in masks], 1)  # (B, L, 2) width and height in cells
        ratios = valid / valid.new_tensor([(w, h) for h, w in shapes])
        tokens = self._encode(maps, masks, ratios, padding, deep)
        proposed = self._propose(tokens[-1], shapes, valid, padding)
        noised = self._denoising_queries(targets, sizes)
        memory = (tokens[-1], shapes, padding)
        hidden, logits, boxes = self._decode(memory, ratios, proposed.reference, noised, deep)
        features = AlignmentFeatures(maps, tokens, hidden, shapes, padding)
        output = Output.from_layers(logits, boxes, noised, sizes, features)
        output.encoder_logits, output.encoder_boxes = proposed.logits, proposed.boxes
        return output

    def _project(self, images: Tensor, padding_mask: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the maps of all levels (B, D, h, w) before and after GroupNorm, and their padding masks (B, h, w)."""
        self.backbone.checkpointing = self.activation_checkpointing
        features = self.backbone(images)
        projected: list[Tensor] = []
        maps: list[Tensor] = []
        for level, project in enumerate(self.input_proj):
            assert isinstance(project, nn.Sequential)
            seen = features[min(level, len(features) - 1)] if level <= len(features) else maps[-1]
            projected.append(project[0](seen))
            maps.append(project[1](projected[-1]))
        masks = [_resize_mask(padding_mask, m.shape[-2:]) for m in maps]
        return projected, maps, masks

    def _encode(
        self, maps: list[Tensor], masks: list[Tensor], ratios: Tensor, padding: Tensor, deep: DeepPrompts | None
    ) -> list[Tensor]:
        """Return the tokens (B, S, D) after each encoder layer."""
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        cells = [sine_positions(m, self.level_embed.shape[1], *self.position).flatten(1, 2) for m in masks]
        position = torch.cat([c + e for c, e in zip(cells, self.level_embed, strict=True)], 1)
        centres = []
        for level, (height, width) in enumerate(shapes):
            y = (torch.arange(height, device=ratios.device) + 0.5) / height
            x = (torch.arange(width, device=ratios.device) + 0.5) / width
            centres.append(cell_grid(x, y) / ratios[:, None, level])
        reference = torch.cat(centres, 1)[:, :, None] * ratios[:, None]
        x = torch.cat([to_tokens(m) for m in maps], 1)
        outputs = []
        for index, layer in enumerate(self.encoder):
            if deep is not None:
                x = deep.encoder(index, x, shapes, padding)
            inputs = (x, position, reference, shapes, padding)
            x = checkpointed([layer], *inputs) if self.activation_checkpointing else layer(*inputs)
            outputs.append(x)
        return outputs

    def _decode(
        self,
        memory: tuple[Tensor, Shapes, Tensor],
        ratios: Tensor,
        reference: Tensor,
        noised: DenoisingQueries | None,
        deep: DeepPrompts | None,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return normed queries per layer, and logits and boxes (layers, B, denoising + queries, ...).

        Args:
            memory: Tokens (B, S, D), shapes of the levels and padding (B, S).
            ratios: (B, L, 2) valid share of each level's width and height.
            reference: (B, Q, 4) boxes of the proposals before the sigmoid.
            noised: Denoising queries.
            deep: Prompts of the decoder layers.
        """
        batch, queries = reference.shape[:2]
        content = self.query_content.weight[:queries].expand(batch, -1, -1)
        content, reference, mask = self._prepend_denoising(content, reference, noised)
        scale = torch.cat([ratios, ratios], -1)[:, None]
        before, boxes = reference.sigmoid(), reference.sigmoid()
        hidden, logits, predicted = [], [], []
        for index, layer in enumerate(self.decoder):
            box_head = self.box_heads[index % len(self.box_heads)]
            class_head = self.class_heads[index % len(self.class_heads)]
            scaled = boxes[:, :, None] * scale
            position = self.query_position(box_positions(scaled[:, :, 0], content.shape[-1] // 2).to(content.dtype))
            inject = None if deep is None else deep.decoder(index)
            content = layer(content, position, scaled, *memory, mask, inject)
            normed = self.decoder_norm(content)
            hidden.append(normed)
            logits.append(class_head(normed))
            # Look forward twice: the gradient of this layer's prediction reaches the refinement of the layer before.
            predicted.append((box_head(normed).float() + inverse_sigmoid(before, EPS)).sigmoid())
            before = (box_head(content).float() + inverse_sigmoid(boxes, EPS)).sigmoid()
            boxes = before.detach()
        return hidden, torch.stack(logits), torch.stack(predicted)


def _resize_mask(mask: Tensor, size: torch.Size) -> Tensor:
    return functional.interpolate(mask[:, None].float(), size=tuple(size), mode="nearest")[:, 0].bool()
