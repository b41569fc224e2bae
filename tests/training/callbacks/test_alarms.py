import dataclasses

import pytest
import torch

from cahqp.__main__ import main
from cahqp.adaptation import instances, query_memory
from cahqp.adaptation.stationary_memory import StationaryMemory
from cahqp.detectors.model_file import load
from cahqp.training.base import DetectionModule
from cahqp.training.ca_hqp.labelling import PseudoLabeller
from cahqp.training.ca_hqp.module import TeacherAdaptation
from cahqp.training.callbacks.alarm_rules import GradientShareRule, LabelRule, divergence
from cahqp.training.callbacks.alarms import Alarms

ALARM = "checkpoints/alarm"


@pytest.fixture
def adapt(arguments, teacher, tmp_path, capsys):
    """Adapt for nine steps and return the exit code, what was said, and the directory of the alarm's files."""

    def run(*more, name="run"):
        code = main([*arguments("adapt"), f"--model.weights={teacher}", f"--output={tmp_path / name}", *more])
        return code, capsys.readouterr().err, tmp_path / f"{name}.partial" / ALARM

    return run


@pytest.fixture
def labels(monkeypatch):
    """Replace the averaged teacher's labels by a function of them and of the number of the step."""

    def give(keep):
        step, original = [0], PseudoLabeller.label

        def label(self, teacher, batch):
            found = original(self, teacher, batch)
            step[0] += 1
            return dataclasses.replace(found, targets=[keep(target, step[0]) for target in found.targets])

        monkeypatch.setattr(PseudoLabeller, "label", label)

    return give


def many(target, count, label=0):
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]]).repeat(count, 1)
    return type(target)(boxes, torch.full((count,), label), seed=target.seed)


def test_labels_that_vanish_leave_the_last_good_teacher(adapt, labels):
    labels(lambda target, step: many(target, 0 if step > 4 else 3))
    code, said, kept = adapt("--alarms.window=2")
    assert code == 1
    assert "fall to nothing" in said
    assert str(kept / "last_good.safetensors") in said
    assert "pseudo_labels.threshold" in said
    teacher = load(kept / "last_good.safetensors")
    assert teacher.provenance["steps"] == 4
    assert "fall to nothing" in teacher.provenance["stopped"]


def test_classes_that_drift(adapt, labels):
    labels(lambda target, step: many(target, 10, label=2 if step > 4 else 0))
    assert "truck 0 -> 100 %" in adapt("--alarms.window=2")[1]


def test_what_is_switched_off_stops_nothing(adapt, labels):
    labels(lambda target, step: many(target, 10, label=2 if step > 4 else 0))
    assert adapt("--alarms.window=2", "--alarms.class_drift=null")[0] == 0


@pytest.fixture
def judged():
    """Judge windows of ten frames with these numbers of boxes by class, and return the findings."""

    def judge(*windows, **limits):
        rule = LabelRule(50, **{"min_box_rate": 0.1, "max_box_rate": 6.0, "class_drift": 0.25, **limits})
        findings = [rule.judge(10, boxes, ["car", "bus"][: len(boxes)]) for boxes in windows]
        return [finding.happened for finding in findings if finding is not None]

    return judge


@pytest.mark.parametrize(
    ("windows", "said"),
    [
        ([(0, 0)], "No pseudo-label was found"),
        ([(30, 10), (2, 1)], "fall to nothing"),
        ([(30, 10), (200, 80)], "explode"),
        ([(30, 10), (10, 60)], "drift"),
        ([(9, 3), (9, 3), (10, 60)], "drift"),  # the first window alone is too small to compare with
    ],
)
def test_windows_that_stop(windows, said, judged):
    assert [said in happened for happened in judged(*windows)] == [True]


@pytest.mark.parametrize(
    ("windows", "limits"),
    [
        ([(30, 10), (60, 25)], {}),
        ([(30, 10), (1, 18)], {"min_box_rate": 0}),  # nineteen boxes tell nothing about shares
        ([(30,), (100,)], {"class_drift": 0.0}),
        ([(0, 0), (30, 10)], {"min_box_rate": None, "max_box_rate": None}),
    ],
)
def test_windows_that_pass(windows, limits, judged):
    assert judged(*windows, **limits) == []


@pytest.mark.parametrize(("knows", "word"), [(True, "without error"), (False, "one answer to both")])
def test_discriminators_that_are_stuck(knows, word, adapt, monkeypatch):
    """Every discriminator is sure of the domain it is told, or of the target whatever it is told."""

    def judged(logits, domain, weight=None):
        loss, _ = original(logits, domain, weight)
        return loss, torch.tensor(1.0 if knows else float(domain))

    original = instances.domain_loss
    for room in (instances, query_memory):
        monkeypatch.setattr(room, "domain_loss", judged)
    off = [f"--alarms.{name}=null" for name in ("min_box_rate", "max_box_rate", "class_drift")]
    said = adapt("--alarms.window=1", "--alarms.discriminator_patience=4", *off)[1]
    assert word in said and "The discriminator decoder_query" in said


