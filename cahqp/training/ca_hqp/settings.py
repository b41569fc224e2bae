"""Settings of an adaptation. They cover what the CA-HQP paper leaves open; docs/adaptation.md lists them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cahqp.errors import ConfigError

Place = Literal["input", "encoder", "decoder"]
Trainable = Literal["all", "prompts", "prompts+norms", "prompts+transformer"]
BatchNorm = Literal["both", "source", "target", "freeze"]
PassMode = Literal["separate", "joint"]


@dataclass
class PromptSettings:
    """Settings of the Visual Prompt Generator (VPG).

    Attributes:
        enabled: Train a prompt: the one that the teacher carries, whose settings must equal these, or a new one. If
            false, a prompt that the teacher carries stays in use and does not train.
        prompt_dim: Length of a prompt.
        components: Number of components in the bank.
        attention: Weights of the components. `normalized`: a softmax of cosines with a learned temperature; `cosine`:
            the cosines of CODA-Prompt; `softmax`: a softmax of dot products, in which all components had nearly the
            same weight for every image.
        injection: How the prompt enters: `add`ed; `concat`enated to the channels and fused (PromptIR); as extra
            `tokens` of a dense self-attention; or by a `cross_attention` of its own (CVPT).
        places: Where the prompt enters: `input`, the projected features before the encoder; `encoder`, before each of
            its layers; `decoder`, at each layer's self-attention. `injection: tokens` needs `[decoder]`.
        metric: Weight of the metric-learning loss of DA-VPT, which pulls each prompt component towards the features of
            a class; 0 switches it off.
        control: Control for benchmarks: `constant` hides the image from the generator. `other_image` gives an image the
            prompt of the next one of its batch; in evaluation, all images get that of one image of the last training
            batch.
    """

    enabled: bool = False
    prompt_dim: int = 128
    components: int = 4
    attention: Literal["normalized", "softmax", "cosine"] = "normalized"
    injection: Literal["add", "concat", "tokens", "cross_attention"] = "add"
    places: list[Place] = field(default_factory=lambda: ["input"])
    metric: float = 0.0
    control: Literal["none", "constant", "other_image"] = "none"


@dataclass
class AlignmentSettings:
    """Settings of DQFA and TIAFA. Both are adversarial: their gradients reach the detector reversed.

    Attributes:
        dqfa: Weight of the domain queries' loss; 0 switches DQFA off.
        dqfa_form: `dense`: a query attends to all tokens (AQT); `sfa`: it passes through copies of the detector's
            layers, as a masked level of one cell in the encoder and as one more query in the decoder (SFA).
        dqfa_layers: Layers of encoder and decoder after which the query is judged; 0 is the first, -1 the last.
        dqfa_memory: Past domain queries per domain and layer from which the discriminators learn beside those of the
            step; 0 for none.
        tiafa: Weight of the instances' loss; 0 switches TIAFA off.
        unit: Input of TIAFA's discriminators: the tokens under the masks, or one pooled feature per instance.
        soft_masks: Whether the mass of an instance's mask is its score; otherwise it is one.
        temporal: Smooth instances with the past of their track, if frames have time stamps.
        momentum: Share of the past in a smoothed instance, 0..1.
        max_gap: Longest time in seconds between frames that count as neighbours.
        remembered_frames: Frames in the bank of tracks; the frames not seen for longest are dropped first. The bank
            contains target frames only, except with `unit: instance` and for source boxes with weights. The default
            takes 70 MB at 20 boxes per frame, with `unit: instance` 400 MB; see `TrackBank`.
        reversal: Scale of the reversed gradient.
        schedule: Strength of the gradient reversal. `constant`: `reversal` throughout; `dann`: it rises from 0 to
            `reversal` during the training (DANN).
        discriminator_factor: Learning rate of discriminators and domain queries, as a factor.
        control: Control for benchmarks: `shuffled_domains` draws the domain labels of the discriminators,
            `shuffled_time` permutes the time stamps of a batch.
    """

    dqfa: float = 0.0
    dqfa_form: Literal["dense", "sfa"] = "dense"
    dqfa_layers: list[int] = field(default_factory=lambda: [0, -1])
    dqfa_memory: int = 64
    tiafa: float = 0.0
    unit: Literal["token", "instance"] = "token"
    soft_masks: bool = True
    temporal: bool = True
    momentum: float = 0.5
    max_gap: float = 2.0
    remembered_frames: int = 4096
    reversal: float = 1.0
    schedule: Literal["constant", "dann"] = "constant"
    discriminator_factor: float = 2.0
    control: Literal["none", "shuffled_domains", "shuffled_time"] = "none"


@dataclass
class PseudoLabelSettings:
    """Selection of the averaged teacher's detections as pseudo-labels, and their losses.

    Attributes:
        weight: Weight of the target's detection loss; 0 switches self-training off.
        threshold: Lowest score that trains, or one per class name. `null` uses the teacher's operating thresholds,
            because a fixed 0.4 left a small teacher one box in ten.
        threshold_scale: Factor on the teacher's operating thresholds if `threshold` is null. Those thresholds weigh
            misses and false alarms alike, but a false alarm does more harm in training. No scaled threshold exceeds
            0.95.
        dynamic: Adjust the thresholds after every epoch to the learner's scores on source objects (MRT).
        dynamic_factor: Factor on the square root of the mean score.
        dynamic_momentum: Share of the old threshold, 0..1.
        dynamic_range: Lowest and highest dynamic threshold.
        ignore_share: Boxes with scores between this share of the threshold and the threshold are ignored: neither
            object nor background. With 1 all boxes below the threshold are background.
        moving_ignore_share: Share of the threshold in place of `ignore_share` for boxes that move, for fixed cameras.
            Moving regions without a label are ignored too. `null` switches this off.
        nms_iou: Overlap above which the lower-scored of two boxes is dropped; 1 keeps both.
        class_agnostic: Whether boxes of different classes count as duplicates.
        max_boxes: Largest number of boxes per frame that train.
        stationary_weight: Score multiplier, 0..1, for boxes at a position occupied in most other frames of the
            recording: lit windows and lamps look like cars and never move. 1 switches this off.
        weight_by_score: Weight a box by its score; otherwise every box counts fully.
        count_ignored: Add the scores of ignored boxes to the number of objects that losses are divided by. Otherwise a
            frame whose objects are mostly ignored presses harder towards background.
        targets: Class targets. `hard`: the teacher's best class of each pseudo-box; `soft`: its scores of all classes;
            `dense`: every query of the teacher is a target, weighted by its score, without thresholds, ignored regions
            and denoising queries (the distillation loss of students).
        box_loss: Whether pseudo-boxes train coordinates; otherwise they train classes alone.
        denoising: Whether pseudo-boxes also train through denoising queries.
        masked: Share of the strong view that is hidden in blocks (MIC); 0 hides nothing. With DQFA or TIAFA the source
            is masked alike, because the blocks would reveal the target.
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
    moving_ignore_share: float | None = None
    nms_iou: float = 0.6
    class_agnostic: bool = True
    max_boxes: int = 100
    stationary_weight: float = 0.5
    weight_by_score: bool = False
    count_ignored: bool = False
    targets: Literal["hard", "soft", "dense"] = "hard"
    box_loss: bool = True
    denoising: bool = True
    masked: float = 0.0
    mask_block: int = 32


