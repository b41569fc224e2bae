"""Gradient share: the gradient of a term of CA-HQP relative to that of the detection losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cahqp.detectors.base import Detector
from cahqp.detectors.losses.distributed import sum_over_ranks
from cahqp.training.ca_hqp.domain_passes import Passes

PREFIX = "align/gradient_share_"
"""Start of the names of the logged shares."""

DETECTION = ("source", "target")
"""Names of the detection losses."""


def gradient_shares(
    losses: Mapping[str, Tensor], passes: Passes, detector: Detector, dqfa_layers: Sequence[int], scale: float = 1.0
) -> dict[str, Tensor]:
    """Return the gradient share of each term that is on, by its logged name.

    The share of DQFA and TIAFA is `|d term / d x| / |d detection / d x|`. Here x are the features that the term reads,
    of both domains: the tokens and queries of `dqfa_layers` for DQFA, the encoder's output for TIAFA. Weights of the
    losses and the reversal are included. The share of the prompt, which is no loss of its own, is the norm of the
    detection gradient at the prompt's parameters divided by the norm at the encoder's.

    The norms run over all ranks, so every rank must call this at the same steps. The graph is kept, and `grad` of
    no tensor changes. A call costs about one backward pass through decoder and encoder for each term and for detection.

    Args:
        losses: Weighted losses of the step; those named in `DETECTION` are the detection losses.
        passes: Passes of the step.
        detector: Detector of the step.
        dqfa_layers: Layers of encoder and decoder that DQFA reads.
        scale: Factor on all losses during the computation, for gradients in float16. It cancels in the shares.
    """
    reference = {name: loss for name, loss in losses.items() if name in DETECTION}
    places = {"dqfa": _query_features(passes, dqfa_layers), "tiafa": _encoder_outputs(passes)}
    places = {name: tensors for name, tensors in places.items() if name in losses}
    prompt = [] if detector.prompt is None else [p for p in detector.prompt.parameters() if p.requires_grad]
    encoder = [p for p in detector.encoder_parameters() if p.requires_grad]
    parameters = [prompt, encoder] if prompt and encoder else []
    if not reference or not (places or parameters):
        return {}
    norms = _norms(torch.stack(list(reference.values())).sum() * scale, [*places.values(), *parameters])
    shares = {
        name: _norms(losses[name] * scale, [tensors])[0] / norm
        for (name, tensors), norm in zip(places.items(), norms, strict=False)
    }
    if parameters:
        shares["prompt"] = norms[-2] / norms[-1]
    return {f"{PREFIX}{name}": share for name, share in shares.items() if share.isfinite()}


def _query_features(passes: Passes, layers: Sequence[int]) -> list[Tensor]:
    features = [passed.output.features for passed in passes.values()]
    return [_whole(part[index]) for each in features for part in (each.encoder, each.decoder) for index in layers]


def _encoder_outputs(passes: Passes) -> list[Tensor]:
    return [_whole(passed.output.features.encoder[-1]) for passed in passes.values()]


def _whole(tensor: Tensor) -> Tensor:
    """Return the tensor of which `tensor` is a slice, or itself.

    Features are slices without denoising queries, or of one domain in a joint pass. The detection losses depend on the
    whole tensor, not on the slice.
    """
    return tensor if tensor._base is None else tensor._base


def _norms(loss: Tensor, groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the norm of the loss's gradient over each group of tensors and all ranks."""
    tensors = list({id(tensor): tensor for group in groups for tensor in group}.values())
    # Backward operators must not be cast a second time by an autocast context around the training step.
    with torch.autocast(loss.device.type, enabled=False):
        gradients = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    zero = loss.detach().float() * 0.0
    squares = {
        id(tensor): zero if gradient is None else gradient.float().square().sum()
        for tensor, gradient in zip(tensors, gradients, strict=True)
    }
    # In the order of the tensors, not of their addresses, so that a resumed run has the same sums.
    unique = [dict.fromkeys(map(id, group)) for group in groups]
    sums = [torch.stack([squares[key] for key in keys]).sum() for keys in unique]
    return list(sum_over_ranks(torch.stack(sums)).sqrt())
