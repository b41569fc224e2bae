"""CA-HQP teacher adaptation: visual prompts, adversarial alignment and self-training on pseudo-labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from cahqp.adaptation.domain_adversary import SOURCE, TARGET
from cahqp.adaptation.masking import mask_batch
from cahqp.adaptation.soft_targets import soften
from cahqp.detectors.base import Detector
from cahqp.detectors.prompts.injected import record_injected
from cahqp.detectors.prompts.visual_prompt import record_attention
from cahqp.errors import ConfigError
from cahqp.structures import Batch, Targets
from cahqp.training.base import DetectionModule, OptimizerSettings, report_nonfinite
from cahqp.training.ca_hqp.alignment import Alignment, Progress, with_full_weight
from cahqp.training.ca_hqp.domain_passes import DomainPass, Passes, batch_norms, frozen_bn_stats, joint_pass, zeroed
from cahqp.training.ca_hqp.factory import attach_prompt, check_source_free, choose_trainable, enable_checkpointing
from cahqp.training.ca_hqp.gradient_share import gradient_shares
from cahqp.training.ca_hqp.labelling import PseudoLabeller, PseudoLabels
from cahqp.training.ca_hqp.monitoring import (
    NeighbourMonitor,
    PromptMonitor,
    attention_metrics,
    ema_distance,
    injected_by_domain,
    label_metrics,
)
from cahqp.training.ca_hqp.settings import (
    AlignmentSettings,
    BatchNorm,
    PassMode,
    PromptSettings,
    PseudoLabelSettings,
    Trainable,
    check_settings,
)
from cahqp.training.callbacks.ema import find_ema
from cahqp.training.distillation.loss import DistillationCriterion, DistillationSettings


class TeacherAdaptation(DetectionModule):
    """Adapt a teacher without target labels and keep the weights of the last step.

    A step trains on labelled source frames and on strong views of target frames. The average of the weights so far
    (EMA) labels weak views of the same target frames. The last step is kept because the best source validation would
    select the teacher that adapted least.

    Args:
        weights: Model file of the teacher to adapt.
        optimizer: Settings of the optimizer.
        prompt: Settings of the Visual Prompt Generator.
        alignment: Settings of DQFA and TIAFA.
        pseudo_labels: Settings of the pseudo-labels of target frames.
        trainable: Part of the teacher that trains: `all`; `prompts`; `prompts+norms`, which adds the scales of all
            norms; `prompts+transformer`, which is everything but the backbone.
        batch_norm: Frames that update the BatchNorm buffers: those of `both` domains, of `source` or of `target`. With
            `freeze` none do, and the buffers also normalise in training.
        domain_passes: Source and target in `separate` passes, each with its own BatchNorm statistics, or in one `joint`
            pass.
        activation_checkpointing: Recompute backbone and encoder in the backward pass to save memory. DINO only.
        source_free: Adapt on target frames alone, with DQFA and TIAFA off. The command line sets it if `data.source` is
            empty.
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
        domain_passes: PassMode = "separate",
        activation_checkpointing: bool = False,
        source_free: bool = False,
    ) -> None:
        super().__init__(weights=weights, optimizer=optimizer)
        self.prompt = prompt or PromptSettings()
        self.pseudo_labels = pseudo_labels or PseudoLabelSettings()
        self.batch_norm, self.domain_passes, self.source_free = batch_norm, domain_passes, source_free
        alignment = alignment or AlignmentSettings()
        check_settings(self.prompt, alignment, self.pseudo_labels, batch_norm, domain_passes)
        if activation_checkpointing:
            enable_checkpointing(self.detector)
        if trainable == "prompts" and not self.prompt.enabled:
            message = "trainable: prompts needs prompt.enabled: true, or nothing would train."
            raise ConfigError(message)
        attach_prompt(self.detector, self.prompt)
        self.alignment = Alignment(self.detector, alignment, self.prompt)
        choose_trainable(self.detector, trainable)
        self.dense_criterion = DistillationCriterion(DistillationSettings())
        self.labeller = PseudoLabeller(self.detector, self.pseudo_labels)
        self.prompts = PromptMonitor()
        self.neighbours = NeighbourMonitor(alignment)
        self.train()

    @report_nonfinite
    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> dict[str, Any]:
        """Train on the source, on the pseudo-labelled target, and on the alignment of the two.

        Returns:
            `loss`; `pseudo_labels`, one per target frame, or `None` if no term needs them; `attention`, the weights of
            the prompt's components per pass; `injected`, the prompts' vectors by domain.
        """
        labels = self.label(batch["target_weak"])
        source, target = self.source_view(batch), self.target_view(batch["target_strong"], labels)
        prompt = self.detector.prompt
        with record_attention(prompt) as attention, record_injected(prompt) as injected:
            passes = self.run_passes(source, target, labels)
        losses = self.source_loss(passes) | self.target_loss(passes, labels) | self.alignment_losses(passes)
        self.log_gradient_shares(losses, passes)
        loss = self.total_loss(losses, batch["target_weak"])
        return {
            "loss": loss,
            "pseudo_labels": None if labels is None else labels.targets,
            "attention": attention,
            "injected": injected_by_domain(injected, passes),
        }

    def label(self, weak: Batch) -> PseudoLabels | None:
        """Return the averaged teacher's labels for weak target views; `None` if no term needs boxes."""
        if not (self.pseudo_labels.weight or self.alignment.needs_boxes):
            return None
        labels = self.labeller.label(self.averaged_teacher(), weak)
        self.log("target/boxes", sum(map(len, labels.targets)) / len(weak), batch_size=len(weak))
        return labels

    def source_view(self, batch: dict[str, Batch]) -> Batch | None:
        """Return the source frames, masked like the target if discriminators could tell the domains by the blocks."""
        source = batch.get("source")
        if source is None and not self.source_free:
            message = (
                "The batch has no source frames: pass source_free=True to TeacherAdaptation, or add source frames."
            )
            raise ConfigError(message)
        return self._masked(source) if source is not None and self.alignment.adversaries else source

    def target_view(self, strong: Batch, labels: PseudoLabels | None) -> Batch | None:
        """Return the strong target views with their labels; `None` if no term trains on the target."""
        if labels is not None:
            targets = [replace(new, seed=old.seed) for new, old in zip(labels.targets, strong.targets, strict=True)]
            strong = replace(strong, targets=targets)
        return self._masked(strong) if labels is not None or self.alignment.adversaries else None

    def run_passes(self, source: Batch | None, target: Batch | None, labels: PseudoLabels | None) -> Passes:
        """Return the detector's outputs for both domains."""
        scores = None if labels is None else labels.class_scores
        if source is not None and target is not None and self.domain_passes == "joint":
            return joint_pass(self.detect, source, target, self._denoised(target), scores)
        passes: Passes = {}
        norms = batch_norms(self.detector)
        if source is not None:
            with frozen_bn_stats(norms if self.batch_norm == "target" else ()):
                passes[SOURCE] = DomainPass(source, self.detect(source, source.targets))
        if target is not None:
            with frozen_bn_stats(norms if self.batch_norm == "source" else ()):
                passes[TARGET] = DomainPass(target, self.detect(target, self._denoised(target)), scores)
        return passes

    def source_loss(self, passes: Passes) -> dict[str, Tensor]:
        """Return the detection loss on the source, and let the dynamic thresholds observe the matched objects."""
        if SOURCE not in passes:
            return {}
        source = passes[SOURCE]
        if self.pseudo_labels.dynamic:
            self.labeller.observe(source, self.criterion)
        return {"source": self.detection_loss(source.output, source.batch, "source")}

    def target_loss(self, passes: Passes, labels: PseudoLabels | None = None) -> dict[str, Tensor]:
        """Return the weighted detection loss on the pseudo-labels, or the distillation loss for dense targets."""
        settings = self.pseudo_labels
        if TARGET not in passes or not settings.weight:
            return {}
        batch, output, scores = passes[TARGET].batch, passes[TARGET].output, passes[TARGET].class_scores
        if labels is not None and labels.soft is not None:
            losses = self.dense_criterion(output, labels.soft)
            losses = losses if settings.box_loss else zeroed(losses, ["soft_bbox", "soft_giou"])
            return {"target": settings.weight * self.log_total(losses, "target", len(batch))}
        targets = batch.targets if settings.weight_by_score else [with_full_weight(t) for t in batch.targets]
        losses = self.criterion(output, targets)
        if scores is not None:
            losses["class"] = soften(losses["class"], self.criterion, output, targets, scores)
        if not settings.box_loss:
            losses = zeroed(losses, ["bbox", "giou", "dn_bbox", "dn_giou"])
        return {"target": settings.weight * self.log_total(losses, "target", len(batch))}

    def alignment_losses(self, passes: Passes) -> dict[str, Tensor]:
        """Return the weighted losses of DQFA, TIAFA and the metric term, as far as they are on."""
        if TARGET not in passes:
            return {}
        progress = Progress(self.global_step, self.trainer.estimated_stepping_batches, self.run_seed)
        result = self.alignment(passes, self.detector.prompt, progress)
        self.neighbours.update(result.neighbours)
        metrics = {f"align/{name}": loss for name, loss in result.losses.items()}
        metrics |= {f"discriminator/{name}": value for name, value in result.accuracy.items()}
        if result.neighbours:
            metrics["tracks/matched"] = sum(result.neighbours) / len(result.neighbours)
        self.log_dict(metrics, batch_size=len(passes[TARGET].batch))
        return {name: self.alignment.weights[name] * loss for name, loss in result.losses.items()}

    def log_gradient_shares(self, losses: dict[str, Tensor], passes: Passes) -> None:
        """Log the gradient share of each term that is on, in steps whose metrics are written."""
        interval = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if interval == 0 or (self.global_step + 1) % interval:
            return
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # of 16-mixed
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        layers = self.alignment.settings.dqfa_layers
        self.log_dict(gradient_shares(losses, passes, self.detector, layers, scale), batch_size=1)

    def total_loss(self, losses: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the sum of the weighted losses, and log it."""
        loss = torch.stack(list(losses.values())).sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def _denoised(self, target: Batch) -> list[Targets] | None:
        """Return the boxes from which the denoising queries of target frames start."""
        settings = self.pseudo_labels
        return target.targets if settings.denoising and settings.weight and settings.targets != "dense" else None

    def _masked(self, batch: Batch) -> Batch:
        settings = self.pseudo_labels
        return mask_batch(batch, settings.masked, settings.mask_block, self.detector.preprocessing.mean)

    def averaged_teacher(self) -> Detector:
        """Return the averaged teacher in evaluation mode; read it, never train it.

        Raises:
            ConfigError: The EMA callback is missing.
        """
        ema = find_ema(self.trainer)
        if ema is None:
            message = "Adaptation needs the EMA callback: its average labels the target frames."
            raise ConfigError(message)
        detector = ema.average.detector
        assert isinstance(detector, Detector)
        return detector.eval()

    @torch.no_grad()
    def confidence(self, batch: Batch) -> list[float]:
        """Return the score-weighted mean score of each frame's detections, 0 for a frame without any.

        Labels are not needed, so this may order target frames. The module moves to the device of the batch.
        """
        self.to(batch.images.device)
        self.detector.eval()
        found = self.detections(batch)
        self.train()
        return [float(d.scores.square().sum() / d.scores.sum().clamp(min=1e-9)) for d in found]

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; frozen BatchNorm layers stay in evaluation mode."""
        super().train(mode)
        if mode and self.batch_norm == "freeze":
            for norm in batch_norms(self.detector):
                norm.eval()
        return self

    def trained_modules(self) -> dict[str, nn.Module]:
        """Return the alignment branches that are on."""
        return dict(self.alignment.adversaries)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups; `discriminator_factor` multiplies the learning rate of the alignment branches."""
        branch = {id(p) for module in self.trained_modules().values() for p in module.parameters()}
        groups = []
        for group in super().parameter_groups():
            for inside, factor in ((False, 1.0), (True, self.alignment.settings.discriminator_factor)):
                parameters = [p for p in group["params"] if (id(p) in branch) == inside]
                if parameters:
                    groups.append({**group, "params": parameters, "lr": group["lr"] * factor})
        return groups

    def setup(self, stage: str) -> None:
        """Prepare source-free adaptation.

        Raises:
            ConfigError: A setting needs source frames, or nothing is left to train on.
        """
        if stage == "fit" and self.source_free:
            check_source_free(self.pseudo_labels, self.batch_norm, self.domain_passes)
            self.alignment.switch_off_adversaries()

    def on_fit_start(self) -> None:
        """Check that there is an average, and print what trains."""
        self.averaged_teacher()
        if self.source_free:
            self.print("data.source is empty: source-free adaptation by the mean teacher; DQFA and TIAFA are off.")
        if self.detector.prompt is not None and not self.prompt.enabled:
            self.print(
                "The teacher carries a prompt: with prompt.enabled: false it stays in use and does not train. "
                "Set prompt.enabled: true to train it, or start from a teacher without a prompt."
            )
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        self.print(f"{trained:,} of {sum(p.numel() for p in self.parameters()):,} parameters train.")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Store what the step has seen, and log metrics beside the losses.

        Memories are written after the step, so that the replay of a step that an alarm stopped computes the same.
        """
        self.labeller.commit()
        self.alignment.commit()
        self.prompts.update(outputs["injected"])
        if self.prompt.enabled and self.detector.prompt is not None:
            self.detector.prompt.commit()
        interval = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if interval == 0 or self.global_step % interval:
            return
        metrics = {"ema/distance": ema_distance(self.detector, self.averaged_teacher())}
        if outputs["pseudo_labels"] is not None:
            thresholds = self.labeller.thresholds.values
            metrics |= label_metrics(outputs["pseudo_labels"], self.detector.classes, thresholds)
        if outputs["attention"]:
            metrics |= attention_metrics(outputs["attention"][-1]) | self.prompts.metrics()
        self.log_dict(metrics, batch_size=1)

    def on_train_epoch_end(self) -> None:
        """Update the dynamic thresholds."""
        if self.pseudo_labels.dynamic:
            self.labeller.thresholds.update()
