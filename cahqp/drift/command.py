"""`cahqp drift`: which cameras no longer see what the models were made for, and which of them changed alike."""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.drift.faults import fault, usual_change
from cahqp.drift.grouping import Change, groups
from cahqp.drift.mmd import Reference, Verdict, blocks
from cahqp.drift.reference import long_enough, of_camera
from cahqp.drift.signals import PLAIN, Signals, join, read_signals, same_model
from cahqp.errors import ConfigError, DataError
from cahqp.files import write_json
from cahqp.runs.directory import RunDirectory

DRIFT, STEADY, FAULT, FEW = "drift", "steady", "fault", "too few frames"
KINDS = ("features", "scores", "plain", "view")
SHORT = 10
"""Windows of a reference below which slow traffic gives false alarms: see docs/rounds.md."""
_TESTED = [PLAIN.index(name) for name in ("brightness", "contrast", "sharpness", "detections")]


@dataclass(frozen=True)
class DriftSettings:
    """How drift is told.

    Attributes:
        window: Frames of a window.
        block: Following frames that are drawn together in the permutation test; a window has three or more blocks.
        alpha: Level of the test of one window, in 0..1, over all kinds of signals together.
        margin: How far above the reference's farthest own window a window has to be; see `mmd.Reference`.
        confirm: Following windows that must be over before a camera counts as drifted.
        permutations: Of the test.
    """

    window: int = 24
    block: int = 4
    alpha: float = 0.02
    margin: float = 1.0
    confirm: int = 2
    permutations: int = 499

    @property
    def min_frames(self) -> int:
        """Readable frames that a reference needs: its own windows are compared with one another."""
        return 3 * self.window

    def check(self) -> None:
        """Refuse what cannot be right.

        Raises:
            ConfigError: With all problems.
        """
        wrong = []
        if self.block < 1 or self.window < 3 * self.block:
            wrong.append(f"--window must be three --block or more, got {self.window} and {self.block}.")
        if not 0 < self.alpha < 1:
            wrong.append(f"--alpha must be between 0 and 1, got {self.alpha}.")
        if not self.margin >= 0 or self.confirm < 1:
            wrong.append(f"--margin must be 0 or more and --confirm 1 or more, got {self.margin} and {self.confirm}.")
        if self.alpha > 0 and (self.permutations + 1) * self.alpha < len(KINDS):
            min_frames = math.ceil(len(KINDS) / self.alpha) - 1
            wrong.append(
                f"--permutations must be {min_frames} or more for --alpha {self.alpha}, got {self.permutations}."
            )
        if wrong:
            raise ConfigError("\n".join(wrong))


def drift(
    reference: list[str],
    frames: list[Path],
    output: Path,
    window: int = 24,
    block: int = 4,
    alpha: float = 0.02,
    margin: float = 1.0,
    confirm: int = 2,
    permutations: int = 499,
    seed: int = 0,
) -> None:
    """Say of each camera whether its frames have drifted from everything known, stayed, or show a fault.

    Writes `drift.json`: per camera its windows, its verdict and the known domain that is nearest, and the groups of
    drifted cameras that changed alike, which one adaptation can serve.

    Args:
        reference: NAME=DIRECTORY of each known domain, made by `cahqp features` with one model. A camera that has three
            windows in it is compared with its own frames, another one with those of all cameras. A domain of fewer
            than three windows in all is left out, which is told.
        frames: Directories of `cahqp features` with the frames in question, each camera's in order of time.
        output: Directory to make.
        window: Frames of a window.
        block: Following frames that are drawn together in the permutation test.
        alpha: Level of the test of one window.
        margin: How far beyond the reference's own windows a window has to be.
        confirm: Following windows that must be over before a camera counts as drifted.
        permutations: Of the test.
        seed: Of the permutations.
    """
    settings = DriftSettings(window, block, alpha, margin, confirm, permutations)
    settings.check()
    known = named(reference)
    inputs = {f"reference.{name}": path for name, path in known.items()}
    inputs |= {f"frames.{number}": path for number, path in enumerate(frames)}
    run = RunDirectory(output, "drift", asdict(settings) | {"reference": list(known)}, inputs, seed)
    if not run.begin():
        print(f"{output} is finished already: nothing to do.")
        return
    parts = [read_signals(path) for path in frames]
    found = judge({name: read_signals(path) for name, path in known.items()}, parts, settings, seed)
    write_json(run.work / "drift.json", found)
    run.finish({"drifted": sum(c["verdict"] == DRIFT for c in found["cameras"].values())})
    print("\n".join(told(found)))


