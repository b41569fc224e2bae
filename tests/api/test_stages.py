"""Stages as functions: they return runs, and raise errors of cahqp."""

import sys
from pathlib import Path

import pytest

import cahqp
from cahqp.api.stages import _train
from cahqp.errors import ConfigError, DataError, RunError

pytestmark = pytest.mark.filterwarnings("ignore")
ONE = {"trainer.max_epochs": 1, "data.batches_per_epoch": 1}


@pytest.fixture(scope="module")
def adapted(recordings, configs, teacher, tmp_path_factory):
    """The call that adapts a teacher for one step, and its run."""
    settings = {"model.weights": teacher, "data.source": [recordings["day"]], "data.target": [recordings["night"]]}
    call = {"configs": configs["adapt"], "output": tmp_path_factory.mktemp("api") / "run", "settings": settings | ONE}
    return call, cahqp.adapt(**call)


def test_adapt_returns_its_run(adapted):
    call, run = adapted
    assert (run.path, run.model) == (call["output"], call["output"] / "model.safetensors")
    assert run.manifest["command"] == "fit" and run.verify() == []
    assert run.manifest["settings"]["trainer"]["max_epochs"] == 1
    assert run.metrics == run.manifest["metrics"]
    assert run.load().classes == ("car", "bus", "truck", "motorcycle", "person")
    with pytest.raises(RunError, match=r"no labels\.json: it is a run of `cahqp fit`"):
        run.labels  # noqa: B018


def test_a_finished_run_is_returned_again(adapted, contents):
    call, run = adapted
    before = contents(run.path)
    assert cahqp.adapt(**call) == run
    assert contents(run.path) == before


def test_labels_of_a_teacher_retrain_a_student(adapted, recordings, configs, student, tmp_path):
    options = cahqp.RelabelOptions(
        weights=adapted[1].model, frames=[recordings["night"]], output=tmp_path / "labels", threshold=0.01,
        accelerator="cpu",
    )  # fmt: skip
    labels = cahqp.relabel(options)
    assert labels.labels.is_file() and labels.metrics["frames"] == 6
    settings = {"model.weights": student, "data.source": [recordings["day"]], "data.pseudo": [labels.labels]}
    run = cahqp.retrain([configs["retrain"]], tmp_path / "student", settings | ONE)
    assert run.manifest["inputs"]["data.init_args.pseudo.0"]["name"] == "labels.json"
    assert run.model.is_file()


@pytest.mark.parametrize(
    ("function", "changed", "error", "message"),
    [
        ("adapt", {"settings": {"model.wieghts": "m"}}, ConfigError, r"Did you mean weights\?"),
        ("adapt", {"settings": {"model.weights": "none.safetensors"}}, DataError, r"none\.safetensors does not exist"),
        ("adapt", {"configs": "none.yaml"}, DataError, r"configs: none\.yaml does not exist"),
        ("retrain", {}, ConfigError, "retrain trains a StudentTraining, and `model` is TeacherAdaptation"),
        ("adapt", {"settings": {"model": "SupervisedTraining"}}, ConfigError, "call cahqp.fit"),
    ],
)
def test_mistakes_are_errors(configs, tmp_path, function, changed, error, message):
    given = list(sys.argv)
    with pytest.raises(error, match=message):
        getattr(cahqp, function)(**{"configs": configs["adapt"], "output": tmp_path / "run", **changed})
    assert sys.argv == given and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("code", "cause", "error"), [(143, None, RunError), (1, KeyboardInterrupt, KeyboardInterrupt)])
def test_a_stopped_training_does_not_end_the_process(monkeypatch, code, cause, error):
    def stop(arguments, own_process):
        try:
            if cause is not None:
                raise cause
        finally:
            raise SystemExit(code)

    monkeypatch.setattr("cahqp.cli.lightning.lightning", stop)
    with pytest.raises(error):
        _train(["fit"])


def test_an_unfinished_run_has_no_manifest(tmp_path):
    with pytest.raises(RunError, match="is not a finished run"):
        cahqp.Run(Path(tmp_path)).metrics  # noqa: B018
