"""Metrics of an adaptation beside its losses, for CSV and W&B."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cahqp.detectors.prompts.generator import attention_entropy
from cahqp.structures import Targets
from cahqp.training.ca_hqp.settings import AlignmentSettings

_log = logging.getLogger(__name__)
BINS = 10
WINDOW = 500
"""Target frames over which the share of frames with a neighbour is taken."""

MIN_SHARE = 0.05
"""Share of frames with a neighbour below which TIAFA's temporal part has next to no effect."""


def label_metrics(labels: Sequence[Targets], classes: Sequence[str], thresholds: Tensor) -> dict[str, Tensor]:
    """Return boxes per frame by class and by score, ignored regions per frame, and the thresholds.

    Args:
        labels: Pseudo-labels per frame; the weights are the scores.
        classes: Names in the order of the labels.
        thresholds: (C,) current thresholds.
    """
    indices, scores = torch.cat([t.labels for t in labels]), torch.cat([t.weights for t in labels])
    by_class = torch.bincount(indices, minlength=len(classes)) / len(labels)
    by_score = torch.bincount((scores * BINS).long().clamp(0, BINS - 1), minlength=BINS) / len(labels)
    metrics = {f"pseudo/boxes_{name}": count for name, count in zip(classes, by_class, strict=True)}
    metrics |= {f"pseudo/confidence_{n / BINS:.1f}": count for n, count in enumerate(by_score)}
    metrics |= {f"pseudo/threshold_{name}": value for name, value in zip(classes, thresholds, strict=True)}
    metrics["pseudo/ignored"] = torch.tensor(sum(len(t.ignore) for t in labels) / len(labels))
    return metrics


def prompt_metrics(attention: Tensor) -> dict[str, Tensor]:
    """Return the entropy over the bank (0 for one component, 1 for all alike) and the mean weight per component.

    Args:
        attention: (levels, B, M) weights of the components.
    """
    weights = {f"prompt/component_{n}": value for n, value in enumerate(attention.mean((0, 1)))}
    return {"prompt/entropy": attention_entropy(attention), **weights}


@torch.no_grad()
def ema_distance(module: nn.Module, average: nn.Module) -> Tensor:
    """Return the distance of a module's parameters from their average's, as a share of the average's norm."""
    current, averaged = ([p.detach() for p in each.parameters() if p.is_floating_point()] for each in (module, average))
    apart = torch._foreach_norm(torch._foreach_sub(current, averaged))
    norm = torch.stack(list(torch._foreach_norm(averaged))).norm()
    share: Tensor = torch.stack(list(apart)).norm() / norm.clamp(min=1e-12)
    return share


class NeighbourMonitor:
    """Warning, once, if next to no target frame has a remembered neighbour in time.

    Args:
        settings: Limits that the warning names.
    """

    def __init__(self, settings: AlignmentSettings) -> None:
        self.settings = settings
        self._recent: list[bool] = []
        self._warned = False

    def update(self, neighbours: Sequence[bool]) -> None:
        """Add whether each target frame of a step had a neighbour, and check full windows."""
        self._recent += neighbours
        if len(self._recent) < 2 * WINDOW:
            return
        # The first window meets an empty bank, so the share is taken over the later frames.
        share = sum(self._recent[WINDOW:]) / (len(self._recent) - WINDOW)
        del self._recent[:WINDOW]
        if share < MIN_SHARE and not self._warned:
            self._warned = True
            _log.warning(
                "Only %.0f %% of the last target frames had a neighbour in time, so TIAFA's temporal part has next to "
                "no effect. Frames are further apart than alignment.max_gap (%s s), or more frames than "
                "alignment.remembered_frames (%d) come between neighbours. Raise the limit that is too small, or set "
                "alignment.temporal: false.",
                100 * share,
                self.settings.max_gap,
                self.settings.remembered_frames,
            )
