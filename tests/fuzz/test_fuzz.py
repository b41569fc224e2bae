"""Changed files of every external format: read or refused with a message, and nothing else."""

import json
import os
import sys
import traceback

import pytest
from fuzz import frame_targets, label_targets, model_targets, plan_targets
from fuzz.guard import fuzz

TARGETS = {t.name: t for part in (label_targets, plan_targets, model_targets, frame_targets) for t in part.TARGETS}
SECONDS = float(os.environ.get("FUZZ_SECONDS", "2"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CASE = int(os.environ["FUZZ_CASE"]) if "FUZZ_CASE" in os.environ else None


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused(name, tmp_path):
    check(TARGETS[name], tmp_path, SECONDS, CASE)


@pytest.mark.long
@pytest.mark.parametrize("name", ["model-file", "package", "plans"])
def test_ten_thousand_changed_files(name, tmp_path):
    check(TARGETS[name], tmp_path, 0, cases=10_000)


def check(target, root, seconds, case=None, cases=2):
    (root / "hang.log").touch()
    child = _fork(lambda: fuzz(target, root, seconds, SEED, case, cases), root)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == 0, (root / "hang.log").read_text() + (root / "error.log").read_text()
    report = json.loads((root / "output" / "report.json").read_text())
    print(target.name, {key: value for key, value in report.items() if key != "findings"})
    assert report["findings"] == [], "\n\n".join(
        f"FUZZ_CASE={entry['case']} FUZZ_SEED={entry['seed']}: {entry['kind']}\n{entry['detail']}"
        for entry in report["findings"]
    )


def _fork(work, root):
    """Start a function in a process of its own, which cannot harm this one, and return its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.fsync = lambda descriptor: None  # no power cut is expected here
        with (root / "error.log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            work()
        code = 0
    except BaseException:  # noqa: BLE001  the process ends here, whatever happened
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)
