"""Results of a fit: the selected weights as a model file with operating thresholds, and the metrics."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from cahqp.data.base import DetectionData
from cahqp.detectors import model_file
from cahqp.files import atomic_write
from cahqp.inference.frames import measure_detector
from cahqp.runs.directory import RunDirectory
from cahqp.runs.evidence import ANALYSIS_ONLY, analysis_mark
from cahqp.training.base import DetectionModule


def finish_fit(trainer: Trainer, module: DetectionModule, data: DetectionData, run: RunDirectory) -> dict[str, Any]:
    """Write `model.safetensors` and `metrics.csv`, complete the run directory, and return the manifest's metrics.

    Args:
        trainer: Trainer after its fit.
        module: Module with the average of the last step.
        data: DataModule whose validation frames determine the operating thresholds.
        run: Run directory of the fit.
    """
    best = run.work / "checkpoints" / "best.ckpt"
    if module.selection == "best" and best.is_file():
        state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "detector."
        module.detector.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
    detector = module.detector.eval().to(trainer.strategy.root_device)  # Lightning moves it to the CPU
    metrics: dict[str, Any] = {"selection": module.selection, "steps": trainer.global_step}
    loader = data.whole_val_dataloader()
    if loader is not None:
        result = measure_detector(detector, loader)
        detector.thresholds = result.thresholds
        metrics |= {"val/ap50": result.ap50, "val/map": result.map}
    metrics |= analysis_mark(run.inputs.values())
    if detector.provenance.get(ANALYSIS_ONLY):
        metrics[ANALYSIS_ONLY] = True
    parent = detector.provenance.get("hash")
    provenance = {"command": "fit", "module": type(module).__name__, "seed": run.seed, "parent": parent, **metrics}
    model_file.save(run.work / "model.safetensors", detector, provenance)
    merge_metrics(run.work)
    run.finish(metrics)
    return metrics


def merge_metrics(work: Path) -> None:
    """Write `metrics.csv` from the logs of all attempts; for a step with several logs the last attempt counts."""
    rows: list[dict[str, str]] = []
    for log in sorted((work / "attempts").glob("*/metrics.csv")):
        with log.open(encoding="utf-8", newline="") as file:
            attempt = list(csv.DictReader(file))
        if attempt:
            first = min(int(row["step"]) for row in attempt)
            rows = [row for row in rows if int(row["step"]) < first] + attempt
    columns = sorted({name for row in rows for name in row}, key=lambda name: (name not in ("epoch", "step"), name))
    with atomic_write(work / "metrics.csv") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if (work / "attempts").is_dir():
        shutil.rmtree(work / "attempts")
