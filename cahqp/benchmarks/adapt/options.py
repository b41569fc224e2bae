"""Options of `cahqp benchmark adapt` and `cahqp benchmark measure`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cahqp.errors import check_numbers


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
        backbone: Pretrained weights of the teacher's backbone, for plans that need them.
        docs: Page that receives each plan's section. The figures are written beside it as `benchmark/NAME.json`.
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
    docs: Path | None = None
    jobs: int = 1
    students: bool = True
    dry_run: bool = False

    def __post_init__(self) -> None:
        check_numbers(shares={}, counts={"--jobs": self.jobs})


@dataclass(frozen=True, kw_only=True)
class MeasureBenchmarkOptions:
    """Measure models on labelled frames: AP, and precision, recall and F1 at the thresholds in each model file.

    The thresholds were fixed on source validation frames during training; nothing is chosen here.

    Attributes:
        weights: NAME=FILE of each model.
        frames: NAME=FILE of each labelled COCO file.
        output: New directory for `metrics.json` and the matches.
        batch_size: Frames in a batch, at least 1.
        seed: Recorded in the manifest.
        max_invalid_share: Allowed share of unreadable images, 0..1. They are left out for every model.
    """

    weights: list[str]
    frames: list[str]
    output: Path
    batch_size: int = 8
    seed: int = 0
    max_invalid_share: float = 0.05

    def __post_init__(self) -> None:
        check_numbers({"--max_invalid_share": self.max_invalid_share}, {"--batch_size": self.batch_size})
