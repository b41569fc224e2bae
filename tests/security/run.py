"""Run of one attack in this process. As a script: of all attacks, on this or another checkout of the project.

    PYTHONPATH=CHECKOUT python tests/security/run.py FOLDER

reads the attacks from FOLDER, which the first run fills with the files of this checkout. It prints a line for each
attack, and the number of attacks that end in a message and reach nothing outside their folders.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

from fuzz.guard import Guard, limit_memory
from security.commands import COMMANDS

OLDER = {"replay": "remember"}
"""Names of commands in version 0.1, by today's name."""

SECONDS = 60
"""Longest time of one command."""


class Outcome(NamedTuple):
    """What a command did.

    Attributes:
        code: Its exit code; -1 after an exception.
        printed: What it printed.
        problem: Traceback, hang, connection or file outside its folders; `None` without any.
    """

    code: int
    printed: str
    problem: str | None


def run(command, case, output, main, guard, rename=list):
    """Run a command on files.

    Args:
        command: Name in `COMMANDS`.
        case: Folder of its files.
        output: Empty folder that it may write to.
        main: The entry point of `cahqp`.
        guard: A `Guard` for these folders.
        rename: Changes the words of the command, for another version of `cahqp`.
    """
    words = rename([word.format(case=case, out=output) for word in COMMANDS[command][1].split()])
    printed, before = io.StringIO(), Path.cwd()
    guard.violations.clear()
    os.chdir(output)
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    try:
        with guard, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code, problem = main(words), None
    except BaseException as error:  # noqa: BLE001  whatever it is, it is what an attack must not cause
        code, problem = -1, f"{type(error).__name__}: {traceback.format_exc()[-3000:]}"
    finally:
        signal.alarm(0)
        os.chdir(before)
    return Outcome(code, printed.getvalue(), problem or next(iter(guard.violations), None))


def prepare(attack, valid, case):
    """Write the files of an attack to a new folder."""
    shutil.copytree(valid, case, symlinks=True)
    attack.change(case, attack.file)


def compare(folder):
    """Run all attacks of a folder with the `cahqp` that Python imports, and print what they do."""
    from cahqp import __main__

    main = __main__.main
    attacks = json.loads((folder / "attacks.json").read_text())
    guard = Guard([Path(__main__.__file__).parents[1]], [folder])
    tempfile.tempdir, handled, valid = str(folder / "output"), 0, {}
    for command, name in {(entry["command"], COMMANDS[entry["command"]][0]) for entry in attacks}:
        tries = (_outcome(folder, command, folder / name / "valid", main, guard).code for _ in range(2))
        valid[command] = 0 in tries  # the first command also imports what it needs, which takes long
    limit_memory()
    for number, entry in enumerate(attacks):
        found = _outcome(folder, entry["command"], folder / "attacks" / str(number), main, guard)
        good = found.problem is None and found.code in (1, 2)
        handled += good and valid[entry["command"]]
        state = "not comparable" if not valid[entry["command"]] else "handled" if good else "NOT HANDLED"
        print(number, entry["kind"], entry["command"], entry["file"], state, _last_line(found), flush=True)
    comparable = sum(valid[entry["command"]] for entry in attacks)
    others = ", ".join(sorted(command for command, passes in valid.items() if not passes))
    print(f"{handled} of {comparable} handled; {len(attacks) - comparable} not comparable ({others})")


def write_attacks(folder):
    """Write the files of all attacks, with the writers of this checkout."""
    from security.attacks import ATTACKS
    from security.sets import SETS

    entries = []
    for number, attack in enumerate(ATTACKS):
        valid = folder / COMMANDS[attack.command][0] / "valid"
        if not valid.is_dir():
            valid.mkdir(parents=True)
            SETS[COMMANDS[attack.command][0]].make(valid)
            _drop_new_keys(valid)
        prepare(attack, valid, folder / "attacks" / str(number))
        entries.append({"kind": attack.kind, "command": attack.command, "file": attack.file})
    (folder / "attacks.json").write_text(json.dumps(entries))


def _drop_new_keys(folder):
    """Remove the optional keys that version 0.1 refuses."""
    for path in folder.glob("registry/running*.json"):
        document = json.loads(path.read_text())
        document = {key: value for key, value in document.items() if key not in ("manifests", "sha256")}
        digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(document | {"sha256": digest}))
    for path in folder.glob("plan.yaml"):
        path.write_text(path.read_text().replace("  frame_interval: 0.5\n", ""))


def _outcome(folder, command, files, main, guard):
    """Run a command on a copy of files, which are at the same place each time: plans contain absolute paths."""
    case, output = folder / COMMANDS[command][0] / "case", folder / "output"
    for place in (case, output):
        shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(files, case, symlinks=True, copy_function=_copy)
    output.mkdir()
    return run(command, case, output, main, guard, _rename)


def _rename(words):
    """Return the words of a command with the name that it has in the `cahqp` that Python imports."""
    from cahqp import __main__

    known = getattr(__main__, "COMMANDS", {})
    return [OLDER.get(words[0], words[0]) if words[0] in OLDER and words[0] not in known else words[0], *words[1:]]


def _copy(source, target):
    """Copy a file, or make another pipe."""
    if Path(source).is_fifo():
        os.mkfifo(target)
    else:
        shutil.copy2(source, target)


def _last_line(found):
    lines = (found.problem or found.printed).strip().splitlines() or [""]
    return ascii(lines[-1][:160])


def _stop(number, frame):
    message = f"the command did not end within {SECONDS} s"
    raise TimeoutError(message)


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    if not place.exists():
        write_attacks(place)
    compare(place)
