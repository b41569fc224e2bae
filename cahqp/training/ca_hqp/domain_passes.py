"""Passes of source and target through the detector: separate or joint, and the BatchNorm statistics they update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from cahqp.adaptation.domain_adversary import SOURCE, TARGET
from cahqp.detectors.base import AlignmentFeatures, Output
from cahqp.structures import Batch, Targets

BatchNormLayer = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class DomainPass:
    """Batch of one domain and the detector's output for it.

    Attributes:
        batch: Images with labels (source) or pseudo-labels (target), whose weights are their scores.
        output: Output of the detector in training.
        class_scores: (N, C) scores of the teacher for the pseudo-boxes of each image; only for soft targets.
        instances: Boxes that TIAFA aligns in place of the batch's own.
    """

    batch: Batch
    output: Output
    class_scores: list[Tensor] | None = None
    instances: list[Targets] | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the batch in pixels, padding included."""
        return self.batch.images.shape[2], self.batch.images.shape[3]


Passes = dict[int, DomainPass]
"""Passes of one step by domain, source first."""


def joint_pass(
    detect: Callable[[Batch, list[Targets]], Output],
    source: Batch,
    target: Batch,
    denoised: list[Targets] | None,
    class_scores: list[Tensor] | None,
) -> Passes:
    """Return both domains' parts of one pass.

    Args:
        detect: Function that runs the detector on a batch with boxes for denoising queries.
        source: Source batch.
        target: Target batch.
        denoised: Boxes of the target's denoising queries; `None` for no such queries.
        class_scores: Class scores of the target's pseudo-boxes.
    """
    joined, count = join_batches(source, target), len(source)
    empty = [Targets.empty(target.images.device)] * len(target)
    output = detect(joined, [*source.targets, *(empty if denoised is None else denoised)])
    first, second = slice(0, count), slice(count, None)
    target_output = slice_output(output, second)
    if denoised is None:
        target_output.denoising = None
    return {
        SOURCE: DomainPass(slice_batch(joined, first), slice_output(output, first)),
        TARGET: DomainPass(slice_batch(joined, second), target_output, class_scores),
    }


def batch_norms(module: nn.Module) -> list[BatchNormLayer]:
    """Return the BatchNorm layers of a module that have running statistics."""
    return [m for m in module.modules() if isinstance(m, BatchNormLayer) and m.running_mean is not None]


@contextmanager
def frozen_bn_stats(norms: Sequence[BatchNormLayer]) -> Iterator[None]:
    """Stop updates of the running statistics; the layers still normalise with the statistics of their batch."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def join_batches(first: Batch, second: Batch) -> Batch:
    """Return two batches as one, padded at the right and the bottom to a common size."""
    height, width = (max(first.images.shape[side], second.images.shape[side]) for side in (2, 3))
    images, masks = [], []
    for batch in (first, second):
        padding = (0, width - batch.images.shape[3], 0, height - batch.images.shape[2])
        images.append(pad(batch.images, padding))
        masks.append(pad(batch.padding_mask, padding, value=True))
    return Batch(
        torch.cat(images), torch.cat(masks), [*first.targets, *second.targets], [*first.frames, *second.frames]
    )


def slice_batch(batch: Batch, rows: slice) -> Batch:
    """Return some images of a batch, at the batch's size."""
    return Batch(batch.images[rows], batch.padding_mask[rows], batch.targets[rows], batch.frames[rows])


def slice_output(output: Output, rows: slice) -> Output:
    """Return the output for some images of a batch."""
    whole, denoising = output.features, output.denoising
    features = AlignmentFeatures(
        [m[rows] for m in whole.backbone],
        [t[rows] for t in whole.encoder],
        [q[rows] for q in whole.decoder],
        whole.spatial_shapes,
        whole.padding[rows],
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
    """Return losses with some set to zero; they stay in the graph, so that every parameter gets a gradient."""
    return {name: value * 0.0 if name in names else value for name, value in losses.items()}
