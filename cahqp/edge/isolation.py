"""Isolation of this process by the kernel: no network, and no files but those that are named.

Linux only, without privileges: Landlock (kernel 5.13) restricts files, and a seccomp filter refuses sockets. Both hold
for this thread, for threads and processes that it starts, and cannot be undone. So isolate before other threads start.
Sources: linux/landlock.h, linux/seccomp.h and linux/filter.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import site
import struct
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from cahqp.errors import ConfigError

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls of Landlock, equal on all architectures
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 2, 4, 8, 1 << 14
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE  # the rights that a file, not a folder, can have
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}
"""All rights on files by version of Landlock; version 3 is the last one that added rights on plain files."""

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 13  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EACCES
_ARCHITECTURES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""Number of the architecture, and of its system call `socket`."""
_IO_URING_SETUP, _X32 = 425, 0x40000000  # io_uring opens sockets without `socket`; x32 calls have other numbers

_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/os-release", "/proc", "/sys")
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")


def isolate(read: Sequence[Path], write: Sequence[Path] = ()) -> None:
    """Refuse this process the network, and all files outside the installation of Python and the named paths.

    Args:
        read: Files and folders that may be read.
        write: Existing folders that may also be written.

    Raises:
        ConfigError: The system or its kernel does not support this, or a path does not exist.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ARCHITECTURES:
        message = f"Isolation needs Linux on {' or '.join(_ARCHITECTURES)}. Run the command in a container instead."
        raise ConfigError(message)
    version = _call(_CREATE_RULESET, None, 0, _VERSION)
    if version < 1:
        message = "This kernel has no Landlock (Linux 5.13, enabled at boot). Run the command in a container instead."
        raise ConfigError(message)
    rights = _RIGHTS[min(version, max(_RIGHTS))]
    readable = [*map(Path, _SYSTEM), *_python_paths(), *read]
    writable = [*map(Path, _DEVICES), *write]
    paths = [(path, _READ) for path in readable] + [(path, rights) for path in writable]
    if missing := [path for path in (*read, *write) if not Path(path).exists()]:
        message = f"{missing[0]} does not exist. Check the path; relative paths start in the working directory."
        raise ConfigError(message)
    _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _restrict_files(rights, paths)
    _refuse_sockets(*_ARCHITECTURES[machine])


def _restrict_files(rights: int, paths: Sequence[tuple[Path, int]]) -> None:
    attribute = struct.pack("=Q", rights)
    ruleset = _check(_call(_CREATE_RULESET, attribute, len(attribute), 0), "landlock_create_ruleset")
    for path, allowed in paths:
        if not path.exists():
            continue  # such as /lib64
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed &= rights if path.is_dir() else rights & _FILE_RIGHTS
        rule = struct.pack("=Qi", allowed, descriptor)
        _check(_call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), f"landlock_add_rule of {path}")
        os.close(descriptor)
    _check(_call(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _refuse_sockets(architecture: int, socket: int) -> None:
    """Install a filter of system calls. A jump counts the instructions to skip if true, and if false."""
    load, equal, above, answer = 0x20, 0x15, 0x35, 0x06  # BPF: load word, jump if equal, jump if at least, return
    program = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 0, 4, architecture),
        (load, 0, 0, 0),  # seccomp_data.nr
        (above, 2, 0, _X32),
        (equal, 1, 0, socket),
        (equal, 0, 1, _IO_URING_SETUP),
        (answer, 0, 0, _REFUSE),
        (answer, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    _check(_libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0), "seccomp")


def _python_paths() -> Iterator[Path]:
    """Yield the folders of Python and its packages. `sys.path` would add the working directory."""
    yield from map(Path, {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()})
    yield from map(Path, site.getsitepackages())
    yield Path(__file__).parents[1]


def _call(number: int, *arguments: int | bytes | None) -> int:
    return int(_libc().syscall(ctypes.c_long(number), *arguments))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(answer: int, step: str) -> int:
    """Return the result of a system call; raise an error for -1."""
    if answer < 0:
        message = f"{step} failed ({os.strerror(ctypes.get_errno())}). Run the command in a container instead."
        raise ConfigError(message)
    return answer
