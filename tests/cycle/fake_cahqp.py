"""Stands for `cahqp`: keeps every promise about run directories, and detects nothing.

`FAKE_HANG` names a stage that never ends after its first file, `FAKE_FAIL` one that fails there.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from cahqp.cycle.manifest import RunDirectory
from cahqp.cycle.publish import publish

RESULTS = {"scenes": "annotations.json", "fit": "model.safetensors", "relabel": "labels.json", "report": "report.html"}


def main(arguments):
    command, flags = arguments[0], dict(a[2:].split("=", 1) for a in arguments if "=" in a and a[:2] == "--")
    output = Path(flags.pop("output"))
    seed = int(flags.pop("seed", 0))
    words = [word for a in arguments[1:] for word in _words(a)]
    if command == "publish":
        paths = {key: Path(flags[key]) for key in ("candidate", "running", "metrics")}
        publish(**paths, output=output, frames=flags["frames"])
        return
    inputs = {f"{i}": Path(w) for i, w in enumerate(words) if Path(w).is_file()}
    settings = {"flags": [w for w in words if "/" not in w]}
    directory = RunDirectory(output, command, settings, inputs, seed)
    if not directory.begin():
        return
    (directory.work / "first").write_text("half")
    if os.environ.get("FAKE_HANG") == output.name:
        time.sleep(60)
    if os.environ.get("FAKE_FAIL") == output.name:
        print("a line of no use\n" * 30 + "the lamp is broken")
        sys.exit(3)
    digest = hashlib.sha256(json.dumps(directory.identity, sort_keys=True).encode()).hexdigest()
    text = json.dumps(_metrics(words)) if command == "evaluate" else digest
    (directory.work / RESULTS.get(command, "metrics.json")).write_text(text)
    directory.finish({})


def _words(argument):
    value = argument.split("=", 1)[1] if "=" in argument else argument
    return [str(v) for v in json.loads(value)] if value.startswith("[") else [value]


def _metrics(words):
    new = 0.6 if os.environ.get("FAKE_WORSE") is None else 0.4
    scores = {"teacher-source": 0.3, "teacher-adapted": 0.7, "student-old": 0.5, "student-new": new}
    return {"models": {name: {"target-test": {"ap50": value}} for name, value in scores.items()}}


if __name__ == "__main__":
    main(sys.argv[1:])
