"""DINO (arXiv 2203.03605): the teacher. Contrastive denoising, mixed query selection, look forward twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cahqp.detectors.backbones import TimmBackbone
from cahqp.detectors.base import DenoisingOutput, Detector, Features, Output, check_classes, check_nms_iou
from cahqp.detectors.layers.basic import MLP, FeedForwardBlock, inverse_sigmoid, to_tokens
from cahqp.detectors.layers.checkpointing import checkpointed
from cahqp.detectors.layers.classes import ClassHead
from cahqp.detectors.layers.decoder import DecoderLayer, gather_rows, proposals
from cahqp.detectors.layers.deformable import DeformableAttention, Shapes
from cahqp.detectors.layers.denoising import DenoisingQueries, denoising_queries
from cahqp.detectors.layers.positions import box_positions, sine_positions
from cahqp.detectors.prompts.deep import DeepPrompts
from cahqp.structures import Preprocessing, Targets, valid_sizes

EPS = 1e-3  # of the inverse sigmoid, in the official code and in detrex
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward; LayerNorm after each.

    Args:
        dim: Width of the tokens.
        heads: Number of heads.
        levels: Number of feature levels.
        points: Points per head and level.
        ffn_dim: Width of the feed-forward's hidden layer.
        dropout: On every residual.
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


class DINO(Detector):
    """DINO with any timm backbone.

    Args:
        classes: Class names in the order of their indices.
        backbone: Name of a timm model.
        backbone_options: Further arguments of the timm model.
        backbone_weights: Local file with the backbone's weights in timm's names, read once when training starts
            from it.
        pretrained: Fetch timm's weights for the backbone; only on request.
        freeze_norm: Keep the backbone's BatchNorm statistics and scales as they are.
        frozen_stages: How many of the backbone's first stages are not trained.
        strides: Strides of the backbone's maps that are used.
        levels: Feature levels; those beyond the maps come from stride-2 convolutions.
        dim: Width of tokens and queries.
        heads: Attention heads.
        points: Sampling points per head and level.
        encoder_layers: Number of encoder layers.
        decoder_layers: Number of decoder layers.
        ffn_dim: Hidden width of the feed-forward blocks.
        dropout: In encoder and decoder.
        queries: Number of object queries.
        max_detections: Detections kept per image.
        nms_iou: Overlap above which the lower-scored of two detections of one class is dropped; the published models
            keep both. Matching one query to one box teaches not to say an object twice, but a short training ends
            before that is learnt.
        short_side: Length in pixels that the shorter side is resized to.
        max_side: Longest length in pixels of the longer side.
        size: Fixed height and width instead; the aspect ratio is then not kept.
        shared_heads: One class head and one box head for all decoder layers (official) or one each (detrex).
        position_temperature: 20 (official) or 10000 (detrex).
        position_offset: 0 (official) or -0.5 (detrex).
        denoising: Wanted number of positive denoising queries; 0 for none.
        label_noise: Half of this share of denoising labels is replaced.
        box_noise: Reach of denoising box noise. The official scripts use 1.0; the 0.4 of their config file is a slip.
        members: Rows of the class heads that make up each class, whose logit is the largest of theirs; one each where
            not given.
        activation_checkpointing: Compute the inside of the backbone's stages and of the encoder's layers again in the
            backward pass instead of keeping it: less memory for a slower step with the same gradient. It is about a
            training, and not written into model files.
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
        super().__init__()
        left_out = ("self", "__class__", "activation_checkpointing")
        self.settings = {k: v for k, v in locals().items() if k not in left_out and k != "left_out"}
        self.settings |= {"backbone_weights": None, "pretrained": False}
        self.classes = check_classes(classes)
        rule: dict[str, Any] = {"size": size} if size else {"short_side": short_side, "max_side": max_side}
        self.preprocessing = Preprocessing(**rule, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        self.class_loss = "focal"
        self.queries, self.max_detections, self.denoising = queries, max_detections, denoising
        self.nms_iou = check_nms_iou(nms_iou)
        self.label_noise, self.box_noise = label_noise, box_noise
        self.position = (position_temperature, position_offset)
        self.backbone = TimmBackbone(
            backbone, strides, pretrained=pretrained, weights=backbone_weights, freeze_norm=freeze_norm,
            frozen_stages=frozen_stages, options=backbone_options,
        )  # fmt: skip
        self.activation_checkpointing = activation_checkpointing
        self.input_proj = nn.ModuleList()
        channels = self.backbone.channels
        for level in range(levels):
            if level < len(channels):
                conv = nn.Conv2d(channels[level], dim, 1)
            else:
                conv = nn.Conv2d(channels[-1] if level == len(channels) else dim, dim, 3, 2, 1)
            self.input_proj.append(nn.Sequential(conv, nn.GroupNorm(32, dim)))
        self.level_embed = nn.Parameter(torch.empty(levels, dim))
        self.encoder = nn.ModuleList(
            EncoderLayer(dim, heads, levels, points, ffn_dim, dropout) for _ in range(encoder_layers)
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(dim, heads, levels, points, ffn_dim, dropout) for _ in range(decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_position = MLP(2 * dim, dim, dim, 2)
        self.query_content = nn.Embedding(queries, dim)
        self.label_content = nn.Embedding(len(self.classes) + 1, dim)
        self.proposal_proj, self.proposal_norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.proposal_class = ClassHead(dim, len(self.classes), members)
        self.proposal_box = MLP(dim, dim, 4, 3)
        heads_count = 1 if shared_heads else decoder_layers
        self.class_heads = nn.ModuleList(ClassHead(dim, len(self.classes), members) for _ in range(heads_count))
        self.box_heads = nn.ModuleList(MLP(dim, dim, 4, 3) for _ in range(heads_count))
        self._reset_parameters()

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
        prior = -math.log((1 - 0.01) / 0.01)
        for head in [*self.class_heads, self.proposal_class]:
            nn.init.constant_(head.bias, prior)
        for box in [*self.box_heads, self.proposal_box]:
            nn.init.zeros_(box.layers[-1].weight)
            nn.init.zeros_(box.layers[-1].bias)

    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, targets: list[Targets] | None = None
    ) -> Output:
        """Detect; see `Detector.forward`."""
        if padding_mask is None:
            padding_mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
        sizes = valid_sizes(padding_mask)
        maps, masks = self._project(images, padding_mask)
        deep_prompts = None
        if self.prompt is not None:
            maps, deep_prompts, _ = self.prompt(maps, masks)
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        padding = torch.cat([m.flatten(1) for m in masks], 1)
        valid = torch.stack([valid_sizes(m).flip(1) for m in masks], 1)  # (B, L, 2) width and height in cells
        ratios = valid / valid.new_tensor([(w, h) for h, w in shapes])
        tokens = self._encode(maps, masks, shapes, ratios, padding, deep_prompts)
        logits, boxes, reference = self._propose(tokens[-1], shapes, valid, padding)
        noised = None
        if self.training and targets is not None:
            noised = denoising_queries(
                targets, sizes, len(self.classes), number=self.denoising, label_noise=self.label_noise,
                box_noise=self.box_noise, eps=EPS,
            )  # fmt: skip
        hidden, all_logits, all_boxes = self._decode(
            tokens[-1], shapes, ratios, padding, reference, noised, deep_prompts
        )
        start = 0 if noised is None else noised.labels.shape[1]
        denoising = None
        if noised is not None:
            denoising = DenoisingOutput(all_logits[:, :, :start], all_boxes[:, :, :start], noised.groups, noised.slots)
        all_logits, all_boxes = all_logits[:, :, start:], all_boxes[:, :, start:]
        features = Features(maps, tokens, [h[:, start:] for h in hidden], shapes, padding)
        return Output(
            all_logits[-1], all_boxes[-1], all_logits[:-1], all_boxes[:-1], logits, boxes, sizes, features, denoising
        )

    def _project(self, images: Tensor, padding_mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps of all levels (B, D, h, w) and their padding masks (B, h, w)."""
        self.backbone.checkpointing = self.activation_checkpointing
        features = self.backbone(images)
        maps = [project(f) for project, f in zip(self.input_proj, features, strict=False)]
        for project in self.input_proj[len(features) :]:
            maps.append(project(features[-1] if len(maps) == len(features) else maps[-1]))
        masks = [_resize_mask(padding_mask, m.shape[-2:]) for m in maps]
        return maps, masks

    def _encode(
        self,
        maps: list[Tensor],
        masks: list[Tensor],
        shapes: Shapes,
        ratios: Tensor,
        padding: Tensor,
        deep_prompts: DeepPrompts | None,
    ) -> list[Tensor]:
        """Return the tokens (B, S, D) after each encoder layer."""
        dim = self.level_embed.shape[1]
        temperature, offset = self.position
        cells = [sine_positions(m, dim, temperature, offset).flatten(1, 2) for m in masks]
        position = torch.cat([c + e for c, e in zip(cells, self.level_embed, strict=True)], 1)
        centres = []
        for level, (height, width) in enumerate(shapes):
            y = (torch.arange(height, device=ratios.device) + 0.5) / height
            x = (torch.arange(width, device=ratios.device) + 0.5) / width
            grid = torch.stack([x[None].expand(height, -1), y[:, None].expand(-1, width)], -1).reshape(1, -1, 2)
            centres.append(grid / ratios[:, None, level])
        reference = torch.cat(centres, 1)[:, :, None] * ratios[:, None]
        x = torch.cat([to_tokens(m) for m in maps], 1)
        outputs = []
        for index, layer in enumerate(self.encoder):
            if deep_prompts is not None:
                x = deep_prompts.encoder(index, x, shapes, padding)
            given = (x, position, reference, shapes, padding)
            x = checkpointed([layer], *given) if self.activation_checkpointing else layer(*given)
            outputs.append(x)
        return outputs

    def _propose(self, tokens: Tensor, shapes: Shapes, valid: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the chosen proposals' logits, boxes in 0..1, and boxes before the sigmoid without gradient."""
        anchors, proposed = proposals(shapes, valid, padding)
        memory = self.proposal_norm(self.proposal_proj(tokens.masked_fill(~proposed[..., None], 0.0)))
        logits = self.proposal_class(memory)
        best = logits.amax(-1).topk(min(self.queries, logits.shape[1]), 1).indices
        boxes = self.proposal_box(gather_rows(memory, best)).float() + gather_rows(anchors, best)
        return gather_rows(logits, best), boxes.sigmoid(), boxes.detach()

    def _decode(
        self,
        tokens: Tensor,
        shapes: Shapes,
        ratios: Tensor,
        padding: Tensor,
        reference: Tensor,
        noised: DenoisingQueries | None,
        deep_prompts: DeepPrompts | None,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return normed queries per layer, and logits and boxes (layers, B, denoising + queries, ...)."""
        batch, queries = reference.shape[:2]
        content = self.query_content.weight[:queries].expand(batch, -1, -1)
        mask = None
        # The table of noised labels takes part in every step, so that no rank lacks its gradient.
        content = content + 0.0 * self.label_content.weight.sum()
        if noised is not None:
            filled = (noised.labels < len(self.classes))[..., None]
            content = torch.cat([self.label_content(noised.labels) * filled, content], 1)
            reference = torch.cat([noised.boxes, reference], 1)
            mask = noised.attention_mask(queries)
        scale = torch.cat([ratios, ratios], -1)[:, None]
        before, boxes = reference.sigmoid(), reference.sigmoid()
        hidden, logits, predicted = [], [], []
        for index, layer in enumerate(self.decoder):
            box_head = self.box_heads[index % len(self.box_heads)]
            class_head = self.class_heads[index % len(self.class_heads)]
            scaled = boxes[:, :, None] * scale
            position = self.query_position(box_positions(scaled[:, :, 0], content.shape[-1] // 2).to(content.dtype))
            inject = None if deep_prompts is None else deep_prompts.decoder(index)
            content = layer(content, position, scaled, tokens, shapes, padding, mask, inject)
            normed = self.decoder_norm(content)
            hidden.append(normed)
            logits.append(class_head(normed))
            # Look forward twice: this layer's prediction sends its gradient into the refinement before it.
            predicted.append((box_head(normed).float() + inverse_sigmoid(before, EPS)).sigmoid())
            before = (box_head(content).float() + inverse_sigmoid(boxes, EPS)).sigmoid()
            boxes = before.detach()
        return hidden, torch.stack(logits), torch.stack(predicted)


def _resize_mask(mask: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    return functional.interpolate(mask[:, None].float(), size=tuple(size), mode="nearest")[:, 0].bool()
