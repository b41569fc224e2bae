"""Which pseudo-labels train, and with what weight."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.ops import batched_nms, nms

from cahqp.errors import ConfigError
from cahqp.structures import Detections, Targets


def select(
    detections: Detections,
    thresholds: float | Tensor = 0.4,
    nms_iou: float = 0.7,
    class_agnostic: bool = True,
    max_boxes: int = 100,
    ignore_threshold: float | Tensor | None = None,
    weight_by_score: bool = False,
) -> Targets:
    """Return the detections that train as pseudo-labels, and as ignored regions those one cannot be sure of.

    Duplicates go first (NMS over confident and doubtful boxes together, the higher score stays). What reaches its
    class's threshold trains, at most `max_boxes` of the highest scores. What lies in `[ignore_threshold, threshold)`,
    and confident boxes beyond `max_boxes`, become ignored regions, neither object nor background. Boxes without area
    or with a value that is not finite are left out.

    Args:
        detections: Of one image.
        thresholds: Least score, or one per class.
        nms_iou: Overlap from which the lower of two boxes is a duplicate; 1 switches it off.
        class_agnostic: Whether boxes of different classes are duplicates too. Detectors without NMS name one object
            twice more often than traffic hides two behind each other.
        max_boxes: Most boxes that train.
        ignore_threshold: Least score, or one per class, of a doubtful box. `None` ignores no doubtful box: they are
            background.
        weight_by_score: Whether a box counts by its score, or fully.

    Raises:
        ConfigError: A single `ignore_threshold` lies above a single threshold, or the thresholds are for fewer classes
            than the detections have.
    """
    needed = _per_box(thresholds, detections, "thresholds")
    doubtful = needed if ignore_threshold is None else _per_box(ignore_threshold, detections, "ignore_threshold")
    if (
        isinstance(thresholds, float | int)
        and isinstance(ignore_threshold, float | int)
        and ignore_threshold > thresholds
    ):
        message = f"ignore_threshold={ignore_threshold} lies above the threshold {thresholds}; give one below it."
        raise ConfigError(message)
    usable = _usable(detections) & (detections.scores >= torch.minimum(needed, doubtful))
    kept = _without_duplicates(detections, usable, nms_iou, class_agnostic)
    confident = detections.scores[kept] >= needed[kept]
    trained = confident & (confident.cumsum(0) <= max_boxes)
    chosen = detections[kept[trained]]
    weights = chosen.scores if weight_by_score else torch.ones_like(chosen.scores)
    return Targets(chosen.boxes, chosen.labels, weights.float(), detections.boxes[kept[~trained]])


def _per_box(threshold: float | Tensor, detections: Detections, name: str) -> Tensor:
    if not isinstance(threshold, Tensor) or threshold.ndim == 0:
        return torch.full_like(detections.scores, float(threshold))
    if len(detections) and int(detections.labels.max()) >= len(threshold):
        message = f"{name} has {len(threshold)} classes, but a detection has class {int(detections.labels.max())}."
        raise ConfigError(message)
    return threshold.to(detections.scores)[detections.labels]


def _usable(detections: Detections) -> Tensor:
    sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
    return detections.boxes.isfinite().all(1) & (sides > 0).all(1)


def _without_duplicates(detections: Detections, usable: Tensor, nms_iou: float, class_agnostic: bool) -> Tensor:
    """Return the indices of the boxes that stay, highest score first."""
    candidates = usable.nonzero()[:, 0]
    boxes, scores = detections.boxes[candidates].float(), detections.scores[candidates].float()
    if class_agnostic:
        kept: Tensor = nms(boxes, scores, nms_iou)
    else:
        kept = batched_nms(boxes, scores, detections.labels[candidates], nms_iou)
    return candidates[kept]


class DynamicThresholds(nn.Module):
    """Thresholds per class that follow how sure the detector is of labelled source objects (MRT, Zhao et al. 2023).

    `t <- g t + (1 - g) a sqrt(p)`, clipped, where p is the mean probability that matched queries gave to their true
    class since the last update. A class without matches keeps its threshold.

    Args:
        num_classes: Number of classes.
        initial: The first threshold of every class, or (num_classes,) one each.
        momentum: The share g of the old threshold.
        factor: The factor a.
        minimum: Lower clip.
        maximum: Upper clip.

    Attributes:
        values: (num_classes,) the thresholds as they stand, for `select`.
    """

    values: Tensor
    _sums: Tensor
    _counts: Tensor

    def __init__(
        self,
        num_classes: int,
        initial: float | Tensor = 0.3,
        momentum: float = 0.9,
        factor: float = 0.5,
        minimum: float = 0.25,
        maximum: float = 0.45,
    ) -> None:
        super().__init__()
        if not 0 <= minimum <= maximum <= 1:
            message = f"Give 0 <= minimum <= maximum <= 1, got minimum={minimum} and maximum={maximum}."
            raise ConfigError(message)
        self.momentum, self.factor, self.minimum, self.maximum = momentum, factor, minimum, maximum
        self.register_buffer("values", torch.zeros(num_classes) + initial)
        self.register_buffer("_sums", torch.zeros(num_classes))
        self.register_buffer("_counts", torch.zeros(num_classes))

    @torch.no_grad()
    def observe(self, probabilities: Tensor, labels: Tensor) -> None:
        """Take note of matched source queries. Every process must call this equally often.

        Args:
            probabilities: (N,) what each matched query gave to its true class.
            labels: (N,) the true classes.
        """
        seen = torch.zeros(2, len(self.values), device=self.values.device)
        seen[0].index_add_(0, labels, probabilities.to(seen))
        seen[1].index_add_(0, labels, torch.ones_like(labels, dtype=seen.dtype))
        # Summed at once, not at the update: DDP copies the first rank's buffers over the others' at every forward.
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(seen)
        self._sums += seen[0]
        self._counts += seen[1]

    @torch.no_grad()
    def update(self) -> Tensor:
        """Move the thresholds by what was observed, forget it, and return them."""
        mean = self._sums / self._counts.clamp(min=1)
        moved = self.momentum * self.values + (1 - self.momentum) * self.factor * mean.sqrt()
        self.values.copy_(torch.where(self._counts > 0, moved.clamp(self.minimum, self.maximum), self.values))
        self._sums.zero_()
        self._counts.zero_()
        return self.values.clone()
