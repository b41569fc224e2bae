"""Test-time augmentation: frames in several views, through several teachers, fused with external predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cahqp.coco.decoding import BrokenImageError
from cahqp.data.datasets import as_tensor
from cahqp.data.sources import FrameSource
from cahqp.detectors.base import Detector, Output
from cahqp.detectors.model_file import load
from cahqp.frame import Frame, View
from cahqp.inference.frames import FrameBatch, FrameSet
from cahqp.labels.candidates import Candidates, check_finite, clip_candidates
from cahqp.labels.external import ExternalPredictions
from cahqp.labels.fusion import Method, ViewPredictions, fuse
from cahqp.labels.rules import CANDIDATE_FLOOR
from cahqp.labels.views import ViewSpec, parse_views
from cahqp.relabelling.options import CalibrateOptions, RelabelOptions
from cahqp.structures import Batch, Preprocessing, Targets, collate

_CUT_MARGIN = 0.01
"""Largest distance from an edge of a view, as a share of its side, at which a box counts as cut."""


@dataclass
class ViewBatch(FrameBatch):
    """Consecutive frames, each in several views for each of several teachers.

    Attributes:
        views: The same frames for each teacher and each view; empty if all images are broken.
    """

    views: Sequence[Batch] = ()

    def to(self, device: torch.device | str, **_: object) -> ViewBatch:
        """Return the same on another device."""
        moved = [view.to(device) for view in self.views]
        return replace(self, batch=moved[0] if moved else None, views=moved)


class ViewFrames(FrameSet):
    """Frames in each view, resized for each teacher.

    Args:
        source: Frames of the input.
        preprocessings: Preprocessing of each teacher.
        views: Views of each frame.
        max_invalid_share: Largest share of broken images, 0..1; more of them raise an error.
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
        """Return position, and (3, h, w) uint8 image and frame of each view; `None` for a broken image."""
        try:
            image = self.source.read(position)
        except BrokenImageError:
            self.quarantine.add(position)
            return None
        frame = replace(self.source.frames[position], size=(image.shape[0], image.shape[1]))
        return position, [_render(image, frame, *plan) for plan in self.plans]


def _render(
    image: NDArray[np.uint8], frame: Frame, preprocessing: Preprocessing, spec: ViewSpec
) -> tuple[torch.Tensor, Frame]:
    height, width = frame.size
    left, top, right, bottom = spec.part
    view = View(
        int(left * width), int(top * height), int(np.ceil(right * width)), int(np.ceil(bottom * height)), spec.mirrored
    )
    part: Any = image[view.top : view.bottom, view.left : view.right]
    size = preprocessing.target_size(*part.shape[:2])
    if spec.scale != 1:  # detectors halve the size five times, and would pad other sides unevenly
        size = (max(32, round(size[0] * spec.scale / 32) * 32), max(32, round(size[1] * spec.scale / 32) * 32))
    if part.shape[:2] != size:
        smaller = size[0] <= part.shape[0] and size[1] <= part.shape[1]
        part = cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return as_tensor(part[:, ::-1] if spec.mirrored else part), replace(frame, view=view)


def collate_views(samples: list[Any]) -> ViewBatch:
    """Return a batch of frames, view by view, without broken ones."""
    healthy = [sample for sample in samples if sample is not None]
    if not healthy:
        return ViewBatch(None, [])
    views = [
        collate([(rendered[number][0], Targets.empty(), rendered[number][1]) for _, rendered in healthy])
        for number in range(len(healthy[0][1]))
    ]
    return ViewBatch(views[0], [position for position, _ in healthy], views)


