"""Contrastive denoising queries (DINO, arXiv 2203.03605, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cahqp.detectors.layers.basic import inverse_sigmoid
from cahqp.detectors.losses.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from cahqp.detectors.losses.distributed import maximum_over_ranks
from cahqp.detectors.losses.targets import check_labels, pad_targets
from cahqp.structures import Targets

NO_SEED = -(2**63)  # draws from the global generator


@dataclass
class DenoisingQueries:
    """Noised boxes that the decoder learns to correct.

    Attributes:
        labels: (B, P) noised class indices; the number of classes in empty slots.
        boxes: (B, P, 4) noised cxcywh before the sigmoid.
        groups: Number of groups, each of `slots` positives followed by `slots` negatives; P = groups * 2 * slots.
        slots: Largest number of boxes in any image of the step, over all ranks.
    """

    labels: Tensor
    boxes: Tensor
    groups: int
    slots: int

    def attention_mask(self, queries: int) -> Tensor:
        """Return a square mask of side P + queries, true where a query (row) must not see a key (column).

        Matching queries see no denoising query, and groups see no other group. Denoising queries see matching queries.
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
    """Return noised copies of the targets, or `None` if no image of the step, on any rank, has a box.

    Each image's noise comes from its own seed, so it does not depend on the rest of the batch.

    Args:
        targets: One per image, boxes xyxy in pixels of the batch.
        sizes: (B, 2) height and width of the valid parts.
        classes: Number of classes.
        number: Requested number of positives over all groups; groups = max(1, number // slots).
        label_noise: Half of this share of the labels is replaced by a random class.
        box_noise: Largest shift of a corner, as a share of half the side; negatives are shifted by up to twice it.
        eps: Lower bound in the inverse sigmoid.

    Raises:
        DataError: The detector has no class for a label.
    """
    if not torch.compiler.is_compiling():  # else the criterion checks them
        check_labels(targets, classes)
    slots = maximum_over_ranks(max((len(t) for t in targets), default=0), sizes.device)
    if slots == 0 or number == 0:
        return None
    groups = max(1, number // slots)
    seeds = [NO_SEED if target.seed is None else target.seed for target in targets]
    noise = _noise(seeds, [len(target) for target in targets], groups, slots).to(sizes)
    padded = pad_targets(targets, sizes, slots, empty_label=classes)
    flip = noise[..., 0] < label_noise * 0.5
    random_labels = (noise[..., 1] * classes).long().clamp(max=classes - 1)
    labels = torch.where(flip, random_labels, padded.labels[:, None, None].expand(-1, groups, 2, -1))
    sign = torch.where(noise[..., 2:6] < 0.5, -1.0, 1.0)
    negative = torch.tensor([0.0, 1.0], device=sizes.device).view(1, 1, 2, 1, 1)
    reach = padded.boxes[:, None, None, :, [2, 3, 2, 3]] * 0.5 * box_noise
    corners = cxcywh_to_xyxy(padded.boxes)[:, None, None] + sign * (noise[..., 6:10] + negative) * reach
    boxes = inverse_sigmoid(xyxy_to_cxcywh(corners.clamp(0, 1)), eps)
    empty = (padded.labels == classes)[:, None, None].expand_as(labels)
    labels, boxes = labels.masked_fill(empty, classes), boxes.masked_fill(empty[..., None], 0.0)
    return DenoisingQueries(labels.flatten(1), boxes.flatten(1, 3), groups, slots)


# A custom operator, so that `torch.compile` does not break the graph at the generators.
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
