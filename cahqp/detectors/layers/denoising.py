"""Contrastive denoising queries (DINO, arXiv 2203.03605, section 3.3), shared by both detectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cahqp.detectors.layers.basic import inverse_sigmoid
from cahqp.detectors.losses.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from cahqp.detectors.losses.distributed import maximum_over_ranks
from cahqp.detectors.losses.labels import check_labels
from cahqp.structures import Targets

NO_SEED = -(2**63)  # draws from the global generator


@dataclass
class DenoisingQueries:
    """Noised boxes that the decoder is to put right.

    Attributes:
        labels: (B, P) noised class indices; the number of classes where a slot is empty.
        boxes: (B, P, 4) noised cxcywh before the sigmoid.
        groups: Number of groups, each of `slots` positives followed by `slots` negatives; P = groups * 2 * slots.
        slots: The largest number of boxes in any image of the step, over all ranks.
    """

    labels: Tensor
    boxes: Tensor
    groups: int
    slots: int

    def attention_mask(self, queries: int) -> Tensor:
        """Return (P + queries,) squared, true where a query (row) must not see a key (column).

        Matching queries see no denoising query, groups see no other group; denoising queries see matching queries.
        """
        total = self.labels.shape[1]
        group = torch.arange(total, device=self.labels.device) // (2 * self.slots)
        group = torch.cat([group, group.new_full((queries,), -1)])
        return (group[None] != group[:, None]) & (group[None] != -1)


def denoising_queries(
    targets: list[Targets],
    sizes: Tensor,
    classes: int,
    *,
    number: int,
    label_noise: float,
    box_noise: float,
    eps: float,
) -> DenoisingQueries | None:
    """Return noised copies of the targets, or `None` when no image of the step, on any rank, has a box.

    Each image's noise comes from its own seed, so that it does not depend on the rest of the batch.

    Args:
        targets: One per image, boxes xyxy in pixels of the batch.
        sizes: (B, 2) height and width of the valid parts.
        classes: Number of classes.
        number: Wanted number of positives over all groups; groups = max(1, number // slots).
        label_noise: Half of this share of the labels is replaced by a random class.
        box_noise: Largest shift of a corner, as a share of half the side; negatives are shifted by up to twice it.
        eps: Of the inverse sigmoid.

    Raises:
        DataError: A target has a label that the detector has no class for.
    """
    if not torch.compiler.is_compiling():  # where it is, the criterion checks them
        check_labels(targets, classes)
    slots = maximum_over_ranks(max((len(t) for t in targets), default=0), sizes.device)
    if slots == 0 or number == 0:
        return None
    groups = max(1, number // slots)
    seeds = [NO_SEED if target.seed is None else target.seed for target in targets]
    noise = _noise(seeds, [len(target) for target in targets], groups, slots).to(sizes)
    labels, boxes, filled = _padded(targets, sizes, slots, classes)
    flip = noise[..., 0] < label_noise * 0.5
    random_labels = (noise[..., 1] * classes).long().clamp(max=classes - 1)
    noised_labels = torch.where(flip, random_labels, labels[:, None, None].expand(-1, groups, 2, -1))
    sign = torch.where(noise[..., 2:6] < 0.5, -1.0, 1.0)
    negative = torch.tensor([0.0, 1.0], device=sizes.device).view(1, 1, 2, 1, 1)
    reach = boxes[:, None, None, :, [2, 3, 2, 3]] * 0.5 * box_noise
    corners = cxcywh_to_xyxy(boxes)[:, None, None] + sign * (noise[..., 6:10] + negative) * reach
    noised_boxes = inverse_sigmoid(xyxy_to_cxcywh(corners.clamp(0, 1)), eps)
    empty = ~filled[:, None, None].expand_as(noised_labels)
    noised_labels = noised_labels.masked_fill(empty, classes)
    noised_boxes = noised_boxes.masked_fill(empty[..., None], 0.0)
    return DenoisingQueries(noised_labels.flatten(1), noised_boxes.flatten(1, 3), groups, slots)


# An operator of its own, so that `torch.compile` passes over the generators without a break.
@torch.library.custom_op("cahqp::denoising_noise", mutates_args=())
def _noise(seeds: list[int], counts: list[int], groups: int, slots: int) -> Tensor:
    """Return (B, groups, 2, slots, 10) in 0..1: label flip, new label, four signs, four lengths."""
    noise = torch.zeros(len(seeds), groups, 2, slots, 10)
    for row, (seed, count) in enumerate(zip(seeds, counts, strict=True)):
        generator = None if seed == NO_SEED else torch.Generator().manual_seed(seed)
        noise[row, :, :, :count] = torch.rand(groups, 2, count, 10, generator=generator)
    return noise


@_noise.register_fake
def _(seeds: list[int], counts: list[int], groups: int, slots: int) -> Tensor:
    return torch.empty(len(seeds), groups, 2, slots, 10)


def _padded(targets: list[Targets], sizes: Tensor, slots: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels (B, slots), cxcywh boxes in 0..1 (B, slots, 4) and which slots are filled (B, slots)."""
    labels = torch.full((len(targets), slots), classes, device=sizes.device)
    boxes = torch.zeros(len(targets), slots, 4, device=sizes.device)
    for row, target in enumerate(targets):
        labels[row, : len(target)] = target.labels
        boxes[row, : len(target)] = target.boxes
    return labels, xyxy_to_cxcywh(boxes / sizes[:, None, [1, 0, 1, 0]]), labels < classes