def named(given: list[str]) -> dict[str, Path]:
    """Return paths by name from NAME=PATH.

    Raises:
        ConfigError: One is not of that form, or a name comes twice.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, sign, path = text.partition("=")
        if not (name and sign and path) or name in found:
            message = f"--reference {text!r} must be NAME=DIRECTORY, each name once, such as day=runs/features-day."
            raise ConfigError(message)
        found[name] = Path(path)
    return found


def judge(known: dict[str, Signals], parts: list[Signals], settings: DriftSettings, seed: int = 0) -> dict[str, Any]:
    """Return what `drift.json` holds.

    Args:
        known: Signals of each known domain.
        parts: Signals of the frames in question.
        settings: How drift is told.
        seed: Of the permutations.
    """
    stream = join(parts)
    _check_models(known, stream)
    known, short = long_enough(known, settings.min_frames)
    found: dict[str, Any] = {}
    changes: dict[str, Change] = {}
    for camera, seen in stream.by_camera().items():
        found[camera], change = _camera(camera, seen, known, settings, seed)
        if change is not None:
            changes[camera] = change
    silent = sorted({c for signals in known.values() for c in signals.cameras} - found.keys())
    return {"cameras": found, "groups": groups(changes), "silent": silent, "short": short, "adapt": bool(changes)}


def told(found: dict[str, Any]) -> list[str]:
    """Return the lines that the command prints."""
    lines = []
    for camera, said in found["cameras"].items():
        since = f" since window {said['since'] + 1} of {len(said['windows'])}" if said["since"] is not None else ""
        fault_named = f" ({said['fault']})" if said["fault"] else ""
        near = f"; nearest known: {said['nearest']}" if said["nearest"] else ""
        lines.append(f"{camera}: {said['verdict']}{fault_named}{since}{near}{_doubt(said)}")
    lines += [f"{camera}: silent, no frames" for camera in found["silent"]]
    lines += [f"{name}: left out, it has fewer frames than three windows" for name in found["short"]]
    lines += [f"One adaptation serves: {', '.join(group)}" for group in found["groups"]]
    return lines


def _doubt(said: dict[str, Any]) -> str:
    if said["verdict"] != DRIFT or said["reference_windows"] >= SHORT:
        return ""
    return f", of {said['reference_windows']} windows: below {SHORT} alarms are easily false"


class Watch:
    """One camera against one known domain.

    Args:
        reference: The domain's frames of this camera, or of all cameras.
        settings: How drift is told.

    Raises:
        DataError: The reference has too few frames.
    """

    def __init__(self, reference: Signals, settings: DriftSettings) -> None:
        usable = in_order(reference.take(np.flatnonzero(reference.readable)))
        if len(usable) < settings.min_frames:
            message = (
                f"A reference of {len(usable)} readable frames is too short for windows of {settings.window}: "
                f"it takes {settings.min_frames} or more. Give more frames, or a smaller --window."
            )
            raise DataError(message)
        self.settings = settings
        self.usual_change = usual_change(usable)
        self.signals = usable
        recordings = [f"{camera}/{name}" for camera, name in zip(usable.cameras, usable.recordings, strict=True)]
        numbers = blocks(recordings, settings.block)
        size = settings.window // settings.block
        self.tests = {k: Reference(v, numbers, size, settings.margin) for k, v in kinds(usable).items()}

    def look(self, window: Signals, random: np.random.Generator) -> dict[str, Verdict]:
        """Test one window of readable frames."""
        numbers = blocks([""] * len(window), self.settings.block)
        return {
            kind: self.tests[kind].test(values, numbers, random, self.settings.permutations)
            for kind, values in kinds(window).items()
        }


def in_order(signals: Signals) -> Signals:
    """Return the frames by camera, recording and place in it: files may list them in any order."""
    keys = list(zip(signals.cameras, signals.recordings, signals.indices, strict=True))
    return signals.take(sorted(range(len(keys)), key=keys.__getitem__))


def kinds(signals: Signals) -> dict[str, NDArray[np.float32]]:
    """Return the values of each kind of signal, a row a frame."""
    # The root of a count varies about as much for many objects as for few.
    return {
        "features": signals.features,
        "scores": np.sqrt(signals.scores),
        "plain": signals.plain[:, _TESTED],
        "view": signals.view,
    }


def _camera(
    camera: str, seen: Signals, known: dict[str, Signals], settings: DriftSettings, seed: int
) -> tuple[dict[str, Any], Change | None]:
    watches = {
        name: Watch(of_camera(signals, camera, settings.min_frames), settings) for name, signals in known.items()
    }
    windows = []
    for number in range(len(seen) // settings.window):
        rows = np.arange(number * settings.window, (number + 1) * settings.window)
        windows.append(_window(camera, number, seen.take(rows), watches, settings, seed))
    since = first_run([bool(w["over"]) for w in windows], settings.confirm)
    faults = [w["fault"] for w in windows[-settings.confirm :]]
    broken = faults[-1] if faults and all(faults) else None
    # Fewer windows than confirm a drift cannot say that there is none.
    settled = STEADY if len(windows) >= settings.confirm else FEW
    verdict = FAULT if broken else DRIFT if since is not None else settled
    nearest = _nearest(windows)
    result = {
        "frames": len(seen),
        "windows": windows,
        "verdict": verdict,
        "fault": broken,
        "since": since if verdict == DRIFT else None,
        "nearest": nearest,
        "reference_windows": len(watches[nearest].signals) // settings.window if nearest else 0,
    }
    if verdict != DRIFT or nearest is None:
        return result, None
    healthy = [row for row in range(len(seen)) if seen.readable[row]]
    return result, Change.between(watches[nearest].signals, seen.take(healthy[-settings.window * settings.confirm :]))


def _window(
    camera: str, number: int, window: Signals, watches: dict[str, Watch], settings: DriftSettings, seed: int
) -> dict[str, Any]:
    """Return one window's entry: a fault, or how far it is from each known domain."""
    changes = [watch.usual_change for watch in watches.values() if watch.usual_change is not None]
    wrong = fault(window, changes)
    entry: dict[str, Any] = {"first": window.names[0], "fault": wrong, "over": False, "references": {}}
    readable = window.take(np.flatnonzero(window.readable))
    if wrong or len(readable) < 3 * settings.block:
        return entry
    over = []
    for name, watch in watches.items():
        random = np.random.default_rng([seed, zlib.crc32(f"{camera}/{name}".encode()), number])
        looks = watch.look(readable, random)
        entry["references"][name] = {kind: _rounded(asdict(look)) for kind, look in looks.items()}
        over.append([kind for kind, look in looks.items() if look.over(settings.alpha / len(KINDS))])
    entry["over"] = all(over)
    entry["kinds"] = sorted({kind for found in over for kind in found})
    values = window.plain[window.readable][:, _TESTED].mean(0)
    entry["plain"] = {PLAIN[i]: round(float(v), 3) for i, v in zip(_TESTED, values, strict=True)}
    return entry


def first_run(over: list[bool], confirm: int) -> int | None:
    """Return where the first run of `confirm` windows begins that are all over; `None` without one."""
    return next((i for i in range(len(over) - confirm + 1) if all(over[i : i + confirm])), None)


def _nearest(windows: list[dict[str, Any]]) -> str | None:
    """Return the known domain with the smallest feature distance over the windows."""
    sums: dict[str, float] = {}
    for window in windows:
        for name, looks in window["references"].items():
            sums[name] = sums.get(name, 0.0) + looks["features"]["distance"]
    return min(sums, key=lambda name: sums[name]) if sums else None


def _check_models(known: dict[str, Signals], stream: Signals) -> None:
    for name, signals in known.items():
        if not same_model(signals, stream):
            message = f"--reference {name} and --frames have features of different models. Make them with one."
            raise DataError(message)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}
