"""Base class of all detectors and the types of their outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from cahqp.detectors.layers.denoising import DenoisingQueries
from cahqp.detectors.losses.boxes import cxcywh_to_xyxy
from cahqp.detectors.prompts.visual_prompt import VisualPrompt
from cahqp.errors import WeightsError
from cahqp.structures import Detections, Preprocessing, Targets


@dataclass
class AlignmentFeatures:
    """Intermediate features for alignment, with gradient. The detector does not read them back.

    Attributes:
        backbone: Per level (B, D, h, w), the projected features that enter the encoder.
        encoder: Per encoder layer (B, S, D) tokens of all levels, row by row; the last enters the decoder.
        decoder: Per decoder layer (B, Q, D) queries, without denoising queries.
        spatial_shapes: Height and width of each level.
        padding: (B, S) true where padded.
    """

    backbone: list[Tensor]
    encoder: list[Tensor]
    decoder: list[Tensor]
    spatial_shapes: list[tuple[int, int]]
    padding: Tensor


@dataclass(frozen=True)
class AlignmentShape:
    """Sizes of a detector's `AlignmentFeatures` in training, for which prompts and alignment terms are built.

    Attributes:
        input_dim: Channels of the maps that enter the encoder, D of `AlignmentFeatures.backbone`.
        input_levels: Number of those maps.
        dim: Length of a token or query, D of `AlignmentFeatures.encoder` and `decoder`.
        levels: Number of levels of the tokens.
        heads: Number of attention heads; divides `dim`.
        encoder_layers: Number of entries of `AlignmentFeatures.encoder`.
        decoder_layers: Number of entries of `AlignmentFeatures.decoder`.
    """

    input_dim: int
    input_levels: int
    dim: int
    levels: int
    heads: int
    encoder_layers: int
    decoder_layers: int


@dataclass
class DenoisingOutput:
    """Predictions for the denoising queries, in groups of `slots` positives followed by `slots` negatives.

    Attributes:
        logits: (L, B, groups * 2 * slots, C) of every decoder layer.
        boxes: (L, B, groups * 2 * slots, 4) cxcywh in 0..1.
        groups: Number of groups.
        slots: Largest number of boxes in any image of the step, over all ranks.
    """

    logits: Tensor
    boxes: Tensor
    groups: int
    slots: int


@dataclass
class Output:
    """Predictions of one forward pass. Boxes are cxcywh in 0..1 of each image's valid part.

    Attributes:
        pred_logits: (B, Q, C) of the last decoder layer, before the sigmoid.
        pred_boxes: (B, Q, 4) of the last decoder layer.
        aux_logits: (L - 1, B, Q, C) of the decoder layers before it.
        aux_boxes: (L - 1, B, Q, 4).
        encoder_logits: (B, Q, C) of the proposals that enter the decoder; `None` in a detector without proposals.
        encoder_boxes: (B, Q, 4), or `None`.
        sizes: (B, 2) height and width of the valid parts in pixels of the batch.
        features: Features for alignment.
        denoising: Set in training if an image of the step has a box.
        groups: Number of query groups that are matched independently in training (Group DETR, arXiv 2207.13085). They
            are stacked along the axis of layers; losses are their mean.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    aux_logits: Tensor
    aux_boxes: Tensor
    encoder_logits: Tensor | None
    encoder_boxes: Tensor | None
    sizes: Tensor
    features: AlignmentFeatures
    denoising: DenoisingOutput | None = None
    groups: int = 1

    @classmethod
    def from_layers(
        cls, logits: Tensor, boxes: Tensor, noised: DenoisingQueries | None, sizes: Tensor, features: AlignmentFeatures
    ) -> Output:
        """Return the output without proposals, denoising queries separated from the others.

        Args:
            logits: (L, B, P + Q, C) of all decoder layers, the P denoising queries first.
            boxes: (L, B, P + Q, 4).
            noised: The denoising queries; `None` for P = 0.
            sizes: (B, 2) height and width of the valid parts.
            features: Features whose decoder queries still contain the denoising queries.
        """
        start, denoising = 0, None
        if noised is not None:
            start = noised.labels.shape[1]
            denoising = DenoisingOutput(logits[:, :, :start], boxes[:, :, :start], noised.groups, noised.slots)
            features.decoder = [queries[:, start:] for queries in features.decoder]
        logits, boxes = logits[:, :, start:], boxes[:, :, start:]
        return cls(logits[-1], boxes[-1], logits[:-1], boxes[:-1], None, None, sizes, features, denoising)

    def layers(self) -> tuple[Tensor, Tensor]:
        """Return float32 logits (K, B, Q, C) and boxes (K, B, Q, 4) of the decoder layers, then of the proposals."""
        logits, boxes = [self.aux_logits, self.pred_logits[None]], [self.aux_boxes, self.pred_boxes[None]]
        if self.encoder_logits is not None and self.encoder_boxes is not None:
            logits.append(self.encoder_logits[None])
            boxes.append(self.encoder_boxes[None])
        return torch.cat(logits).float(), torch.cat(boxes).float()


