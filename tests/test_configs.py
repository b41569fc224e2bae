"""Every file in configs/ is read and run: trainings for two batches, plans without starting anything."""

import json
from pathlib import Path

import pytest
import yaml

from cahqp.__main__ import main
from cahqp.data.scenes import CLASSES

ROOT = Path(__file__).parents[1]
FILES = {path.relative_to(ROOT).as_posix(): yaml.safe_load(path.read_text()) for path in ROOT.glob("configs/**/*.yaml")}
PLANS = [name for name, config in FILES.items() if "source" in config]
TRAININGS = [name for name, config in FILES.items() if "class_path" in config.get("model", {})]
# What an overlay is laid over; the last one is laid over all of them.
OVERLAYS = {
    "configs/overlays/mean_teacher.yaml": "configs/teacher/demo_adapt.yaml",
    "configs/overlays/oracle.yaml": "configs/teacher/demo.yaml",
    "configs/overlays/tiny.yaml": None,
}


@pytest.fixture
def fit(recordings, teacher, student, tmp_path, monkeypatch):
    """Run configs on tiny data, with the flags that a cycle's stages give."""
    monkeypatch.chdir(ROOT)

    def run(*names, weights=None):
        model = FILES[names[0]]["model"]
        roles, start = {
            "SupervisedTraining": ({"train": "day"}, weights),
            "TeacherAdaptation": ({"source": "day", "target": "night"}, teacher),
            "StudentTraining": ({"source": "day", "pseudo": "night"}, student),
        }[model["class_path"]]
        frames = {role: recordings[name] for role, name in {**roles, "val": "val"}.items()}
        given = [f"--config={name}" for name in [*names, "configs/overlays/tiny.yaml"]]
        given += [f"--data.{role}={json.dumps([str(path)])}" for role, path in frames.items()]
        given += [] if start is None else [f"--model.weights={start}"]
        known = model["init_args"].get("detector", {}).get("init_args", {}).get("classes", CLASSES)
        given += [f"--data.ignore_categories={json.dumps(sorted(set(CLASSES) - set(known)))}"]
        assert main(["fit", *given, "--data.batch_size=2", f"--output={tmp_path / 'run'}"]) == 0
        assert (tmp_path / "run" / "model.safetensors").is_file()

    return run


def test_every_config_is_run_here():
    assert sorted([*PLANS, *TRAININGS, *OVERLAYS]) == sorted(FILES)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_runs(name, fit):
    fit(name)


def test_the_mean_teacher_runs(fit):
    fit("configs/teacher/demo_adapt.yaml", "configs/overlays/mean_teacher.yaml")


def test_the_oracle_runs(fit, teacher):
    fit("configs/teacher/demo.yaml", "configs/overlays/oracle.yaml", weights=teacher)


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_whole(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["cycle", "run", f"--plan={name}", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert all(f"cahqp {command} " in told for command in ("fit", "relabel", "evaluate", "publish", "report"))
