"""`cahqp drift`: detect drifted and faulty cameras, and group the drifted ones by their changes."""

from __future__ import annotations

import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahqp.drift.faults import fault, usual_change
from cahqp.drift.grouping import change_direction, group_cameras
from cahqp.drift.mmd import MmdResult, Reference, blocks
from cahqp.drift.options import DRIFT, FAULT, FEW, KINDS, STEADY, DriftOptions, DriftSettings
from cahqp.drift.signals import PLAIN, Signals, join_signals, read_signals, same_model
from cahqp.errors import ConfigError, DataError
from cahqp.files import write_json
from cahqp.runs.directory import open_run

SHORT = 10
"""Number of windows of a reference below which slow traffic causes false alarms; see docs/rounds.md."""
_TESTED = [PLAIN.index(name) for name in ("brightness", "contrast", "sharpness", "detections")]


def drift(options: DriftOptions) -> None:
    """Run `cahqp drift`."""
    references = parse_references(options.reference)
    settings = DriftSettings(**{name: getattr(options, name) for name in DriftSettings.__dataclass_fields__})
    inputs = {f"reference.{name}": path for name, path in references.items()}
    inputs |= {f"frames.{number}": path for number, path in enumerate(options.frames)}
    recorded = asdict(settings) | {"reference": list(references)}
    with open_run(options.output, "drift", recorded, inputs, options.seed) as run:
        if run is None:
            return
        parts = [read_signals(path) for path in options.frames]
        signals = {name: read_signals(path) for name, path in references.items()}
        result = judge(signals, parts, settings, options.seed)
        write_json(run.work / "drift.json", result)
        run.metrics = {"drifted": sum(c["verdict"] == DRIFT for c in result["cameras"].values())}
        print("\n".join(describe(result)))


def parse_references(texts: list[str]) -> dict[str, Path]:
    """Return paths by name from texts NAME=PATH.

    Raises:
        ConfigError: A text has another form, or a name occurs twice.
    """
    paths: dict[str, Path] = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not (name and sign and path) or name in paths:
            message = f"--reference {text!r} must be NAME=DIRECTORY, each name once, such as day=runs/features-day."
            raise ConfigError(message)
        paths[name] = Path(path)
    return paths


def judge(
    references: dict[str, Signals], parts: list[Signals], settings: DriftSettings, seed: int = 0
) -> dict[str, Any]:  # fmt: skip
    """Return the contents of `drift.json`.

    Args:
        references: Signals of each reference domain.
        parts: Signals of the frames to test.
        settings: Settings of the drift test.
        seed: Seed of the permutations.
    """
    stream = join_signals(parts)
    for name, signals in references.items():
        if not same_model(signals, stream):
            message = f"--reference {name} and --frames have features of different models. Use one model for both."
            raise DataError(message)
    references, short = _drop_short(references, settings.min_frames)
    cameras: dict[str, Any] = {}
    changes: dict[str, NDArray[np.float64]] = {}
    for camera, frames in stream.by_camera().items():
        tests = {
            name: DomainTest(_frames_for(signals, camera, settings.min_frames), settings)
            for name, signals in references.items()
        }
        cameras[camera], change = _judge_camera(camera, frames, tests, settings, seed)
        if change is not None:
            changes[camera] = change
    silent = sorted({c for signals in references.values() for c in signals.cameras} - cameras.keys())
    return {
        "cameras": cameras,
        "groups": group_cameras(changes),
        "silent": silent,
        "short": short,
        "adapt": bool(changes),
    }


def describe(result: dict[str, Any]) -> list[str]:
    """Return the lines that the command prints."""
    lines = []
    for camera, entry in result["cameras"].items():
        since = f" since window {entry['since'] + 1} of {len(entry['windows'])}" if entry["since"] is not None else ""
        fault_name = f" ({entry['fault']})" if entry["fault"] else ""
        nearest = f"; nearest reference: {entry['nearest']}" if entry["nearest"] else ""
        count = entry["reference_windows"]
        uncertain = entry["verdict"] == DRIFT and count < SHORT
        warning = f", of {count} windows: below {SHORT}, false alarms are likely" if uncertain else ""
        lines.append(f"{camera}: {entry['verdict']}{fault_name}{since}{nearest}{warning}")
    lines += [f"{camera}: silent, no frames" for camera in result["silent"]]
    lines += [f"{name}: omitted, it has fewer frames than three windows" for name in result["short"]]
    lines += [f"One adaptation serves: {', '.join(group)}" for group in result["groups"]]
    return lines


def first_run(over: list[bool], confirm: int) -> int | None:
    """Return the start of the first `confirm` consecutive windows that are all over; `None` without any."""
    return next((i for i in range(len(over) - confirm + 1) if all(over[i : i + confirm])), None)


