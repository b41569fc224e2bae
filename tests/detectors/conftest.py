from dataclasses import replace

import pytest
import torch

from cahqp.detectors import DINO, RTDETR, Detector
from cahqp.structures import Targets

SMALL = {"classes": ["car", "bus", "person"], "dim": 32, "heads": 4, "points": 2, "decoder_layers": 2, "ffn_dim": 32}
CHANNELS = {"channels": (8, 16, 16, 32), "stem_width": 8}


@pytest.fixture(autouse=True)
def _seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def make(kind: str, **settings) -> Detector:
    """A tiny detector in eval mode whose boxes depend on the image, as after some training."""
    arguments = {**SMALL, "queries": 10, "denoising": 6, "max_detections": 8}
    if kind == "dino":
        arguments |= {"backbone": "resnet10t", "backbone_options": CHANNELS, "encoder_layers": 2, "levels": 3}
        detector: Detector = DINO(**{**arguments, "strides": (8, 16), "size": (64, 96), **settings})
    else:
        arguments |= {"backbone_width": 8, "fusion_blocks": 1, "size": (64, 96)}
        detector = RTDETR(**{**arguments, **settings})
    for name, parameter in detector.named_parameters():
        if "box" in name and name.endswith("layers.2.weight"):
            torch.nn.init.normal_(parameter, std=0.05)
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if norms:  # without statistics of some images hardly anything would reach the decoder
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            detector.train()(torch.randn(2, 3, 64, 96))
        for norm in norms:
            norm.momentum = 0.1
    return detector.eval()


@pytest.fixture
def build():
    return make


@pytest.fixture(params=["dino", "rtdetr"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def detector(kind) -> Detector:
    return make(kind)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96)


@pytest.fixture
def targets() -> list[Targets]:
    """Three boxes in the first image, one in the second."""
    boxes = torch.tensor([[4.0, 4, 30, 24], [40, 10, 90, 60], [10, 30, 26, 58]])
    first = Targets(boxes, torch.tensor([0, 1, 2]), seed=1)
    return [first, replace(first[:1], seed=2)]
