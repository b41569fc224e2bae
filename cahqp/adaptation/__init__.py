"""What CA-HQP adds round a teacher: prompts, alignment of domain queries and instances, choice of pseudo-labels."""

from cahqp.adaptation.adversary import Discriminator, dann_schedule, domain_loss, gradient_reversal
from cahqp.adaptation.domain_queries import DomainQueryAlignment
from cahqp.adaptation.injection import VisualPrompt
from cahqp.adaptation.instances import InstanceAlignment, box_masks, instance_masks
from cahqp.adaptation.prompts import CBAM, VisualPromptGenerator, attention_entropy
from cahqp.adaptation.selection import DynamicThresholds, select
from cahqp.adaptation.tracks import TrackBank

__all__ = [
    "CBAM",
    "Discriminator",
    "DomainQueryAlignment",
    "DynamicThresholds",
    "InstanceAlignment",
    "TrackBank",
    "VisualPrompt",
    "VisualPromptGenerator",
    "attention_entropy",
    "box_masks",
    "dann_schedule",
    "domain_loss",
    "gradient_reversal",
    "instance_masks",
    "select",
]
