"""Masked target views (MIC, Hoyer et al. 2023): the learner infers hidden blocks from their context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cahqp.structures import Batch, valid_sizes


def mask_batch(batch: Batch, share: float, block: int, fill: Sequence[float]) -> Batch:
    """Return a batch with hidden blocks, which the seeds of its targets choose; see `mask_blocks`."""
    if not share:
        return batch
    seeds = [target.seed for target in batch.targets]
    sizes = [(int(height), int(width)) for height, width in valid_sizes(batch.padding_mask).tolist()]
    return replace(batch, images=mask_blocks(batch.images, share, block, fill, seeds, sizes))


def mask_blocks(
    images: Tensor,
    share: float,
    block: int,
    fill: Sequence[float],
    seeds: Sequence[int | None],
    sizes: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Return the images with a share of their blocks hidden; the blocks do not depend on the rest of the batch.

    Args:
        images: (B, 3, H, W) uint8.
        share: Probability, 0..1, that a block is hidden.
        block: Side of a block in pixels.
        fill: RGB of hidden blocks in 0..1; the mean of the normalisation gives zeros.
        seeds: One per image; `None` draws from the global generator.
        sizes: Height and width of each image without its padding; the batch's by default.
    """
    height, width = images.shape[2:]
    hidden = torch.zeros(len(images), -(-height // block), -(-width // block), dtype=torch.bool)
    for image, seed, (high, wide) in zip(hidden, seeds, sizes or [(height, width)] * len(images), strict=True):
        rows, columns = -(-high // block), -(-wide // block)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        image[:rows, :columns] = torch.rand(rows, columns, generator=generator) < share
    hidden = hidden.to(images.device)
    hidden = hidden.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, None, :height, :width]
    colour = torch.tensor([round(255 * value) for value in fill], dtype=images.dtype, device=images.device)
    return torch.where(hidden, colour[None, :, None, None], images)
