"""What a detector returns, and what it is built from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from cahqp.detectors.losses.boxes import cxcywh_to_xyxy
from cahqp.detectors.prompts.visual_prompt import VisualPrompt
from cahqp.structures import Detections, Preprocessing, Targets


@dataclass
class Features:
    """What alignment reads. Nothing here is read back by the detector.

    Attributes:
        backbone: Per level (B, D, h, w), the projected features that enter the encoder.
        encoder: Per encoder layer (B, S, D) tokens of all levels, row by row; the last is what the decoder reads.
        decoder: Per decoder layer (B, Q, D) queries, denoising queries left out.
        spatial_shapes: Height and width of each level.
        padding: (B, S) true where padded.
    """

    backbone: list[Tensor]
    encoder: list[Tensor]
    decoder: list[Tensor]
    spatial_shapes: list[tuple[int, int]]
    padding: Tensor


@dataclass
class DenoisingOutput:
    """Predictions for the denoising queries, in groups of `slots` positives followed by `slots` negatives.

    Attributes:
        logits: (L, B, groups * 2 * slots, C) of every decoder layer.
        boxes: (L, B, groups * 2 * slots, 4) cxcywh in 0..1.
        groups: Number of groups.
        slots: The largest number of boxes in any image of the step, over all ranks.
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
        encoder_logits: (B, Q, C) of the proposals the decoder started from; `None` in a detector without proposals.
        encoder_boxes: (B, Q, 4), or `None`.
        sizes: (B, 2) height and width of the valid parts in pixels of the batch.
        features: What alignment reads.
        denoising: In training with boxes somewhere in the step.
        groups: How many groups of queries answer every box on their own in training (Group DETR, arXiv 2207.13085).
            They stand side by side on the axis of layers; losses are their mean.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    aux_logits: Tensor
    aux_boxes: Tensor
    encoder_logits: Tensor | None
    encoder_boxes: Tensor | None
    sizes: Tensor
    features: Features
    denoising: DenoisingOutput | None = None
    groups: int = 1

    def layers(self) -> tuple[Tensor, Tensor]:
        """Return float32 logits (K, B, Q, C) and boxes (K, B, Q, 4): of the decoder's layers, then of the proposals."""
        logits, boxes = [self.aux_logits, self.pred_logits[None]], [self.aux_boxes, self.pred_boxes[None]]
        if self.encoder_logits is not None and self.encoder_boxes is not None:
            logits.append(self.encoder_logits[None])
            boxes.append(self.encoder_boxes[None])
        return torch.cat(logits).float(), torch.cat(boxes).float()


class Detector(nn.Module, ABC):
    """Base of every detector: its classes, its preprocessing and how its output becomes detections.

    Attributes:
        classes: Names in the order of the class indices.
        preprocessing: The size rule and normalisation it was trained with.
        settings: The constructor's arguments; with them and the weights it can be built again.
        max_detections: Kept per image by `decode`.
        nms_iou: Overlap above which `decode` drops the lower-scored of two detections of one class; `None` keeps both,
            as the published models do.
        class_loss: `focal` (DINO) or `varifocal` (RT-DETR); what the criterion uses unless told otherwise.
        prompt: Changes the projected features before the encoder; `None` until one is attached.
        thresholds: Per class name the score above which a detection is believed; empty until they are measured.
        provenance: Where the weights come from.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    settings: dict[str, Any]
    max_detections: int
    nms_iou: float | None
    class_loss: str
    prompt: VisualPrompt | None

    def __init__(self) -> None:
        super().__init__()
        self.prompt = None
        self.nms_iou = None
        self.thresholds: dict[str, float] = {}
        self.provenance: dict[str, Any] = {}

    @abstractmethod
    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, targets: list[Targets] | None = None
    ) -> Output:
        """Detect.

        Args:
            images: (B, 3, H, W) normalised as `preprocessing` says.
            padding_mask: (B, H, W) true where padded; none where not given.
            targets: For denoising in training; boxes are xyxy pixels of the batch.
        """

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that usually train with a smaller learning rate."""
        return [p for name, p in self.named_parameters() if name.startswith("backbone.")]

    def decode(self, output: Output, sizes: Tensor) -> list[Detections]:
        """Return the best-scored query-class pairs of each image, best first, less what `nms_iou` suppresses.

        Args:
            output: Of `forward`.
            sizes: (B, 2) height and width in pixels that the boxes are scaled to.
        """
        scores = output.pred_logits.float().sigmoid().flatten(1)
        count = min(self.max_detections, scores.shape[1])
        scores, index = scores.topk(count, 1)
        classes = output.pred_logits.shape[-1]
        query = torch.div(index, classes, rounding_mode="floor")
        boxes = cxcywh_to_xyxy(output.pred_boxes.float()).gather(1, query[..., None].expand(-1, -1, 4))
        boxes = boxes * sizes.to(boxes)[:, None, [1, 0, 1, 0]]
        labels = index % classes
        found = [Detections(*one) for one in zip(boxes, scores, labels, strict=True)]
        if self.nms_iou is None:
            return found
        return [one[batched_nms(one.boxes, one.scores, one.labels, self.nms_iou)] for one in found]


def check_nms_iou(nms_iou: float | None) -> float | None:
    """Return the overlap.

    Raises:
        ValueError: It is not above 0 and at most 1.
    """
    if nms_iou is not None and not 0 < nms_iou <= 1:
        message = f"nms_iou must be above 0 and at most 1, or null for no suppression; got {nms_iou}."
        raise ValueError(message)
    return nms_iou


def check_classes(classes: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names as a tuple.

    Raises:
        ValueError: There are none, or one is there twice.
    """
    if not classes or len(set(classes)) != len(classes):
        message = f"classes must be one or more different names, got {list(classes)}."
        raise ValueError(message)
    return tuple(classes)
