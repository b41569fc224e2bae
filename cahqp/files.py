"""Atomic file writes, hashes, and messages for disk errors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import parse_qsl, quote, unquote

from cahqp.errors import CahqpError, DataError, RunError
from cahqp.json_policy import parse_json

MAX_BYTES = 64 << 20
"""Largest JSON file of metrics, decisions, manifests and other records."""
MAX_TABLE_BYTES = 4 << 30
"""Largest JSON file with a row per image or box: 100 times the annotations of COCO."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` when the block ends without an error.

    Flushes and syncs the file, renames it, then syncs the directory. After an error `path` is unchanged and the
    temporary file is removed.

    Args:
        path: The file to write.
        mode: `w` for UTF-8 text, `wb` for bytes.

    Raises:
        RunError: The disk is full, or the directory cannot be written.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            encoding = None if "b" in mode else "utf-8"
            with os.fdopen(descriptor, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes private files; published files follow the user's umask.
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)
            Path(temporary).replace(path)
            temporary = None
            sync_directory(path.parent)
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of a full or read-only disk, or of missing permissions, into a message with the remedy.

    Args:
        path: The file that the block writes; errors of other files are raised unchanged.

    Raises:
        RunError: The disk is full, or `path` cannot be written.
    """
    try:
        yield
    except CahqpError:
        raise
    except Exception as error:
        explained = _explained(error, path)
        if explained is None:
            raise
        raise explained from error


def _explained(error: Exception, path: Path) -> RunError | None:
    """Return the error with its remedy; `None` if it is not about writing `path`."""
    if _disk_full(error):
        return RunError(
            f"The disk is full: {path} could not be written. Free some space and rerun the same command to resume."
        )
    if not isinstance(error, OSError):
        return None
    # The block may have failed on a file that it reads.
    named = Path(error.filename).absolute() if isinstance(error.filename, str) else path.absolute()
    ours = named.parent == path.absolute().parent or named in path.absolute().parents
    if ours and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError(f"{path} cannot be written ({error.strerror}). Choose another --output or fix its permissions.")
    return None


def _disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, is a full disk.

    Libraries wrap it: safetensors in an error of its own, torch in a RuntimeError about a position in the file.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        text = str(error)
        if getattr(error, "errno", None) in _FULL or any(os.strerror(code) in text for code in _FULL):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def disk_trouble(error: Exception) -> str | None:
    """Return the message for a full disk, missing permissions or an unusable path; `None` for other errors.

    Args:
        error: Raised while any file was read or written.
    """
    # A copy or rename writes the second file.
    named = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
        place = repr(named[:200]) if isinstance(named, str) else "A path"
        return f"{place} cannot be used ({error.strerror}). Check the paths that you gave, and the names in the files."
    if _disk_full(error):
        failure = f"{named} could not be written. " if isinstance(named, str) else ""
        return f"The disk is full: {failure}Free some space and rerun the same command to resume."
    if (
        isinstance(error, OSError)
        and isinstance(named, str)
        and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    ):
        return f"{named}: {error.strerror}. Fix its permissions, or give another path, such as another --output."
    return None


def sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON with sorted keys; NaN and infinity raise `ValueError`."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with atomic_write(path) as file:
        file.write(text + "\n")


def read_limited(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes. A FIFO or device is refused without waiting.

    Raises:
        OSError: The file cannot be read, is not a regular file, or is too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a regular file")
        data = file.read(min(limit, os.fstat(descriptor).st_size) + 1)  # read(limit) would allocate the whole limit
    if len(data) > limit:
        raise OSError(0, f"it is larger than {limit} bytes")
    return data


def read_json(path: Path) -> Any:
    """Read a JSON file by `cahqp.json_policy`.

    Raises:
        RunError: The file is missing, unreadable, not a regular file, not JSON, or an object repeats a key.
    """
    try:
        return parse_json(read_limited(path, MAX_TABLE_BYTES))
    except FileNotFoundError as error:
        message = f"{path} does not exist."
        raise RunError(message) from error
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}). Give the path of a JSON file that you may read."
        raise RunError(message) from error
    except ValueError as error:
        message = f"{path} is not readable JSON ({error}). Recreate it, or restore it from a copy."
        raise RunError(message) from error


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes; of a directory, that of its sorted names and files."""
    path = Path(path)
    if path.is_dir():
        digest = hashlib.sha256()
        for child in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{child.relative_to(path).as_posix()}\0{sha256(child)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leads_out(name: str) -> bool:
    """Return whether an external name is not a name below a folder, on any operating system."""
    parts = PurePosixPath(name).parts
    # JSON can contain half a surrogate pair, which UTF-8 cannot encode.
    foreign = re.search(r"^[A-Za-z]:|[\\\0\ud800-\udfff]", name) is not None
    return not parts or name.startswith("/") or ".." in parts or foreign


def path_inside(root: Path, name: str) -> Path:
    """Return the path of an external name inside a folder.

    Args:
        root: The folder.
        name: Relative path with `/`, from a file that anyone may have written.

    Raises:
        DataError: The name is absolute, contains `..`, a backslash, a drive letter, a null byte or half of a surrogate
            pair, or is too long.
    """
    if leads_out(name) or any(len(part.encode()) > 255 for part in PurePosixPath(name).parts):
        message = f"{name[:200]!a} is not a name inside a folder. Rename it, without `..`, `\\` and a leading `/`."
        raise DataError(message)
    return root / name


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts `frame2` before `frame10`."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split("([0-9]+)", name)]


def redact_text(text: object, url: str) -> str:
    """Return a text, such as an error of a store, without user, password and query of any URL.

    Args:
        text: The text or exception. Stores put the requested address in it, also without its scheme.
        url: Address that was given, whose secrets are removed wherever they occur.
    """
    cleaned = re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+", lambda found: redact_url(found[0]), str(text))
    address, _, query = url.partition("?")
    users = re.findall(r"://([^/]*)@", address)
    secrets = [
        query,
        *(value for _, value in parse_qsl(query)),
        *users,
        *(p for user in users for p in user.split(":")),
    ]
    spellings = {form for secret in secrets if secret for form in (secret, quote(secret, safe=""), unquote(secret))}
    for secret in sorted(spellings, key=len, reverse=True):
        cleaned = cleaned.replace(secret, "***")
    return cleaned


_SECRET_KEY = re.compile(r"(?i)((?:user(?:name)?|pass(?:word|wd)?|pwd|token|key|auth)=)[^&/;]*")


def redact_url(source: str) -> str:
    """Return a URL without user, password and query, for messages, logs and files; a path is unchanged.

    A password may contain `@`, `/` and `?`. Cameras that expect `user=NAME_password=WORD` in the path are common, too.
    """
    scheme, mark, rest = source.partition("://")
    if not mark:
        return source
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in host or re.search(r":(?!\d*$)", host.rpartition("]")[2]):
        rest = rest.rpartition("@")[2] if "@" not in host else rest[host.rindex("@") + 1 :]
    return scheme + mark + _SECRET_KEY.sub(r"\1***", rest.partition("?")[0])