class Detector(nn.Module, ABC):
    """Base class of detectors: classes, preprocessing and decoding.

    Args:
        classes: Class names in the order of their indices.
        preprocessing: Size rule and normalisation of the training images.
        class_loss: Default class loss: `focal` (DINO) or `varifocal` (RT-DETR).
        max_detections: Detections kept per image by `decode`.
        nms_iou: IoU above which `decode` drops the lower-scored of two detections of one class; `None` keeps both, as
            the published models do.

    Attributes:
        settings: The constructor's arguments. They and the weights rebuild the detector.
        prompt: Changes the projected features before the encoder; `None` until one is attached.
        thresholds: Operating score threshold per class name; empty until measured.
        provenance: Origin of the weights.

    Raises:
        ValueError: `classes` is empty or repeats a name, or `nms_iou` is not in (0, 1].
    """

    settings: dict[str, Any]

    def __init__(
        self,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        class_loss: str,
        max_detections: int,
        nms_iou: float | None,
    ) -> None:
        super().__init__()
        if not classes or len(set(classes)) != len(classes):
            message = f"classes must be one or more different names, got {list(classes)}."
            raise ValueError(message)
        if nms_iou is not None and not 0 < nms_iou <= 1:
            message = f"nms_iou must be above 0 and at most 1, or null for no suppression; got {nms_iou}."
            raise ValueError(message)
        self.classes, self.preprocessing, self.class_loss = tuple(classes), preprocessing, class_loss
        self.max_detections, self.nms_iou = max_detections, nms_iou
        self.prompt: VisualPrompt | None = None
        self.thresholds: dict[str, float] = {}
        self.provenance: dict[str, Any] = {}

    @abstractmethod
    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, targets: list[Targets] | None = None
    ) -> Output:
        """Detect.

        Args:
            images: (B, 3, H, W) normalised by `preprocessing`.
            padding_mask: (B, H, W) true where padded; no padding by default.
            targets: Targets of the denoising queries in training; boxes are xyxy pixels of the batch.
        """

    @property
    def alignment_shape(self) -> AlignmentShape | None:
        """Sizes of the features for alignment; `None` in a detector that cannot be a teacher."""
        return None

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that usually train with a smaller learning rate."""
        return [p for name, p in self.named_parameters() if name.startswith("backbone.")]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the encoder."""
        return [p for name, p in self.named_parameters() if name.startswith("encoder.")]

    def decode(self, output: Output, sizes: Tensor) -> list[Detections]:
        """Return the best-scored query-class pairs of each image, best first, after suppression by `nms_iou`.

        Args:
            output: Output of `forward`.
            sizes: (B, 2) height and width in pixels that the boxes are scaled to.
        """
        scores = output.pred_logits.float().sigmoid().flatten(1)
        count = min(self.max_detections, scores.shape[1])
        scores, index = scores.topk(count, 1)
        classes = output.pred_logits.shape[-1]
        query = torch.div(index, classes, rounding_mode="floor")
        boxes = cxcywh_to_xyxy(output.pred_boxes.float()).gather(1, query[..., None].expand(-1, -1, 4))
        boxes = boxes * sizes.to(boxes)[:, None, [1, 0, 1, 0]]
        detections = [Detections(*image) for image in zip(boxes, scores, index % classes, strict=True)]
        if self.nms_iou is None:
            return detections
        return [d[batched_nms(d.boxes, d.scores, d.labels, self.nms_iou)] for d in detections]


def weights_error(path: Path, problem: str) -> WeightsError:
    """Return the error of a weight file; `problem` is a predicate and a remedy without the final period."""
    return WeightsError(f"{path} {problem}.")


def mismatches(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return one line per weight that is missing, unknown or has another shape.

    Args:
        own: State dict of the module.
        tensors: Weights to load.
    """
    lines = [f"missing {name}" for name in own if name not in tensors]
    lines += [f"unknown {name}" for name in tensors if name not in own]
    shapes = [(name, list(tensors[name].shape), list(own[name].shape)) for name in own if name in tensors]
    return lines + [f"{name} is {shape}, not {expected}" for name, shape, expected in shapes if shape != expected]
