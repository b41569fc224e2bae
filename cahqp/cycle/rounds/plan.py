"""Plans of several rounds: the frames of each round, and the rules of drift, replay and the gate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from cahqp.coco.sources import is_video
from cahqp.cycle.plan import BasePlan, CocoEntry, FrameEntry, Seconds
from cahqp.cycle.replay_buffer import ReplaySettings
from cahqp.drift.options import DriftSettings
from cahqp.errors import ConfigError
from cahqp.gate.options import GateLimits
from cahqp.runs.schema import ExistingFile, Name, Section, parse, validate


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of a cycle.

    Attributes:
        name: Name of the domain. Several rounds may have the same one.
        train: Frames to adapt to, as in `target.train`. Required without `frames`.
        frames: A folder or an fsspec URL such as `s3://bucket/night`, fetched first. Required without `train`.
        frame_interval: Seconds between the frames taken from a video. Default: all frames.
    """

    name: Name
    train: list[FrameEntry] = field(default_factory=list)
    frames: str | None = None
    frame_interval: Seconds | None = None

    def __post_init__(self) -> None:
        if self.name == "new":
            message = "--name must not be `new`: the replay buffer uses it. Choose another name."
            raise ConfigError(message)
        if bool(self.train) == (self.frames is not None):
            message = "exactly one of train and frames is required."
            raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class WatchedFolder:
    """A folder that receives frames. Each time enough new files have arrived, a round starts.

    Attributes:
        frames: The folder or fsspec URL. Its first level of folders names the cameras.
        min_frames: Smallest number of new files in a round.
        seconds: Seconds between two checks.
        settle: Age in seconds from which a file counts as complete.
        frame_interval: Seconds between the frames taken from a video. Default: all frames.
    """

    frames: str
    min_frames: Annotated[int, Field(ge=1)] = 100
    seconds: Seconds = 60.0
    settle: Annotated[float, Field(ge=0)] = 10.0
    frame_interval: Seconds | None = None


@dataclass(frozen=True, kw_only=True)
class Drift(DriftSettings):
    """Drift test of each round; see `cahqp drift --help`.

    Attributes:
        when: `drifted` adapts only to cameras that drifted from all reference domains. `always` adapts in each round
            and measures drift for the report.
    """

    when: Literal["drifted", "always"] = "drifted"


@dataclass(frozen=True, kw_only=True)
class Gate(GateLimits):
    """Gate of each round; see `cahqp gate --help`.

    Attributes:
        canary: Labelled target frames.
        precision: Precision of the exported package.
        registry: Directory of the registry that receives published packages. Default: no registry.
        key: Ed25519 private key (PEM) that signs the packages. Required if the registry has a key.
        trusted: Its public key (PEM), against which the gate and the registry check the packages.
    """

    canary: list[CocoEntry] = field(default_factory=list)
    precision: Literal["float32", "int8"] = "float32"
    registry: str | None = None
    key: ExistingFile | None = None
    trusted: ExistingFile | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.key is None) != (self.trusted is None):
            message = "--key signs and --trusted checks the signature. Give both keys of a pair, or neither."
            raise ConfigError(message)


def _check_rounds(rounds: list[Round], info: ValidationInfo) -> list[Round]:
    """Check the rounds against the sections before them, as far as those are valid."""
    problems = []
    if "watch" in info.data and bool(rounds) == (info.data["watch"] is not None):
        problems.append("exactly one of rounds and watch is required: a list of rounds or a watched folder.")
    if info.data.get("replay") is not None or info.data.get("budget") is not None:
        videos = [entry for each in rounds for entry in each.train if is_video(entry)]
        problems += [f"{entry} is a video. For replay and budget give its folder as `frames`." for entry in videos]
    if problems:
        raise ValueError("\n".join(problems))
    return rounds


@dataclass(frozen=True, kw_only=True)
class RoundsPlan(BasePlan):
    """Any number of rounds. Each one retrains the running student.

    Attributes:
        tests: Labelled frames by domain, read by the evaluation of every round only.
        budget: Largest number of frames to adapt to in a round, chosen by `cahqp sample`. Default: all frames.
        drift: Drift test. Default: every round adapts.
        replay: Replay buffer of past domains; see `cahqp replay --help`. Default: no replay.
        gate: Gate. Default: `cahqp publish` compares point values.
        watch: A folder whose new frames make the rounds.
        rounds: The rounds in order. Required without `watch`.
    """

    tests: dict[Name, CocoEntry] = field(default_factory=dict)
    budget: Annotated[int, Field(ge=1)] | None = None
    drift: Section[Drift] | None = None
    replay: Section[ReplaySettings] | None = None
    gate: Section[Gate] | None = None
    watch: WatchedFolder | None = None
    rounds: Annotated[list[Section[Round]], AfterValidator(_check_rounds), Field(validate_default=True)] = field(
        default_factory=list
    )


def has_rounds(path: Path) -> bool:
    """Return whether a plan file is a plan of rounds.

    Raises:
        ConfigError: The file cannot be read.
    """
    return bool({"rounds", "watch"} & parse(path).keys())


def read_rounds(path: Path) -> RoundsPlan:
    """Read and check a plan of rounds.

    Raises:
        ConfigError: The plan is invalid. The message lists all problems.
    """
    return validate(RoundsPlan, parse(path), path)
