import json

import pytest

from cahqp.__main__ import main
from cahqp.benchmarks.soft_labels import Terms


def test_the_possible_gain():
    terms = Terms(teacher=3.78, student=1.80, read=0.0)
    assert terms.gain(24, 4) == pytest.approx(2.30, abs=0.01)
    assert terms.gain(4, 4) == 1.0
    assert terms.gain(4, 8) < 1


def test_terms_and_whole_runs_are_measured(configs, teacher, recordings, tmp_path, capsys):
    given = [f"--fit-config={configs['student']}", f"--teacher={teacher}", f"--frames={recordings['night']}"]
    sizes = ["--images=4", "--epochs=2", "--views=1", "--rounds=1"]
    assert main(["benchmark", "store", *given, *sizes, f"--output={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "store.json").read_text())
    assert 0 < found["terms"]["read"] < found["terms"]["student"]
    assert found["whole"]["gain"] == pytest.approx(found["whole"]["online"] / found["whole"]["offline"])
    assert (tmp_path / "out" / "store.md").read_text() in capsys.readouterr().out


def test_classes_must_be_the_same(configs, student, recordings, tmp_path, capsys):
    text = configs["fit"].read_text().replace("- person\n", "- walker\n")
    (tmp_path / "teacher.yaml").write_text(text)
    given = [f"--fit-config={configs['student']}", f"--teacher={tmp_path / 'teacher.yaml'}"]
    frames = f"--frames={recordings['night']}"
    assert main(["benchmark", "store", *given, frames, f"--output={tmp_path / 'out'}"]) == 1
    assert "other classes" in capsys.readouterr().err
