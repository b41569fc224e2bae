"""CA-HQP: adapt a teacher to unlabelled frames with prompts, adversarial alignment and its own averaged labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from cahqp.adaptation import (
    StationaryMemory,
    VisualPrompt,
    class_scores,
    mask_blocks,
    select,
    soften,
)
from cahqp.association import DOUBTFUL_SHARE
from cahqp.detectors import DINO
from cahqp.detectors.base import Detector, Output
from cahqp.detectors.losses.targets import pad_targets
from cahqp.detectors.prompts.visual_prompt import record_attention
from cahqp.errors import ConfigError
from cahqp.frame import Frame
from cahqp.structures import Batch, Detections, Targets, valid_sizes
from cahqp.training.base import OptimizerSettings
from cahqp.training.ca_hqp.alignment import SOURCE, TARGET, AligningModule, Passed, counted_fully
from cahqp.training.ca_hqp.domain_passes import batch_norms, frozen_bn_stats, join, part, part_of_output, zeroed
from cahqp.training.ca_hqp.factory import (
    build_dqfa,
    build_metric,
    build_prompt,
    build_thresholds,
    build_tiafa,
    check_carried,
    check_source_free,
    choose_trainable,
)
from cahqp.training.ca_hqp.monitoring import ema_distance, of_prompt, of_pseudo_labels
from cahqp.training.ca_hqp.settings import (
    AlignmentSettings,
    BatchNorm,
    Passes,
    PromptSettings,
    PseudoLabelSettings,
    Trainable,
    check_settings,
)
from cahqp.training.callbacks.ema import EMA

__all__ = ["AlignmentSettings", "PromptSettings", "PseudoLabelSettings", "TeacherAdaptation"]


class TeacherAdaptation(AligningModule):
    """Adapt a teacher without target labels; the weights of the last step are kept.

    A step trains on labelled source frames and on strong views of target frames, labelled by the average of the
    weights so far on weak views of the same frames. The last step is selected, not the best source validation: that
    would prefer the teacher that adapted least. Without labelled source frames it adapts source-free: on target frames
    alone, with alignment off.

    Args:
        weights: Model file of the teacher to adapt.
        optimizer: Of everything that trains.
        prompt: The Visual Prompt Generator.
        alignment: DQFA and TIAFA.
        pseudo_labels: Of the target frames.
        trainable: What of the teacher trains: `all`; `prompts` alone; `prompts+norms`, the scales of all norms too;
            `prompts+transformer`, everything but the backbone.
        batch_norm: Which frames move the BatchNorm buffers, whatever trains: of `both` domains, of `source` or `target`
            alone, or `freeze`: none, and the buffers normalise in training too.
        passes: Source and target in `separate` passes, each with its own BatchNorm statistics, or in a `joint` one.
        activation_checkpointing: Compute backbone and encoder again in the backward pass to save memory; see `DINO`.

    Attributes:
        pseudo_labelled: The weak views of the last step with their labels, whose weights are the scores.

    """

    selection = "last"
    adapts = True
    pseudo_labelled: Batch | None = None

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
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(weights=weights, optimizer=optimizer)
        self.prompt = prompt or PromptSettings()
        self.alignment = alignment or AlignmentSettings()
        self.pseudo_labels = pseudo_labels or PseudoLabelSettings()
        self.batch_norm, self.passes = batch_norm, passes
        check_settings(self.prompt, self.alignment, self.pseudo_labels, batch_norm, passes)
        if not isinstance(self.detector, DINO):
            message = f"{weights} holds a {type(self.detector).__name__}; adaptation needs a DINO teacher."
            raise ConfigError(message)
        self.detector.activation_checkpointing = activation_checkpointing
        if trainable == "prompts" and not self.prompt.enabled:
            message = "trainable: prompts needs prompt.enabled: true, or nothing would train."
            raise ConfigError(message)
        self._take_prompt(self.detector)
        self.dqfa = build_dqfa(self.detector, self.alignment)
        self.tiafa = build_tiafa(self.detector, self.alignment)
        self.metric_term = build_metric(self.detector, self.prompt)
        choose_trainable(self.detector, trainable)
        self.thresholds = build_thresholds(self.detector, self.pseudo_labels)
        self.stationary = (
            StationaryMemory(self.pseudo_labels.stationary_weight) if self.pseudo_labels.stationary_weight < 1 else None
        )
        self.train()

    def _take_prompt(self, detector: DINO) -> None:
        """Attach a prompt where one is asked for, or go on with the one that the teacher carries.

        Switched off, a carried prompt still is a part of that teacher, but nothing of VPG trains.
        """
        carried = detector.prompt
        if not self.prompt.enabled:
            if carried is not None:
                carried.requires_grad_(False)
        elif isinstance(carried, VisualPrompt):
            check_carried(carried, self.prompt)
        else:
            detector.prompt = build_prompt(detector, self.prompt)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; frozen BatchNorm layers evaluate in both."""
        super().train(mode)
        if mode and self.batch_norm == "freeze":
            for norm in batch_norms(self.detector):
                norm.eval()
        return self

    def setup(self, stage: str) -> None:
        """Find out whether there are source frames; without them the alignment rests.

        Raises:
            ConfigError: The data are of another kind, what is left switched on needs source frames, or nothing is left.
        """
        super().setup(stage)
        # Lightning gives data without a source to any module; only ours have the attribute.
        self.source_free = stage == "fit" and not getattr(self.trainer.datamodule, "source", True)  # type: ignore[attr-defined]
        if not self.source_free:
            return
        check_source_free(self.pseudo_labels, self.batch_norm, self.passes)
        for branch in (self.dqfa, self.tiafa):
            if branch is not None:
                branch.requires_grad_(False)

    def on_fit_start(self) -> None:
        """Find the average that labels the target frames, and say what trains."""
        self._average()
        if self.source_free:
            self.print("No data.source: source-free adaptation by the mean teacher; DQFA and TIAFA are off.")
        if self.detector.prompt is not None and not self.prompt.enabled:
            self.print(
                "The teacher carries a prompt: with prompt.enabled: false it stays in use and does not train. "
                "To train it set prompt.enabled: true; to be without it start from a teacher that has none."
            )
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
        """Return the averaged teacher's labels for weak views, in pixels of the batch; their weights are the scores."""
        teacher, settings = self._average(), self.pseudo_labels
        thresholds = self.thresholds.values
        images = teacher.preprocessing.normalise(batch.images, batch.padding_mask)
        output: Output = teacher(images, batch.padding_mask)
        found = [
            select(
                self._settled(detections, frame, size),
                thresholds,
                settings.nms_iou,
                settings.class_agnostic,
                settings.max_boxes,
                thresholds * settings.ignore_share,
                weight_by_score=True,
            )
            for detections, frame, size in zip(
                teacher.decode(output, output.sizes), batch.frames, output.sizes, strict=True
            )
        ]
        if settings.targets == "soft":
            self._soft_scores = class_scores(output, found)
        return found

    def _settled(self, detections: Detections, frame: Frame, size: Tensor) -> Detections:
        """Return detections of which those count less whose place is taken in the recording's other frames, too.

        One that would be a pseudo-label but for this falls no deeper than the doubtful band, where there is one: it may
        be a parked car.
        """
        if self.stationary is None:
            return detections
        boxes = detections.boxes if frame.view is None else frame.view.to_original(detections.boxes, size)
        scores, limits = detections.scores, self.thresholds.values[detections.labels]
        self.stationary.note(frame, boxes[scores >= DOUBTFUL_SHARE * limits])
        band = self.pseudo_labels.ignore_share * limits
        looked_at = scores >= band  # the others train nothing either way
        settled = scores.clone()
        settled[looked_at] *= self.stationary.factors(frame, boxes[looked_at])
        if self.pseudo_labels.ignore_share < 1:
            settled = torch.where(scores >= limits, torch.maximum(settled, band), settled)
        return replace(detections, scores=settled)

    @torch.no_grad()
    def confidence(self, batch: Batch) -> list[float]:
        """Return the score-weighted mean score of each frame's detections, 0 for a frame without any.

        Labels are not needed, so this may order target frames. The batch decides the device.
        """
        self.to(batch.images.device)
        self.detector.eval()
        found = self.detections(batch)
        self.train()
        return [float(d.scores.square().sum() / d.scores.sum().clamp(min=1e-9)) for d in found]

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:
        """Return the loss on source labels and target pseudo-labels, with the terms that CA-HQP adds."""
        with record_attention(self.detector.prompt if self._watching else None) as self._prompt_attention:
            return self._adaptation_loss(batch)

    def _adaptation_loss(self, batch: dict[str, Batch]) -> Tensor:
        source, target = batch.get("source"), None
        if source is not None and self.trained_modules():
            source = self._masked(source)  # or discriminators would know the target by its blocks
        if self.pseudo_labels.weight or "tiafa" in self.trained_modules() or self.metric_term is not None:
            target = self._pseudo_labelled(batch["target_weak"], batch["target_strong"])
        elif self.trained_modules():
            target = self._masked(batch["target_strong"])  # DQFA looks at whole scenes: labels would train nothing
        parts: dict[str, Tensor] = {}
        passed: Passed = {}
        if source is not None and target is not None and self.passes == "joint":
            passed = self._joint_pass(source, target)
            parts["source"] = self._detection_loss(passed[SOURCE][1], source, "source")
        elif source is not None:
            with frozen_bn_stats(self._norms if self.batch_norm == "target" else ()):
                parts["source"], output = self.supervised_loss(source, "source")
            passed[SOURCE] = (source, output)
        if target is not None:
            if TARGET not in passed:
                with frozen_bn_stats(self._norms if self.batch_norm == "source" else ()):
                    passed[TARGET] = (target, self.detect(target, self._noised(target)))
            if self.pseudo_labels.weight:
                parts["target"] = self.pseudo_labels.weight * self._target_loss(*passed[TARGET])
            parts |= self.added(passed)
        if self.pseudo_labels.dynamic and SOURCE in passed:
            self._observe(*passed[SOURCE])
        loss = torch.stack(list(parts.values())).sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["target_weak"]))
        return loss

    def _pseudo_labelled(self, weak: Batch, strong: Batch) -> Batch:
        """Return the strong views with the weak views' labels, whose weights are their scores."""
        labels = [replace(new, seed=old.seed) for new, old in zip(self.label(weak), strong.targets, strict=True)]
        self.log("target/boxes", sum(map(len, labels)) / len(strong), batch_size=len(strong))
        if self._watching:
            for name, value in of_pseudo_labels(labels, self.detector.classes, self.thresholds.values).items():
                self.log(name, value, batch_size=len(strong))
        self.pseudo_labelled = replace(weak, targets=labels)
        return self._masked(replace(strong, targets=labels))

    def _masked(self, batch: Batch) -> Batch:
        """Return a batch with the asked-for share of blocks hidden, which follow the seed of each image."""
        settings, seeds = self.pseudo_labels, [target.seed for target in batch.targets]
        if not settings.masked:
            return batch
        mean = self.detector.preprocessing.mean
        sizes = [(int(height), int(width)) for height, width in valid_sizes(batch.padding_mask).tolist()]
        images = mask_blocks(batch.images, settings.masked, settings.mask_block, mean, seeds, sizes)
        return replace(batch, images=images)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """See whether this step's numbers are written: what costs more than a sum is not computed for nothing."""
        super().on_train_batch_start(batch, batch_idx)
        trainer: Any = self.trainer
        self._watching = trainer.log_every_n_steps > 0 and (self.global_step + 1) % trainer.log_every_n_steps == 0

    @property
    def _norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        return batch_norms(self.detector)

    def _noised(self, target: Batch) -> list[Targets] | None:
        """Return what the denoising queries of target frames start from."""
        return target.targets if self.pseudo_labels.denoising and self.pseudo_labels.weight else None

    def _joint_pass(self, source: Batch, target: Batch) -> Passed:
        """Return both domains' parts of one pass."""
        joined, count = join(source, target), len(source)
        noised = self._noised(target)
        output = self.detect(joined, [*source.targets, *(noised or [Targets.empty(self.device)] * len(target))])
        outputs = part_of_output(output, slice(0, count)), part_of_output(output, slice(count, None))
        if noised is None:
            outputs[1].denoising = None
        batches = part(joined, slice(0, count)), part(joined, slice(count, None))
        return {domain: (batches[domain], outputs[domain]) for domain in (SOURCE, TARGET)}

    def _detection_loss(self, output: Output, batch: Batch, prefix: str) -> Tensor:
        return self._summed(self.criterion(output, batch.targets), prefix, len(batch))

    def _target_loss(self, target: Batch, output: Output) -> Tensor:
        settings = self.pseudo_labels
        targets = target.targets if settings.weight_by_score else [counted_fully(t) for t in target.targets]
        losses = self.criterion(output, targets)
        if settings.targets == "soft":
            losses["class"] = soften(losses["class"], self.criterion, output, targets, self._soft_scores)
        if not settings.box_loss:
            losses = zeroed(losses, ["bbox", "giou", "dn_bbox", "dn_giou"])
        return self._summed(losses, "target", len(target))

    def _summed(self, losses: dict[str, Tensor], prefix: str, batch_size: int) -> Tensor:
        for name, value in losses.items():
            self.log(f"{prefix}/{name}", value.sum(), batch_size=batch_size)
        return torch.stack([value.sum() for value in losses.values()]).sum()

    @torch.no_grad()
    def _observe(self, source: Batch, output: Output) -> None:
        """Tell the dynamic thresholds how sure the learner is of source objects."""
        padded = pad_targets(source.targets, output.sizes)
        logits = output.pred_logits[None].float()
        matches = self.criterion.matcher(logits, output.pred_boxes[None].float(), padded)
        labels = padded.labels[matches.image, matches.target]
        self.thresholds.observe(logits.sigmoid()[0, matches.image, matches.query, labels], labels)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Remember what the step has seen, and log what is watched beside the losses.

        Only now: a step that an alarm stops is kept with what it knew, and its replay makes the same step again.
        """
        if self.stationary is not None:
            self.stationary.commit()
        if self.tiafa is not None and not self.source_free:
            self.tiafa.commit()
        if not self._watching:
            return
        watched = of_prompt(self._prompt_attention[-1]) if self._prompt_attention else {}
        watched["ema/distance"] = ema_distance(self.detector, self._average())
        for name, value in watched.items():
            self.log(name, value, batch_size=1)

    def on_train_epoch_end(self) -> None:
        """Move the dynamic thresholds."""
        if self.pseudo_labels.dynamic:
            self.thresholds.update()
