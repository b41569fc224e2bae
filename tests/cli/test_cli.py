"""Bad input, command by command: one message that names the thing and the remedy, and nothing half-written."""

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from cahqp import files
from cahqp.__main__ import COMMANDS, main


@pytest.fixture
def refused(capsys, tmp_path):
    """Run a command that must fail shortly, and return what it says; `output` must not appear."""

    def run(*arguments, code=1, output="run"):
        assert main([*map(str, arguments), f"--output={tmp_path / output}"]) == code
        told = capsys.readouterr().err
        said = told[told.index(f"cahqp {arguments[0]}: ") :]
        assert "Traceback" not in told
        assert len(said.splitlines()) <= 15, said
        assert not (tmp_path / output).exists()
        return said

    return run


def relabel(weights, frames, *more):
    return ["relabel", f"--weights={weights}", "--frames", str(frames), "--accelerator=cpu", *more]


# The commands themselves


def test_help_is_quick(cahqp):
    # Of the processor's time: other tests run at the same time.
    assert min(timed(lambda: cahqp("--help")) for _ in range(3)) < 0.5


def timed(function):
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert function().returncode == 0
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: cahqp") and command in told


def test_help_of_relabel_tells_every_option(capsys):
    main(["relabel", "--help"])
    told = capsys.readouterr().out
    options = "weights frames output threshold nms-iou max-boxes frame-interval batch-size workers devices".split()
    more = ["max-invalid-share", "accelerator", "precision", "seed", "config"]
    assert all(f"--{option} " in told for option in [*options, *more])


