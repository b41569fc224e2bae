import json
import os
import shutil
import signal
from importlib import import_module
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from cahqp.__main__ import main
from cahqp.coco.reader import read_coco
from cahqp.labels.shards.shards import LabelShards
from cahqp.relabelling import shard_writer

module = import_module("cahqp.relabelling.command")  # whose package has a function of that name
LABELS = ("labels.json", "rejected.json", "source.json", "manifest.json")
LOW = "--threshold=0.06"  # the scores of a teacher that has seen nine batches


@pytest.fixture(scope="module")
def labelled(teacher, recordings, tmp_path_factory):
    """The labels of the night, made in one go."""
    return relabelled(teacher, [recordings["night"]], tmp_path_factory.mktemp("labelled") / "run")


def relabelled(weights, frames, output, *more, threshold=LOW):
    assert main(command(weights, frames, output, *more, threshold)) == 0
    return output


def command(weights, frames, output, *more):
    given = ["relabel", f"--weights={weights}", "--frames", *map(str, frames), f"--output={output}"]
    return [*given, "--accelerator=cpu", "--batch-size=2", *more]


def read(run, name="labels.json"):
    return json.loads((run / name).read_text())


def same(run, expected):
    for name in LABELS:
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name


def test_coco_in_coco_out(labelled, recordings):
    given, written = read(recordings["night"].parent, "annotations.json"), read(labelled)
    assert [image["file_name"] for image in written["images"]] == [image["file_name"] for image in given["images"]]
    assert written["categories"] == given["categories"]
    assert written["annotations"]


def test_pycocotools_loads_it(labelled, capsys):
    coco = COCO(labelled / "labels.json")
    assert len(coco.getImgIds()) == 6
    assert all(0.06 <= annotation["score"] <= 1 for annotation in coco.anns.values())


def test_nothing_is_left_behind(labelled):
    assert {path.name for path in labelled.iterdir()} == set(LABELS)
    assert [path.name for path in labelled.parent.iterdir()] == ["run"]


def test_the_labels_of_the_input_have_no_influence(teacher, night, labelled, tmp_path):
    document = json.loads(night.read_text())
    document["annotations"] = [{"image_id": 1, "bbox": [0, 0, "?"]}]
    night.write_text(json.dumps(document))
    run = relabelled(teacher, [night], tmp_path / "run")
    assert (run / "labels.json").read_bytes() == (labelled / "labels.json").read_bytes()


def test_a_folder_is_labelled_like_its_coco_file(teacher, recordings, labelled, tmp_path):
    run = relabelled(teacher, [recordings["night"].parent / "images"], tmp_path / "run")
    assert [a["bbox"] for a in read(run)["annotations"]] == [a["bbox"] for a in read(labelled)["annotations"]]


def test_a_video_brings_its_frames_along(teacher, tmp_path):
    video = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64))
    for grey in range(0, 200, 20):
        video.write(np.full((64, 96, 3), grey, np.uint8))
    video.release()
    run = relabelled(teacher, [tmp_path / "a.avi"], tmp_path / "run", "--frame-interval=0.5")
    images = read(run)["images"]
    assert [image["timestamp"] for image in images] == [0, 0.6, 1.0, 1.6]
    assert all((run / "images" / image["file_name"]).is_file() for image in images)


def test_several_inputs_become_one_file(teacher, recordings, tmp_path):
    run = relabelled(teacher, [recordings["night"], recordings["val"]], tmp_path / "run")
    assert len({image["id"] for image in read(run)["images"]}) == 10


def cameras(folder, kind):
    """Two cameras that call their recording the same, and a COCO file of another detector's boxes on the second."""
    for number, name in enumerate(("cam1", "cam2")):
        (folder / name / "clip").mkdir(parents=True)
        pictures = [np.full((64, 96, 3), 100 * number + 9 * n, np.uint8) for n in range(3)]
        video = cv2.VideoWriter(str(folder / name / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64))
        for n, picture in enumerate(pictures):
            video.write(picture)
            cv2.imwrite(str(folder / name / "clip" / f"{n}.png"), picture)
        video.release()
    return [folder / name / kind for name in ("cam1", "cam2")]


