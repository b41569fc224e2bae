"""`cahqp benchmark speed`: throughput and memory of training, detection and relabelling, beside a reference."""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from cahqp.benchmarks.markdown import render
from cahqp.benchmarks.options import SpeedBenchmarkOptions
from cahqp.benchmarks.speed.phases import CAHQP, INFERENCE, MATCHING, RELABELLING, STEP, TRANSFORMERS, PhaseBenchmark
from cahqp.benchmarks.speed.timer import Times, alternate, describe_machine, peak
from cahqp.files import write_json

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
    page = render("speed.md.j2", measured)
    if options.output is not None:
        write_json(options.output / "speed.json", measured)
        (options.output / "speed.md").write_text(page, encoding="utf-8")
    print(page, end="")


def measure_speed(options: SpeedBenchmarkOptions, folder: Path) -> dict[str, Any]:
    """Return the content of `speed.json`. Device and threads of the options are resolved; the folder is temporary."""
    bench = PhaseBenchmark(options, folder)
    device = bench.device
    times = {name: alternate(workloads, options.rounds, device) for name, workloads in bench.phases().items()}
    phases = {name: _phase(of_phase, options.batch_size) for name, of_phase in times.items()}
    for name in WITH_MEMORY if options.memory else ():
        for key, way in phases[name]["ways"].items():
            way["peak_bytes"] = _peak(options, name, key, bench)
    return {
        "config": options.fit_config.name,
        "size": list(bench.batch.images.shape[-2:]),
        "batch_size": options.batch_size,
        "boxes": options.boxes,
        "precision": options.precision,
        "machine": describe_machine(device),
        "reference": bench.about,
        "memory": "tensors on the GPU" if device.type == "cuda" else "resident memory of a process of its own",
        "phases": phases,
        "share_of_matching_and_denoising": times[MATCHING].median(CAHQP) / times[STEP].median(CAHQP),
    }


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
        return _measure_peak(PhaseBenchmark(options, Path(folder)), phase, name)


def _measure_peak(bench: PhaseBenchmark, phase: str, name: str) -> int | None:
    workload = bench.phases()[phase][name]
    workload.prepare()
    return peak(workload.run, bench.device)
