"""Options of `cahqp benchmark speed` and `cahqp benchmark attention`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cahqp.errors import check_numbers

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class SpeedBenchmarkOptions:
    """Measure images per second and peak memory of a config's detector, beside transformers' RT-DETR.

    A training step is forward, losses, backward and AdamW of supervised training. Images and boxes are random; weights
    are untrained unless the config names some.

    Attributes:
        fit_config: YAML file of `cahqp fit`.
        output: Folder for `speed.json` and `speed.md`. Default: nothing is written.
        batch_size: Images in a batch.
        boxes: Boxes per image.
        rounds: Timed runs of each phase.
        threads: CPU threads. Default: torch's choice.
        device: `auto` uses a GPU if there is one.
        precision: `bf16` runs the models under autocast.
        reference: Also time transformers' RT-DETR if the detector is an RT-DETR and transformers is installed.
        memory: Also measure peak memory. On a CPU each phase then needs a process of its own.
        seed: Seed of weights, images and boxes.
    """

    fit_config: Path
    output: Path | None = None
    batch_size: int = 8
    boxes: int = 20
    rounds: int = 5
    threads: int | None = None
    device: Device = "auto"
    precision: Precision = "float32"
    reference: bool = True
    memory: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"--batch_size": self.batch_size, "--boxes": self.boxes, "--rounds": self.rounds}
        check_numbers(shares={}, counts={**counts, "--threads": self.threads})


@dataclass(frozen=True, kw_only=True)
class AttentionBenchmarkOptions:
    """Time the forms of deformable attention, forward and backward, with their memory and errors.

    Attributes:
        output: Folder for `attention.json` and `attention.md`. Default: nothing is written.
        batch_size: Images in a batch.
        size: Height and width of an image in pixels, at four levels from stride 8. Default: [800,1333] on a GPU,
            [200,334] on a CPU.
        queries: Queries of the decoder.
        rounds: Timed runs of each form.
        device: `auto` uses a GPU if there is one.
    """

    output: Path | None = None
    batch_size: int = 2
    size: tuple[int, int] | None = None
    queries: int = 900
    rounds: int = 5
    device: Device = "auto"

    def __post_init__(self) -> None:
        counts = {"--batch_size": self.batch_size, "--queries": self.queries, "--rounds": self.rounds}
        check_numbers(shares={}, counts=counts)
