"""Several looks at every frame: mirrored, larger, in tiles, through several teachers, and other detectors' files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cahqp.data.datasets import as_tensor
from cahqp.data.images import BrokenImageError
from cahqp.data.sources import FrameSource
from cahqp.detectors.base import Detector, Output
from cahqp.frame import Frame, View
from cahqp.inference.frames import FrameBatch, FrameSet
from cahqp.labels.candidates import Candidates, usable
from cahqp.labels.external import External
from cahqp.labels.fusion import Method, ViewPredictions, fuse
from cahqp.labels.views import ViewSpec
from cahqp.structures import Batch, Preprocessing, Targets, collate


@dataclass
class ViewBatch(FrameBatch):
    """Consecutive frames, each in several views for each of several teachers.

    Attributes:
        looks: For each teacher and view in turn, the same frames; empty where all were broken.
    """

    looks: Sequence[Batch] = ()

    def to(self, device: torch.device | str, **_: object) -> ViewBatch:
        """Return the same on another device."""
        moved = [look.to(device) for look in self.looks]
        return replace(self, batch=moved[0] if moved else None, looks=moved)


class ViewFrames(FrameSet):
    """Frames as each teacher wants them, in each view.

    Args:
        source: The frames.
        preprocessings: One for each teacher.
        views: What of a frame is shown.
        max_invalid_share: Share of broken images, 0..1, that is put up with.
    """

    def __init__(
        self,
        source: FrameSource,
        preprocessings: Sequence[Preprocessing],
        views: Sequence[ViewSpec],
        max_invalid_share: float = 0.05,
    ) -> None:
        super().__init__(source, preprocessings[0], max_invalid_share)
        self.plans = [(preprocessing, view) for preprocessing in preprocessings for view in views]

    def __getitem__(self, position: int) -> Any:
        """Return position and, for each look, a (3, h, w) uint8 image and its frame; `None` for a broken image."""
        try:
            image = self.source.read(position)
        except BrokenImageError:
            self.quarantine.add(position)
            return None
        frame = replace(self.source.frames[position], size=(image.shape[0], image.shape[1]))
        return position, [_shown(image, frame, *plan) for plan in self.plans]


def _shown(
    image: NDArray[np.uint8], frame: Frame, preprocessing: Preprocessing, spec: ViewSpec
) -> tuple[torch.Tensor, Frame]:
    height, width = frame.size
    left, top, right, bottom = spec.part
    view = View(
        int(left * width), int(top * height), int(np.ceil(right * width)), int(np.ceil(bottom * height)), spec.mirrored
    )
    part: Any = image[view.top : view.bottom, view.left : view.right]
    wanted = preprocessing.target_size(*part.shape[:2])
    if spec.scale != 1:  # detectors halve five times over; other sides would be padded unevenly
        wanted = (max(32, round(wanted[0] * spec.scale / 32) * 32), max(32, round(wanted[1] * spec.scale / 32) * 32))
    if part.shape[:2] != wanted:
        smaller = wanted[0] <= part.shape[0] and wanted[1] <= part.shape[1]
        part = cv2.resize(part, wanted[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return as_tensor(part[:, ::-1] if spec.mirrored else part), replace(frame, view=view)


def collate_looks(samples: list[Any]) -> ViewBatch:
    """Put the frames of a batch together, look by look; broken ones are left out."""
    healthy = [sample for sample in samples if sample is not None]
    if not healthy:
        return ViewBatch(None, [])
    looks = [
        collate([(looks[number][0], Targets.empty(), looks[number][1]) for _, looks in healthy])
        for number in range(len(healthy[0][1]))
    ]
    return ViewBatch(looks[0], [position for position, _ in healthy], looks)


class Ensemble:
    """Teachers, views and other detectors' files, fused into candidates.

    Args:
        detectors: The first one's classes count; others' are matched by name, and what it does not know is left out.
        views: Views of every frame for every teacher.
        externals: Other detectors' predictions.
        method: How boxes are fused.
        floor: Least score of a candidate.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        views: Sequence[ViewSpec],
        externals: Sequence[External] = (),
        method: Method = "wbf",
        floor: float = 0.05,
    ) -> None:
        self.detectors, self.views, self.externals = [d.eval() for d in detectors], views, externals
        self.method, self.floor = method, floor
        self.single = len(detectors) * len(views) + len(externals) == 1
        self.classes = detectors[0].classes
        index = {name: number for number, name in enumerate(self.classes)}
        self._maps = [np.array([index.get(name, -1) for name in d.classes], np.int64) for d in detectors]

    @torch.no_grad()
    def __call__(self, looks: Sequence[Batch]) -> list[Candidates]:
        """Return the candidates of each frame, boxes in pixels of the original."""
        frames = looks[0].frames
        found: list[list[ViewPredictions]] = [[] for _ in frames]
        for number, batch in enumerate(looks):
            teacher = number // len(self.views)
            for row, look in enumerate(self._look(self.detectors[teacher], self._maps[teacher], batch)):
                found[row].append(look)
        return [self._fused(frame, own) for frame, own in zip(frames, found, strict=True)]

    def _look(self, detector: Detector, classes: NDArray[np.int64], batch: Batch) -> list[ViewPredictions]:
        images = detector.preprocessing.normalise(batch.images, batch.padding_mask)
        output: Output = detector(images, batch.padding_mask)
        looks = []
        for frame, size, seen in zip(batch.frames, output.sizes, detector.decode(output, output.sizes), strict=True):
            assert frame.view is not None
            boxes = frame.view.to_original(seen.boxes, size)
            arrays = [x.cpu().numpy().astype(np.float64) for x in (boxes, seen.scores)]
            labels = classes[seen.labels.cpu().numpy()]
            good = (labels >= 0) & ~(arrays[1] < self.floor)  # a score that is no number is caught later, not lost
            view = frame.view
            region = (float(view.left), float(view.top), float(view.right), float(view.bottom))
            looks.append(ViewPredictions(arrays[0][good], arrays[1][good], labels[good], region))
        return looks

    def _fused(self, frame: Frame, looks: list[ViewPredictions]) -> Candidates:
        others = [external.look(frame.name, frame.size, self.floor) for external in self.externals]
        looks = looks + [look for look in others if look is not None]
        if self.single:
            candidates = Candidates(looks[0].boxes, looks[0].scores, looks[0].labels)
        else:
            for look in looks:
                usable(Candidates(look.boxes, look.scores, look.labels), frame.size, 0.0, frame.name)
            fused = fuse(looks, self.method)
            candidates = Candidates(fused.boxes, fused.scores, fused.labels, fused.agreement)
        return usable(candidates, frame.size, self.floor, frame.name)


def open_externals(paths: Sequence[Path], classes: Sequence[str], names: Mapping[str, Any]) -> list[External]:
    """Return other detectors' predictions.

    Args:
        paths: COCO files with scores.
        classes: The first teacher's class names.
        names: The frames' names.

    Raises:
        DataError: A file cannot be read, or knows none of the frames.
    """
    externals = [External(path, classes) for path in paths]
    for external in externals:
        external.check(names)
    return externals
