"""Shared parts of DINO and RT-DETR: prediction heads, encoder proposals and denoising queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cahqp.detectors.base import Detector
from cahqp.detectors.layers.basic import MLP, ClassHead
from cahqp.detectors.layers.decoder import anchor_proposals, gather_rows
from cahqp.detectors.layers.deformable import Shapes
from cahqp.detectors.layers.denoising import DenoisingQueries, denoising_queries
from cahqp.structures import Preprocessing, Targets


class Proposals(NamedTuple):
    """Best encoder proposals of each image.

    Attributes:
        logits: (B, Q, C).
        boxes: (B, Q, 4) cxcywh in 0..1.
        reference: (B, Q, 4) boxes before the sigmoid, without gradient.
        content: (B, Q, D) tokens, without gradient.
    """

    logits: Tensor
    boxes: Tensor
    reference: Tensor
    content: Tensor


class TwoStageDetector(Detector):
    """Detector whose decoder starts from the best encoder proposals.

    `settings` are the arguments of the subclass's constructor, `eps` is the lower bound in the inverse sigmoid.
    """

    def __init__(self, settings: dict[str, Any], preprocessing: Preprocessing, class_loss: str, eps: float) -> None:
        super().__init__(
            settings["classes"], preprocessing, class_loss, settings["max_detections"], settings["nms_iou"]
        )
        # A model file contains the weights, so the rebuilt detector needs no other source of them.
        self.settings = settings | {"backbone_weights": None, "pretrained": False}
        self.queries, self.denoising, self.eps = settings["queries"], settings["denoising"], eps
        self.label_noise, self.box_noise = settings["label_noise"], settings["box_noise"]

    def _add_heads(self, dim: int, count: int, members: Sequence[int] | None, padding_idx: int | None = None) -> None:
        """Add the label embedding, the proposal head and `count` pairs of class head and box head."""
        classes = len(self.classes)
        self.label_content = nn.Embedding(classes + 1, dim, padding_idx=padding_idx)
        self.proposal_proj, self.proposal_norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.proposal_class = ClassHead(dim, classes, members)
        self.proposal_box = MLP(dim, dim, 4, 3)
        self.class_heads = nn.ModuleList(ClassHead(dim, classes, members) for _ in range(count))
        self.box_heads = nn.ModuleList(MLP(dim, dim, 4, 3) for _ in range(count))

    def _reset_heads(self) -> None:
        """Set the class heads to a score of 0.01 and the box heads to no offset."""
        for head in [*self.class_heads, self.proposal_class]:
            nn.init.constant_(head.bias, -math.log((1 - 0.01) / 0.01))
        for box in [*self.box_heads, self.proposal_box]:
            nn.init.zeros_(box.layers[-1].weight)
            nn.init.zeros_(box.layers[-1].bias)

    def _propose(self, tokens: Tensor, shapes: Shapes, valid: Tensor, padding: Tensor) -> Proposals:
        """Return the best proposals of (B, S, D) tokens; `valid` and `padding` have B rows, or one for all images."""
        anchors, proposed = anchor_proposals(shapes, valid, padding)
        memory = self.proposal_norm(self.proposal_proj(tokens.masked_fill(~proposed[..., None], 0.0)))
        logits = self.proposal_class(memory)
        best = logits.amax(-1).topk(min(self.queries, logits.shape[1]), 1).indices
        rows = gather_rows(memory, best)
        boxes = self.proposal_box(rows).float() + gather_rows(anchors.expand(len(tokens), -1, -1), best)
        return Proposals(gather_rows(logits, best), boxes.sigmoid(), boxes.detach(), rows.detach())

    def _denoising_queries(self, targets: list[Targets] | None, sizes: Tensor) -> DenoisingQueries | None:
        """Return the denoising queries of a training step."""
        if not self.training or targets is None:
            return None
        return denoising_queries(
            targets, sizes, len(self.classes), number=self.denoising, label_noise=self.label_noise,
            box_noise=self.box_noise, eps=self.eps,
        )  # fmt: skip

    def _prepend_denoising(
        self, content: Tensor, reference: Tensor, noised: DenoisingQueries | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return content (B, P + Q, D), boxes (B, P + Q, 4) and attention mask of all decoder queries."""
        # The label embedding takes part in every step, so that no rank lacks its gradient.
        content = content + 0.0 * self.label_content.weight.sum()
        if noised is None:
            return content, reference, None
        filled = (noised.labels < len(self.classes))[..., None]
        content = torch.cat([self.label_content(noised.labels) * filled, content], 1)
        return content, torch.cat([noised.boxes, reference], 1), noised.attention_mask(reference.shape[1])


def constructor_arguments(values: Mapping[str, Any], *excluded: str) -> dict[str, Any]:
    """Return a constructor's arguments from its `locals()`, without `self` and the excluded names."""
    return {name: value for name, value in values.items() if name not in ("self", "__class__", *excluded)}
