"""Options of the rules that turn detections into labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cahqp.errors import ConfigError, option
from cahqp.labels.views import parse_views

_THRESHOLD_RULES = ("threshold", "target_precision", "top_share")


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Rules by which detections become labels. `cahqp relabel` and the `relabel:` section of a plan share them.

    Attributes:
        threshold: Lowest score of a label, 0..1. Default: the thresholds per class in the model file, or 0.3 if it has
            none.
        top_share: Share of the boxes of each class, 0..1, that become labels. Default none: thresholds decide.
        ignore_share: Share of the threshold, 0..1. A box that reaches this share but not the threshold becomes a region
            to ignore: neither object nor background in training. With 1 there are no such regions.
        moving_ignore_share: Share of the threshold, 0..1, in place of `ignore_share` for boxes that move, in recordings
            of fixed cameras. Moving regions without a label are ignored too. Default: motion is not used.
        temporal: Judge boxes by their tracks: reject flicker, fill gaps, vote on classes. Recordings without time
            stamps, or with frames too far apart, are labelled frame by frame; a message counts them.
        stationary_weight: Score multiplier, 0..1, for boxes at a position occupied in most other frames of the
            recording. Lamps and lit windows look like road users and never move. It does not apply to tracked boxes.
        weight_by_score: Weight boxes in training by their confidence.
        views: Additional views of each frame for test-time augmentation: flip, scale:S with S in 0.25..4, or tiles:CxR
            such as tiles:2x2.
        nms_iou: IoU above which the box with the lower score is dropped, whatever the classes.
        max_boxes: Largest number of labels of a frame.
    """

    threshold: float | None = None
    top_share: float | None = None
    ignore_share: float = 1.0
    moving_ignore_share: float | None = None
    temporal: bool = False
    stationary_weight: float = 1.0
    weight_by_score: bool = False
    views: list[str] = field(default_factory=list)
    nms_iou: float = 0.7
    max_boxes: int = 100

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: Options are out of range or exclude each other. Each line of the message begins with `--name`.
        """
        problems = list(self._problems())
        if problems:
            raise ConfigError("\n".join(problems))

    def _problems(self) -> Iterator[str]:
        """Yield one line for each problem."""
        for name in ("threshold", "top_share", "ignore_share", "moving_ignore_share", "stationary_weight", "nms_iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                yield f"{option(name)} must lie in 0..1, got {value}."
        if self.max_boxes < 1:
            yield f"--max-boxes must be at least 1, got {self.max_boxes}."
        try:
            parse_views(self.views)
        except ConfigError as error:
            yield str(error)
        rules = [option(name) for name in _THRESHOLD_RULES if getattr(self, name, None) is not None]
        if len(rules) > 1:
            yield f"{' and '.join(rules)} each set the lowest score of a label. Give one of them."
        if self.stationary_weight < 1 and self.top_share is not None:
            yield "--top-share counts all boxes, and --stationary-weight lowers the scores of some. Give one of them."
