"""Stands for `cahqp`: keeps every promise about run directories, and detects nothing.

`FAKE_HANG` names a stage that never ends after its first file, `FAKE_FAIL` one that fails there.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from cahqp.cycle import apply_decision as apply_module
from cahqp.cycle.apply_decision import ApplyDecisionOptions, apply_decision
from cahqp.cycle.fetch.command import fetch
from cahqp.cycle.fetch.options import FetchOptions
from cahqp.cycle.publish import PublishOptions, publish
from cahqp.files import sha256
from cahqp.runs.directory import RunDirectory, content_hash

apply_module.model_hash = sha256  # the models of these tests are no model files

RESULTS = {
    "scenes": "annotations.json",
    "fit": "model.safetensors",
    "relabel": "labels.json",
    "report": "report.html",
    "features": "features.npz",
}


def main(arguments):
    command, flags = arguments[0], dict(a[2:].split("=", 1) for a in arguments if "=" in a and a[:2] == "--")
    if command == "report" and "output" not in flags:
        Path(flags["run"], "report.html").write_text("rounds")
        return
    output = Path(flags.pop("output"))
    seed = int(flags.pop("seed", 0))
    words = [word for a in arguments[1:] for word in _words(a)]
    if command == "publish":
        paths = {key: Path(flags[key]) for key in ("candidate", "running", "metrics")}
        publish(PublishOptions(**paths, output=output, frames=flags["frames"]))
        return
    if command == "fetch":
        after = (
            [Path(a) for a in arguments[arguments.index("--after") + 1 :] if a[:2] != "--"]
            if "--after" in arguments
            else []
        )
        until = float(flags["until"]) if "until" in flags else None
        fetch(FetchOptions(frames=flags["frames"], output=output, after=after, until=until))
        return
    if command == "apply-decision":
        names = ("decision", "candidate", "running", "candidate-package", "running-package")
        apply_decision(
            ApplyDecisionOptions(**{name.replace("-", "_"): Path(flags[name]) for name in names}, output=output)
        )
        return
    inputs = {f"{i}": Path(w) for i, w in enumerate(words) if Path(w).is_file()}
    settings = {"flags": [w for w in words if "/" not in w]}
    directory = RunDirectory(output, command, settings, inputs, seed)
    if not directory.begin():
        return
    (directory.work / "first").write_text("half")
    stage = f"{output.parent.name}/{output.name}"
    if os.environ.get("FAKE_HANG") in (output.name, stage):
        time.sleep(60)
    if os.environ.get("FAKE_FAIL") == output.name:
        print("a line of no use\n" * 30 + "the lamp is broken")
        sys.exit(3)
    digest = hashlib.sha256(json.dumps(directory.identity, sort_keys=True).encode()).hexdigest()
    text = json.dumps(_metrics(arguments)) if command == "evaluate" else digest
    for name, written in _results(command, output, flags, text).items():
        (directory.work / name).parent.mkdir(exist_ok=True)
        (directory.work / name).write_text(written)
    directory.finish({})


def _results(command, output, flags, text):
    """Return the files of a command that later stages read, with what they hold."""
    if command == "drift":
        groups = json.loads(os.environ.get("FAKE_GROUPS", '{"": [["north"]]}'))
        found = groups.get(output.parent.name, [["north"]])
        cameras = os.environ.get("FAKE_CAMERAS", "").split() or [camera for group in found for camera in group]
        told = {
            "groups": found,
            "cameras": {camera: {"verdict": "fault" if camera == "dark" else "steady"} for camera in cameras},
            "silent": [],
            "adapt": bool(found),
        }
        return {"drift.json": json.dumps(told)}
    if command == "gate":
        kept = os.environ.get("FAKE_KEEP", "") == output.parent.name
        told = {"published": not kept, "reason": "Kept." if kept else "Published."}
        told |= {role: {"package": sha256(Path(flags[role], "package.json"))} for role in ("candidate", "running")}
        return {"decision.json": json.dumps(told)}
    if command == "export":
        rule = {"batch": 1, "height": 8, "width": 12, "mean": [0, 0, 0], "std": [1, 1, 1]}
        manifest = {
            "format": 1, "architecture": "RTDETR", "classes": ["car"], "thresholds": {}, "precision": "float32",
            "input": {**rule, "short_side": None, "max_side": None}, "output": {"max_detections": 3},
            "weights": sha256(Path(flags["weights"])), "files": {"model.onnx": hashlib.sha256(b"").hexdigest()},
        }  # fmt: skip
        return {"model.onnx": "", "package.json": json.dumps(manifest)}
    if command == "replay":
        old = json.loads(Path(flags["buffer"], "buffer.json").read_text())["domains"] if "buffer" in flags else []
        name = flags["name"] + (f".{len(old) + 1}" if flags["name"] in [d["name"] for d in old] else "")
        domains = [*old, {"name": name, "domain": flags["name"], "frames": 8, "held": 2}]
        files = {f"{d['name']}/held.json": "{}" for d in domains}
        return {"buffer.json": json.dumps({"domains": domains}), "new/labels.json": text, "past.json": text, **files}
    if command == "sample":
        return {"frames.json": text, "features.npz": text}
    return {RESULTS.get(command, "metrics.json"): text}


def _words(argument):
    value = argument.split("=", 1)[1] if "=" in argument else argument
    return [str(v) for v in json.loads(value)] if value.startswith("[") else [value]


def _metrics(arguments):
    new = 0.6 if os.environ.get("FAKE_WORSE") is None else 0.4
    scores = {"teacher-source": 0.3, "teacher-adapted": 0.7, "student-old": 0.5, "student-new": new}
    frames = ("target-test", "source-val", "night")
    models = {name: {n: {"ap50": value, "images": 2} for n in frames} for name, value in scores.items()}
    hashes = {}
    for name, path in (a.split("=", 1) for a in arguments if "=" in a and a[:2] != "--"):
        count = sum(key == name or key.startswith(f"{name}-") for key in hashes)
        if Path(path).exists() and (name in scores or not name.startswith("teacher-")):
            hashes[f"{name}-{count + 1}" if count else name] = content_hash(Path(path))
    return {"models": models, "inputs": {"weights": hashes, "frames": hashes}}


if __name__ == "__main__":
    main(sys.argv[1:])
