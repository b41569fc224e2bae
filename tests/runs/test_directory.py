import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cahqp import files
from cahqp.errors import DataError, RunError
from cahqp.runs import locks
from cahqp.runs.directory import RunDirectory, content_hash, verify
from cahqp.runs.manifest import read_manifest


@pytest.fixture
def make(tmp_path):
    (tmp_path / "weights").write_bytes(b"weights")

    def build(settings=None, seed=0, command="relabel"):
        return RunDirectory(tmp_path / "run", command, settings or {}, {"weights": tmp_path / "weights"}, seed)

    return build


def complete(directory, **outputs):
    assert directory.begin()
    for name, text in (outputs or {"labels.json": "[]"}).items():
        path = directory.work / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    directory.finish({"boxes": 3})


def holding(output):
    """Start a process that holds a lock and says so."""
    code = f"from pathlib import Path\nfrom cahqp.runs import locks\nlocks.acquire(Path({str(output)!r}))\n"
    code += "print('held', flush=True)\ninput()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    return other


def test_finished_run_is_not_begun_again(make):
    complete(make())
    assert not make().begin()
    assert not make().work.exists()


def test_manifest_says_what_was_made_from_what(make):
    complete(make({"size": (3, 4)}, seed=5), **{"labels.json": "[]", "config.yaml": "x", "run.log": "12:00"})
    manifest = read_manifest(make().output)
    assert manifest["settings"] == {"size": [3, 4]}
    assert manifest["inputs"]["weights"]["name"] == "weights"
    assert (manifest["command"], manifest["seed"], manifest["metrics"]) == ("relabel", 5, {"boxes": 3})
    assert list(manifest["outputs"]) == ["labels.json"]


def test_manifest_holds_no_path_of_this_machine(make, tmp_path):
    complete(make())
    assert str(tmp_path) not in (make().output / "manifest.json").read_text()


def test_two_places_give_the_same_manifest(tmp_path):
    texts = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "in").write_text("same")
        complete(RunDirectory(tmp_path / place / "run", "fit", {}, {"in": tmp_path / place / "in"}, 0))
        texts.append((tmp_path / place / "run" / "manifest.json").read_bytes())
    assert texts[0] == texts[1]


def test_work_goes_on_where_it_stopped(make, tmp_path):
    first = make()
    assert first.begin()
    (first.work / "shard").write_text("1")
    locks.release(first.output)
    second = make()
    assert second.begin()
    assert (second.work / "shard").read_text() == "1"


def test_half_written_temporary_files_do_not_become_outputs(make):
    directory = make()
    assert directory.begin()
    (directory.work / ".labels.json.abc.tmp").write_text("half")
    directory.finish({})
    assert read_manifest(directory.output)["outputs"] == {}


