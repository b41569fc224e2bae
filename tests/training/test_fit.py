import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cahqp.__main__ import main
from cahqp.runs.directory import verify


def test_a_fit_leaves_model_metrics_config_and_manifest(trained):
    expected = {"model.safetensors", "metrics.csv", "config.yaml", "manifest.json", "checkpoints"}
    assert {path.name for path in trained["teacher"].iterdir()} == expected
    assert {path.name for path in (trained["teacher"] / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert verify(trained["teacher"]) == []


def test_the_same_fit_again_changes_nothing(arguments, trained, contents, capsys):
    before = contents(trained["teacher"])
    assert main([*arguments("fit"), f"--output={trained['teacher']}", "--trainer.max_epochs=2"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert contents(trained["teacher"]) == before


def test_another_fit_into_the_same_directory_is_refused(arguments, trained, contents, capsys):
    before = contents(trained["teacher"])
    changed = ["--trainer.max_epochs=2", "--ema.decay=0.5"]
    assert main([*arguments("fit"), f"--output={trained['teacher']}", *changed]) == 1
    assert "settings.ema.decay was 0.9, is 0.5" in capsys.readouterr().err
    assert contents(trained["teacher"]) == before


def test_the_same_fit_elsewhere_is_the_same_to_the_byte(arguments, trained, tmp_path):
    assert main([*arguments("fit"), f"--output={tmp_path / 'again'}", "--trainer.max_epochs=2"]) == 0
    for name in ("model.safetensors", "metrics.csv", "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (trained["teacher"] / name).read_bytes(), name


def test_another_seed_is_another_model(arguments, teacher, tmp_path):
    given = ["--trainer.max_epochs=2", "--seed=1", f"--output={tmp_path / 'other'}"]
    assert main([*arguments("fit"), *given]) == 0
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != teacher.read_bytes()


def test_the_config_of_a_run_makes_it_again(trained, tmp_path):
    given = [f"--config={trained['teacher'] / 'config.yaml'}", f"--output={tmp_path / 'again'}"]
    assert main(["fit", *given]) == 0
    same = [run / "model.safetensors" for run in (trained["teacher"], tmp_path / "again")]
    assert same[0].read_bytes() == same[1].read_bytes()


def test_metrics_hold_every_epoch(trained):
    lines = (trained["teacher"] / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,step,")
    assert {line.split(",")[0] for line in lines[1:]} == {"0", "1"}


def test_without_validation_frames_the_last_weights_are_kept(arguments, tmp_path):
    given = ["--data.val=[]", "--trainer.max_epochs=1", f"--output={tmp_path / 'run'}"]
    assert main([*arguments("fit"), *given]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(("command", "frames"), [("validate", "val"), ("test", "test")])
def test_measuring_writes_metrics(command, frames, arguments, teacher, recordings, tmp_path):
    given = [f'--data.{frames}=["{recordings["val"]}"]', "--model.detector=null", f"--model.weights={teacher}"]
    assert main([*arguments("fit", command), *given, f"--output={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()).keys() == {f"{frames}/ap50", f"{frames}/map"}


def test_predict_writes_every_detection_as_coco(arguments, teacher, recordings, tmp_path):
    given = [f'--data.test=["{recordings["val"]}"]', "--model.detector=null", f"--model.weights={teacher}"]
    assert main([*arguments("fit", "predict"), *given, f"--output={tmp_path / 'run'}"]) == 0
    written = json.loads((tmp_path / "run" / "labels.json").read_text())
    assert len(written["images"]) == 4
    assert len(written["annotations"]) == 4 * 20  # the detector's `max_detections`


def test_predict_wants_an_output_and_frames(arguments, tmp_path, capsys):
    assert main(arguments("fit", "predict")) == 1
    assert "predict needs --output" in capsys.readouterr().err
    assert main([*arguments("fit", "predict"), f"--output={tmp_path / 'run'}"]) == 1
    assert "give --data.test" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("kind", ["fit", "student"])
def test_lower_precision_trains(kind, precision, arguments, tmp_path):
    given = ["--trainer.max_epochs=1", f"--trainer.precision={precision}", f"--output={tmp_path / 'run'}"]
    assert main([*arguments(kind), *given]) == 0
    tensors = load_file(tmp_path / "run" / "model.safetensors")
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}


def test_an_infinite_training_refuses_a_rate_that_falls_to_its_end(arguments, tmp_path, capsys):
    given = ["--trainer.max_epochs=-1", "--trainer.max_time=00:00:01:00", "--model.optimizer.schedule=cosine"]
    assert main([*arguments("fit"), f"--output={tmp_path / 'run'}", *given]) == 1
    assert "optimizer.schedule: cosine falls towards the end" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "data"), [("adapt", "fit"), ("fit", "adapt"), ("retrain", "adapt")])
def test_data_of_another_kind_are_refused(model, data, configs, arguments, teacher, tmp_path, capsys):
    mixed = yaml.safe_load(configs[model].read_text()) | {"data": yaml.safe_load(configs[data].read_text())["data"]}
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(mixed))
    flags = [flag for flag in arguments(data)[1:] if not flag.startswith("--config")]
    weights = [] if model == "fit" else [f"--model.weights={teacher}"]
    assert main(["fit", f"--config={tmp_path / 'mixed.yaml'}", *flags, *weights, f"--output={tmp_path / 'run'}"]) == 1
    names = mixed["model"]["class_path"], mixed["data"]["class_path"]
    assert "{} cannot train on {}: ".format(*names) in capsys.readouterr().err