def test_a_term_without_effect_is_a_warning_once_and_the_run_continues(adapt, caplog):
    settings = {"dqfa": 1e-9, "tiafa": 100, "reversal": 1, "schedule": "constant"}
    weak = [*(f"--model.alignment.{name}={value}" for name, value in settings.items()), "--alarms.window=2"]
    assert adapt(*weak)[0] == 0
    warned = [r.getMessage() for r in caplog.records if "has next to no effect, and this run" in r.getMessage()]
    assert [message.split(" is ")[0] for message in warned] == ["The gradient of dqfa"]
    assert "Raise model.alignment.dqfa or model.alignment.reversal" in warned[0]
    caplog.clear()
    assert adapt(*weak, "--alarms.min_gradient_share=null", name="off")[0] == 0
    assert not [r for r in caplog.records if "next to no effect" in r.getMessage()]


def test_a_term_counts_as_weak_after_two_windows_in_a_row():
    rule = GradientShareRule(0.01)
    found = [len(rule.judge({"dqfa": share})) for share in (0.001, 0.02, 0.001, 0.001, 0.001)]
    assert found == [0, 0, 0, 1, 0]


@pytest.fixture
def fifth_loss_is_nan(monkeypatch):
    """The criterion gives NaN for one image of the source: the fifth step meets it first."""
    original, steps = DetectionModule.detection_loss, []

    def spoilt(self, output, batch, prefix="train"):
        loss = original(self, output, batch, prefix)
        steps.append((float(loss), [frame.name for frame in batch.frames]))
        return loss * float("nan") if prefix == "source" and len(steps) == 5 else loss

    monkeypatch.setattr(DetectionModule, "detection_loss", spoilt)
    return steps


def test_a_loss_that_is_not_finite_is_replayed(adapt, fifth_loss_is_nan):
    code, said, kept = adapt()
    assert code == 1
    assert "loss of step 4 is not finite" in said
    failing = kept / "failing-rank0.pt"
    failed = fifth_loss_is_nan[4:5]
    code, said, _ = adapt(f"--alarms.replay={failing}", name="replay")
    again = fifth_loss_is_nan[5:6]
    assert "source/" in said
    assert [names for _, names in again] == [names for _, names in failed]
    assert [loss for loss, _ in again] == pytest.approx([loss for loss, _ in failed])


def test_predictions_that_are_not_finite_are_an_alarm(adapt):
    wild = ["--model.optimizer.learning_rate=1e30", "--trainer.gradient_clip_val=1e9"]
    code, said, kept = adapt(*wild)
    assert code == 1
    assert "is not finite. The predictions are not finite" in said
    assert torch.isfinite(next(load(kept / "last_good.safetensors").parameters())).all()
    assert "The predictions are not finite" in adapt(f"--alarms.replay={kept / 'failing-rank0.pt'}", name="replay")[1]
    with pytest.raises(FloatingPointError):
        adapt(*wild, "--alarms.finite=false", name="off")


def test_a_replay_knows_no_more_than_the_step_did(adapt, monkeypatch):
    loss, factors, steps, known = DetectionModule.detection_loss, StationaryMemory.factors, [], []

    def spoilt(self, output, batch, prefix="train"):
        steps.append(prefix)
        return loss(self, output, batch, prefix) * (float("nan") if steps.count("source") == 2 else 1.0)

    def counted(self, frame, boxes):
        known.append(len(self))
        return factors(self, frame, boxes)

    monkeypatch.setattr(DetectionModule, "detection_loss", spoilt)
    monkeypatch.setattr(StationaryMemory, "factors", counted)
    stationary_weight = "--model.pseudo_labels.stationary_weight=0"
    _, _, kept = adapt(stationary_weight)
    assert known == [0, 0, 2, 2]
    adapt(stationary_weight, f"--alarms.replay={kept / 'failing-rank0.pt'}", name="replay")
    assert known[4:] == [2, 2]


def test_weights_that_are_no_numbers_are_not_the_last_good_ones(adapt, monkeypatch):
    def spoil(self, *args):
        with torch.no_grad():
            for parameter in self.averaged_teacher().parameters():
                parameter.fill_(float("nan"))

    monkeypatch.setattr(TeacherAdaptation, "on_train_batch_end", spoil)
    _, said, kept = adapt("--alarms.window=1", "--alarms.min_box_rate=0.5")
    assert torch.isfinite(next(load(kept / "last_good.safetensors").parameters())).all(), said


def test_the_file_to_replay_must_be_there(adapt):
    assert "does not exist" in adapt("--alarms.replay=nowhere.pt")[1]


def test_the_first_window_survives_a_resumed_run():
    one, two = Alarms(), Alarms()
    one.labels.first, one.discriminators.stuck, one.shares.weak = [3.0, 2.0, 1.0], {"encoder": 100}, {"dqfa": 1}
    two.load_state_dict(one.state_dict())
    assert two.shares.weak == {"dqfa": 1}
    assert (two.labels.first, two.discriminators.stuck) == (one.labels.first, one.discriminators.stuck)


@pytest.mark.parametrize(
    "wrong",
    [{"window": 0}, {"min_box_rate": 1.0}, {"max_box_rate": 1.0}, {"class_drift": 2.0}, {"min_gradient_share": 2.0}],
)
def test_limits_are_checked(wrong):
    with pytest.raises(Exception, match=f"alarms.{next(iter(wrong))}"):
        Alarms(**wrong)


def test_divergence_in_bits():
    assert divergence([3, 1], [6, 2]) == pytest.approx(0)
    assert divergence([1, 0], [0, 1]) == pytest.approx(1)
    assert divergence([1, 1], [1, 0]) == pytest.approx(0.3113, abs=1e-4)
