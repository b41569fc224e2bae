import errno
import json
import os
import stat
import tempfile
from pathlib import Path

import pytest

from cahqp.errors import DataError, RunError
from cahqp.files import atomic_write, disk_trouble, path_inside, read_json, sha256, write_json, writing


@pytest.fixture
def path(tmp_path) -> Path:
    (tmp_path / "a.json").write_text("old")
    return tmp_path / "a.json"


def leftovers(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir() if p.name != path.name]


def test_the_new_file_takes_the_place_of_the_old(path):
    with atomic_write(path) as file:
        file.write("neü")
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "neü" and leftovers(path) == []


def test_bytes_and_missing_folders(tmp_path):
    with atomic_write(tmp_path / "x" / "y" / "b.bin", "wb") as file:
        file.write(b"\0\1")
    assert (tmp_path / "x" / "y" / "b.bin").read_bytes() == b"\0\1"


@pytest.mark.parametrize("problem", [ValueError("no"), KeyboardInterrupt()])
def test_the_old_file_stays_when_writing_fails(path, problem):
    with pytest.raises(type(problem)), atomic_write(path) as file:
        file.write("half of")
        raise problem
    assert path.read_text() == "old" and leftovers(path) == []


def test_a_full_disk_is_told_and_leaves_the_old_file(path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"disk is full: .*a\.json could not be written. Free some space"):
        write_json(path, {})
    assert path.read_text() == "old" and leftovers(path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_disk_that_fills_up_while_writing_is_told(path, monkeypatch):
    descriptor = os.open("/dev/full", os.O_WRONLY)
    name = str(path.with_suffix(".tmp"))
    Path(name).touch()
    monkeypatch.setattr(tempfile, "mkstemp", lambda **_: (descriptor, name))
    with pytest.raises(RunError, match="disk is full"), atomic_write(path) as file:
        file.write("x" * 100_000)
    assert path.read_text() == "old" and leftovers(path) == []


def test_a_folder_that_cannot_be_written_is_told(path, monkeypatch):
    def barred(dir, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(Path(dir) / "x.tmp"))

    monkeypatch.setattr(tempfile, "mkstemp", barred)
    with pytest.raises(RunError, match=r"Permission denied.*Choose another --output"):
        write_json(path, {})


def test_trouble_with_a_file_that_is_read_meanwhile_is_not_blamed_on_the_output(path, tmp_path):
    trouble = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "frames" / "3.jpg"))
    with pytest.raises(PermissionError, match=r"3\.jpg"), atomic_write(path):
        raise trouble


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EDQUOT, "disk is full"), (errno.EROFS, "cannot be written"), (errno.EACCES, "--output")]
)
def test_what_bars_a_file_that_grows_line_by_line_is_told(path, code, words):
    with pytest.raises(RunError, match=words) as told, writing(path):
        raise OSError(code, os.strerror(code))
    assert str(path) in str(told.value)


def test_of_a_copy_the_file_that_is_written_is_named():
    trouble = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "source.jpg", None, "target.jpg")
    assert "target.jpg could not be written" in str(disk_trouble(trouble))
    assert disk_trouble(FileNotFoundError(errno.ENOENT, "none", "a")) is None


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_mode_follows_the_umask(path, mask):
    before = os.umask(mask)
    try:
        write_json(path, [])
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_relative_path_is_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json(Path("a.json"), {"b": 1})
    assert read_json(Path("a.json")) == {"b": 1}


def test_json_is_sorted_and_readable(path):
    write_json(path, {"b": [1], "a": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_cannot_say_is_refused_before_anything_is_touched(path, value):
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"x": value})
    assert path.read_text() == "old" and leftovers(path) == []


def test_reading_tells_what_is_wrong(path, tmp_path):
    with pytest.raises(RunError, match=r"a\.json is not readable JSON"):
        read_json(path)
    with pytest.raises(RunError, match=r"b\.json does not exist"):
        read_json(tmp_path / "b.json")
    with pytest.raises(RunError, match="cannot be read"):
        read_json(tmp_path)
    path.write_bytes(b'"\xff"')
    with pytest.raises(RunError, match="not readable JSON"):
        read_json(path)


def test_hash_of_a_file_is_that_of_its_bytes(path):
    assert sha256(path) == "cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4"  # printf old | sha256sum


def folder(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(Path(name).name))
    return root


def test_hash_of_a_folder_depends_on_names_and_contents_alone(tmp_path):
    one = folder(tmp_path / "one", ["a", "b/c", "b/d"])
    other = folder(tmp_path / "other", ["b/d", "b/c", "a"])
    os.utime(other / "a", (0, 0))
    digest = sha256(one)
    assert sha256(other) == digest
    (other / "a").rename(other / "b" / "a")
    assert sha256(other) != digest
    (one / "b" / "c").write_text("changed")
    assert sha256(one) != digest


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "a\\b", "C:x", "a\0b", "", ".", "a/" + "x" * 256, "\ud800", "a/\udfff.jpg"]
)
def test_names_that_lead_out_of_a_folder_are_refused(name, tmp_path):
    with pytest.raises(DataError, match="not a name inside a folder"):
        path_inside(tmp_path, name)


@pytest.mark.parametrize("name", ["x", "a/b.jpg", "..a/b", "Kreuzung Süd/0001.jpg", "a..b"])
def test_other_names_stay(name, tmp_path):
    assert path_inside(tmp_path, name) == tmp_path / name
