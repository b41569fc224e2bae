"""A benchmark's ceiling for TIAFA: instances of the target aligned under their true boxes. Never a way to adapt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cahqp.coco.reader import class_indices, read_coco
from cahqp.errors import DataError
from cahqp.frame import Frame
from cahqp.structures import Batch, Targets
from cahqp.training import TeacherAdaptation
from cahqp.training.ca_hqp.alignment import TARGET, Passed


class TrueInstances(TeacherAdaptation):
    """CA-HQP whose alignment alone is told where the target's objects are; its pseudo-labels are the teacher's.

    It reads labels of the target and so may stand beside the arms of a benchmark, never among them.

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
                found = file.annotations(position)
                classes = torch.tensor([labels[category] for category in found.categories.tolist()], dtype=torch.long)
                self._ground_truth[frame.recording, frame.name] = Targets(torch.from_numpy(found.boxes), classes)

    def align(self, passed: Passed) -> dict[str, Tensor]:
        """Return the losses of alignment, the target's instances being the true ones.

        Args:
            passed: Of this step.
        """
        batch, output = passed[TARGET]
        found = [self._seen(frame, size) for frame, size in zip(batch.frames, output.sizes, strict=True)]
        told: Batch = replace(batch, targets=[targets.to(self.device) for targets in found])
        return super().align({**passed, TARGET: (told, output)})

    def _seen(self, frame: Frame, size: Tensor) -> Targets:
        """Return the true boxes that a view shows, in pixels of the view as it is in the batch."""
        known = self._ground_truth.get((frame.recording, frame.name))
        if known is None:
            message = f"{frame.name} of {frame.recording} has no truth. Give model.truth the files of data.target."
            raise DataError(message)
        assert frame.view is not None
        boxes = frame.view.from_original(known.boxes, size.cpu())
        inside = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
        return Targets(boxes[inside], known.labels[inside], torch.ones(int(inside.sum())))
