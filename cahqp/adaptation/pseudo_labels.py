"""Selection of pseudo-labels and their thresholds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, nms

from cahqp.detectors.losses.distributed import sum_over_ranks
from cahqp.errors import ConfigError
from cahqp.structures import Detections, Targets


def select_pseudo_labels(
    detections: Detections,
    thresholds: float | Tensor = 0.4,
    nms_iou: float = 0.7,
    class_agnostic: bool = True,
    max_boxes: int = 100,
    ignore_threshold: float | Tensor | None = None,
    weight_by_score: bool = False,
    count_ignored: bool = False,
) -> Targets:
    """Return the detections that train as pseudo-labels, and uncertain ones as ignored regions.

    NMS over confident and uncertain boxes together first drops duplicates. Then the boxes at or above the threshold of
    their class train, at most `max_boxes` with the highest scores. Boxes with scores in `[ignore_threshold, threshold)`
    and confident boxes beyond `max_boxes` are ignored: neither object nor background. Boxes without area or with
    non-finite coordinates are dropped.

    Args:
        detections: Detections of one image.
        thresholds: Lowest score, or (C,) one per class.
        nms_iou: Overlap above which the lower-scored of two boxes is dropped; 1 keeps both.
        class_agnostic: Whether boxes of different classes count as duplicates. Detectors without NMS often give one
            object two classes; in traffic this is more frequent than two objects at one position.
        max_boxes: Largest number of boxes that train.
        ignore_threshold: Lowest score of an uncertain box, or (C,) one per class. `None`: they are background.
        weight_by_score: Weight a box by its score; otherwise every box counts fully.
        count_ignored: Count an ignored box as that many objects as its score; otherwise as none.

    Raises:
        ConfigError: A single `ignore_threshold` is above a single threshold, or a detection's class has no threshold.
    """
    numbers = isinstance(thresholds, float | int) and isinstance(ignore_threshold, float | int)
    if numbers and ignore_threshold > thresholds:  # type: ignore[operator]
        message = f"ignore_threshold must not be above the threshold {thresholds}, got {ignore_threshold}."
        raise ConfigError(message)
    needed = _per_box(thresholds, detections, "thresholds")
    doubtful = needed if ignore_threshold is None else _per_box(ignore_threshold, detections, "ignore_threshold")
    sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
    usable = detections.boxes.isfinite().all(1) & (sides > 0).all(1)
    candidates = (usable & (detections.scores >= torch.minimum(needed, doubtful))).nonzero()[:, 0]
    kept = _without_duplicates(detections, candidates, nms_iou, class_agnostic)
    confident = detections.scores[kept] >= needed[kept]
    trained = confident & (confident.cumsum(0) <= max_boxes)
    chosen = detections[kept[trained]]
    weights = chosen.scores if weight_by_score else torch.ones_like(chosen.scores)
    ignored = detections[kept[~trained]]
    expected = ignored.scores.float() if count_ignored else torch.zeros_like(ignored.scores)
    return Targets(chosen.boxes, chosen.labels, weights.float(), ignored.boxes, ignore_weights=expected)


def _per_box(threshold: float | Tensor, detections: Detections, name: str) -> Tensor:
    if not isinstance(threshold, Tensor) or threshold.ndim == 0:
        return torch.full_like(detections.scores, float(threshold))
    if len(detections) and int(detections.labels.max()) >= len(threshold):
        message = f"{name} has {len(threshold)} classes, but a detection has class {int(detections.labels.max())}."
        raise ConfigError(message)
    return threshold.to(detections.scores)[detections.labels]


def _without_duplicates(detections: Detections, candidates: Tensor, nms_iou: float, class_agnostic: bool) -> Tensor:
    """Return the candidates that NMS keeps, highest score first."""
    boxes, scores = detections.boxes[candidates].float(), detections.scores[candidates].float()
    if class_agnostic:
        kept: Tensor = nms(boxes, scores, nms_iou)
    else:
        kept = batched_nms(boxes, scores, detections.labels[candidates], nms_iou)
    return candidates[kept]


class DynamicThresholds(nn.Module):
    """Thresholds per class that follow the detector's scores on labelled source objects (MRT, Zhao et al. 2023).

    `t <- g t + (1 - g) a sqrt(p)`, clipped, where p is the mean score of matched queries for their true class since the
    last update. A class without matches keeps its threshold.

    Args:
        num_classes: Number of classes.
        initial: First threshold of every class, or (num_classes,) one each.
        momentum: Share g of the old threshold.
        factor: Factor a.
        minimum: Lower clip.
        maximum: Upper clip.

    Attributes:
        values: (num_classes,) current thresholds.
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
            message = f"The range must be 0 <= minimum <= maximum <= 1, got minimum={minimum} and maximum={maximum}."
            raise ConfigError(message)
        self.momentum, self.factor, self.minimum, self.maximum = momentum, factor, minimum, maximum
        self.register_buffer("values", torch.zeros(num_classes) + initial)
        self.register_buffer("_sums", torch.zeros(num_classes))
        self.register_buffer("_counts", torch.zeros(num_classes))

    @torch.no_grad()
    def observe(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add matched source queries. Every process must call this equally often.

        Args:
            probabilities: (N,) scores of the matched queries for their true class.
            labels: (N,) true classes.
        """
        added = torch.zeros(2, len(self.values), device=self.values.device)
        added[0].index_add_(0, labels, probabilities.to(added))
        added[1].index_add_(0, labels, torch.ones_like(labels, dtype=added.dtype))
        # Summed now, not at the update: DDP copies the first rank's buffers over the others' at every forward.
        added = sum_over_ranks(added)
        self._sums += added[0]
        self._counts += added[1]

    @torch.no_grad()
    def update(self) -> Tensor:
        """Move the thresholds by the observations, clear these, and return the thresholds."""
        mean = self._sums / self._counts.clamp(min=1)
        moved = self.momentum * self.values + (1 - self.momentum) * self.factor * mean.sqrt()
        self.values.copy_(torch.where(self._counts > 0, moved.clamp(self.minimum, self.maximum), self.values))
        self._sums.zero_()
        self._counts.zero_()
        return self.values.clone()
