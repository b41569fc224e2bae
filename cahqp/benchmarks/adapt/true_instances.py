"""Upper bound for TIAFA: alignment with the target's ground truth boxes, for benchmarks only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cahqp.adaptation.domain_adversary import TARGET
from cahqp.coco.reader import class_indices, read_coco
from cahqp.errors import DataError
from cahqp.frame import Frame
from cahqp.structures import Targets
from cahqp.training.ca_hqp.domain_passes import Passes
from cahqp.training.ca_hqp.module import TeacherAdaptation


class TrueInstances(TeacherAdaptation):
    """CA-HQP whose alignment uses ground truth boxes of the target; the pseudo-labels are the teacher's.

    It reads target labels, so it is no method of adaptation.

    Args:
        ground_truth: COCO files of the target frames.
        settings: As `TeacherAdaptation`.
    """

    def __init__(self, ground_truth: Sequence[Path], **settings: Any) -> None:
        super().__init__(**settings)
        self._ground_truth: dict[tuple[str, str], Targets] = {}
        for path in ground_truth:
            file = read_coco(path)
            labels = class_indices(file, self.detector.classes)
            for position, frame in enumerate(file.frames):
                objects = file.annotations(position)
                classes = torch.tensor([labels[category] for category in objects.categories.tolist()], dtype=torch.long)
                self._ground_truth[frame.recording, frame.name] = Targets(torch.from_numpy(objects.boxes), classes)

    def alignment_losses(self, passes: Passes) -> dict[str, Tensor]:
        """Return the weighted losses of alignment, with ground truth boxes as the target's instances.

        Args:
            passes: Passes of this step.
        """
        if TARGET not in passes:
            return {}
        target = passes[TARGET]
        sizes = zip(target.batch.frames, target.output.sizes, strict=True)
        instances = [self._visible(frame, size).to(self.device) for frame, size in sizes]
        return super().alignment_losses({**passes, TARGET: replace(target, instances=instances)})

    def _visible(self, frame: Frame, size: Tensor) -> Targets:
        """Return the ground truth boxes inside a frame's view, in pixels of the batch image."""
        objects = self._ground_truth.get((frame.recording, frame.name))
        if objects is None:
            message = (
                f"{frame.name} of {frame.recording} has no ground truth. Set model.ground_truth to the files of "
                "data.target."
            )
            raise DataError(message)
        assert frame.view is not None
        boxes = frame.view.from_original(objects.boxes, size.cpu())
        inside = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
        return Targets(boxes[inside], objects.labels[inside], torch.ones(int(inside.sum())))