@pytest.mark.parametrize("kind", ["clip", "clip.avi"])
def test_cameras_of_one_recording_name_stay_apart(kind, teacher, tmp_path):
    run = relabelled(teacher, cameras(tmp_path / "in", kind), tmp_path / "run")
    file = read_coco(run / "labels.json")
    assert [frame.recording for frame in file.frames] == ["cam1/clip"] * 3 + ["cam2/clip"] * 3
    assert [cv2.imread(str(path)).mean() > 90 for path in file.files] == [False] * 3 + [True] * 3


def test_broken_files_of_one_name_are_counted_each(teacher, tmp_path):
    given = cameras(tmp_path / "in", "clip")
    for folder in given:
        (folder / "1.png").write_bytes(b"")
    run = relabelled(teacher, given, tmp_path / "run", "--max-invalid-share=0.5")
    broken = [entry["file_name"] for entry in read(run, "quarantine.json")["images"]]
    assert broken == ["cam1/clip/1.png", "cam2/clip/1.png"]


def test_an_input_given_twice_is_refused(teacher, tmp_path, capsys):
    folder, _ = cameras(tmp_path / "in", "clip")
    assert main(command(teacher, [folder, folder], tmp_path / "run", LOW)) == 1
    assert "'0.png' is in the input 2 times" in capsys.readouterr().err


def test_pictures_saved_beside_a_video_overwrite_none(teacher, tmp_path):
    folder, _ = cameras(tmp_path / "in", "clip")
    (folder / "0.bmp").write_bytes((folder / "0.png").read_bytes())
    run = relabelled(teacher, [folder, tmp_path / "in" / "cam2" / "clip.avi"], tmp_path / "run")
    names = [image["file_name"] for image in read(run)["images"]]
    assert len(set(names)) == len(list((run / "images").rglob("*.jpg"))) == 7