_SHARES = ("momentum", "dynamic_momentum", "ignore_share", "nms_iou", "masked", "stationary_weight")
_NOT_NEGATIVE = (
    *("metric", "dqfa", "dqfa_memory", "tiafa", "reversal", "max_gap", "discriminator_factor"),
    *("weight", "threshold_scale"),
)
_COUNTS = ("prompt_dim", "components", "remembered_frames", "max_boxes", "mask_block")


def check_settings(
    prompt: PromptSettings,
    alignment: AlignmentSettings,
    labels: PseudoLabelSettings,
    batch_norm: BatchNorm,
    domain_passes: PassMode,
) -> None:
    """Check ranges and combinations of settings.

    Raises:
        ConfigError: Some are out of range or contradict one another; the message lists all of them.
    """
    wrong = []
    thresholds = labels.threshold if isinstance(labels.threshold, dict) else {}
    shares = {f"pseudo_labels.threshold of {name}": value for name, value in thresholds.items()}
    for name in ("threshold", "moving_ignore_share"):
        if isinstance(value := getattr(labels, name), float | int):
            shares[f"pseudo_labels.{name}"] = value
    for group, settings in (("prompt", prompt), ("alignment", alignment), ("pseudo_labels", labels)):
        values = vars(settings)
        shares |= {f"{group}.{name}": values[name] for name in _SHARES if name in values}
        negative = [name for name in _NOT_NEGATIVE if name in values and not values[name] >= 0]
        wrong += [f"{group}.{name} must not be negative, got {values[name]}." for name in negative]
        low = [name for name in _COUNTS if name in values and values[name] < 1]
        wrong += [f"{group}.{name} must be at least 1, got {values[name]}." for name in low]
    wrong = [f"{name} must lie in 0..1, got {value}." for name, value in shares.items() if not 0 <= value <= 1] + wrong
    wrong += _contradictions(prompt, alignment, labels)
    if domain_passes == "joint" and batch_norm in ("source", "target"):
        wrong.append(
            f"batch_norm: {batch_norm} needs domain_passes: separate; a joint pass has statistics of both domains."
        )
    if wrong:
        raise ConfigError("\n".join(wrong))


def _contradictions(prompt: PromptSettings, alignment: AlignmentSettings, labels: PseudoLabelSettings) -> list[str]:
    wrong = []
    if not prompt.places or len(set(prompt.places)) != len(prompt.places):
        wrong.append(f"prompt.places must name one or more different places, got {prompt.places}.")
    if prompt.injection == "tokens" and prompt.places != ["decoder"]:
        wrong.append(
            "prompt.injection: tokens needs the dense attention of the decoder: set places: [decoder], "
            f"got {prompt.places}."
        )
    if alignment.dqfa and not alignment.dqfa_layers:
        wrong.append("alignment.dqfa_layers must name a layer, such as [0, -1]; alignment.dqfa: 0 switches DQFA off.")
    low, *rest = [*labels.dynamic_range, -1.0]
    if len(rest) != 2 or not 0 <= low <= rest[0] <= 1:
        wrong.append(f"pseudo_labels.dynamic_range must be two numbers in 0..1, got {labels.dynamic_range}.")
    return wrong