def test_help_of_every_command_is_quick_and_imports_no_torch():
    lines = ["import sys, time", "from cahqp.__main__ import COMMANDS, main", "slow = []", "for name in COMMANDS:"]
    lines += ["    began = time.process_time()", "    main([*name.split(), '--help'])"]
    lines += ["    slow += [name] if time.process_time() - began > 1 else []"]
    lines += ["assert not slow, slow", "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True)


def test_commands_that_only_detect_import_no_lightning():
    modules = "inference.evaluate, cahqp.drift.features, cahqp.relabelling.calibrate, cahqp.detectors.published.convert"
    code = f"import sys, cahqp.{modules}, cahqp.edge.export.command, cahqp.cli.commands; assert 'lightning' not in sys.modules"  # noqa: E501
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_an_unknown_command_is_named(capsys):
    assert main(["relable"]) == 2
    assert "unknown command 'relable'. Did you mean 'relabel'? Known: fit," in capsys.readouterr().err


def test_the_help_of_a_training_is_short(capsys):
    assert main(["fit", "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) <= 50


def test_a_reader_that_has_seen_enough_causes_no_traceback():
    code = "import sys; from cahqp.__main__ import main; sys.exit(main(['--help']))"
    told = subprocess.run(["bash", "-c", f'"{sys.executable}" -c "{code}" | true'], check=True, capture_output=True)
    assert told.stderr == b""


def test_quiet_prints_no_results_and_verbose_a_traceback(capsys, tmp_path):
    assert main(["--quiet", "completion", "bash"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["info", str(tmp_path / "nowhere.safetensors"), "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_completion_knows_commands_and_options(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ask = "COMP_WORDS=(cahqp cycle run --dr); COMP_CWORD=3; _cahqp; echo ${COMPREPLY[@]}"
    told = subprocess.run(["bash", "-c", f"source {tmp_path / 'script'}; {ask}"], check=True, capture_output=True)
    assert told.stdout.split() == [b"--dry-run"]


# Options and configs


def test_an_unknown_key_of_a_config(refused, arguments, tmp_path):
    (tmp_path / "more.yaml").write_text("trainer: {max_epoch: 3}\n")
    assert "max_epoch" in refused(*arguments("fit"), f"--config={tmp_path / 'more.yaml'}", code=2)


def test_an_unknown_key_of_a_model(refused, arguments, tmp_path):
    (tmp_path / "more.yaml").write_text("model: {init_args: {optimizer: {learningrate: 3}}}\n")
    assert "learningrate" in refused(*arguments("fit"), f"--config={tmp_path / 'more.yaml'}", code=2)


def test_an_option_of_a_class_gets_a_suggestion(refused, arguments):
    assert "Did you mean curriculum?" in refused(
        *arguments("adapt"), "--data.curiculum=[1]", "--model.weights=w", code=2
    )


def test_a_value_of_the_wrong_kind(refused, arguments):
    said = refused(*arguments("fit"), "--model.optimizer.learning_rate=fast", code=2)
    assert "learning_rate" in said and "fast" in said


def test_a_config_that_is_no_yaml(refused, arguments, tmp_path):
    (tmp_path / "more.yaml").write_text("trainer: {max_epochs: [3\n")
    assert "more.yaml is not readable" in refused(*arguments("fit"), f"--config={tmp_path / 'more.yaml'}")


def test_a_missing_config(refused, tmp_path):
    assert "nowhere.yaml" in refused("fit", f"--config={tmp_path / 'nowhere.yaml'}", code=2)


def test_a_config_of_relabel_is_checked_too(refused, teacher, recordings, tmp_path):
    (tmp_path / "relabel.yaml").write_text("treshold: 0.5\n")
    config = f"--config={tmp_path / 'relabel.yaml'}"
    assert "treshold" in refused(*relabel(teacher, recordings["night"]), config, code=2)


def test_fit_without_an_output(arguments, capsys):
    assert main(arguments("fit")) == 1
    assert "fit needs --output" in capsys.readouterr().err


def test_a_checkpoint_is_not_what_fit_starts_from(refused, arguments, trained):
    checkpoint = trained["teacher"] / "checkpoints" / "last.ckpt"
    assert "--model.weights" in refused(*arguments("fit"), f"--ckpt-path={checkpoint}")


def test_an_option_of_fit_is_spelt_with_dashes(refused, arguments):
    assert "Did you mean --example-images?" in refused(*arguments("fit"), "--example_images=1", code=2)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--threshold=1.5", "--threshold must lie in 0..1, got 1.5"),
        ("--batch-size=0", "--batch-size must be at least 1, got 0"),
        ("--nms-iou=-1", "--nms-iou must lie in 0..1, got -1"),
        ("--max-invalid-share=2", "--max-invalid-share must lie in 0..1, got 2"),
        ("--devices=0", "--devices must be at least 1, got 0"),
        ("--max-boxes=0", "--max-boxes must be at least 1, got 0"),
    ],
)
def test_a_value_that_cannot_be(flag, words, refused, teacher, recordings):
    assert words in refused(*relabel(teacher, recordings["night"]), flag)


@pytest.mark.parametrize("flag", ["--precision=8", "--accelerator=abacus", "--batch-size=many", "--treshold=1"])
def test_an_option_that_cannot_be_read(flag, refused, teacher, recordings):
    assert flag.strip("-").partition("=")[0] in refused(*relabel(teacher, recordings["night"]), flag, code=2)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--ema.decay=1", "ema.decay must be at least 0 and below 1, got 1"),
        ("--trainer.accelerator=gpu", "gpu"),
        ("--model.detector.backbone=resnet0", "resnet0"),
        ("--model.detector.classes=[car,car]", "classes"),
        ("--model.detector.strides=[8,15]", "15"),
        ("--data.batch_size=0", "batch_size"),
        ("--trainer.devices=0", "devices"),
        ("--data.train=[]", "empty list"),
    ],
)
def test_a_training_that_cannot_be(flag, words, refused, arguments):
    if "gpu" in flag and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert words.lower() in refused(*arguments("fit"), flag).lower()


# Model files


def broken_weights(kind, teacher, path):
    data = teacher.read_bytes()
    if kind == "cut short":
        path.write_bytes(data[: len(data) // 2])
    if kind == "flipped":
        path.write_bytes(data[:-100] + bytes(byte ^ 255 for byte in data[-100:]))
    if kind == "changed in its head":
        path.write_bytes(data.replace(b"motorcycle", b"rickshaws!"))
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}}))
    if kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    if kind == "empty":
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize("kind", ["missing", "cut short", "flipped", "changed in its head", "pickle", "text", "empty"])
def test_weights_that_cannot_be_used(kind, refused, teacher, recordings, tmp_path):
    weights = broken_weights(kind, teacher, tmp_path / "some.safetensors")
    assert f"{weights}" in refused(*relabel(weights, recordings["night"]))


def test_adaptation_names_missing_weights(refused, arguments, tmp_path):
    said = refused(*arguments("adapt"), f"--model.weights={tmp_path / 'nowhere.safetensors'}")
    assert "nowhere.safetensors does not exist" in said


def test_adaptation_without_weights(refused, arguments):
    assert "weights" in refused(*arguments("adapt"), code=2)


def test_a_model_needs_a_detector_or_weights(refused, arguments):
    assert "Give either model.detector" in refused(*arguments("retrain"))


