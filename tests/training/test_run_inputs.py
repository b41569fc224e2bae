"""What a fit takes for a file."""

import json

import pytest

from cahqp.errors import DataError
from cahqp.training.run_inputs import split_inputs


def split(**data):
    return split_inputs(json.dumps({"data": {"init_args": data}}), ())


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
