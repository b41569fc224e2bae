import json
import runpy
from pathlib import Path

import pytest

from cahqp.__main__ import main
from cahqp.edge.package import read_package
from cahqp.registry.registry import PromotionRequest, Registry

make_package = runpy.run_path(str(Path(__file__).parents[1] / "registry" / "fixed_packages.py"))["make_package"]


@pytest.fixture
def adopted(tmp_path, monkeypatch):
    """The command, on a decision that one of four packages may replace another."""
    monkeypatch.setattr(
        "cahqp.cycle.apply_decision.model_hash", lambda path: f"weights-{path.read_text()}"
    )  # fmt: skip
    for number in range(4):
        make_package(tmp_path / f"p{number}", number)
        (tmp_path / f"m{number}").write_text(str(number))

    def apply_decision(name, running, candidate):
        packages = {
            role: {"package": read_package(tmp_path / f"p{number}").digest}
            for role, number in (("candidate", candidate), ("running", running))
        }
        decision = tmp_path / f"{name}.json"
        decision.write_text(json.dumps({"published": True, "reason": "better", **packages}))
        models = [f"--candidate={tmp_path / f'm{candidate}'}", f"--running={tmp_path / f'm{running}'}"]
        models += [f"--candidate-package={tmp_path / f'p{candidate}'}", f"--running-package={tmp_path / f'p{running}'}"]
        given = [f"--decision={decision}", *models, f"--output={tmp_path / name}"]
        return main(["apply-decision", *given, f"--registry={tmp_path / 'registry'}"])

    return apply_decision


def test_an_empty_registry_gets_both_students(adopted, tmp_path):
    assert adopted("first", 0, 1) == 0
    assert [name[:4] for name in Registry(tmp_path / "registry").versions.names()] == ["0001", "0002"]
    assert (tmp_path / "first" / "model.safetensors").read_text() == "1"


def test_after_a_rollback_it_says_what_runs_and_how_to_go_on(adopted, tmp_path, capsys):
    registry = Registry(tmp_path / "registry")
    assert adopted("first", 0, 1) == 0
    second = registry.pointer.version
    first = registry.rollback()
    assert adopted("next", 1, 2) == 1
    told = capsys.readouterr().err
    assert f"runs {first}" in told and "another process" not in told
    assert f"cahqp registry rollback --registry {registry.root} --to {second}" in told
    assert registry.pointer.version == first
    assert registry.rollback(second) == second
    assert adopted("next", 1, 2) == 0


def test_a_student_that_the_registry_never_had_is_named_by_its_package(adopted, tmp_path, capsys):
    registry = Registry(tmp_path / "registry")
    assert adopted("first", 0, 1) == 0
    assert adopted("other", 3, 2) == 1
    command = f"cahqp registry promote --registry {registry.root} --package {tmp_path / 'p3'} --reason TEXT"
    assert command in capsys.readouterr().err
    registry.promote(tmp_path / "p3", PromotionRequest(reason="x"))
    assert adopted("other", 3, 2) == 0


def test_killed_after_the_promotion_it_goes_on(adopted, tmp_path):
    registry = Registry(tmp_path / "registry")
    registry.promote(tmp_path / "p0", PromotionRequest())
    registry.promote(tmp_path / "p1", PromotionRequest(reason="x"))
    assert adopted("first", 0, 1) == 0
