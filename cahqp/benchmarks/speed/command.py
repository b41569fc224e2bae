"""`cahqp benchmark speed`: how fast a config trains, detects and relabels here, beside a reference."""

from __future__ import annotations

import platform
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything

from cahqp.benchmarks.speed.phases import INFERENCE, MATCHING, OURS, REFERENCE, RELABELLING, STEP, Bench, Precision
from cahqp.benchmarks.speed.timer import Times, alternate, peak
from cahqp.errors import ConfigError, check_numbers
from cahqp.files import write_json
from cahqp.structures import Batch, Targets

# So that a config may name their classes without their module.
from cahqp.training import student, supervised  # noqa: F401
from cahqp.training.base import DetectionModule
from cahqp.training.ca_hqp import module as adaptation  # noqa: F401
from cahqp.training.distillation import data as soft_data  # noqa: F401

Device = Literal["auto", "cpu", "cuda"]
WITH_MEMORY = (STEP, INFERENCE, RELABELLING)


def command(arguments: list[str]) -> None:
    """Run `cahqp benchmark speed`."""
    # No `auto_cli`: there `--config` would mean a file of this command's own options.
    parser = ArgumentParser(prog="cahqp benchmark speed", exit_on_error=False)
    parser.add_function_arguments(speed, as_group=False)
    speed(**parser.parse_args(arguments[1:]).as_dict())


@dataclass(frozen=True)
class Given:
    """What a measurement can be made again from, in another process too."""

    config: Path
    batch_size: int
    boxes: int
    device: str
    precision: Precision
    reference: bool
    threads: int
    seed: int

    def bench(self, folder: Path) -> Bench:
        """Return everything that is timed."""
        torch.set_num_threads(self.threads)
        seed_everything(self.seed, verbose=False)
        module = build_module(self.config)
        batch = make_batch(module, self.batch_size, self.boxes)
        return Bench(module, batch, folder, torch.device(self.device), self.precision, self.reference)


def speed(
    config: Path,
    output: Path | None = None,
    batch_size: int = 8,
    boxes: int = 20,
    rounds: int = 5,
    threads: int | None = None,
    device: Device = "auto",
    precision: Precision = "float32",
    reference: bool = True,
    memory: bool = True,
    seed: int = 0,
) -> None:
    """Measure images per second and peak memory of a config's detector, by turns with transformers' RT-DETR.

    A training step is one of supervised training: forward, losses, backward, AdamW. Images and boxes are random, and
    weights untrained unless the config names some.

    Args:
        config: YAML file of a training.
        output: Folder for `speed.json` and `speed.md`; nothing is written where not given.
        batch_size: Images in a batch.
        boxes: Boxes of each image.
        rounds: Times that everything is measured.
        threads: Of a CPU; torch's own choice where not given.
        device: `auto` takes a GPU where there is one.
        precision: `bf16` runs the models under autocast.
        reference: Time transformers' RT-DETR too where the config's detector is one and transformers is installed.
        memory: Measure peak memory too; on a CPU each phase needs a process of its own.
        seed: Of weights, images and boxes.
    """
    counts = {"--batch_size": batch_size, "--boxes": boxes, "--rounds": rounds, "--threads": threads}
    check_numbers(shares={}, counts=counts)
    where = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    given = Given(config, batch_size, boxes, where, precision, reference, threads or torch.get_num_threads(), seed)
    before = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(given, rounds, memory, Path(folder))
    finally:
        torch.set_num_threads(before)
    if output is not None:
        write_json(output / "speed.json", found)
        (output / "speed.md").write_text(page(found), encoding="utf-8")
    print(page(found), end="")


def measure(given: Given, rounds: int, memory: bool, folder: Path) -> dict[str, Any]:
    """Return all that was measured, as it is written."""
    bench = given.bench(folder)
    device = torch.device(given.device)
    times = {name: alternate(ways, rounds, device) for name, ways in bench.phases().items()}
    phases = {name: _told(one, given.batch_size) for name, one in times.items()}
    if memory:
        for name in WITH_MEMORY:
            for way in phases[name]["ways"]:
                phases[name]["ways"][way]["peak_bytes"] = _memory(given, name, way, bench)
    height, width = bench.batch.images.shape[-2:]
    return {
        "config": given.config.name,
        "size": [height, width],
        "batch_size": given.batch_size,
        "boxes": given.boxes,
        "precision": given.precision,
        "machine": _machine(given),
        "reference": bench.about,
        "memory": "tensors on the GPU" if given.device == "cuda" else "resident memory of a process of its own",
        "phases": phases,
        "share_of_matching_and_denoising": times[MATCHING].median(OURS) / times[STEP].median(OURS),
    }


def _machine(given: Given) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if given.device == "cuda" else platform.machine()
    return {"device": given.device, "name": name, "threads": given.threads, "torch": torch.__version__}


def _told(times: Times, batch_size: int) -> dict[str, Any]:
    ways = {
        way: {"seconds": seconds, "images_per_second": batch_size / times.median(way)}
        for way, seconds in times.seconds.items()
    }
    ratio = times.ratio(REFERENCE, OURS) if REFERENCE in times.seconds else None
    return {"ways": ways, "order": times.order, "ratio": ratio}


def _memory(given: Given, phase: str, way: str, bench: Bench) -> int | None:
    """Return the bytes of one run; on a CPU in a process that has done nothing else."""
    if given.device == "cuda":
        one = bench.phases()[phase][way]
        one.prepare()
        return peak(one.run, torch.device(given.device))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(peak_alone, given, phase, way).result()


def peak_alone(given: Given, phase: str, way: str) -> int | None:
    """Return the bytes that the first run of a phase takes in this process."""
    with tempfile.TemporaryDirectory() as folder:
        one = given.bench(Path(folder)).phases()[phase][way]
        one.prepare()
        return peak(one.run, torch.device(given.device))


def page(found: dict[str, Any]) -> str:
    """Return the table."""
    machine = found["machine"]
    rows = [
        f"{found['config']}: {found['size'][0]}x{found['size'][1]}, batches of {found['batch_size']} images with "
        f"{found['boxes']} boxes, {found['precision']}, {machine['name']}, {machine['threads']} threads",
        "",
        f"| phase | {OURS} | {REFERENCE} | times as fast: min, median, max | MiB {OURS} | MiB {REFERENCE} |",
        "|---|---|---|---|---|---|",
    ]
    for name, phase in found["phases"].items():
        ratio = phase["ratio"]
        cells = [_rate(phase, OURS), _rate(phase, REFERENCE)]
        cells.append("-" if ratio is None else ", ".join(f"{ratio[k]:.2f}" for k in ("min", "median", "max")))
        rows.append(f"| {name} | {' | '.join([*cells, _mebibytes(phase, OURS), _mebibytes(phase, REFERENCE)])} |")
    share = found["share_of_matching_and_denoising"]
    rows += [
        "",
        f"Matching and denoising take {share:.1%} of a training step. Rates are images/s, medians of the rounds.",
    ]
    rows += [f"Reference: {found['reference']}. Memory: {found['memory']}, beyond weights and batch."]
    return "\n".join([*rows, ""])


def _rate(phase: dict[str, Any], way: str) -> str:
    return f"{phase['ways'][way]['images_per_second']:.2f}" if way in phase["ways"] else "-"


def _mebibytes(phase: dict[str, Any], way: str) -> str:
    bytes_ = phase["ways"].get(way, {}).get("peak_bytes")
    return "-" if bytes_ is None else f"{bytes_ / 2**20:.0f}"


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
