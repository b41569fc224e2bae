"""Settings of a fit that name files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cahqp.__main__ import main
from cahqp.errors import DataError
from cahqp.training.run_inputs import split_inputs


def split(kind="AdaptationData", **data):
    module = "training.distillation.data" if kind == "DistillationData" else "data.modules"
    config = {"data": {"class_path": f"cahqp.{module}.{kind}", "init_args": data}}
    return split_inputs(json.dumps(config), ())


def test_a_folder_is_a_folder_by_whatever_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "night").mkdir()
    settings, inputs = split(target=["night"])
    assert {role: str(path) for role, path in inputs.items()} == {"data.init_args.target.0": "night"}
    assert settings["data"]["init_args"]["target"] == ["input"]


def test_a_word_is_no_folder_where_no_files_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cosine").mkdir()
    settings, inputs = split(schedule="cosine")
    assert settings["data"]["init_args"]["schedule"] == "cosine"
    assert not inputs


def test_what_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data\.target\.0: night does not exist"):
        split(target=["night"])


@dataclass
class Nested:
    folders: dict[str, Path] | None = None


class Parent:
    def __init__(self, weights: Path | None = None, nested: Nested | None = None) -> None: ...


class Child(Parent):
    def __init__(self, *, name: str = "", **settings: Any) -> None: ...


def test_paths_are_known_by_their_annotation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"weights": "a", "name": "b", "nested": {"folders": {"day": "c"}}}
    config = {"model": {"class_path": f"{__name__}.Child", "init_args": given}}
    with pytest.raises(DataError) as error:
        split_inputs(json.dumps(config), ())
    missing = str(error.value).splitlines()[1:-1]
    assert missing == ["  model.weights: a does not exist.", "  model.nested.folders.day: c does not exist."]
    (tmp_path / "a").touch()
    (tmp_path / "c").mkdir()
    settings, inputs = split_inputs(json.dumps(config), ())
    assert settings["model"]["init_args"] == {"weights": "input", "name": "b", "nested": {"folders": {"day": "input"}}}
    assert list(inputs) == ["model.init_args.weights", "model.init_args.nested.folders.day"]


@pytest.mark.parametrize(
    ("kind", "given", "missing"),
    [
        ("DistillationData", {"store": "soft"}, "data.store: soft"),
        ("DistillationData", {"frames": ["night"]}, "data.frames.0: night"),
        ("StudentData", {"pseudo": ["labels.json"]}, "data.pseudo.0: labels.json"),
    ],
)
def test_every_path_argument_must_exist(kind, given, missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"{missing} does not exist"):
        split(kind, **given)


def test_a_missing_store_is_refused_before_the_run_directory_is_claimed(student, tmp_path, capsys):
    data = ["--data=DistillationData", f"--data.store={tmp_path / 'soft'}", "--data.val=[]"]
    model = ["--model=StudentTraining", f"--model.weights={student}", f"--model.teacher={tmp_path / 'gone'}"]
    assert main(["fit", *model, *data, f"--output={tmp_path / 'run'}"]) == 1
    told = capsys.readouterr().err
    assert f"data.store: {tmp_path / 'soft'} does not exist" in told
    assert f"model.teacher: {tmp_path / 'gone'} does not exist" in told
    assert list(tmp_path.iterdir()) == []
