"""RT-DETR (arXiv 2304.08069), the student: hybrid encoder, uncertainty-minimal query selection, denoising."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from cahqp.detectors.backbones import ResNetVd, TimmBackbone
from cahqp.detectors.base import AlignmentFeatures, AlignmentShape, Output
from cahqp.detectors.layers.basic import MLP, ConvNorm, inverse_sigmoid, to_tokens
from cahqp.detectors.layers.decoder import DecoderLayer
from cahqp.detectors.layers.deformable import Shapes
from cahqp.detectors.layers.deformable_v2 import LevelwiseDeformableAttention
from cahqp.detectors.layers.denoising import DenoisingQueries
from cahqp.detectors.layers.hybrid_encoder import HybridEncoder
from cahqp.detectors.two_stage import Proposals, TwoStageDetector, constructor_arguments
from cahqp.structures import Preprocessing, Targets, valid_sizes

EPS = 1e-5  # of the inverse sigmoid, as published
RESNET_VD = {
    "resnet18vd": ((2, 2, 2, 2), False),
    "resnet34vd": ((3, 4, 6, 3), False),
    "resnet50vd": ((3, 4, 6, 3), True),
    "resnet101vd": ((3, 4, 23, 3), True),
}


class RTDETR(TwoStageDetector):
    """RT-DETR with a ResNet-vd or any timm backbone. Takes images of one size, without padding.

    Args:
        classes: Class names in the order of their indices.
        backbone: `resnet18vd`, `resnet34vd`, `resnet50vd`, `resnet101vd`, or the name of a timm model.
        backbone_width: Channels of a ResNet-vd's first stage.
        backbone_options: Further arguments of a timm model.
        backbone_weights: Local file with a timm backbone's weights, read once at the start of training.
        pretrained: Download timm's weights for the backbone.
        freeze_norm: Keep a timm backbone's BatchNorm statistics and scales unchanged.
        dim: Width of tokens and queries.
        heads: Attention heads.
        points: Sampling points per head and level, as one number or one per level.
        decoder_layers: Number of decoder layers.
        ffn_dim: Hidden width of the feed-forward blocks.
        encoder_dim: Width of the encoder's maps; `dim` by default.
        encoder_ffn_dim: Hidden width of the encoder's feed-forward block; `ffn_dim` by default.
        fusion_blocks: RepVGG blocks per fusion in the encoder.
        expansion: Inner width of a fusion, as a share of `dim`.
        dropout: Dropout in the encoder's attention and the decoder.
        queries: Number of object queries.
        max_detections: Detections kept per image.
        nms_iou: IoU above which the lower-scored of two detections of one class is dropped; by default none is, as
            published. One-to-one matching teaches not to repeat an object, but only in a long training.
        size: Height and width in pixels; does not keep the aspect ratio.
        mean: Subtracted from RGB in 0..1; zero in the published models.
        std: Divisor of the difference.
        denoising: Requested number of positive denoising queries; 0 for none.
        label_noise: Half of this share of the denoising labels is replaced.
        box_noise: Scale of the denoising box noise.
        eval_layer: Index of the decoder layer whose predictions are used outside training; the last by default.
            RT-DETR-R50-m trains with six layers and evaluates at the third.
        sampling: Sampling of the decoder: `bilinear`, or `discrete`, the nearest cell (RT-DETRv2's dsp models).
        offset_scale: Largest sampling offset, as a share of the box's sides.
        members: Number of class-head rows per class; the largest logit counts. One each by default.
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
        settings = constructor_arguments(locals())
        super().__init__(settings, Preprocessing(size=(size[0], size[1]), mean=mean, std=std), "varifocal", EPS)
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
        per_level = [points] * len(channels) if isinstance(points, int) else points
        layer = (dim, heads, len(channels), max(per_level), ffn_dim, dropout)
        layers = [DecoderLayer(*layer) for _ in range(decoder_layers)]
        if not isinstance(points, int) or sampling != "bilinear" or offset_scale != 0.5:
            for decoder_layer in layers:
                decoder_layer.cross_attn = LevelwiseDeformableAttention(dim, heads, per_level, sampling, offset_scale)
        self.decoder = nn.ModuleList(layers)
        if eval_layer is not None and not 0 <= eval_layer < decoder_layers:
            message = f"eval_layer must lie in 0..{decoder_layers - 1}, got {eval_layer}."
            raise ValueError(message)
        self.eval_layer = eval_layer
        self.query_position = MLP(4, 2 * dim, dim, 2)
        self._add_heads(dim, decoder_layers, members, padding_idx=len(self.classes))
        self._reset_heads()
        nn.init.xavier_uniform_(self.proposal_proj.weight)
        for name, weight in self.query_position.named_parameters():
            if name.endswith("weight"):
                nn.init.xavier_uniform_(weight)

    @property
    def alignment_shape(self) -> AlignmentShape:
        """Sizes of the features for alignment."""
        dim, levels = self.settings["dim"], len(self.decoder_proj)
        width = self.settings["encoder_dim"] or dim
        return AlignmentShape(width, levels, dim, levels, self.settings["heads"], 1, len(self.decoder))

    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, targets: list[Targets] | None = None
    ) -> Output:
        """Detect; see `Detector.forward`.

        Raises:
            ValueError: An image is padded. Not checked under `torch.compile`.
        """
        if padding_mask is None:
            padding_mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
        elif not torch.compiler.is_compiling() and padding_mask.any():
            message = "RT-DETR takes no padded images. Give images of one size, as its preprocessing makes them."
            raise ValueError(message)
        sizes = valid_sizes(padding_mask)
        maps = self._project(self.backbone(images))
        fused = [project(f) for project, f in zip(self.decoder_proj, self.encoder(maps), strict=True)]
        shapes = [(m.shape[2], m.shape[3]) for m in fused]
        tokens = torch.cat([to_tokens(m) for m in fused], 1)
        padding = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        valid = torch.tensor([[(w, h) for h, w in shapes]], dtype=torch.float32, device=tokens.device)
        proposed = self._propose(tokens, shapes, valid, padding[:1])
        noised = self._denoising_queries(targets, sizes)
        hidden, logits, boxes = self._decode(tokens, shapes, proposed, noised)
        features = AlignmentFeatures(maps, [tokens], hidden, shapes, padding)
        output = Output.from_layers(logits, boxes, noised, sizes, features)
        output.encoder_logits, output.encoder_boxes = proposed.logits, proposed.boxes
        return output

    def _project(self, levels: list[Tensor]) -> list[Tensor]:
        """Return the maps that enter the encoder, changed by the prompt if there is one."""
        layers = [cast("ConvNorm", layer) for layer in self.encoder.input_proj]
        if self.prompt is None:  # whole layers keep their names in an exported graph, by which INT8 selects them
            return [layer(level) for layer, level in zip(layers, levels, strict=True)]
        projected = [layer.conv(level) for layer, level in zip(layers, levels, strict=True)]
        maps = [layer.norm(one) for layer, one in zip(layers, projected, strict=True)]
        masks = [torch.zeros_like(one[:, 0], dtype=torch.bool) for one in maps]
        prompted: list[Tensor] = self.prompt(maps, masks, projected).features
        return prompted

    def _decode(
        self, tokens: Tensor, shapes: Shapes, proposed: Proposals, noised: DenoisingQueries | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return queries per layer, and logits and boxes (layers, B, denoising + queries, ...)."""
        content, reference, mask = self._prepend_denoising(proposed.content, proposed.reference, noised)
        boxes = before = reference.sigmoid()
        hidden, logits, predicted = [], [], []
        count = len(self.decoder) if self.training or self.eval_layer is None else self.eval_layer + 1
        for index in range(count):
            position = self.query_position(boxes.to(content.dtype))
            content = self.decoder[index](content, position, boxes[:, :, None], tokens, shapes, None, mask)
            delta = self.box_heads[index](content).float()
            hidden.append(content)
            logits.append(self.class_heads[index](content))
            # Look forward twice: the gradient of this layer's prediction reaches the refinement of the layer before.
            predicted.append((delta + inverse_sigmoid(before, EPS)).sigmoid())
            before = (delta + inverse_sigmoid(boxes, EPS)).sigmoid()
            boxes = before.detach()
        return hidden, torch.stack(logits), torch.stack(predicted)
