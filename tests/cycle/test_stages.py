import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cahqp.__main__ import main
from cahqp.cycle.plan import CalibrationRules, Relabel, read_plan
from cahqp.cycle.stages import CycleStages
from cahqp.errors import ConfigError
from cahqp.relabelling import command


@pytest.fixture
def plan(workplace):
    return read_plan(Path("plan.yaml"), ["mean-teacher"])


@pytest.fixture
def stages(plan):
    return {stage.name: stage for stage in CycleStages(plan, Path("out")).made}


def test_given_weights_skip_the_training_on_the_source(stages):
    assert list(stages) == [
        "scenes-night",
        "relabel-before",
        "teacher-adapt",
        "teacher-mean-teacher",
        "relabel",
        "student-retrain",
        "evaluate",
        "published",
        "report",
    ]


def test_views_are_calibrated_before_every_labelling(plan):
    with pytest.raises(ConfigError, match=r"relabel\.views changes the scores"):
        replace(plan, relabel=Relabel(views=["tiles:2x2"]))
    rules = CalibrationRules(uncalibrated=["bus"], dynamic=True)
    plan = replace(plan, relabel=Relabel(views=["tiles:2x2"]), calibrate=rules)
    built = {stage.name: stage for stage in CycleStages(plan, Path("out")).made}
    fitted, labelled = built["relabel-calibration"], built["relabel"]
    assert fitted.arguments[:4] == (
        "calibrate",
        "--weights=out/teacher-adapt/model.safetensors",
        "--frames",
        "val.json",
    )
    assert ("--views", "tiles:2x2", "--uncalibrated", "bus") == fitted.arguments[6:10]
    assert "--calibration=out/relabel-calibration" in labelled.arguments and "--dynamic" in labelled.arguments
    assert Path("out/relabel-calibration") in labelled.inputs


def test_a_calibration_takes_one_file(plan):
    with pytest.raises(ConfigError, match=r"one file in source\.val, got 2"):
        replace(plan, calibrate=CalibrationRules(), source=replace(plan.source, val=["val.json", "night.json"]))


def test_without_weights_both_are_trained_on_the_source(plan):
    plan = replace(
        plan,
        teacher=replace(plan.teacher, weights=None, fit=["adapt.yaml"]),
        student=replace(plan.student, weights=None, fit=["adapt.yaml"]),
    )
    built = {stage.name: stage for stage in CycleStages(plan, Path("out")).made}
    assert '--data.train=["train.json"]' in built["teacher-source"].arguments
    assert "--model.weights=out/teacher-source/model.safetensors" in built["teacher-adapt"].arguments
    assert "--model.weights=out/student-source/model.safetensors" in built["student-retrain"].arguments


def test_adaptation_command(stages):
    assert stages["teacher-adapt"].arguments == (
        "fit",
        "--config=adapt.yaml",
        "--model.weights=teacher.safetensors",
        '--data.source=["train.json"]',
        '--data.target=["night.json"]',
        '--data.val=["val.json"]',
        "--output=out/teacher-adapt",
        "--seed=0",
    )


def test_mean_teacher_lies_over_the_same_adaptation(stages):
    adapt, arm = stages["teacher-adapt"].arguments, stages["teacher-mean-teacher"].arguments
    assert set(arm) - set(adapt) == {"--config=mean.yaml", "--output=out/teacher-mean-teacher"}
    assert arm.index("--config=adapt.yaml") < arm.index("--config=mean.yaml")


def test_the_terms_of_ca_hqp_lie_over_the_same_adaptation(plan):
    plan = replace(plan, arms=["ca-hqp"], teacher=replace(plan.teacher, ca_hqp=["terms.yaml"]))
    stages = {stage.name: stage for stage in CycleStages(plan, Path("out")).made}
    added = set(stages["teacher-ca-hqp"].arguments) - set(stages["teacher-adapt"].arguments)
    assert added == {"--config=terms.yaml", "--output=out/teacher-ca-hqp"}
    assert "teacher-ca-hqp=out/teacher-ca-hqp/model.safetensors" in stages["evaluate"].arguments


