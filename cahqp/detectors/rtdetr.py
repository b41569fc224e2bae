"""RT-DETR (arXiv 2304.08069): the student. Hybrid encoder, uncertainty-minimal query selection, denoising."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cahqp.detectors.backbones import ResNetVd, TimmBackbone
from cahqp.detectors.base import DenoisingOutput, Detector, Features, Output, check_classes, check_nms_iou
from cahqp.detectors.layers.basic import MLP, ConvNorm, inverse_sigmoid, to_tokens
from cahqp.detectors.layers.classes import ClassHead
from cahqp.detectors.layers.decoder import DecoderLayer, gather_rows, proposals
from cahqp.detectors.layers.deformable import Shapes
from cahqp.detectors.layers.deformable_v2 import LevelwiseDeformableAttention
from cahqp.detectors.layers.denoising import DenoisingQueries, denoising_queries
from cahqp.detectors.layers.hybrid_encoder import HybridEncoder
from cahqp.structures import Preprocessing, Targets, valid_sizes

EPS = 1e-5  # of the inverse sigmoid, as published
RESNET_VD = {
    "resnet18vd": ((2, 2, 2, 2), False),
    "resnet34vd": ((3, 4, 6, 3), False),
    "resnet50vd": ((3, 4, 6, 3), True),
    "resnet101vd": ((3, 4, 23, 3), True),
}


class RTDETR(Detector):
    """RT-DETR with a ResNet-vd or any timm backbone. Takes images of one size; there is no padding.

    Args:
        classes: Class names in the order of their indices.
        backbone: `resnet18vd`, `resnet34vd`, `resnet50vd`, `resnet101vd`, or the name of a timm model.
        backbone_width: Channels of a ResNet-vd's first stage.
        backbone_options: Further arguments of a timm model.
        backbone_weights: Local file with a timm backbone's weights, read once when training starts from it.
        pretrained: Fetch timm's weights for the backbone; only on request.
        freeze_norm: Keep a timm backbone's BatchNorm statistics and scales as they are.
        dim: Width of tokens and queries.
        heads: Attention heads.
        points: Sampling points per head and level; or one number for each of the three levels.
        decoder_layers: Number of decoder layers.
        ffn_dim: Hidden width of the feed-forward blocks.
        encoder_dim: Width of the encoder's maps; `dim` where not given.
        encoder_ffn_dim: Hidden width of the encoder's feed-forward block; `ffn_dim` where not given.
        fusion_blocks: RepVGG blocks per fusion in the encoder.
        expansion: Inner width of a fusion, as a share of `dim`.
        dropout: In the encoder's attention and the decoder.
        queries: Number of object queries.
        max_detections: Detections kept per image.
        nms_iou: Overlap above which the lower-scored of two detections of one class is dropped; the published models
            keep both. Matching one query to one box teaches not to say an object twice, but a short training ends
            before that is learnt.
        size: Height and width in pixels; the aspect ratio is not kept.
        mean: Subtracted from RGB in 0..1; nothing in the published models.
        std: What the difference is divided by.
        denoising: Wanted number of positive denoising queries; 0 for none.
        label_noise: Half of this share of denoising labels is replaced.
        box_noise: Reach of denoising box noise.
        eval_layer: Index of the decoder layer that answers outside training; the last where not given. RT-DETR-R50-m
            is trained with six layers and evaluated at the third.
        sampling: How the decoder reads a map: `bilinear`, or `discrete`, the nearest cell (RT-DETRv2's dsp models).
        offset_scale: How far offsets reach, as a share of the box's sides.
        members: Rows of the class heads that make up each class, whose logit is the largest of theirs; one each where
            not given.
    """

    def __init__(
        self,
        classes: list[str],
        backbone: str = "resnet18vd",
        backbone_width: int = 64,
        backbone_options: dict[str, Any] | None = None,
        backbone_weights: Path | None = None,
        pretrained: bool = False,
        freeze_norm: bool = False,
        dim: int = 256,
        heads: int = 8,
        points: int | list[int] = 4,
        decoder_layers: int = 3,
        ffn_dim: int = 1024,
        fusion_blocks: int = 3,
        expansion: float = 0.5,
        dropout: float = 0.0,
        queries: int = 300,
        max_detections: int = 300,
        nms_iou: float | None = None,
        size: tuple[int, int] = (640, 640),
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        std: tuple[float, float, float] = (1.0, 1.0, 1.0),
        denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        encoder_dim: int | None = None,
        encoder_ffn_dim: int | None = None,
        eval_layer: int | None = None,
        sampling: Literal["bilinear", "discrete"] = "bilinear",
        offset_scale: float = 0.5,
        members: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.settings = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.settings |= {"backbone_weights": None, "pretrained": False}
        self.classes = check_classes(classes)
        self.preprocessing = Preprocessing(size=(size[0], size[1]), mean=mean, std=std)
        self.class_loss = "varifocal"
        self.queries, self.max_detections, self.denoising = queries, max_detections, denoising
        self.nms_iou = check_nms_iou(nms_iou)
        self.label_noise, self.box_noise = label_noise, box_noise
        self.backbone: ResNetVd | TimmBackbone
        if backbone in RESNET_VD:
            depths, bottleneck = RESNET_VD[backbone]
            self.backbone = ResNetVd(depths, backbone_width, bottleneck)
        else:
            self.backbone = TimmBackbone(
                backbone, (8, 16, 32), pretrained=pretrained, weights=backbone_weights, freeze_norm=freeze_norm,
                options=backbone_options,
            )  # fmt: skip
        channels = self.backbone.channels
        width, inner = encoder_dim or dim, encoder_ffn_dim or ffn_dim
        self.encoder = HybridEncoder(channels, width, heads, inner, fusion_blocks, expansion, dropout)
        self.decoder_proj = nn.ModuleList(ConvNorm(width, dim, 1) for _ in channels)
        most = points if isinstance(points, int) else max(points)
        layers = [DecoderLayer(dim, heads, len(channels), most, ffn_dim, dropout) for _ in range(decoder_layers)]
        if not isinstance(points, int) or sampling != "bilinear" or offset_scale != 0.5:
            per_level = [points] * len(channels) if isinstance(points, int) else points
            for layer in layers:
                layer.cross_attn = LevelwiseDeformableAttention(dim, heads, per_level, sampling, offset_scale)
        self.decoder = nn.ModuleList(layers)
        if eval_layer is not None and not 0 <= eval_layer < decoder_layers:
            message = f"eval_layer must lie in 0..{decoder_layers - 1}, got {eval_layer}."
            raise ValueError(message)
        self.eval_layer = eval_layer
        self.query_position = MLP(4, 2 * dim, dim, 2)
        self.label_content = nn.Embedding(len(self.classes) + 1, dim, padding_idx=len(self.classes))
        self.proposal_proj, self.proposal_norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.proposal_class = ClassHead(dim, len(self.classes), members)
        self.proposal_box = MLP(dim, dim, 4, 3)
        self.class_heads = nn.ModuleList(ClassHead(dim, len(self.classes), members) for _ in range(decoder_layers))
        self.box_heads = nn.ModuleList(MLP(dim, dim, 4, 3) for _ in range(decoder_layers))
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        prior = -math.log((1 - 0.01) / 0.01)
        for head in [*self.class_heads, self.proposal_class]:
            nn.init.constant_(head.bias, prior)
        for box in [*self.box_heads, self.proposal_box]:
            nn.init.zeros_(box.layers[-1].weight)
            nn.init.zeros_(box.layers[-1].bias)
        nn.init.xavier_uniform_(self.proposal_proj.weight)
        for name, weight in self.query_position.named_parameters():
            if name.endswith("weight"):
                nn.init.xavier_uniform_(weight)

    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, targets: list[Targets] | None = None
    ) -> Output:
        """Detect; see `Detector.forward`.

        Raises:
            ValueError: An image is padded. Under `torch.compile` nobody looks.
        """
        if padding_mask is None:
            padding_mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
        elif not torch.compiler.is_compiling() and padding_mask.any():
            message = "RT-DETR takes no padded images: give it images of one size, as its preprocessing makes them."
            raise ValueError(message)
        sizes = valid_sizes(padding_mask)
        maps = [project(f) for project, f in zip(self.encoder.input_proj, self.backbone(images), strict=True)]
        if self.prompt is not None:
            maps = self.prompt(maps, [torch.zeros_like(m[:, 0], dtype=torch.bool) for m in maps]).features
        fused = [project(f) for project, f in zip(self.decoder_proj, self.encoder(maps), strict=True)]
        shapes = [(m.shape[2], m.shape[3]) for m in fused]
        tokens = torch.cat([to_tokens(m) for m in fused], 1)
        padding = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        logits, boxes, reference, content = self._propose(tokens, shapes, padding)
        noised = None
        if self.training and targets is not None:
            noised = denoising_queries(
                targets, sizes, len(self.classes), number=self.denoising, label_noise=self.label_noise,
                box_noise=self.box_noise, eps=EPS,
            )  # fmt: skip
        hidden, all_logits, all_boxes = self._decode(tokens, shapes, reference, content, noised)
        start = 0 if noised is None else noised.labels.shape[1]
        denoising = None
        if noised is not None:
            denoising = DenoisingOutput(all_logits[:, :, :start], all_boxes[:, :, :start], noised.groups, noised.slots)
        all_logits, all_boxes = all_logits[:, :, start:], all_boxes[:, :, start:]
        features = Features(maps, [tokens], [h[:, start:] for h in hidden], shapes, padding)
        return Output(
            all_logits[-1], all_boxes[-1], all_logits[:-1], all_boxes[:-1], logits, boxes, sizes, features, denoising
        )

    def _propose(self, tokens: Tensor, shapes: Shapes, padding: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits and boxes in 0..1 of the chosen, then, without gradient, boxes before the sigmoid and rows."""
        valid = torch.tensor([[(w, h) for h, w in shapes]], dtype=torch.float32, device=tokens.device)
        anchors, proposed = proposals(shapes, valid, padding[:1])
        memory = self.proposal_norm(self.proposal_proj(tokens.masked_fill(~proposed[..., None], 0.0)))
        logits = self.proposal_class(memory)
        best = logits.amax(-1).topk(min(self.queries, logits.shape[1]), 1).indices
        rows = gather_rows(memory, best)
        boxes = self.proposal_box(rows).float() + gather_rows(anchors.expand(len(tokens), -1, -1), best)
        return gather_rows(logits, best), boxes.sigmoid(), boxes.detach(), rows.detach()

    def _decode(
        self, tokens: Tensor, shapes: Shapes, reference: Tensor, content: Tensor, noised: DenoisingQueries | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return queries per layer, and logits and boxes (layers, B, denoising + queries, ...)."""
        mask = None
        # The table of noised labels takes part in every step, so that no rank lacks its gradient.
        content = content + 0.0 * self.label_content.weight.sum()
        if noised is not None:
            content = torch.cat([self.label_content(noised.labels), content], 1)
            mask = noised.attention_mask(reference.shape[1])
            reference = torch.cat([noised.boxes, reference], 1)
        boxes = before = reference.sigmoid()
        hidden, logits, predicted = [], [], []
        last = None if self.training or self.eval_layer is None else self.eval_layer + 1
        for layer, class_head, box_head in list(zip(self.decoder, self.class_heads, self.box_heads, strict=True))[
            :last
        ]:
            position = self.query_position(boxes.to(content.dtype))
            content = layer(content, position, boxes[:, :, None], tokens, shapes, None, mask)
            delta = box_head(content).float()
            hidden.append(content)
            logits.append(class_head(content))
            # Look forward twice: this layer's prediction sends its gradient into the one before it.
            predicted.append((delta + inverse_sigmoid(before, EPS)).sigmoid())
            before = (delta + inverse_sigmoid(boxes, EPS)).sigmoid()
            boxes = before.detach()
        return hidden, torch.stack(logits), torch.stack(predicted)