class Ensemble(nn.Module):
    """Teachers and views whose detections are fused, also with external predictions.

    Args:
        detectors: Teachers. The class names of the first one count; others are matched by name, and their remaining
            classes are left out.
        views: Views of every frame for every teacher.
        externals: Predictions of other detectors.
        method: Method of fusion.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        views: Sequence[ViewSpec],
        externals: Sequence[ExternalPredictions] = (),
        method: Method = "wbf",
    ) -> None:
        super().__init__()
        self.detectors = nn.ModuleList(detectors).eval()
        self.views, self.externals, self.method = views, externals, method
        self.single = len(detectors) * len(views) + len(externals) == 1
        self.classes = detectors[0].classes
        index = {name: number for number, name in enumerate(self.classes)}
        self._labels = [np.array([index.get(name, -1) for name in d.classes], np.int64) for d in detectors]

    def frames(self, source: FrameSource, max_invalid_share: float = 0.05) -> ViewFrames:
        """Return the frames of the input in the views of the ensemble."""
        detectors: Any = self.detectors
        return ViewFrames(source, [d.preprocessing for d in detectors], self.views, max_invalid_share)

    @torch.no_grad()
    def forward(self, views: Sequence[Batch]) -> list[Candidates]:
        """Return the candidates of each frame, boxes in pixels of the original.

        Args:
            views: The same frames for each teacher and each view.
        """
        frames = views[0].frames
        predictions: list[list[ViewPredictions]] = [[] for _ in frames]
        for number, batch in enumerate(views):
            for row, view in enumerate(self._predict_view(number // len(self.views), batch)):
                predictions[row].append(view)
        return [self._fuse(frame, own) for frame, own in zip(frames, predictions, strict=True)]

    def _predict_view(self, teacher: int, batch: Batch) -> list[ViewPredictions]:
        detector: Any = self.detectors[teacher]
        output: Output = detector(
            detector.preprocessing.normalise(batch.images, batch.padding_mask), batch.padding_mask
        )
        predictions = []
        for frame, size, found in zip(batch.frames, output.sizes, detector.decode(output, output.sizes), strict=True):
            view = frame.view
            assert view is not None
            boxes, scores = (
                x.cpu().numpy().astype(np.float64) for x in (view.to_original(found.boxes, size), found.scores)
            )
            labels = self._labels[teacher][found.labels.cpu().numpy()]
            kept = (labels >= 0) & ~(scores < CANDIDATE_FLOOR)  # NaN is kept, and raises an error later
            kept &= ~_is_cut(boxes, view, frame.size)
            region = (float(view.left), float(view.top), float(view.right), float(view.bottom))
            predictions.append(ViewPredictions(boxes[kept], scores[kept], labels[kept], region))
        return predictions

    def _fuse(self, frame: Frame, views: list[ViewPredictions]) -> Candidates:
        external = [each.predict(frame.name, frame.size, CANDIDATE_FLOOR) for each in self.externals]
        views = views + [view for view in external if view is not None]
        if self.single:
            candidates = Candidates(views[0].boxes, views[0].scores, views[0].labels)
        else:
            for view in views:
                check_finite(view.boxes, view.scores, frame.name)
            candidates = fuse(views, self.method)
        return clip_candidates(candidates, frame.size, CANDIDATE_FLOOR, frame.name)

    def scope(self, nms_iou: float) -> dict[str, Any]:
        """Return the conditions that a calibration holds for, as JSON values."""
        detectors: Any = self.detectors
        return {
            "models": [detector.provenance.get("hash") for detector in detectors],
            "views": [[list(view.part), view.mirrored, view.scale] for view in self.views],
            "predictions": len(self.externals),
            "fuse": None if self.single else self.method,
            "nms_iou": nms_iou,
        }


def _is_cut(boxes: NDArray[np.float64], view: View, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return whether boxes touch an edge of the view inside the frame, where the view cuts objects.

    Args:
        boxes: (N, 4) xyxy in pixels of the frame.
        view: Part of the frame.
        size: Height and width of the frame in pixels.
    """
    edges = np.array([view.left, view.top, view.right, view.bottom], np.float64)
    inside = np.array([view.left > 0, view.top > 0, view.right < size[1], view.bottom < size[0]])
    margin = _CUT_MARGIN * np.array([view.right - view.left, view.bottom - view.top] * 2)
    touches = np.abs(boxes - edges) <= margin
    beyond = np.stack(
        [boxes[:, 0] < edges[0], boxes[:, 1] < edges[1], boxes[:, 2] > edges[2], boxes[:, 3] > edges[3]], 1
    )
    cut: NDArray[np.bool_] = ((touches | beyond) & inside).any(1)
    return cut


def build_ensemble(options: RelabelOptions | CalibrateOptions, detector: Detector, names: Sequence[str]) -> Ensemble:
    """Load the other teachers and external predictions.

    Args:
        options: Options of the command.
        detector: The first teacher.
        names: File names of the frames.

    Raises:
        CahqpError: A file cannot be read, or contains none of the frames.
    """
    externals = [ExternalPredictions(path, detector.classes, options.prediction_images) for path in options.predictions]
    for external in externals:
        external.check(names)
    return Ensemble([detector, *map(load, options.teachers)], parse_views(options.views), externals, options.fuse)
