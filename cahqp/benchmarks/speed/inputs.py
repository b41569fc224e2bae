"""Module and random batch that `cahqp benchmark speed` times."""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import ArgumentParser

from cahqp.errors import ConfigError
from cahqp.structures import Batch, Targets

# So that a config can name their classes without the module.
from cahqp.training import student, supervised  # noqa: F401
from cahqp.training.base import DetectionModule
from cahqp.training.ca_hqp import module as adaptation  # noqa: F401
from cahqp.training.distillation import data as soft_data  # noqa: F401


def build_module(config: Path) -> DetectionModule:
    """Return the module of a training config.

    Raises:
        ConfigError: The file does not exist.
    """
    if not config.is_file():
        message = f"{config} does not exist. Give --fit-config a YAML file of `cahqp fit`."
        raise ConfigError(message)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DetectionModule, "model", required=True)
    for section in ("data", "trainer", "ema"):
        parser.add_argument(f"--{section}", type=dict, default={})
    module: DetectionModule = parser.instantiate(parser.parse_path(config)).model
    return module


def make_batch(module: DetectionModule, size: int, boxes: int = 20) -> Batch:
    """Return random images and boxes, with the image size that the detector uses for 720 x 1280 frames."""
    height, width = module.detector.preprocessing.target_size(720, 1280)
    images = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8)
    scale = torch.tensor([width, height, width, height])
    targets = []
    for row in range(size):
        low = torch.rand(boxes, 2) * 0.8
        corners = torch.cat([low, low + 0.02 + 0.18 * torch.rand(boxes, 2)], 1) * scale
        targets.append(Targets(corners, torch.randint(len(module.detector.classes), (boxes,)), seed=row))
    return Batch(images, torch.zeros(size, height, width, dtype=torch.bool), targets, [])
