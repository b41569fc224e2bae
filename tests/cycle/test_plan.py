import shutil
from pathlib import Path

import pytest
import yaml

from cahqp.cycle.plan import read_plan
from cahqp.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def refuse(workplace, plan_values):
    def read(arms=(), **changes):
        Path("plan.yaml").write_text(yaml.safe_dump({**plan_values, **changes}))
        with pytest.raises(ConfigError) as caught:
            read_plan(Path("plan.yaml"), arms)
        return str(caught.value)

    return read


def test_demo_plan_is_right(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    plan = read_plan(Path("configs/cycle/demo.yaml"))
    assert plan.target.test == ["scenes:target_test"]


def test_demo_plan_takes_both_arms(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert read_plan(Path("configs/cycle/demo.yaml"), ["mean-teacher", "oracle"]).arms == ["mean-teacher", "oracle"]


def test_defaults(workplace):
    plan = read_plan(Path("plan.yaml"))
    assert (plan.seed, plan.arms, plan.relabel.threshold) == (0, [], None)


def test_all_problems_come_together(refuse):
    told = refuse(
        sead=1,
        seed="one",
        source={"train": ["gone.json"], "val": 5},
        target={"train": ["scenes:nihgt"]},
        relabel={"threshold": 2, "stationary_weight": 7, "views": ["flip", "flop"]},
        student=None,
    )
    for part in (
        "sead is not a known key. Did you mean seed?",
        "seed must be a valid integer, got 'one'",
        "source.train[0]: gone.json does not exist",
        "source.val must be a valid list, got 5",
        "target.train[0]: scenes:nihgt is not a known recording. Did you mean scenes:night?",
        "relabel.threshold must lie in 0..1, got 2",
        "relabel.stationary_weight must lie in 0..1, got 7",
        "'flop'",
        "student must be a mapping, got None",
    ):
        assert part in told
    assert "plan.yaml has 9 problems" in told


def test_missing_section_is_told_once(refuse, plan_values):
    del plan_values["target"]
    told = refuse()
    assert "1 problem;" in told
    assert "target is missing" in told


def test_true_is_no_number(refuse):
    assert "seed must be a valid integer, got True" in refuse(seed=True)


def test_frames_cannot_be_trained_on_and_held_out(refuse):
    told = refuse(source={"train": ["train.json"], "val": ["train.json"]})
    assert "source.val and source.train both contain train.json" in told


def test_models_need_weights_or_training(refuse):
    told = refuse(teacher={"adapt": ["adapt.yaml"]}, student={"weights": "gone", "retrain": []})
    assert "teacher: neither weights nor fit is given" in told
    assert "student.weights: gone does not exist" in told
    assert "student.retrain must not be empty" in told


def test_refits_need_a_refit(refuse, plan_values):
    teacher = plan_values["teacher"]
    assert "teacher.self_training is missing: name the configs" in refuse(teacher=teacher | {"self_training_rounds": 2})
    assert "teacher.self_training_rounds must be greater than or equal to 1, got 0" in refuse(
        teacher={**teacher, "self_training": ["a.yaml"], "self_training_rounds": 0}
    )
    assert "teacher.self_training[0]: gone.yaml does not exist" in refuse(
        teacher=teacher | {"self_training": ["gone.yaml"]}
    )


def test_unknown_arm(refuse):
    assert "Did you mean oracle?" in refuse(arms=["oracel"])


def test_oracle_needs_labels(refuse, workplace):
    shutil.copy("night.json", "night.mp4")
    told = refuse(arms=["oracle"], target={"train": ["night.mp4"]})
    assert "target.train: night.mp4 has none" in told
    assert "needs teacher.fit" in told


def test_arms_that_are_not_asked_for_need_no_files(workplace):
    Path("mean.yaml").unlink()
    read_plan(Path("plan.yaml"))


def test_scene_arguments_of_the_cycle_are_refused(refuse):
    assert "scenes.night.seed is set by the cycle" in refuse(scenes={"night": {"seed": 1}})


@pytest.mark.parametrize("text", ["a: [", "", "- 1"])
def test_what_is_no_plan(tmp_path, text):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"plan\.yaml is n"):
        read_plan(tmp_path / "plan.yaml")


def test_plan_that_is_not_there():
    with pytest.raises(ConfigError, match=r"gone\.yaml does not exist"):
        read_plan(Path("gone.yaml"))
