"""A forked process in which every case of a fuzz target is watched: its time, memory, files and connections."""

import faulthandler
import json
import os
import random
import resource
import socket
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
from pathlib import Path

from fuzz.mutations import Mutator

from cahqp.errors import CahqpError
from cahqp.files import disk_trouble

MEMORY = 1 << 30
"""Bytes that a process may allocate while it reads."""
SECONDS_PER_CASE = 30
"""Longest time of a case; a machine that also trains is slow."""
MAX_FINDINGS = 5

_WRITES = {
    "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1, "shutil.rmtree": 1,
}  # fmt: skip
"""Number of paths among the arguments of events that change files."""
_FORBIDDEN = (
    "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request",
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn",
    "webbrowser.open", "ftplib.connect", "http.client.connect",
)  # fmt: skip
_READABLE = [sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), str(Path(__file__).parents[2]), "/proc", "/sys",
             "/dev", "/usr", "/lib", "/etc/ld.so.cache", "/etc/localtime", "/etc/os-release"]  # fmt: skip


class Guard:
    """Audit hook that, inside a `with` block, notes connections, processes, and files outside given folders.

    Args:
        readable: Folders that may be read, beside the installation.
        writable: Folders that may also be written.
    """

    def __init__(self, readable, writable):
        self.violations = []
        self._active = False
        self._readable = [*_READABLE, *(os.path.realpath(path) for path in (*_READABLE, *readable, *writable))]
        self._writable = [os.path.realpath(path) for path in writable]
        sys.addaudithook(self._watch)

    def __enter__(self):
        self._active = True

    def __exit__(self, *_):
        self._active = False

    def _watch(self, event, arguments):
        if not self._active:  # an audit hook cannot be removed
            return
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)) or any(
                letter in (mode or "") for letter in "wax+"
            )
            self._check(event, path, self._writable if writes else self._readable)
        elif event in _WRITES:
            for path in arguments[: _WRITES[event]]:
                self._check(event, path, self._writable)
        elif event in _FORBIDDEN:
            self._refuse(f"{event} {arguments!r}")

    def _check(self, event, path, roots):
        if isinstance(path, str | bytes | os.PathLike) and path != "/dev/null":
            # A path with a null byte or half a surrogate pair is refused by the system itself.
            try:
                text = os.fsdecode(path)
                real = f"{os.path.realpath(Path(text).parent)}/{Path(text).name}"
            except (ValueError, UnicodeError):
                return
            if not any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots):
                self._refuse(f"{event} {text!r}")

    def _refuse(self, violation):
        self.violations.append(violation)
        message = f"forbidden while fuzzing: {violation}"
        raise PermissionError(message)


def fuzz(target, root, seconds, seed=0, case=None, cases=2):
    """Read changed files until the time is over, in this process, and write `report.json`.

    Args:
        target: `Target` to run.
        root: Empty folder.
        seconds: Time budget.
        seed: Start of the random streams.
        case: Number of the only case to run.
        cases: Smallest number of cases. The first one reads unchanged files.
    """
    for name in ("valid", "case", "output", "outside"):
        (root / name).mkdir()
    (root / "outside" / "secret.txt").write_text("secret")
    target.make(root / "valid")
    files = {p.relative_to(root / "valid").as_posix(): p.read_bytes() for p in _files(root / "valid")}
    os.chdir(root / "output")
    tempfile.tempdir = str(root / "output")
    report = {"cases": 0, "accepted": 0, "findings": []}
    with socket.create_server(("127.0.0.1", 0)) as server, (root / "hang.log").open("w") as log:
        connections = _count_connections(server)
        watch = _Case(target, root, files, f"http://127.0.0.1:{server.getsockname()[1]}", connections)
        limit_memory()
        guard = Guard([], [root / "case", root / "output"])
        number, end = 0, time.monotonic() + seconds
        while number < cases or time.monotonic() < end:
            current = number if case is None else case
            log.seek(0)
            log.write(f"case {current} of {target.name}, seed {seed}\n")
            log.flush()
            faulthandler.dump_traceback_later(SECONDS_PER_CASE, exit=True, file=log)
            problem, accepted = watch.run(current, seed, guard)
            faulthandler.cancel_dump_traceback_later()
            report["cases"] += 1
            report["accepted"] += accepted
            if problem is not None and problem[0] not in {entry["kind"] for entry in report["findings"]}:
                report["findings"].append({"case": current, "seed": seed, "kind": problem[0], "detail": problem[1]})
            if case is not None or len(report["findings"]) == MAX_FINDINGS:
                break
            number += 1
    report["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    (root / "output" / "report.json").write_text(json.dumps(report))


class _Case:
    """Files of the cases of one target, and what reading them does."""

    def __init__(self, target, root, files, url, connections):
        self.target, self.root, self.files, self.url, self.connections = target, root, files, url, connections
        self.changeable = sorted(name for name in files if not name.startswith(target.fixed))
        _write(root / "case", files)

    def run(self, number, seed, guard):
        """Return the kind and details of a problem, or `None`, and whether the files were read."""
        random_ = random.Random(f"{self.target.name}/{seed}/{number}")
        mutator = Mutator(random_, self.root, self.url, self.files, thorough=number == 0)
        if number:
            changes = random_.choice((1, 1, 1, 2))
            chosen = random_.sample(self.changeable, min(changes, len(self.changeable)))
            _write(self.root / "case", {name: mutator.change(name, self.files[name]) for name in chosen})
            self.target.disguise(self.root / "case", mutator)
        guard.violations.clear()
        problem, accepted = None, False
        try:
            with guard:
                self.target.read(self.root / "case", self.root / "output", mutator)
            accepted = True
        except CahqpError as error:
            if number == 0:
                problem = ("valid files are refused", str(error))
        except OSError as error:
            if disk_trouble(error) is None:  # else `cahqp` prints a message
                problem = (f"{type(error).__name__} at {_place(error)}", traceback.format_exc()[-6000:])
        except BaseException as error:  # noqa: BLE001  anything else is what is looked for
            problem = (f"{type(error).__name__} at {_place(error)}", traceback.format_exc()[-6000:])
        if guard.violations:
            problem = (guard.violations[0].split(" ")[0], "\n".join(guard.violations))
        found = [path.name for path in (self.root / "outside").iterdir()]
        if self.connections or found != ["secret.txt"]:
            problem = ("code or a connection", f"{self.connections} {found}")
        _reset(self.root / "case", self.files)
        _reset(self.root / "output", {})
        return problem, accepted


def _place(error):
    """Return the last line of the package that an exception passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/cahqp/" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "the target itself"


def _count_connections(server):
    connections = []

    def accept():
        while True:
            try:
                connection, address = server.accept()
            except OSError:
                return
            connections.append(address)
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    return connections


def limit_memory():
    """Limit the memory of this process to what it has and `MEMORY` more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _reset(folder, files):
    """Bring a folder back to its files."""
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif name not in files:
            path.unlink()
    for name, data in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != data:
            _write(folder, {name: data})
