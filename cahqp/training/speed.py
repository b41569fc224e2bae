"""`cahqp benchmark speed`: how fast a config detects on this machine."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything

import cahqp.training  # noqa: F401  so that a config may name its classes without their module
from cahqp.errors import ConfigError
from cahqp.structures import Batch, Targets
from cahqp.training.base import DetectionModule


def command(arguments: list[str]) -> None:
    """Run `cahqp benchmark speed`."""
    # No `auto_cli`: there `--config` would mean a file of this command's own options.
    parser = ArgumentParser(prog="cahqp benchmark speed", exit_on_error=False)
    parser.add_function_arguments(speed, as_group=False)
    speed(**parser.parse_args(arguments[1:]).as_dict())


def speed(config: Path, batch_size: int = 8, rounds: int = 5, seed: int = 0) -> None:
    """Print the images per second of a config's detector.

    Args:
        config: YAML file of a training.
        batch_size: Images in a batch.
        rounds: Times that everything is measured; the median counts.
        seed: Of weights and images.
    """
    seed_everything(seed, verbose=False)
    module = build_module(config).eval()
    batch = make_batch(module, batch_size)
    seconds = []
    with torch.no_grad():
        module.detections(batch)
        for _ in range(rounds):
            began = time.perf_counter()
            module.detections(batch)
            seconds.append(time.perf_counter() - began)
    print(f"inference {batch_size / statistics.median(seconds):.1f} images/s")


def build_module(config: Path) -> DetectionModule:
    """Return the module of a training's config.

    Raises:
        ConfigError: There is no such file.
    """
    if not config.is_file():
        message = f"{config} does not exist. Give --config a YAML file of `cahqp fit`."
        raise ConfigError(message)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DetectionModule, "model", required=True)
    for section in ("data", "trainer", "ema"):
        parser.add_argument(f"--{section}", type=dict, default={})
    module: DetectionModule = parser.instantiate_classes(parser.parse_path(config)).model
    return module


def make_batch(module: DetectionModule, size: int, boxes: int = 20) -> Batch:
    """Return random images in the size that the detector wants, with random boxes."""
    height, width = module.detector.preprocessing.target_size(720, 1280)
    images = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8)
    scale = torch.tensor([width, height, width, height])
    targets = []
    for row in range(size):
        low = torch.rand(boxes, 2) * 0.8
        corners = torch.cat([low, low + 0.02 + 0.18 * torch.rand(boxes, 2)], 1) * scale
        targets.append(Targets(corners, torch.randint(len(module.detector.classes), (boxes,)), seed=row))
    return Batch(images, torch.zeros(size, height, width, dtype=torch.bool), targets, [])
