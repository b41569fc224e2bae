"""`cahqp benchmark relabel`: cost of labels beyond reading the frames and the teacher's forward pass."""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch

from cahqp.benchmarks.label_options import RelabelBenchmarkOptions
from cahqp.benchmarks.speed.timer import Workload, alternate
from cahqp.data.frames import open_frames
from cahqp.detectors.model_file import load
from cahqp.files import write_json
from cahqp.inference.frames import FrameLoader, FrameSet, fixed_batches
from cahqp.relabelling.command import relabel
from cahqp.relabelling.options import RelabelOptions

FORWARD, RELABEL = "forward", "relabel"
_LABEL_OPTIONS = ("ignore_share", "stationary_weight", "temporal", "batch_size")


def time_relabel(options: RelabelBenchmarkOptions) -> None:
    """Time relabelling and the forward pass in alternation, and write `relabel.json`.

    Raises:
        DataError: There are no frames, or they cannot be read.
    """
    chosen = {name: getattr(options, name) for name in _LABEL_OPTIONS}
    with tempfile.TemporaryDirectory() as folder:
        outputs = (Path(folder) / str(number) for number in itertools.count())

        def run_relabel() -> None:
            common: dict[str, Any] = {"weights": options.weights, "frames": [options.frames], "output": next(outputs)}
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                relabel(RelabelOptions(**common, accelerator="cpu", **chosen))

        workloads = {FORWARD: Workload(lambda: _run_forward(options)), RELABEL: Workload(run_relabel)}
        ratio = alternate(workloads, options.rounds, torch.device("cpu")).ratio(RELABEL, FORWARD)
    document = {"options": chosen, "rounds": options.rounds, "relabel_by_alone": ratio}
    write_json(options.output / "relabel.json", document)
    print(f"relabel takes {ratio['median']:.3f} times as long ({ratio['min']:.3f} to {ratio['max']:.3f})")


def _run_forward(options: RelabelBenchmarkOptions) -> None:
    """Read and resize the frames, and run the teacher on them."""
    detector = load(options.weights).eval()
    frames = FrameSet(open_frames([options.frames]), detector.preprocessing)
    with torch.no_grad():
        for loaded in FrameLoader(frames, fixed_batches(len(frames), options.batch_size), workers=0):
            if loaded.batch is not None:
                mask = loaded.batch.padding_mask
                detector(detector.preprocessing.normalise(loaded.batch.images, mask), mask)
