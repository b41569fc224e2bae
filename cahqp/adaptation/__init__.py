"""What CA-HQP adds round a teacher: prompts, alignment of domain queries and instances, choice of pseudo-labels."""

from cahqp.adaptation.domain_adversary import Discriminator, dann_schedule, domain_loss, gradient_reversal
from cahqp.adaptation.domain_queries import DomainQueryAlignment
from cahqp.adaptation.instances import InstanceAlignment, box_masks, instance_features, instance_masks
from cahqp.adaptation.masking import mask_blocks
from cahqp.adaptation.prompt_metric import PromptMetric, class_map, proxy_anchor
from cahqp.adaptation.pseudo_labels import DynamicThresholds, select
from cahqp.adaptation.sfa_queries import SFAQueryAlignment
from cahqp.adaptation.soft_targets import class_scores, soften
from cahqp.adaptation.stationary_memory import StationaryMemory
from cahqp.adaptation.track_bank import TrackBank
from cahqp.detectors.prompts.generator import CBAM, VisualPromptGenerator, attention_entropy
from cahqp.detectors.prompts.visual_prompt import VisualPrompt

__all__ = [
    "CBAM",
    "Discriminator",
    "DomainQueryAlignment",
    "DynamicThresholds",
    "InstanceAlignment",
    "PromptMetric",
    "SFAQueryAlignment",
    "StationaryMemory",
    "TrackBank",
    "VisualPrompt",
    "VisualPromptGenerator",
    "attention_entropy",
    "box_masks",
    "class_map",
    "class_scores",
    "dann_schedule",
    "domain_loss",
    "gradient_reversal",
    "instance_features",
    "instance_masks",
    "mask_blocks",
    "proxy_anchor",
    "select",
    "soften",
]
