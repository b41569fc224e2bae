"""What is watched while a teacher adapts, beside its losses: a few numbers per step for CSV and W&B."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cahqp.adaptation import attention_entropy
from cahqp.structures import Targets

BINS = 10


def of_pseudo_labels(labels: Sequence[Targets], classes: Sequence[str], thresholds: Tensor) -> dict[str, Tensor]:
    """Return counts per frame: of all boxes, by class and by confidence, and of ignored regions.

    Args:
        labels: Whose weights are the scores.
        classes: Names in the order of the labels.
        thresholds: (C,) as they stand.
    """
    found, scores = torch.cat([t.labels for t in labels]), torch.cat([t.weights for t in labels])
    by_class = torch.bincount(found, minlength=len(classes)) / len(labels)
    by_score = torch.bincount((scores * BINS).long().clamp(0, BINS - 1), minlength=BINS) / len(labels)
    watched = {f"pseudo/boxes_{name}": count for name, count in zip(classes, by_class, strict=True)}
    watched |= {f"pseudo/confidence_{n / BINS:.1f}": count for n, count in enumerate(by_score)}
    watched |= {f"pseudo/threshold_{name}": value for name, value in zip(classes, thresholds, strict=True)}
    watched["pseudo/ignored"] = torch.tensor(sum(len(t.ignore) for t in labels) / len(labels))
    return watched


def of_prompt(attention: Tensor) -> dict[str, Tensor]:
    """Return how evenly the bank is used, 0 one component to 1 all alike, and the mean weight of each component.

    Args:
        attention: (levels, B, M) of the last forward.
    """
    weights = {f"prompt/component_{n}": value for n, value in enumerate(attention.mean((0, 1)))}
    return {"prompt/entropy": attention_entropy(attention), **weights}


@torch.no_grad()
def ema_distance(module: nn.Module, average: nn.Module) -> Tensor:
    """Return the distance of a module's parameters from their average's, as a share of the average's length."""
    own, averaged = ([p.detach() for p in each.parameters() if p.is_floating_point()] for each in (module, average))
    apart = torch._foreach_norm(torch._foreach_sub(own, averaged))
    length = torch.stack(list(torch._foreach_norm(averaged))).norm()
    share: Tensor = torch.stack(list(apart)).norm() / length.clamp(min=1e-12)
    return share
