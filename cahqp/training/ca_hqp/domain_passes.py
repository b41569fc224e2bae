"""How source and target go through the detector: together or apart, and whose statistics BatchNorm remembers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from cahqp.detectors.base import Features, Output
from cahqp.structures import Batch


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the BatchNorm layers of a module that keep statistics."""
    return [
        m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]


@contextmanager
def frozen_bn_stats(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Let layers normalise by their batch as ever and remember nothing of it."""
    kept = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum


def join(first: Batch, second: Batch) -> Batch:
    """Return two batches as one, padded at the right and the bottom to a common size."""
    height, width = (max(first.images.shape[side], second.images.shape[side]) for side in (2, 3))
    images, masks = [], []
    for batch in (first, second):
        more = (0, width - batch.images.shape[3], 0, height - batch.images.shape[2])
        images.append(pad(batch.images, more))
        masks.append(pad(batch.padding_mask, more, value=True))
    return Batch(
        torch.cat(images), torch.cat(masks), [*first.targets, *second.targets], [*first.frames, *second.frames]
    )


def part(batch: Batch, rows: slice) -> Batch:
    """Return some images of a batch, at the batch's size."""
    return Batch(batch.images[rows], batch.padding_mask[rows], batch.targets[rows], batch.frames[rows])


def part_of_output(output: Output, rows: slice) -> Output:
    """Return what an output says of some images of its batch."""
    found, denoising = output.features, output.denoising
    features = Features(
        [m[rows] for m in found.backbone],
        [t[rows] for t in found.encoder],
        [q[rows] for q in found.decoder],
        found.spatial_shapes,
        found.padding[rows],
    )
    if denoising is not None:
        denoising = replace(denoising, logits=denoising.logits[:, rows], boxes=denoising.boxes[:, rows])
    return replace(
        output,
        pred_logits=output.pred_logits[rows],
        pred_boxes=output.pred_boxes[rows],
        aux_logits=output.aux_logits[:, rows],
        aux_boxes=output.aux_boxes[:, rows],
        encoder_logits=None if output.encoder_logits is None else output.encoder_logits[rows],
        encoder_boxes=None if output.encoder_boxes is None else output.encoder_boxes[rows],
        sizes=output.sizes[rows],
        features=features,
        denoising=denoising,
    )


def zeroed(losses: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return losses of which some count nothing, still connected: no rank may lack a gradient."""
    return {name: value * 0.0 if name in names else value for name, value in losses.items()}
