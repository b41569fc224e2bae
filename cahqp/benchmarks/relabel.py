"""`cahqp benchmark relabel`: what labels cost beyond reading the frames and asking the teacher."""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentParser

from cahqp.benchmarks.speed.timer import Workload, alternate
from cahqp.data.frames import open_frames
from cahqp.detectors.model_file import load
from cahqp.errors import check_numbers
from cahqp.files import write_json
from cahqp.inference.frames import FrameLoader, FrameSet, fixed_batches
from cahqp.relabel.command import relabel

ALONE, WHOLE = "alone", "relabel"


def command(arguments: list[str]) -> None:
    """Run `cahqp benchmark relabel`."""
    parser = ArgumentParser(prog="cahqp benchmark relabel", exit_on_error=False)
    parser.add_function_arguments(relabel_cost, as_group=False)
    relabel_cost(**parser.parse_args(arguments[2:]).as_dict())


def relabel_cost(
    weights: Path,
    frames: Path,
    output: Path,
    ignore_share: float = 0.6,
    stationary_weight: float = 0.5,
    temporal: bool = True,
    batch_size: int = 8,
    rounds: int = 5,
) -> None:
    """Measure `cahqp relabel` beside the bare work on the same frames, by turns, on the CPU.

    The bare work is to read the frames, to resize them, and the teacher's forward pass.

    Args:
        weights: Model file of the teacher.
        frames: Folder, video or COCO file, whose labels are not read.
        output: Folder for `relabel.json`.
        ignore_share: Option of `relabel`.
        stationary_weight: Option of `relabel`.
        temporal: Option of `relabel`.
        batch_size: Frames in a batch.
        rounds: Times that both are run, after once that does not count.

    Raises:
        ConfigError: A number is out of range.
        DataError: There are no frames, or they cannot be read.
    """
    check_numbers({"--ignore_share": ignore_share}, {"--batch_size": batch_size, "--rounds": rounds})
    options = {
        "ignore_share": ignore_share,
        "stationary_weight": stationary_weight,
        "temporal": temporal,
        "batch_size": batch_size,
    }
    with tempfile.TemporaryDirectory() as folder:
        outputs = (Path(folder) / str(number) for number in itertools.count())
        ways = {
            ALONE: Workload(partial(_ask, weights, frames, batch_size)),
            WHOLE: Workload(lambda: _quietly(relabel, weights, [frames], next(outputs), accelerator="cpu", **options)),
        }
        ratio = alternate(ways, rounds, torch.device("cpu")).ratio(WHOLE, ALONE)
    write_json(output / "relabel.json", {"options": options, "rounds": rounds, "relabel_by_alone": ratio})
    print(f"relabel takes {ratio['median']:.3f} times as long ({ratio['min']:.3f} to {ratio['max']:.3f})")


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