def test_images_that_a_format_mixes_up_are_refused_before_any_work(teacher, tmp_path, capsys):
    folder, _ = cameras(tmp_path / "in", "clip")
    (folder / "0.bmp").write_bytes((folder / "0.png").read_bytes())
    assert main(command(teacher, [folder], tmp_path / "run", LOW, "--format", "yolo")) == 1
    assert "in one text file" in capsys.readouterr().err
    assert not list(tmp_path.glob("run*"))


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def after(frames):
    """Kill with half of the next frame's labels on the disk."""
    plain, seen = LabelShards.append, []

    def append(self, line):
        if len(seen) == frames:
            os.write(self._file.fileno(), line[: len(line) // 2])
            die()
        seen.append(line)
        plain(self, line)

    LabelShards.append = append


def in_merge():
    module.merge = die


def after_merge():
    module.shutil = SimpleNamespace(rmtree=die)


@pytest.mark.parametrize("frames", [0, 1, 2, 5])
def test_killed_while_labelling_it_goes_on(frames, teacher, recordings, labelled, killed, tmp_path):
    given = command(teacher, [recordings["night"]], tmp_path / "run", LOW)
    assert killed(given, lambda: after(frames)) == -signal.SIGKILL
    assert main(given) == 0
    same(tmp_path / "run", labelled)


@pytest.mark.parametrize("moment", [in_merge, after_merge])
def test_killed_at_the_end_it_goes_on(moment, teacher, recordings, labelled, killed, tmp_path):
    given = command(teacher, [recordings["night"]], tmp_path / "run", LOW)
    assert killed(given, moment) == -signal.SIGKILL
    assert main(given) == 0
    same(tmp_path / "run", labelled)


def test_what_was_labelled_is_not_labelled_again(teacher, recordings, killed, tmp_path, monkeypatch):
    given = command(teacher, [recordings["night"]], tmp_path / "run", LOW)
    killed(given, lambda: after(4))
    seen, plain = [], shard_writer.detect
    monkeypatch.setattr(
        shard_writer, "detect", lambda detector, batch: seen.extend(batch.frames) or plain(detector, batch)
    )
    assert main(given) == 0
    assert [frame.id for frame in seen] == [5, 6]


def test_finished_labels_are_not_made_again(labelled, teacher, recordings, contents, capsys):
    before = contents(labelled)
    relabelled(teacher, [recordings["night"]], labelled)
    assert "finished already" in capsys.readouterr().out
    assert contents(labelled) == before


def test_other_labels_are_not_put_there(labelled, teacher, recordings, contents, capsys):
    before = contents(labelled)
    assert main(command(teacher, [recordings["night"]], labelled, "--threshold=0.5")) == 1
    assert "settings.threshold was 0.06, is 0.5" in capsys.readouterr().err
    assert contents(labelled) == before


def test_a_student_trains_on_the_labels(labelled, arguments, student, tmp_path):
    given = [f"--model.weights={student}", "--trainer.max_epochs=1", f"--output={tmp_path / 'run'}"]
    assert main([*arguments("retrain", pseudo=[str(labelled / "labels.json")]), *given]) == 0


def test_the_models_own_thresholds_hold_where_none_is_given(teacher, recordings, tmp_path):
    run = relabelled(teacher, [recordings["night"]], tmp_path / "run", threshold="--max-boxes=50")
    assert read(run)["annotations"] == []  # it has no hit on its validation frames, so it must be half sure


def break_images(night, count):
    names = sorted((night.parent / "images").rglob("*.png"))[:count]
    for name in names:
        name.write_bytes(b"\x89PNG\r\n\x1a\n" + b"no more than the first bytes of a picture")
    return [name.relative_to(night.parent / "images").as_posix() for name in names]


def test_a_broken_image_is_named_and_left_out(teacher, night, tmp_path):
    broken = break_images(night, 1)
    run = relabelled(teacher, [night], tmp_path / "run", "--max-invalid-share=0.2")
    assert [entry["file_name"] for entry in read(run, "quarantine.json")["images"]] == broken
    assert len(read(run)["images"]) == 5


def test_too_many_broken_images_stop_the_run(teacher, night, tmp_path, capsys):
    broken = break_images(night, 2)
    assert main(command(teacher, [night], tmp_path / "run", "--max-invalid-share=0.2")) == 1
    told = capsys.readouterr().err
    assert "2 of 6 images are broken" in told
    assert all(name in told for name in broken)
    assert not (tmp_path / "run").exists()


def test_images_mended_after_a_kill_are_labelled(teacher, night, recordings, labelled, killed, tmp_path):
    break_images(night, 1)
    given = command(teacher, [night], tmp_path / "run", "--max-invalid-share=0.2", LOW)
    assert killed(given, in_merge) == -signal.SIGKILL
    shutil.copytree(recordings["night"].parent / "images", night.parent / "images", dirs_exist_ok=True)
    assert main(given) == 0
    assert (tmp_path / "run" / "labels.json").read_bytes() == (labelled / "labels.json").read_bytes()


def test_mended_images_let_it_go_on(teacher, night, recordings, labelled, tmp_path):
    break_images(night, 2)
    given = command(teacher, [night], tmp_path / "run", LOW)
    assert main(given) == 1
    shutil.copytree(recordings["night"].parent / "images", night.parent / "images", dirs_exist_ok=True)
    assert main(given) == 0
    assert (tmp_path / "run" / "labels.json").read_bytes() == (labelled / "labels.json").read_bytes()


def test_the_cost_of_labels_is_measured_beside_the_forward_passes(teacher, recordings, tmp_path, capsys):
    given = [f"--weights={teacher}", f"--frames={recordings['night']}", "--rounds=2", f"--output={tmp_path}"]
    assert main(["benchmark", "relabel", *given]) == 0
    found = json.loads((tmp_path / "relabel.json").read_text())["relabel_by_alone"]
    assert found["max"] > 1  # it does the same and more; one of two rounds may be disturbed by other programs
    assert f"{found['median']:.3f} times as long" in capsys.readouterr().out


@pytest.mark.parametrize("recording", ["../../../../X", "/tmp/x", "a\\..\\b"])
def test_a_recording_that_leads_out_of_the_output_is_refused(teacher, recordings, tmp_path, capsys, recording):
    video = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64))
    video.write(np.zeros((64, 96, 3), np.uint8))
    video.release()
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((64, 96, 3), np.uint8))
    image = {"id": 1, "file_name": "a.jpg", "height": 64, "width": 96, "recording": recording}
    (tmp_path / "a.json").write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
    given = [f"--weights={teacher}", "--frames", str(tmp_path / "a.json"), str(tmp_path / "a.avi"), "--threshold=0.3"]
    assert main(["relabel", *given, f"--output={tmp_path / 'deep' / 'er' / 'labels'}"]) == 1
    assert "not a name inside a folder" in capsys.readouterr().err
    assert not list(tmp_path.rglob("X"))