class DomainTest:
    """Test of one camera against one reference domain.

    Args:
        reference: The domain's frames of this camera, or of all cameras.
        settings: Settings of the drift test.

    Raises:
        DataError: The reference has too few frames.
    """

    def __init__(self, reference: Signals, settings: DriftSettings) -> None:
        usable = _in_order(reference.take(np.flatnonzero(reference.readable)))
        if len(usable) < settings.min_frames:
            message = (
                f"A reference has {len(usable)} readable frames; windows of {settings.window} need at least "
                f"{settings.min_frames}. Give more frames, or a smaller --window."
            )
            raise DataError(message)
        self.settings = settings
        self.signals = usable
        self.usual_change = usual_change(usable)
        recordings = [f"{camera}/{name}" for camera, name in zip(usable.cameras, usable.recordings, strict=True)]
        numbers = blocks(recordings, settings.block)
        size = settings.window // settings.block
        self.tests = {k: Reference(v, numbers, size, settings.margin) for k, v in _kinds(usable).items()}

    def test(self, window: Signals, random: np.random.Generator) -> dict[str, MmdResult]:
        """Test one window of readable frames, by kind of signal."""
        numbers = blocks([""] * len(window), self.settings.block)
        return {
            kind: self.tests[kind].test(values, numbers, random, self.settings.permutations)
            for kind, values in _kinds(window).items()
        }


def _drop_short(references: dict[str, Signals], min_frames: int) -> tuple[dict[str, Signals], list[str]]:
    """Return the domains with enough readable frames, and the names of the others.

    A round of few frames must not stop the next one: without it, its conditions count as new. If all domains are too
    short, all are returned, and the first test reports the number of frames.
    """
    short = [name for name, signals in references.items() if int(signals.readable.sum()) < min_frames]
    if len(short) == len(references):
        return references, []
    return {name: signals for name, signals in references.items() if name not in short}, short


def _frames_for(signals: Signals, camera: str, min_frames: int) -> Signals:
    """Return the camera's own readable frames in a domain if there are enough, else the frames of all cameras."""
    rows = [row for row, name in enumerate(signals.cameras) if name == camera and signals.readable[row]]
    return signals.take(rows) if len(rows) >= min_frames else signals


def _in_order(signals: Signals) -> Signals:
    """Return the frames sorted by camera, recording and index."""
    keys = list(zip(signals.cameras, signals.recordings, signals.indices, strict=True))
    return signals.take(sorted(range(len(keys)), key=keys.__getitem__))


def _kinds(signals: Signals) -> dict[str, NDArray[np.float32]]:
    """Return the values of each kind of signal, one row per frame."""
    # The square root of a count has about the same variance for many objects as for few.
    return {
        "features": signals.features,
        "scores": np.sqrt(signals.scores),
        "plain": signals.plain[:, _TESTED],
        "view": signals.view,
    }


def _judge_camera(
    camera: str, frames: Signals, tests: dict[str, DomainTest], settings: DriftSettings, seed: int
) -> tuple[dict[str, Any], NDArray[np.float64] | None]:
    """Return a camera's entry, and the direction of its change if it drifted."""
    windows = []
    for number in range(len(frames) // settings.window):
        window = frames.take(np.arange(number * settings.window, (number + 1) * settings.window))
        randoms = {
            name: np.random.default_rng([seed, zlib.crc32(f"{camera}/{name}".encode()), number]) for name in tests
        }
        windows.append(_test_window(window, tests, settings, randoms))
    since = first_run([bool(w["over"]) for w in windows], settings.confirm)
    faults = [w["fault"] for w in windows[-settings.confirm :]]
    broken = faults[-1] if faults and all(faults) else None
    # Fewer windows than `confirm` cannot exclude drift.
    verdict = STEADY if len(windows) >= settings.confirm else FEW
    verdict = FAULT if broken else DRIFT if since is not None else verdict
    nearest = _nearest(windows)
    entry = {
        "frames": len(frames),
        "windows": windows,
        "verdict": verdict,
        "fault": broken,
        "since": since if verdict == DRIFT else None,
        "nearest": nearest,
        "reference_windows": len(tests[nearest].signals) // settings.window if nearest else 0,
    }
    if verdict != DRIFT or nearest is None:
        return entry, None
    healthy = np.flatnonzero(frames.readable)[-settings.window * settings.confirm :]
    return entry, change_direction(tests[nearest].signals, frames.take(healthy))


def _test_window(
    window: Signals, tests: dict[str, DomainTest], settings: DriftSettings, randoms: dict[str, np.random.Generator]
) -> dict[str, Any]:
    """Return the entry of one window: a fault, or its distances to each reference domain."""
    changes = [test.usual_change for test in tests.values() if test.usual_change is not None]
    broken = fault(window, changes)
    entry: dict[str, Any] = {"first": window.names[0], "fault": broken, "over": False, "references": {}}
    readable = window.take(np.flatnonzero(window.readable))
    if broken or len(readable) < 3 * settings.block:
        return entry
    over = []
    for name, test in tests.items():
        results = test.test(readable, randoms[name])
        entry["references"][name] = {
            kind: {key: round(value, 6) for key, value in asdict(result).items()} for kind, result in results.items()
        }
        over.append([kind for kind, result in results.items() if result.over(settings.alpha / len(KINDS))])
    entry["over"] = all(over)
    entry["kinds"] = sorted({kind for kinds in over for kind in kinds})
    values = window.plain[window.readable][:, _TESTED].mean(0)
    entry["plain"] = {PLAIN[i]: round(float(v), 3) for i, v in zip(_TESTED, values, strict=True)}
    return entry


def _nearest(windows: list[dict[str, Any]]) -> str | None:
    """Return the reference domain with the smallest sum of feature distances over the windows."""
    sums: dict[str, float] = {}
    for window in windows:
        for name, results in window["references"].items():
            sums[name] = sums.get(name, 0.0) + results["features"]["distance"]
    return min(sums, key=lambda name: sums[name]) if sums else None
