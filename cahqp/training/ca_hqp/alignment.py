"""What CA-HQP adds to a step of self-training: the losses of domain queries, instances and prompt components."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cahqp.adaptation import (
    DomainQueryAlignment,
    InstanceAlignment,
    PromptMetric,
    SFAQueryAlignment,
    VisualPrompt,
    dann_schedule,
    instance_features,
)
from cahqp.data.seeding import seed_of
from cahqp.detectors.base import Output
from cahqp.errors import ConfigError
from cahqp.frame import Frame
from cahqp.structures import Batch, Targets
from cahqp.training.base import DetectionModule
from cahqp.training.ca_hqp.settings import AlignmentSettings, PromptSettings

_log = logging.getLogger(__name__)
_JUDGED, _FEW = 500, 0.05  # target frames that are judged together, and the share that is next to none

SOURCE, TARGET = 0, 1
Passed = dict[int, tuple[Batch, Output]]
"""Batch and output by domain; the target's boxes are pseudo-labels, whose weights are their scores."""


class AligningModule(DetectionModule):
    """A teacher with branches that align it; subclasses build them and say what a step is.

    Attributes:
        prompt: Settings of the Visual Prompt Generator.
        alignment: Settings of DQFA and TIAFA.
        dqfa: `None` where it is off.
        tiafa: `None` where it is off.
        metric_term: On the prompt's components; `None` where it is off.
        source_free: Whether there are no labelled source frames; known when training begins.
    """

    prompt: PromptSettings
    alignment: AlignmentSettings
    dqfa: DomainQueryAlignment | SFAQueryAlignment | None
    tiafa: InstanceAlignment | None
    metric_term: PromptMetric | None
    source_free = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._known: list[bool] = []
        self._told_of_tracks = self._told_of_times = False

    def trained_modules(self) -> dict[str, nn.Module]:
        """Return the alignment branches that are on."""
        branches = {} if self.source_free else {"dqfa": self.dqfa, "tiafa": self.tiafa}
        return {name: module for name, module in branches.items() if module is not None}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups; the alignment branches learn faster by `discriminator_factor`."""
        branch = {id(p) for module in self.trained_modules().values() for p in module.parameters()}
        groups = []
        for group in super().parameter_groups():
            for inside, factor in ((False, 1.0), (True, self.alignment.discriminator_factor)):
                parameters = [p for p in group["params"] if (id(p) in branch) == inside]
                if parameters:
                    groups.append({**group, "params": parameters, "lr": group["lr"] * factor})
        return groups

    def added(self, passed: Passed) -> dict[str, Tensor]:
        """Return the weighted losses of DQFA, TIAFA and the metric term, as far as they are on.

        Args:
            passed: Of this step.
        """
        weights = {"dqfa": self.alignment.dqfa, "tiafa": self.alignment.tiafa, "metric": self.prompt.metric}
        losses = {} if self.source_free else self.align(passed)
        if self.metric_term is not None:
            losses["metric"] = self._metric_loss(passed)
        for name, loss in losses.items():
            self.log(f"align/{name}", loss, batch_size=len(passed[TARGET][0]))
        return {name: weights[name] * loss for name, loss in losses.items()}

    def align(self, passed: Passed) -> dict[str, Tensor]:
        """Return the unweighted losses of the branches that are on, each the mean over the two domains.

        Args:
            passed: Of this step.
        """
        settings, scale, timed = self.alignment, self.alignment.reversal, self._timed_alike(passed)
        if settings.schedule == "dann":
            scale = dann_schedule(self.global_step / max(1, self._steps_in_all()), scale)
        losses: dict[str, list[Tensor]] = {}
        for domain, (batch, output) in passed.items():
            told = self._told_domain(domain)
            if self.dqfa is not None:
                loss, accuracy = self.dqfa(output.features, told, scale)
                losses.setdefault("dqfa", []).append(loss)
                self._log_accuracy(accuracy, domain, batch)
            if self.tiafa is not None:
                size = (batch.images.shape[2], batch.images.shape[3])
                targets = batch.targets if settings.soft_masks else [counted_fully(t) for t in batch.targets]
                tracked = _track_boxes(batch, output)
                frames = self._frames(batch, domain) if tracked and timed else None
                is_source = domain == SOURCE
                loss, accuracy = self.tiafa(output.features, targets, size, told, scale, frames, tracked, is_source)
                losses.setdefault("tiafa", []).append(loss)
                self._log_accuracy(accuracy, domain, batch)
                if domain == TARGET:
                    self._watch_tracks(self.tiafa.known, batch)
        return {name: torch.stack(parts).mean() for name, parts in losses.items()}

    def _steps_in_all(self) -> float:
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            message = (
                "alignment.schedule: dann grows with the share of the training that is done, and this one has no end "
                "in steps. Set trainer.max_epochs or trainer.max_steps, or alignment.schedule: constant."
            )
            raise ConfigError(message)
        return total

    def _timed_alike(self, passed: Passed) -> bool:
        """Say whether tracks may steady features: in one domain alone the smoothness would tell which it is."""
        if self.tiafa is None or self.tiafa.unit == "token":
            return True
        timed = [any(frame.timestamp is not None for frame in batch.frames) for batch, _ in passed.values()]
        if any(timed) and not all(timed) and not self._told_of_times:
            self._told_of_times = True
            _log.warning(
                "Only %s frames have time stamps: with alignment.unit: instance TIAFA steadies the features of neither "
                "domain then. Give the others a `timestamp`, or take alignment.unit: token.",
                ("source", "target")[list(passed)[timed.index(True)]],
            )
        return all(timed)

    def _told_domain(self, domain: int) -> int:
        """Return the domain that discriminators are told: by lot in the control of shuffled domains."""
        if self.alignment.control != "shuffled_domains":
            return domain
        return seed_of(self._seed, "domain", self.global_step, domain) & 1

    def _frames(self, batch: Batch, domain: int) -> list[Frame]:
        """Return where the images come from; in the control of shuffled time, with each other's time stamps.

        A recording of the source and one of the target may have the same name and are never the same.
        """
        name = ("source", "target")[domain]
        frames = [replace(f, recording=f"{name}/{f.recording}") if f.recording else f for f in batch.frames]
        if self.alignment.control != "shuffled_time":
            return frames
        generator = torch.Generator().manual_seed(seed_of(self._seed, "time", self.global_step))
        times = [frames[n].timestamp for n in torch.randperm(len(batch), generator=generator).tolist()]
        return [replace(frame, timestamp=time) for frame, time in zip(frames, times, strict=True)]

    def _log_accuracy(self, accuracy: dict[str, Tensor], domain: int, batch: Batch) -> None:
        for name, value in accuracy.items():
            if value.isfinite():
                self.log(f"discriminator/{name}_{('source', 'target')[domain]}", value, batch_size=len(batch))

    def _watch_tracks(self, known: list[bool], batch: Batch) -> None:
        """Log the share of target frames that found a neighbour in time, and say once if next to none do."""
        if not known:
            return
        self.log("tracks/matched", sum(known) / len(known), batch_size=len(batch))
        self._known += known
        if len(self._known) < 2 * _JUDGED:
            return
        share = sum(self._known[_JUDGED:]) / (len(self._known) - _JUDGED)  # the first ones find an empty bank
        del self._known[:_JUDGED]
        if share < _FEW and not self._told_of_tracks:
            self._told_of_tracks = True
            settings = self.alignment
            _log.warning(
                "Only %.0f %% of the last target frames found a neighbour in time: TIAFA's temporal part does next to "
                "nothing. Either frames lie further apart than alignment.max_gap (%s s), or more of them than "
                "alignment.remembered_frames (%d) are seen before a neighbour comes. Raise what is too small, or set "
                "alignment.temporal: false.",
                100 * share,
                settings.max_gap,
                settings.remembered_frames,
            )

    def _metric_loss(self, passed: Passed) -> Tensor:
        """Return the metric term on the instances of all domains together."""
        prompt = self.detector.prompt
        assert self.metric_term is not None and isinstance(prompt, VisualPrompt)
        rows, labels, weights = [], [], []
        for batch, output in passed.values():
            boxes, features = [t.boxes for t in batch.targets], output.features
            size = (batch.images.shape[2], batch.images.shape[3])
            shapes, padding = features.spatial_shapes, features.padding
            rows.append(instance_features(features.encoder[-1], boxes, size, shapes, padding))
            labels += [t.labels for t in batch.targets]
            weights += [t.weights for t in batch.targets]
        loss: Tensor = self.metric_term(prompt.generator, torch.cat(rows), torch.cat(labels), torch.cat(weights))
        return loss


def counted_fully(targets: Targets) -> Targets:
    """Return targets whose boxes all have the weight one."""
    return replace(targets, weights=torch.ones_like(targets.weights))


def _track_boxes(batch: Batch, output: Output) -> list[Tensor] | None:
    """Return each image's boxes in original pixels, where flips and crops do not part neighbouring frames."""
    boxes = [
        frame.view.to_original(target.boxes, size)
        for frame, target, size in zip(batch.frames, batch.targets, output.sizes, strict=True)
        if frame.view is not None
    ]
    return boxes if len(boxes) == len(batch) else None
