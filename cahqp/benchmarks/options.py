"""Options of the benchmark commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cahqp.errors import MAX_RESAMPLES, check_numbers, option

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class AdaptBenchmarkOptions:
    """Compare ways to adapt a teacher, over seeds, with intervals.

    All arms of a seed start from the same source weights. If interrupted, rerun the same command to resume. Stages that
    plans have in common run once.

    Attributes:
        plan: YAML files of plans; see configs/benchmark.
        seeds: Seeds instead of those in the plans.
        arms: Arms and variants to run, besides source-only. Default: all.
        output: Directory of all stages and tables, shared by all plans.
        data: Folder that replaces `data:` in a plan.
        backbone: Pretrained weights of a detector's backbone, for plans that need them.
        start: Folder of a published detector that plans with `start` begin from, as `save_pretrained` of transformers
            writes it.
        docs: Page whose overview is written again. Beside it, `benchmark/` receives NAME.json, NAME.md and NAME.svg.
        jobs: Number of stages at a time, each with one thread. The minutes in the tables are then those of one thread
            beside other processes.
        students: Retrain the students named in a plan. Without them a benchmark takes about two thirds of the time.
        dry_run: Print the stages with estimated minutes and start nothing.
    """

    plan: list[Path]
    seeds: list[int] = field(default_factory=list)
    arms: list[str] = field(default_factory=list)
    output: Path = Path("runs/benchmark")
    data: Path | None = None
    backbone: Path | None = None
    start: Path | None = None
    docs: Path | None = None
    jobs: int = 1
    students: bool = True
    dry_run: bool = False

    def __post_init__(self) -> None:
        check_numbers(shares={}, counts={"--jobs": self.jobs})


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """Write the tables, plots and overview of adaptation benchmarks again from their figures.

    Attributes:
        docs: Page with the overview. The figures are `benchmark/*.json` beside it.
    """

    docs: Path = Path("docs/results.md")


@dataclass(frozen=True, kw_only=True)
class GateBenchmarkOptions:
    """Measure how often the gate publishes simulated candidates of known quality.

    Attributes:
        output: New directory for `gate.md` and `gate.json`.
        decisions: Candidates per true difference.
        recordings: Recordings in each labelled set.
        frames: Frames in a recording.
        objects: Mean number of objects in a frame.
        sets: Labelled sets that a candidate is measured on.
        spread: Standard deviation between recordings of the candidate's gain in recall, 0..1.
        resamples: Draws of the gate's bootstrap.
        seed: Seed of all randomness.
    """

    output: Path
    decisions: int = 200
    recordings: int = 12
    frames: int = 60
    objects: float = 6.0
    sets: int = 1
    spread: float = 0.01
    resamples: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        names = ("decisions", "recordings", "frames", "sets", "resamples")
        counts = {option(name): getattr(self, name) for name in names}
        check_numbers({"--spread": self.spread}, counts, MAX_RESAMPLES)


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
        counts = {"--batch-size": self.batch_size, "--boxes": self.boxes, "--rounds": self.rounds}
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
        counts = {"--batch-size": self.batch_size, "--queries": self.queries, "--rounds": self.rounds}
        check_numbers(shares={}, counts=counts)
