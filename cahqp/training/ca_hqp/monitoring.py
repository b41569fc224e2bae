"""Metrics of an adaptation beside its losses, for CSV and W&B."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cahqp.detectors.losses.distributed import sum_over_ranks
from cahqp.detectors.prompts.generator import attention_entropy
from cahqp.detectors.prompts.injected import Injected
from cahqp.structures import Targets
from cahqp.training.ca_hqp.domain_passes import Passes
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


def attention_metrics(attention: Tensor) -> dict[str, Tensor]:
    """Return the entropy over the bank (0 for one component, 1 for all alike) and the mean weight per component.

    Args:
        attention: (levels, B, M) weights of the components.
    """
    weights = {f"prompt/component_{n}": value for n, value in enumerate(attention.mean((0, 1)))}
    return {"prompt/entropy": attention_entropy(attention), **weights}


def injected_by_domain(recorded: Sequence[Injected], passes: Passes) -> dict[int, Injected]:
    """Return the recorded vectors by domain, from a joint pass or from one pass per domain; empty without a prompt."""
    if not recorded:
        return {}
    counts = [len(passed.batch) for passed in passes.values()]
    parts = [torch.split(torch.cat(list(values), 1), counts, 1) for values in zip(*recorded, strict=True)]
    return {domain: Injected(*each) for domain, each in zip(passes, zip(*parts, strict=True), strict=True)}


class PromptMonitor(nn.Module):
    """Difference of the prompts of source and target, and their length, over all frames since the last metrics.

    Its state is part of the checkpoint, so that a resumed run logs the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[int, Tensor] = {}  # frames, lengths and vectors, each summed

    def update(self, injected: Mapping[int, Injected]) -> None:
        """Add the injected vectors of a step by domain."""
        for domain, (vectors, share) in injected.items():
            frames = torch.full((1,), float(share.shape[1]), device=share.device)
            total = torch.cat([frames, share.mean(0).sum()[None], vectors.sum(1).flatten()])
            self._sums[domain] = total if domain not in self._sums else self._sums[domain].to(total) + total

    def metrics(self) -> dict[str, Tensor]:
        """Return `prompt/between_domains` and `prompt/length`, and reset the sums.

        The first is the distance of the mean vectors of source and target, all levels joined, divided by the mean of
        their lengths; 0 for prompts that inject nothing, and left out if a domain has no frames. The second is the mean
        length of a vector relative to the features; see `Injected`. Every process must call this at the same steps.
        """
        totals = [sum_over_ranks(total) for _, total in sorted(self._sums.items())]
        self._sums = {}
        if not totals:
            return {}
        frames, lengths, *_ = torch.stack(totals).sum(0)
        metrics = {"prompt/length": lengths / frames}
        if len(totals) == 2:
            source, target = (total[2:] / total[0] for total in totals)
            length = (source.norm() + target.norm()) / 2
            metrics["prompt/between_domains"] = (target - source).norm() / length.clamp(min=1e-12)
        return metrics

    def get_extra_state(self) -> dict[int, Tensor]:
        """Return the sums since the last metrics by domain."""
        return {domain: total.cpu() for domain, total in self._sums.items()}

    def set_extra_state(self, state: dict[int, Tensor]) -> None:
        """Restore the sums."""
        self._sums = dict(state)


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
