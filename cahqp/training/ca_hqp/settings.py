"""The settings of an adaptation. What CA-HQP's paper leaves open is named here; docs/adaptation.md lists it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cahqp.errors import ConfigError

Place = Literal["input", "encoder", "decoder"]
Trainable = Literal["all", "prompts", "prompts+norms", "prompts+transformer"]
BatchNorm = Literal["both", "source", "target", "freeze"]
Passes = Literal["separate", "joint"]


@dataclass
class PromptSettings:
    """The Visual Prompt Generator (CA-HQP). What the paper leaves open is a setting here.

    Attributes:
        enabled: Attach a prompt to a teacher that has none, and train it. A teacher that carries one keeps it either
            way: switched on, it trains, and the settings here must be those it was made with; switched off, it stays in
            use and does not train.
        prompt_dim: Length of a prompt.
        components: Number of components in the bank.
        attention: How components are weighed.
        injection: How the prompt enters: `add`ed; `concat`enated to the channels and fused (PromptIR); as extra
            `tokens` of a dense self-attention; or by a `cross_attention` of its own (CVPT).
        places: Where: `input`, the projected features before the encoder; `encoder`, before each of its layers;
            `decoder`, at each layer's self-attention. Extra tokens need a dense attention: `[decoder]`.
        metric: Weight of DA-VPT's metric term, which draws the components to the classes; 0 switches it off.
        control: For benchmarks alone: `constant` shows the generator no image. `other_image` gives an image the prompt
            of the next one of its batch; in evaluation, all images that of one image of the last batch in training.
    """

    enabled: bool = False
    prompt_dim: int = 128
    components: int = 4
    attention: Literal["softmax", "cosine"] = "softmax"
    injection: Literal["add", "concat", "tokens", "cross_attention"] = "add"
    places: list[Place] = field(default_factory=lambda: ["input"])
    metric: float = 0.0
    control: Literal["none", "constant", "other_image"] = "none"


@dataclass
class AlignmentSettings:
    """DQFA and TIAFA. Both are adversarial: their gradients reach the detector reversed.

    Attributes:
        dqfa: Weight of the domain queries' loss; 0 switches DQFA off.
        dqfa_form: `dense`: a query attends to all tokens (AQT); `sfa`: it goes through the detector's own layers, as a
            masked level of one cell in the encoder and as one more query in the decoder (SFA).
        dqfa_layers: Layers of encoder and decoder after which the query is judged; 0 is the first, -1 the last.
        tiafa: Weight of the instances' loss; 0 switches TIAFA off.
        unit: What TIAFA's discriminator judges: tokens under the masks, or one pooled feature per instance.
        soft_masks: Whether an instance's mask has the mass of its score, or of one.
        temporal: Steady instances by their track's past, where frames have times.
        momentum: Share of the past in a steadied instance.
        max_gap: Longest time in seconds between frames that count as neighbours.
        remembered_frames: Frames that steady their neighbours; those not seen for longest are forgotten first. The
            target's alone, but for `unit: instance` and for source boxes with weights, where both domains share them.
            The default takes 70 MB at 20 boxes per frame, with `unit: instance` 400 MB; see `TrackBank`.
        reversal: Scale of the reversed gradient.
        schedule: `constant`, or `dann`: from 0 up to `reversal` over the training.
        discriminator_factor: Learning rate of discriminators and domain queries, as a multiple.
        control: For benchmarks alone: `shuffled_domains` tells the discriminators a domain by lot, `shuffled_time`
            deals the time stamps of a batch out anew.
    """

    dqfa: float = 0.0
    dqfa_form: Literal["dense", "sfa"] = "dense"
    dqfa_layers: list[int] = field(default_factory=lambda: [0, -1])
    tiafa: float = 0.0
    unit: Literal["token", "instance"] = "token"
    soft_masks: bool = True
    temporal: bool = True
    momentum: float = 0.5
    max_gap: float = 2.0
    remembered_frames: int = 4096
    reversal: float = 0.1
    schedule: Literal["constant", "dann"] = "dann"
    discriminator_factor: float = 2.0
    control: Literal["none", "shuffled_domains", "shuffled_time"] = "none"


@dataclass
class PseudoLabelSettings:
    """Which of the averaged teacher's detections the learner trains on, and how.

    Attributes:
        weight: Weight of the target's loss; 0 switches self-training off.
        threshold: Lowest score that trains, or one per class name; `null` takes the teacher's own operating thresholds
            per class, which follow how sure that teacher is. A fixed 0.4 left a small teacher one box in ten.
        threshold_scale: Factor on the teacher's own thresholds where `threshold` is null, for what trains should be
            surer than
            what is reported: those thresholds weigh misses and false alarms alike, and of the two a false alarm teaches
            more wrong. It raises none above 0.95.
        dynamic: Let the thresholds follow after every epoch how sure the learner is of source objects (MRT).
        dynamic_factor: Of the square root of that mean probability.
        dynamic_momentum: Share of the old threshold.
        dynamic_range: Lowest and highest dynamic threshold.
        ignore_share: From this share of the threshold up to it a box is neither object nor background; 1 makes all
            below the threshold background.
        nms_iou: Overlap above which the lower-scored of two boxes is dropped; 1 keeps both.
        class_agnostic: Whether boxes of different classes are duplicates too.
        max_boxes: Most boxes of a frame.
        stationary_weight: What a score counts whose place is taken in most other frames of the recording: lit windows
            and lamps
            look like cars and never move. 1 switches this off.
        weight_by_score: A box counts by its score instead of fully.
        targets: `hard`: the best class; `soft`: the teacher's scores of all classes.
        box_loss: Whether pseudo-boxes train the places of boxes, or their classes alone.
        denoising: Whether pseudo-boxes train through denoising queries too.
        masked: Share of the strong view that is hidden in blocks (MIC); 0 hides nothing. With DQFA or TIAFA the
            source's view is masked alike, or the discriminators would know the target by its blocks.
        mask_block: Side of a hidden block in pixels of the batch.
    """

    weight: float = 1.0
    threshold: float | dict[str, float] | None = None
    threshold_scale: float = 1.3
    dynamic: bool = False
    dynamic_factor: float = 0.5
    dynamic_momentum: float = 0.9
    dynamic_range: list[float] = field(default_factory=lambda: [0.25, 0.45])
    ignore_share: float = 0.6
    nms_iou: float = 0.6
    class_agnostic: bool = True
    max_boxes: int = 100
    stationary_weight: float = 0.5
    weight_by_score: bool = False
    targets: Literal["hard", "soft"] = "hard"
    box_loss: bool = True
    denoising: bool = True
    masked: float = 0.0
    mask_block: int = 32


def check_settings(
    prompt: PromptSettings,
    alignment: AlignmentSettings,
    labels: PseudoLabelSettings,
    batch_norm: BatchNorm,
    passes: Passes,
) -> None:
    """Refuse settings that cannot be right, all together.

    Raises:
        ConfigError: Some are out of range or contradict one another.
    """
    shares = {
        "alignment.momentum": alignment.momentum,
        "pseudo_labels.dynamic_momentum": labels.dynamic_momentum,
        "pseudo_labels.ignore_share": labels.ignore_share,
        "pseudo_labels.nms_iou": labels.nms_iou,
        "pseudo_labels.masked": labels.masked,
        "pseudo_labels.stationary_weight": labels.stationary_weight,
        **_thresholds(labels.threshold),
    }
    weights = {
        "prompt.metric": prompt.metric,
        "alignment.dqfa": alignment.dqfa,
        "alignment.tiafa": alignment.tiafa,
        "alignment.reversal": alignment.reversal,
        "alignment.max_gap": alignment.max_gap,
        "alignment.discriminator_factor": alignment.discriminator_factor,
        "pseudo_labels.weight": labels.weight,
        "pseudo_labels.threshold_scale": labels.threshold_scale,
    }
    counts = {
        "prompt.prompt_dim": prompt.prompt_dim,
        "prompt.components": prompt.components,
        "alignment.remembered_frames": alignment.remembered_frames,
        "pseudo_labels.max_boxes": labels.max_boxes,
        "pseudo_labels.mask_block": labels.mask_block,
    }
    wrong = [f"{name} must lie in 0..1, got {value}." for name, value in shares.items() if not 0 <= value <= 1]
    wrong += [f"{name} must not be negative, got {value}." for name, value in weights.items() if not value >= 0]
    wrong += [f"{name} must be at least 1, got {value}." for name, value in counts.items() if value < 1]
    wrong += _contradictions(prompt, alignment, labels, batch_norm, passes)
    if wrong:
        raise ConfigError("\n".join(wrong))


def _thresholds(given: float | dict[str, float] | None) -> dict[str, float]:
    """Return thresholds by the name of their setting."""
    if given is None:
        return {}
    if isinstance(given, dict):
        return {f"pseudo_labels.threshold of {name}": value for name, value in given.items()}
    return {"pseudo_labels.threshold": given}


def _contradictions(
    prompt: PromptSettings,
    alignment: AlignmentSettings,
    labels: PseudoLabelSettings,
    batch_norm: BatchNorm,
    passes: Passes,
) -> list[str]:
    wrong = []
    if not prompt.places or len(set(prompt.places)) != len(prompt.places):
        wrong.append(f"prompt.places must name one or more different places, got {prompt.places}.")
    if prompt.injection == "tokens" and prompt.places != ["decoder"]:
        wrong.append(
            "prompt.injection: tokens needs a dense attention, which the decoder alone has: places: [decoder]."
        )
    if alignment.dqfa and not alignment.dqfa_layers:
        wrong.append("alignment.dqfa_layers must name a layer, such as [0, -1]; alignment.dqfa: 0 switches DQFA off.")
    low, *rest = [*labels.dynamic_range, -1.0]
    if len(rest) != 2 or not 0 <= low <= rest[0] <= 1:
        wrong.append(f"pseudo_labels.dynamic_range must be two numbers in 0..1, got {labels.dynamic_range}.")
    if passes == "joint" and batch_norm in ("source", "target"):
        wrong.append(f"batch_norm: {batch_norm} needs passes: separate; a joint pass has statistics of both domains.")
    return wrong
