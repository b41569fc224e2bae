"""`cahqp benchmark speed`: throughput and memory of training, detection and relabelling, beside a reference."""

from __future__ import annotations

import platform
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything

from cahqp.benchmarks.speed.options import SpeedBenchmarkOptions
from cahqp.benchmarks.speed.phases import CAHQP, INFERENCE, MATCHING, RELABELLING, STEP, TRANSFORMERS, PhaseBenchmark
from cahqp.benchmarks.speed.timer import Times, alternate, peak
from cahqp.errors import ConfigError
from cahqp.files import write_json
from cahqp.structures import Batch, Targets

# So that a config can name their classes without the module.
from cahqp.training import student, supervised  # noqa: F401
from cahqp.training.base import DetectionModule
from cahqp.training.ca_hqp import module as adaptation  # noqa: F401
from cahqp.training.distillation import data as soft_data  # noqa: F401

WITH_MEMORY = (STEP, INFERENCE, RELABELLING)


def speed(options: SpeedBenchmarkOptions) -> None:
    """Run `cahqp benchmark speed`.

    Raises:
        ConfigError: The config does not exist or is invalid.
    """
    threads = torch.get_num_threads()
    options = replace(options, threads=options.threads or threads)
    if options.device == "auto":
        options = replace(options, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        with tempfile.TemporaryDirectory() as folder:
            measured = measure_speed(options, Path(folder))
    finally:
        torch.set_num_threads(threads)
    page = speed_page(measured)
    if options.output is not None:
        write_json(options.output / "speed.json", measured)
        (options.output / "speed.md").write_text(page, encoding="utf-8")
    print(page, end="")


def measure_speed(options: SpeedBenchmarkOptions, folder: Path) -> dict[str, Any]:
    """Return the content of `speed.json`.

    Args:
        options: Options with resolved device and threads.
        folder: Temporary directory.
    """
    bench = _build(options, folder)
    device = torch.device(options.device)
    times = {name: alternate(workloads, options.rounds, device) for name, workloads in bench.phases().items()}
    phases = {name: _phase(of_phase, options.batch_size) for name, of_phase in times.items()}
    for name in WITH_MEMORY if options.memory else ():
        for key, way in phases[name]["ways"].items():
            way["peak_bytes"] = _peak(options, name, key, bench)
    on_gpu = options.device == "cuda"
    return {
        "config": options.fit_config.name,
        "size": list(bench.batch.images.shape[-2:]),
        "batch_size": options.batch_size,
        "boxes": options.boxes,
        "precision": options.precision,
        "machine": {
            "device": options.device,
            "name": torch.cuda.get_device_name() if on_gpu else platform.machine(),
            "threads": options.threads,
            "torch": torch.__version__,
        },
        "reference": bench.about,
        "memory": "tensors on the GPU" if on_gpu else "resident memory of a process of its own",
        "phases": phases,
        "share_of_matching_and_denoising": times[MATCHING].median(CAHQP) / times[STEP].median(CAHQP),
    }


def _build(options: SpeedBenchmarkOptions, folder: Path) -> PhaseBenchmark:
    torch.set_num_threads(options.threads or torch.get_num_threads())
    seed_everything(options.seed, verbose=False)
    module = build_module(options.fit_config)
    batch = make_batch(module, options.batch_size, options.boxes)
    return PhaseBenchmark(module, batch, folder, torch.device(options.device), options.precision, options.reference)


def _phase(times: Times, batch_size: int) -> dict[str, Any]:
    ways = {
        name: {"seconds": seconds, "images_per_second": batch_size / times.median(name)}
        for name, seconds in times.seconds.items()
    }
    ratio = times.ratio(TRANSFORMERS, CAHQP) if TRANSFORMERS in ways else None
    return {"ways": ways, "order": times.order, "ratio": ratio}


def _peak(options: SpeedBenchmarkOptions, phase: str, name: str, bench: PhaseBenchmark) -> int | None:
    """Return the peak bytes of one run; on a CPU in a new process."""
    if options.device == "cuda":
        return _measure_peak(bench, phase, name)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_measure_peak_alone, options, phase, name).result()


def _measure_peak_alone(options: SpeedBenchmarkOptions, phase: str, name: str) -> int | None:
    with tempfile.TemporaryDirectory() as folder:
        return _measure_peak(_build(options, Path(folder)), phase, name)


def _measure_peak(bench: PhaseBenchmark, phase: str, name: str) -> int | None:
    workload = bench.phases()[phase][name]
    workload.prepare()
    return peak(workload.run, bench.device)


def speed_page(measured: dict[str, Any]) -> str:
    """Return the Markdown of `speed.json`."""
    machine, (height, width) = measured["machine"], measured["size"]
    lines = [
        f"{measured['config']}: {height}x{width}, batches of {measured['batch_size']} images with "
        f"{measured['boxes']} boxes, {measured['precision']}, {machine['name']}, {machine['threads']} threads",
        "",
        f"| phase | {CAHQP} | {TRANSFORMERS} | speed ratio: min, median, max | MiB {CAHQP} | MiB {TRANSFORMERS} |",
        "|---|---|---|---|---|---|",
    ]
    for name, phase in measured["phases"].items():
        ways = [phase["ways"].get(key, {}) for key in (CAHQP, TRANSFORMERS)]
        ratio = [f"{phase['ratio'][key]:.2f}" for key in ("min", "median", "max")] if phase["ratio"] else ["-"]
        rates = [f"{way['images_per_second']:.2f}" if way else "-" for way in ways]
        memory = [f"{way['peak_bytes'] / 2**20:.0f}" if way.get("peak_bytes") is not None else "-" for way in ways]
        lines.append(f"| {' | '.join([name, *rates, ', '.join(ratio), *memory])} |")
    share = measured["share_of_matching_and_denoising"]
    lines += [
        "",
        f"Matching and denoising take {share:.1%} of a training step. Rates are images/s, medians of the rounds.",
        f"Reference: {measured['reference']}. Memory: {measured['memory']}, beyond weights and batch.",
    ]
    return "\n".join([*lines, ""])


def build_module(config: Path) -> DetectionModule:
    """Return the module of a training config.

    Raises:
        ConfigError: The file does not exist.
    """
    if not config.is_file():
        message = f"{config} does not exist. Give --fit_config a YAML file of `cahqp fit`."
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