def test_a_refit_trains_adapted_teachers_on_their_own_labels(plan):
    teacher = replace(plan.teacher, self_training=["refit.yaml"], fit=["adapt.yaml"])
    plan = replace(plan, arms=["mean-teacher", "oracle"], teacher=teacher)
    stages = {stage.name: stage for stage in CycleStages(plan, Path("out")).made}
    for adapted in ("teacher-adapt", "teacher-mean-teacher"):
        assert f"--weights=out/{adapted}/model.safetensors" in stages[f"{adapted}-labels"].arguments
        assert stages[f"{adapted}-self-training"].arguments == (
            "fit",
            "--config=refit.yaml",
            f"--model.weights=out/{adapted}/model.safetensors",
            '--data.source=["train.json"]',
            f'--data.pseudo=["out/{adapted}-labels/labels.json"]',
            '--data.val=["val.json"]',
            f"--output=out/{adapted}-self-training",
            "--seed=0",
        )
        name = adapted.replace("-adapt", "-adapted")
        assert f"{name}=out/{adapted}-self-training/model.safetensors" in stages["evaluate"].arguments
    assert "--weights=out/teacher-adapt-self-training/model.safetensors" in stages["relabel"].arguments
    assert "teacher-oracle=out/teacher-oracle/model.safetensors" in stages["evaluate"].arguments


def test_each_further_refit_is_on_labels_of_the_one_before(plan):
    plan = replace(plan, teacher=replace(plan.teacher, self_training=["refit.yaml"], self_training_rounds=3))
    stages = {stage.name: stage for stage in CycleStages(plan, Path("out")).made}
    made = [name for name in stages if name.startswith("teacher-adapt")]
    ends = ["-labels", "-self-training", "-labels-2", "-self-training-2", "-labels-3", "-self-training-3"]
    assert made == ["teacher-adapt", *(f"teacher-adapt{end}" for end in ends)]
    second = "--model.weights=out/teacher-adapt-self-training-2/model.safetensors"
    assert second in stages["teacher-adapt-self-training-3"].arguments
    assert second.replace("model.", "", 1) in stages["teacher-adapt-labels-3"].arguments
    assert "--weights=out/teacher-adapt-self-training-3/model.safetensors" in stages["relabel"].arguments


def test_oracle_alone_trains_on_target_frames_as_labelled(plan):
    plan = replace(plan, arms=["oracle"], teacher=replace(plan.teacher, fit=["adapt.yaml"]))
    arguments = {stage.name: " ".join(stage.arguments) for stage in CycleStages(plan, Path("out")).made}
    assert [name for name, text in arguments.items() if '--data.train=["night.json"]' in text] == ["teacher-oracle"]


def test_target_test_is_opened_by_the_evaluation_and_compared_before_publication_alone(stages):
    test = Path("out/scenes-night/annotations.json")
    assert [stage.name for stage in stages.values() if test in stage.inputs] == ["evaluate", "published"]
    assert f"--labelled {test}" in " ".join(stages["published"].arguments)


def test_scene_arguments_are_handed_on(stages):
    assert stages["scenes-night"].arguments[1:3] == ("--hour=[21, 22]", "--recordings=1")


def test_threshold_is_handed_to_both_relabellings(plan):
    plan = replace(plan, relabel=replace(plan.relabel, threshold=0.4))
    with_threshold = [s.name for s in CycleStages(plan, Path("out")).made if "--threshold=0.4" in s.arguments]
    assert with_threshold == ["relabel-before", "relabel"]


def test_interval_of_video_frames_is_handed_on(plan):
    plan = replace(plan, arms=[], target=replace(plan.target, frame_interval=0.5))
    flags = [
        a
        for stage in CycleStages(plan, Path("out")).made
        for a in stage.arguments
        if "frame_interval" in a or "frame-interval" in a
    ]
    assert flags == ["--frame-interval=0.5", "--data.frame_interval=0.5", "--frame-interval=0.5"]


def test_every_input_is_there_before_it_is_needed(stages, workplace):
    made = {Path(p.name) for p in workplace.iterdir()}
    for stage in stages.values():
        assert all(path in made or path.parent in made for path in stage.inputs), stage.name
        made.add(stage.output)


def test_lists_are_json(stages):
    flag = next(a for a in stages["student-retrain"].arguments if a.startswith("--data.pseudo="))
    assert json.loads(flag.partition("=")[2]) == ["out/relabel/labels.json"]
    assert yaml.safe_load(flag.partition("=")[2]) == ["out/relabel/labels.json"]


def test_relabelling_understands_what_a_plan_says(plan, monkeypatch):
    told = replace(plan.relabel, threshold=0.3, views=["flip", "scale:1.5"], weight_by_score=True)
    stages = {stage.name: stage for stage in CycleStages(replace(plan, relabel=told), Path("out")).made}
    parsed = []
    monkeypatch.setattr(command, "relabel", parsed.append)
    assert main(list(stages["relabel"].arguments)) == 0
    options = parsed[0]
    assert (options.threshold, options.views, options.weight_by_score) == (0.3, ["flip", "scale:1.5"], True)
    assert (options.stationary_weight, options.ignore_share, options.temporal) == (0.5, 0.6, True)