def test_killed_between_manifest_and_rename_is_completed(make, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "_rename", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        complete(make())
    assert not make().output.exists()
    assert not make().begin()
    assert verify(make().output) == []


def test_other_settings_and_inputs_are_named(make, tmp_path):
    complete(make({"optimizer": {"lr": 0.1}}))
    (tmp_path / "weights").write_bytes(b"others")
    with pytest.raises(
        RunError, match=r"(?s)inputs.weights is a different file.*optimizer.lr was 0.1, is 0.2.*--output"
    ):
        make({"optimizer": {"lr": 0.2}}).begin()


def test_partial_of_other_settings_is_refused(make):
    first = make(seed=1)
    first.begin()
    locks.release(first.output)
    with pytest.raises(RunError, match=r"run\.partial belongs.*\n.*seed was 1, is 2"):
        make(seed=2).begin()


@pytest.mark.parametrize("name", ["run", "run.partial"])
def test_directories_of_others_are_left_alone(make, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=name):
        make().begin()
    assert (tmp_path / name / "thesis.tex").read_text() == "mine"


def test_empty_output_may_exist(make):
    make().output.mkdir()
    complete(make())
    assert verify(make().output) == []


def test_missing_input_is_named(tmp_path):
    with pytest.raises(DataError, match=r"weights: .*gone does not exist"):
        RunDirectory(tmp_path / "run", "fit", {}, {"weights": tmp_path / "gone"}, 0).begin()


def test_output_needs_a_name():
    with pytest.raises(RunError, match="--output"):
        RunDirectory(Path(), "fit", {}, {}, 0)


def test_figures_that_are_not_finite_become_null(make):
    directory = make()
    directory.begin()
    directory.finish({"ap": {"car": float("nan")}})
    assert read_manifest(directory.output)["metrics"] == {"ap": {"car": None}}


def test_verify_tells_every_difference(make):
    complete(make(), a="1", b="2")
    output = make().output
    (output / "a").unlink()
    (output / "b").write_text("3")
    (output / "c").write_text("4")
    assert verify(output) == ["a is missing", "b was changed", "c is not in the manifest"]


def test_damaged_manifest_is_told(make):
    complete(make())
    (make().output / "manifest.json").write_text(json.dumps({"command": "relabel"}))
    assert "damaged" in verify(make().output)[0]


def test_input_directory_is_known_by_its_manifest(make):
    complete(make())
    assert content_hash(make().output) == files.sha256(make().output / "manifest.json")


def test_annotations_stand_for_the_pictures_beside_them(tmp_path):
    for hour in ("day", "night"):
        scene = RunDirectory(tmp_path / hour, "scenes", {}, {}, 0)
        complete(scene, **{"annotations.json": "[]", "images/0.png": hour})
    day, night = (content_hash(tmp_path / hour / "annotations.json") for hour in ("day", "night"))
    assert day != night


def test_full_disk_is_one_clear_message(make, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(RunError, match="disk is full"):
        RunDirectory._open_work(make())


@pytest.fixture
def frames(tmp_path):
    """A folder with two frames, and a COCO file that names them."""
    for name in ("1.png", "2.png"):
        (tmp_path / "frames").mkdir(exist_ok=True)
        (tmp_path / "frames" / name).write_text(name)
    images = [{"id": number, "file_name": f"{number}.png", "width": 4, "height": 4} for number in (1, 2)]
    coco = {"images": images, "annotations": [], "categories": []}
    (tmp_path / "frames" / "a.json").write_text(json.dumps(coco))
    return tmp_path / "frames"


def replace(path):
    path.with_suffix(".new").write_text(path.read_text().swapcase())
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize(
    "change",
    [replace, Path.unlink, lambda path: path.write_text("longer than before")],
    ids=["replace", "remove", "write"],
)
@pytest.mark.parametrize("name", ["frames", "frames/a.json"])
def test_frames_that_change_while_a_command_runs_are_not_certified(tmp_path, frames, name, change):
    run = RunDirectory(tmp_path / "run", "relabel", {}, {"frames.0": tmp_path / name}, 0)
    assert run.begin()
    (run.work / "shard").write_text("labels of the first frames")
    change(frames / "2.png")
    with pytest.raises(RunError, match=r"frames\.0 .* changed while the command ran"):
        run.finish({})
    assert not run.output.exists()
    locks.release(run.output)
    with pytest.raises(RunError):
        RunDirectory(tmp_path / "run", "relabel", {}, {"frames.0": tmp_path / name}, 0).begin()


def test_new_frames_and_new_permissions_change_no_input(tmp_path, frames):
    run = RunDirectory(tmp_path / "run", "relabel", {}, {"frames.0": frames}, 0)
    assert run.begin()
    (frames / "1.png").chmod(0o600)
    run.finish({})
    again = RunDirectory(tmp_path / "two", "relabel", {}, {"frames.0": frames}, 0)
    assert again.begin()
    (frames / "3.png").write_text("new")
    again.finish({})


def test_a_folder_of_others_loses_no_file(make):
    make().work.mkdir()
    (make().work / ".draft.tmp").write_text("mine")
    with pytest.raises(RunError, match="was not started by cahqp"):
        make().begin()
    assert (make().work / ".draft.tmp").read_text() == "mine"


def test_second_process_is_refused(make, monkeypatch):
    monkeypatch.setattr(locks, "GRACE_SECONDS", 0.0)
    with holding(make().output) as other:
        assert locks.is_held(make().output)
        with pytest.raises(RunError, match=f"another process .process {other.pid}"):
            make().begin()
        other.communicate(b"\n")
    assert make().begin()


def test_lock_of_a_killed_process_is_free(make):
    with holding(make().output) as other:
        other.kill()
    assert make().begin()


def test_forked_worker_does_not_keep_the_lock(make):
    make().begin()
    read, write = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(write, b"here")
        time.sleep(30)
        os._exit(0)
    os.read(read, 4)
    os.close(locks._held.pop(locks.lock_path(make().output)))  # as the end of this process would
    held = locks.is_held(make().output)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    assert not held


def test_nothing_is_left_beside_a_finished_run(make, tmp_path):
    complete(make())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "weights"]
