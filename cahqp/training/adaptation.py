"""CA-HQP: adapt a teacher to unlabelled frames with prompts, adversarial alignment and its own averaged labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cahqp.adaptation import DomainQueryAlignment, InstanceAlignment, VisualPrompt, dann_schedule, select
from cahqp.detectors import DINO
from cahqp.detectors.output import Detector, Output
from cahqp.errors import ConfigError
from cahqp.structures import Batch, Targets
from cahqp.training.base import DetectionModule, OptimizerSettings
from cahqp.training.ema import EMA
from cahqp.training.settings import (
    AlignmentSettings,
    BatchNorm,
    Passes,
    PromptSettings,
    PseudoLabelSettings,
    Trainable,
    check_settings,
)

__all__ = ["AlignmentSettings", "PromptSettings", "PseudoLabelSettings", "TeacherAdaptation"]

SOURCE, TARGET = 0, 1
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


class TeacherAdaptation(DetectionModule):
    """Adapt a teacher without target labels; the weights of the last step are kept.

    A step trains on labelled source frames and on strong views of target frames, labelled by the average of the
    weights so far on weak views of the same frames. The last step is selected, not the best source validation: that
    would prefer the teacher that adapted least.

    Args:
        weights: Model file of the teacher to adapt.
        optimizer: Of everything that trains.
        prompt: The Visual Prompt Generator.
        alignment: DQFA and TIAFA.
        pseudo_labels: Of the target frames.
        trainable: What of the teacher trains: `all`; `prompts` alone; `prompts+norms`, the scales of all norms too;
            `prompts+transformer`, everything but the backbone.
        batch_norm: Which frames move the BatchNorm buffers: of `both` domains, of `source` or `target` alone, or
            `freeze`: none, and the buffers normalise in training too.
        passes: Source and target in `separate` passes, each with its own BatchNorm statistics, or in a `joint` one.
    """

    selection = "last"

    def __init__(
        self,
        weights: Path,
        optimizer: OptimizerSettings | None = None,
        prompt: PromptSettings | None = None,
        alignment: AlignmentSettings | None = None,
        pseudo_labels: PseudoLabelSettings | None = None,
        trainable: Trainable = "all",
        batch_norm: BatchNorm = "both",
        passes: Passes = "separate",
    ) -> None:
        super().__init__(weights=weights, optimizer=optimizer)
        self.alignment = alignment or AlignmentSettings()
        self.pseudo_labels = pseudo_labels or PseudoLabelSettings()
        self.batch_norm, self.passes = batch_norm, passes
        prompt = prompt or PromptSettings()
        check_settings(prompt, self.alignment, self.pseudo_labels, batch_norm, passes)
        if not isinstance(self.detector, DINO):
            message = f"{weights} holds a {type(self.detector).__name__}; adaptation needs a DINO teacher."
            raise ConfigError(message)
        if trainable == "prompts" and not prompt.enabled and self.detector.prompt is None:
            message = "trainable: prompts needs prompt.enabled: true, or nothing would train."
            raise ConfigError(message)
        levels, dim = self.detector.level_embed.shape
        if prompt.enabled and self.detector.prompt is None:
            self.detector.prompt = _fresh_prompt(self.detector, prompt)
        self.dqfa = DomainQueryAlignment(dim, heads=_heads(self.detector), hidden=dim) if self.alignment.dqfa else None
        self.tiafa = None
        if self.alignment.tiafa:
            self.tiafa = InstanceAlignment(
                dim, levels, unit=self.alignment.unit, hidden=dim, temporal=self.alignment.temporal
            )
        self._choose_trainable(trainable)
        self._thresholds = self._resolve_thresholds()

    def _resolve_thresholds(self) -> Tensor:
        """Return (C,) lowest scores that train."""
        own, threshold = self.detector.thresholds, self.pseudo_labels.threshold
        if threshold is None and not own:
            message = "The teacher's file holds no operating thresholds: give pseudo_labels.threshold, such as 0.3."
            raise ConfigError(message)
        if isinstance(threshold, dict) and set(threshold) != set(self.detector.classes):
            classes = ", ".join(self.detector.classes)
            message = f"pseudo_labels.threshold must name every class of the teacher once ({classes}), got {threshold}."
            raise ConfigError(message)
        per_class = own if threshold is None else threshold
        return torch.tensor([per_class[n] if isinstance(per_class, dict) else per_class for n in self.detector.classes])

    def _choose_trainable(self, trainable: str) -> None:
        if trainable == "all":
            return
        norms = {
            f"{name}.{key}"
            for name, m in self.detector.named_modules()
            if isinstance(m, NORMS)
            for key in m._parameters
        }
        for name, parameter in self.detector.named_parameters():
            wanted = name.startswith("prompt.") or (trainable == "prompts+norms" and name in norms)
            wanted = wanted or (trainable == "prompts+transformer" and not name.startswith("backbone."))
            parameter.requires_grad_(wanted and parameter.requires_grad)

    def trained_modules(self) -> dict[str, nn.Module]:
        """Return the alignment branches that are on."""
        branches = {"dqfa": self.dqfa, "tiafa": self.tiafa}
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

    def on_fit_start(self) -> None:
        """Find the average that labels the target frames, and say how much trains."""
        self._average()
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        self.print(f"{trained:,} of {sum(p.numel() for p in self.parameters()):,} parameters train.")

    def _average(self) -> Detector:
        """Return the averaged teacher, to read only."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                detector = callback.average.detector
                assert isinstance(detector, Detector)
                return detector.eval()
        message = "Adaptation needs the EMA callback: its average labels the target frames."
        raise ConfigError(message)

    @torch.no_grad()
    def label(self, batch: Batch) -> list[Targets]:
        """Return the averaged teacher's labels for weak views, in pixels of the batch."""
        teacher, settings = self._average(), self.pseudo_labels
        thresholds = self._thresholds.to(batch.images.device)
        images = teacher.preprocessing.normalise(batch.images, batch.padding_mask)
        output: Output = teacher(images, batch.padding_mask)
        return [
            select(
                detections,
                thresholds,
                settings.nms_iou,
                max_boxes=settings.max_boxes,
                ignore_threshold=thresholds * settings.ignore_share,
                weight_by_score=settings.weight_by_score,
            )
            for detections in teacher.decode(output, output.sizes)
        ]

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:
        """Return the source's loss, the target's on its pseudo-labels, and the alignment's."""
        source, weak, strong = batch["source"], batch["target_weak"], batch["target_strong"]
        loss, source_output = self.supervised_loss(source, "source")
        if not (self.pseudo_labels.weight or self.trained_modules()):
            return self._logged(loss, source)
        labels = self.label(weak)
        labels = [replace(new, seed=old.seed) for new, old in zip(labels, strong.targets, strict=True)]
        self.log("target/boxes", sum(map(len, labels)) / len(strong), batch_size=len(strong))
        if self.pseudo_labels.weight:
            strong = replace(strong, targets=labels)
            target_loss, target_output = self.supervised_loss(strong, "target")
            loss = loss + self.pseudo_labels.weight * target_loss
        else:
            target_output = self.detect(strong)
        for name, part in self.align(source, source_output, replace(strong, targets=labels), target_output).items():
            self.log(f"align/{name}", part, batch_size=len(source))
            loss = loss + getattr(self.alignment, name) * part
        return self._logged(loss, source)

    def _logged(self, loss: Tensor, batch: Batch) -> Tensor:
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def align(self, source: Batch, source_output: Output, target: Batch, target_output: Output) -> dict[str, Tensor]:
        """Return the unweighted losses of the branches that are on, each the mean over the two domains."""
        scale = self.alignment.reversal
        if self.alignment.schedule == "dann":
            scale = dann_schedule(self.global_step / max(1, self.trainer.estimated_stepping_batches), scale)
        losses: dict[str, list[Tensor]] = {}
        for domain, batch, output in ((SOURCE, source, source_output), (TARGET, target, target_output)):
            if self.dqfa is not None:
                loss, accuracy = self.dqfa(output.features, domain, scale)
                losses.setdefault("dqfa", []).append(loss)
                self._log_accuracy(accuracy, domain, batch)
            if self.tiafa is not None:
                size = (batch.images.shape[2], batch.images.shape[3])
                tracked = _track_boxes(batch, output)
                loss, accuracy = self.tiafa(
                    output.features, batch.targets, size, domain, scale, batch.frames if tracked else None, tracked
                )
                losses.setdefault("tiafa", []).append(loss)
                self._log_accuracy(accuracy, domain, batch)
        return {name: torch.stack(parts).mean() for name, parts in losses.items()}

    def _log_accuracy(self, accuracy: dict[str, Tensor], domain: int, batch: Batch) -> None:
        for name, value in accuracy.items():
            if value.isfinite():
                self.log(f"discriminator/{name}_{('source', 'target')[domain]}", value, batch_size=len(batch))


def _track_boxes(batch: Batch, output: Output) -> list[Tensor] | None:
    """Return each image's boxes in original pixels, where flips and crops do not part neighbouring frames."""
    boxes = [
        frame.view.to_original(target.boxes, size)
        for frame, target, size in zip(batch.frames, batch.targets, output.sizes, strict=True)
        if frame.view is not None
    ]
    return boxes if len(boxes) == len(batch) else None


def _heads(detector: DINO) -> int:
    heads: int = detector.settings["heads"]
    return heads


def _fresh_prompt(detector: DINO, settings: PromptSettings) -> VisualPrompt:
    """Return a prompt that changes nothing yet."""
    levels, dim = detector.level_embed.shape
    prompt = VisualPrompt(
        dim, levels, settings.prompt_dim, settings.components, settings.attention, settings.injection,
        _heads(detector), settings.places, len(detector.encoder), len(detector.decoder), settings.control,
    )  # fmt: skip
    prompt.share(detector.encoder, detector.decoder)
    return prompt
