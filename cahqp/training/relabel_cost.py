"""`cahqp benchmark relabel`: what labels cost beyond reading the frames and asking the teacher."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import ArgumentParser

from cahqp.data.frames import open_frames
from cahqp.detectors.weights import load
from cahqp.errors import check_numbers
from cahqp.files import write_json
from cahqp.training.predict import FrameLoader, FrameSet, fixed_batches
from cahqp.training.relabel import relabel


class Spent(NamedTuple):
    """Seconds of one run: on the wall, and of all processors together, which other processes touch less."""

    wall: float
    cpu: float


def command(arguments: list[str]) -> None:
    """Run `cahqp benchmark relabel`."""
    parser = ArgumentParser(prog="cahqp benchmark relabel", exit_on_error=False)
    parser.add_function_arguments(relabel_cost, as_group=False)
    relabel_cost(**parser.parse_args(arguments[1:]).as_dict())


def relabel_cost(
    weights: Path,
    frames: Path,
    output: Path,
    ignore_share: float = 0.6,
    standing: float = 0.5,
    temporal: bool = True,
    batch_size: int = 8,
    rounds: int = 5,
) -> None:
    """Measure `cahqp relabel` beside reading, resizing and the teacher's forward pass on the same frames, by turns.

    Args:
        weights: Model file of the teacher.
        frames: Folder, video or COCO file, whose labels are not read.
        output: Folder for `relabel.json`.
        ignore_share: Option of `relabel`.
        standing: Option of `relabel`.
        temporal: Option of `relabel`.
        batch_size: Frames in a batch.
        rounds: Times that both are run, after once that does not count.
    """
    check_numbers({"--ignore_share": ignore_share}, {"--batch_size": batch_size, "--rounds": rounds})
    options = {"ignore_share": ignore_share, "standing": standing, "temporal": temporal, "batch_size": batch_size}
    alone, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            alone.append(_spent(partial(_ask, weights, frames, batch_size)))
            whole.append(_spent(partial(_quietly, relabel, weights, [frames], Path(folder) / str(number), **options)))
    figures = {name: _ratio(whole[1:], alone[1:], name) for name in Spent._fields}
    write_json(output / "relabel.json", {"options": options, "rounds": rounds, "relabel_by_alone": figures})
    for name, found in figures.items():
        print(f"relabel takes {found['median']:.3f} of the {name} time ({found['min']:.3f} to {found['max']:.3f})")


def _ask(weights: Path, frames: Path, batch_size: int) -> None:
    detector = load(weights).eval()
    read = FrameSet(open_frames([frames]), detector.preprocessing)
    with torch.no_grad():
        for found in FrameLoader(read, fixed_batches(len(read), batch_size), workers=0):
            if found.batch is not None:
                mask = found.batch.padding_mask
                detector(detector.preprocessing.normalise(found.batch.images, mask), mask)


def _quietly(work: Callable[..., None], *given: object, **options: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work(*given, **options)


def _spent(work: Callable[[], None]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def _ratio(above: list[Spent], below: list[Spent], name: str) -> dict[str, float]:
    found = [getattr(one, name) / getattr(other, name) for one, other in zip(above, below, strict=True)]
    return {"min": min(found), "median": statistics.median(found), "max": max(found)}