# Frames and labels


def test_frames_that_are_not_there(refused, teacher, tmp_path):
    assert "nowhere does not exist" in refused(*relabel(teacher, tmp_path / "nowhere"))


def test_a_folder_without_images(refused, teacher, tmp_path):
    (tmp_path / "bare").mkdir()
    assert "bare contains no images" in refused(*relabel(teacher, tmp_path / "bare"))


def test_a_video_that_is_none(refused, teacher, tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    assert "a.mp4" in refused(*relabel(teacher, tmp_path / "a.mp4"))


def test_training_files_that_are_not_there(refused, arguments, tmp_path):
    assert "nowhere.json" in refused(*arguments("fit", train=[str(tmp_path / "nowhere.json")]))


def unknown_category(document):
    document["annotations"][0]["category_id"] = 77


def unknown_class(document):
    document["categories"][0]["name"] = "tram"


def no_area(document):
    document["annotations"][0]["bbox"] = [1, 1, 0, 5]


def outside(document):
    document["annotations"][0]["bbox"] = [500, 500, 5, 5]


def not_a_number(document):
    document["annotations"][0]["bbox"] = [1, float("nan"), 4, 5]


def repeated_image(document):
    document["images"][1]["id"] = document["images"][0]["id"]


def repeated_box(document):
    document["annotations"][1]["id"] = document["annotations"][0]["id"]


def missing_image(document):
    document["images"][0]["file_name"] = "gone.png"


def leaves_its_folder(document):
    document["images"][0]["file_name"] = "../../secret.png"


def no_images(document):
    document["images"] = document["annotations"] = []


PROBLEMS = {
    unknown_category: ["annotations[0]", "77"],
    unknown_class: ["tram", "ignore_categories"],
    no_area: ["annotations[0]"],
    outside: ["annotations[0]"],
    not_a_number: ["annotations[0]"],
    repeated_image: ["images[1]"],
    repeated_box: ["annotations[1]"],
    missing_image: ["images[0]", "gone.png"],
    leaves_its_folder: ["images[0]", "secret.png"],
    no_images: ["no boxes to train on"],
}


@pytest.mark.parametrize("change", PROBLEMS, ids=lambda change: change.__name__)
def test_labels_that_cannot_be_used(change, refused, arguments, night):
    document = json.loads(night.read_text())
    change(document)
    night.write_text(json.dumps(document))
    said = refused(*arguments("fit", train=[str(night)]))
    assert all(word in said for word in [str(night), *PROBLEMS[change]])


def test_labels_that_are_no_json(refused, arguments, night):
    night.write_text(night.read_text()[:-50])
    assert f"{night} is not readable JSON" in refused(*arguments("fit", train=[str(night)]))


def test_frames_on_both_sides(refused, arguments):
    assert "both trained on and held out" in refused(*arguments("fit", val=["day"]))


def test_a_moved_relabel_run_says_where_its_images_were(refused, arguments, night):
    (night.parent / "source.json").write_text('{"root": "../elsewhere"}')
    assert "source.json must contain" in refused(*arguments("fit", train=[str(night)]))


def test_source_json_may_not_lead_names_out_of_its_folder(refused, arguments, night):
    (night.parent / "images" / "inner").mkdir()
    (night.parent / "source.json").write_text('{"root": "images/inner"}')
    document = json.loads(night.read_text())
    for image in document["images"]:
        image["file_name"] = f"../{image['file_name']}"
    night.write_text(json.dumps(document))
    assert "leaves its folder" in refused(*arguments("fit", train=[str(night)]))


# The disk


@pytest.fixture
def full_disk(monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.parametrize("command", ["fit", "relabel", "scenes", "evaluate"])
def test_a_full_disk(command, refused, arguments, teacher, recordings, full_disk):
    given = {
        "fit": arguments("fit"),
        "relabel": relabel(teacher, recordings["night"]),
        "scenes": ["scenes", "--recordings=1", "--frames=1"],
        "evaluate": ["evaluate", "--weights", f"a={teacher}", "--frames", f"b={recordings['val']}"],
    }
    said = refused(*given[command])
    assert "disk is full" in said and "rerun the same command" in said


def test_a_disk_that_fills_up_in_a_training(refused, arguments, monkeypatch):
    plain = torch.save

    def save(checkpoint, file):
        plain(checkpoint, file)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cahqp.training.callbacks.checkpoints.torch.save", save)
    assert "disk is full" in refused(*arguments("fit"))


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EROFS, "Fix"), (errno.EACCES, "Fix")],
)
def test_trouble_with_the_disk_that_a_command_does_not_explain_is_told_at_the_door(code, words, monkeypatch, capsys):
    def command(arguments):
        raise OSError(code, os.strerror(code), "there/a.txt")

    monkeypatch.setattr("cahqp.edge.signing.keygen", command)
    assert main(["keygen", "--output=keys"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("cahqp keygen: ") and "there/a.txt" in told and words in told


def test_an_error_that_nobody_can_mend_keeps_its_traceback(monkeypatch):
    def command(arguments):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr("cahqp.edge.signing.keygen", command)
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(["keygen", "--output=keys"])


def test_a_place_where_nothing_may_be_written(arguments, teacher, recordings, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main([*relabel(teacher, recordings["night"]), f"--output={tmp_path / 'file' / 'run'}"]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert main([*arguments("fit"), f"--output={tmp_path / 'file' / 'run'}"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_directory_of_someone_else(refused, teacher, recordings, tmp_path, contents, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("the only copy")
    assert main([*relabel(teacher, recordings["night"]), f"--output={tmp_path / 'mine'}"]) == 1
    assert "is not a finished run" in capsys.readouterr().err
    assert contents(tmp_path / "mine") == {"thesis.txt": b"the only copy"}


# Evaluate and info


def test_evaluate_names_plain_paths(teacher, recordings, tmp_path, monkeypatch, capsys):
    (tmp_path / "first").mkdir()
    shutil.copy(teacher, tmp_path / "first/model.safetensors")
    monkeypatch.chdir(tmp_path)
    given = ["--weights", "first/model.safetensors", "--frames", str(recordings["val"])]
    assert main(["evaluate", *given, "--resamples=2", "--output=run"]) == 0
    models = json.loads((tmp_path / "run/metrics.json").read_text())["models"]
    assert [list(models), [list(sets) for sets in models.values()]] == [["first"], [["val"]]]
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "first"


@pytest.mark.parametrize("weights", ["=model.safetensors", "teacher="])
def test_evaluate_wants_name_and_file(refused, weights, recordings):
    assert "must be NAME=FILE" in refused("evaluate", "--weights", weights, "--frames", f"val={recordings['val']}")


@pytest.mark.parametrize("command", ["evaluate", "calibrate"])
def test_a_batch_of_none(command, refused, teacher, recordings):
    weights, frames = {"evaluate": ("a=", "b="), "calibrate": ("", "")}[command]
    given = ["--weights", f"{weights}{teacher}", "--frames", f"{frames}{recordings['val']}", "--batch-size=0"]
    assert "--batch-size must be at least 1, got 0" in refused(command, *given)


def test_evaluate_writes_metrics_and_prints_its_table(teacher, student, recordings, tmp_path, capsys):
    given = ["--weights", f"teacher={teacher}", f"student={student}", "--frames", f"val={recordings['val']}"]
    assert main(["evaluate", *given, "--resamples=10", f"--output={tmp_path / 'run'}"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["models"].keys() == {"teacher", "student"}
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "frames", "images", "AP50", "mAP"]
    assert [row.split()[:3] for row in rows[:2]] == [["teacher", "val", "4"], ["student", "val", "4"]]


@pytest.mark.parametrize("command", [("evaluate",), ("benchmark", "measure")])
def test_broken_frames_are_measured_for_no_model_and_listed(command, teacher, student, night, tmp_path, capsys):
    document = json.loads(night.read_text())
    broken = night.parent / "images" / document["images"][1]["file_name"]
    broken.write_bytes(broken.read_bytes()[:100])
    models, run = [f"teacher={teacher}", f"student={student}"], tmp_path / "run"
    given = [*command, "--weights", *models, "--frames", f"night={night}", f"--output={run}"]
    assert main(given) == 1
    assert "raise `max_invalid_share`" in capsys.readouterr().err
    assert main([*given, "--max-invalid-share=0.2"]) == 0
    listed = json.loads((run / "quarantine.json").read_text())["images"]
    assert [entry["file_name"] for entry in listed] == [document["images"][1]["file_name"]]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["models"]["student"]["night"]["images"] == len(document["images"]) - 1


def test_info_tells_what_a_file_holds(teacher, capsys):
    assert main(["info", str(teacher)]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "DINO"


def test_info_of_something_else(capsys, tmp_path):
    assert main(["info", str(tmp_path / "nothing")]) == 1
    assert "nothing does not exist" in capsys.readouterr().err
