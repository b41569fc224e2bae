"""Alignment losses of CA-HQP: DQFA, TIAFA and the metric term on the components of the prompt."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from cahqp.adaptation.domain_adversary import DOMAINS, SOURCE, TARGET, dann_schedule
from cahqp.adaptation.instances import instance_features
from cahqp.data.seeding import seed_of
from cahqp.detectors.base import Detector
from cahqp.detectors.prompts.visual_prompt import VisualPrompt
from cahqp.errors import ConfigError
from cahqp.frame import Frame
from cahqp.structures import Targets
from cahqp.training.ca_hqp.domain_passes import DomainPass, Passes
from cahqp.training.ca_hqp.factory import build_dqfa, build_metric, build_tiafa
from cahqp.training.ca_hqp.settings import AlignmentSettings, PromptSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Position of a step in the training.

    Attributes:
        step: Optimizer steps so far.
        total: Optimizer steps of the whole training; infinite without a limit.
        seed: Seed of the run.
    """

    step: int
    total: float
    seed: int


@dataclass
class AlignmentResult:
    """Losses of one step and the numbers to log beside them.

    Attributes:
        losses: Unweighted losses by name; adversarial ones are means over the two domains.
        accuracy: Discriminator accuracies by branch and domain, such as `instance_source`; only finite ones.
        neighbours: Whether the bank of tracks contained a neighbour, for each timed target frame.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    accuracy: dict[str, Tensor] = field(default_factory=dict)
    neighbours: list[bool] = field(default_factory=list)


class Alignment(nn.Module):
    """Alignment of source and target by domain queries (DQFA) and instances (TIAFA), and the prompt's metric term.

    Args:
        detector: Teacher whose features are aligned; it does not become a submodule.
        settings: Settings of DQFA and TIAFA.
        prompt: Settings of the prompt, which include the weight of the metric term.

    Attributes:
        dqfa: `None` if DQFA is off.
        tiafa: `None` if TIAFA is off.
        metric: `None` if the metric term is off.
        adversaries: DQFA and TIAFA by name, as far as they are on; empty without source frames.
    """

    def __init__(self, detector: Detector, settings: AlignmentSettings, prompt: PromptSettings) -> None:
        super().__init__()
        self.settings = settings
        self.weights = {"dqfa": settings.dqfa, "tiafa": settings.tiafa, "metric": prompt.metric}
        self.dqfa = build_dqfa(detector, settings)
        self.tiafa = build_tiafa(detector, settings)
        self.metric = build_metric(detector, prompt)
        branches: dict[str, nn.Module | None] = {"dqfa": self.dqfa, "tiafa": self.tiafa}
        self.adversaries = {name: branch for name, branch in branches.items() if branch is not None}
        self._warned_of_times = False

    def switch_off_adversaries(self) -> None:
        """Leave DQFA and TIAFA out of training: without source frames there is nothing to align with."""
        for branch in self.adversaries.values():
            branch.requires_grad_(False)
        self.adversaries = {}

    @property
    def needs_boxes(self) -> bool:
        """Whether a term depends on boxes; DQFA alone aligns whole scenes."""
        return "tiafa" in self.adversaries or self.metric is not None

    def forward(self, passes: Passes, prompt: VisualPrompt | None, progress: Progress) -> AlignmentResult:
        """Return the losses of the terms that are on.

        Args:
            passes: Passes of this step.
            prompt: Prompt of the teacher; the metric term draws its components to the classes.
            progress: Position of the step in the training.
        """
        result = AlignmentResult()
        if self.adversaries:
            self._align_domains(passes, progress, result)
        if self.metric is not None:
            assert prompt is not None
            result.losses["metric"] = self._metric_loss(passes, prompt)
        return result

    def _align_domains(self, passes: Passes, progress: Progress, result: AlignmentResult) -> None:
        """Add the adversarial losses and their accuracies to a result."""
        scale, with_time = self._reversal(progress), self._both_timed(passes)
        losses: dict[str, list[Tensor]] = {}
        for domain, passed in passes.items():
            label = self._domain_label(domain, progress)
            if self.dqfa is not None:
                loss, accuracy = self.dqfa(passed.output.features, label, scale)
                losses.setdefault("dqfa", []).append(loss)
                _add_accuracy(result, accuracy, domain)
            if self.tiafa is not None:
                frames = self._frames(passed, domain, progress) if with_time else None
                loss, accuracy, neighbours = self._align_instances(passed, domain, label, scale, frames)
                losses.setdefault("tiafa", []).append(loss)
                _add_accuracy(result, accuracy, domain)
                result.neighbours += neighbours if domain == TARGET else []
        result.losses |= {name: torch.stack(parts).mean() for name, parts in losses.items()}

    def _align_instances(
        self, passed: DomainPass, domain: int, label: int, scale: float, frames: list[Frame] | None
    ) -> tuple[Tensor, dict[str, Tensor], list[bool]]:
        assert self.tiafa is not None
        instances = passed.batch.targets if passed.instances is None else passed.instances
        targets = instances if self.settings.soft_masks else [with_full_weight(t) for t in instances]
        track_boxes = _boxes_in_originals(passed, instances)
        if track_boxes is None:
            frames = None
        is_source = domain == SOURCE
        features, size = passed.output.features, passed.image_size
        result: tuple[Tensor, dict[str, Tensor], list[bool]] = self.tiafa(
            features, targets, size, label, scale, frames, track_boxes, is_source
        )
        return result

    def _reversal(self, progress: Progress) -> float:
        """Return the scale of the reversed gradient.

        Raises:
            ConfigError: The scale depends on the number of steps, and the training has no limit of steps.
        """
        if self.settings.schedule == "constant":
            return self.settings.reversal
        if math.isinf(progress.total):
            message = (
                "alignment.schedule: dann grows over the steps of the training, but their number is unlimited. "
                "Set trainer.max_epochs or trainer.max_steps, or alignment.schedule: constant."
            )
            raise ConfigError(message)
        return dann_schedule(progress.step / max(1, progress.total), self.settings.reversal)

    def _both_timed(self, passes: Passes) -> bool:
        """Return whether tracks may smooth features; smooth features of one domain alone would reveal the domain."""
        if self.tiafa is None or self.tiafa.unit == "token":
            return True
        timed = [any(frame.timestamp is not None for frame in passed.batch.frames) for passed in passes.values()]
        if any(timed) and not all(timed) and not self._warned_of_times:
            self._warned_of_times = True
            _log.warning(
                "Only %s frames have time stamps: with alignment.unit: instance TIAFA smooths the features of neither "
                "domain. Add a `timestamp` to the other frames, or use alignment.unit: token.",
                DOMAINS[list(passes)[timed.index(True)]],
            )
        return all(timed)

    def _domain_label(self, domain: int, progress: Progress) -> int:
        """Return the domain label for the discriminators; the control `shuffled_domains` draws it."""
        if self.settings.control != "shuffled_domains":
            return domain
        return seed_of(progress.seed, "domain", progress.step, domain) & 1

    def _frames(self, passed: DomainPass, domain: int, progress: Progress) -> list[Frame]:
        """Return the origins of the images; the control `shuffled_time` permutes the time stamps of the batch.

        The domain becomes part of the recording: equal names in source and target mean different recordings.
        """
        frames = [
            replace(frame, recording=f"{DOMAINS[domain]}/{frame.recording}") if frame.recording else frame
            for frame in passed.batch.frames
        ]
        if self.settings.control != "shuffled_time":
            return frames
        generator = torch.Generator().manual_seed(seed_of(progress.seed, "time", progress.step))
        times = [frames[n].timestamp for n in torch.randperm(len(frames), generator=generator).tolist()]
        return [replace(frame, timestamp=time) for frame, time in zip(frames, times, strict=True)]

    def _metric_loss(self, passes: Passes, prompt: VisualPrompt) -> Tensor:
        """Return the metric term on the instances of all domains together."""
        assert self.metric is not None
        rows, labels, weights = [], [], []
        for passed in passes.values():
            targets, features = passed.batch.targets, passed.output.features
            boxes, shapes = [t.boxes for t in targets], features.spatial_shapes
            rows.append(instance_features(features.encoder[-1], boxes, passed.image_size, shapes, features.padding))
            labels += [t.labels for t in targets]
            weights += [t.weights for t in targets]
        loss: Tensor = self.metric(prompt.generator, torch.cat(rows), torch.cat(labels), torch.cat(weights))
        return loss

    def commit(self) -> None:
        """Store the step's domain queries and instances in their memories. Every process must call this once a step."""
        if "dqfa" in self.adversaries and self.dqfa is not None:
            self.dqfa.commit()
        if "tiafa" in self.adversaries and self.tiafa is not None:
            self.tiafa.commit()


def with_full_weight(targets: Targets) -> Targets:
    """Return targets whose boxes all have the weight one."""
    return replace(targets, weights=torch.ones_like(targets.weights))


def _add_accuracy(result: AlignmentResult, accuracy: dict[str, Tensor], domain: int) -> None:
    result.accuracy |= {f"{name}_{DOMAINS[domain]}": value for name, value in accuracy.items() if value.isfinite()}


def _boxes_in_originals(passed: DomainPass, targets: list[Targets]) -> list[Tensor] | None:
    """Return each image's boxes in original pixels, which flips and crops do not change; `None` without views."""
    boxes = [
        frame.view.to_original(target.boxes, size)
        for frame, target, size in zip(passed.batch.frames, targets, passed.output.sizes, strict=True)
        if frame.view is not None
    ]
    return boxes if len(boxes) == len(targets) else None
