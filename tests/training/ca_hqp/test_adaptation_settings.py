"""The settings of an adaptation, each seen from the front door or from one step of a tiny teacher."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from cahqp.__main__ import main
from cahqp.adaptation.domain_adversary import SOURCE, TARGET
from cahqp.benchmarks.adapt.true_instances import TrueInstances
from cahqp.detectors.model_file import load
from cahqp.errors import ConfigError, DataError
from cahqp.frame import Frame, View
from cahqp.structures import Batch, Detections, Targets
from cahqp.training.ca_hqp.alignment import Progress
from cahqp.training.ca_hqp.domain_passes import (
    DomainPass,
    batch_norms,
    frozen_bn_stats,
    join_batches,
    slice_batch,
    slice_output,
)
from cahqp.training.ca_hqp.factory import build_thresholds
from cahqp.training.ca_hqp.labelling import PseudoLabels
from cahqp.training.ca_hqp.module import TeacherAdaptation
from cahqp.training.ca_hqp.settings import AlignmentSettings, PromptSettings, PseudoLabelSettings
from cahqp.training.distillation.loss import SoftTargets

SHORT = "--trainer.max_epochs=1"


def targets(*boxes, seed=None):
    boxes = torch.tensor(boxes).float().reshape(-1, 4)
    return Targets(boxes, torch.zeros(len(boxes)).long(), seed=seed)


def batch(width=96):
    generator = torch.Generator().manual_seed(width)
    images = torch.randint(0, 255, (2, 3, 64, width), generator=generator).to(torch.uint8)
    found = [targets([4, 4, 40, 40], seed=1), targets([10, 20, 50, 60], [5, 5, 20, 30], seed=2)]
    frames = [Frame(n, f"{n}.png", (64, width), "north", "monday", n, float(n)) for n in range(2)]
    return Batch(images, torch.zeros(2, 64, width, dtype=torch.bool), found, frames)


def module(teacher, **settings):
    """A module as in the first step of a run, whose average is itself."""
    torch.manual_seed(0)
    labels = settings.pop("labels", PseudoLabelSettings(0.5, 0.02))
    terms = {"prompt": PromptSettings(enabled=True), "alignment": AlignmentSettings(dqfa=0.1, tiafa=0.1)}
    settings = terms | settings
    made = settings.pop("kind", TeacherAdaptation)(weights=teacher, pseudo_labels=labels, **settings)
    made.averaged_teacher = lambda: made.detector
    made.run_seed = 0
    made.log = lambda *_, **__: None
    made._trainer = SimpleNamespace(estimated_stepping_batches=10, global_step=5, log_every_n_steps=0)
    return made


def step(made, **given):
    """One training step on given pseudo-labels."""
    views = {"source": batch(), "target_weak": batch(80), "target_strong": batch(80), **given}
    scores = torch.tensor([0.5, 0.3])
    dense = made.pseudo_labels.targets == "dense"
    queries = SoftTargets(torch.rand(2, 30, 5, generator=torch.Generator().manual_seed(0)), torch.full((2, 30, 4), 0.4))
    made.labeller.label = lambda _, weak: PseudoLabels(
        [replace(t, weights=scores[: len(t)]) for t in weak.targets], soft=queries if dense else None
    )
    return made.training_step(views, 0)["loss"]


@pytest.mark.parametrize(("schedule", "shares"), [("dann", [0.0, 0.98661, 0.99991]), ("constant", [1.0, 1.0, 1.0])])
def test_the_reversal_that_branches_are_given_is_positive_and_follows_its_schedule(schedule, shares, teacher):
    settings = AlignmentSettings(dqfa=0.1, tiafa=0.1, reversal=0.3, schedule=schedule)
    made, given = module(teacher, alignment=settings), []
    made.alignment.dqfa.register_forward_pre_hook(lambda _, inputs: given.append(inputs[2]))
    made.alignment.tiafa.register_forward_pre_hook(lambda _, inputs: given.append(inputs[4]))
    for number in (0, 5, 10):
        made._trainer.global_step = number
        step(made)
    assert given == pytest.approx([0.3 * share for share in shares for _ in range(4)], abs=1e-4)


@pytest.mark.parametrize("form", ["dense", "sfa"])
def test_attached_alignment_changes_no_bit_of_any_detection(form, teacher):
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    attached = TeacherAdaptation(teacher, alignment=AlignmentSettings(dqfa=0.1, tiafa=0.1, dqfa_form=form)).eval()
    assert attached.alignment.dqfa is not None and attached.alignment.tiafa is not None
    with torch.no_grad():
        one, two = load(teacher)(images), attached.detector(images)
    assert torch.equal(one.pred_logits, two.pred_logits) and torch.equal(one.pred_boxes, two.pred_boxes)


@pytest.mark.parametrize("form", ["dense", "sfa"])
def test_discriminators_descend_their_loss_by_the_weight_of_their_branch(form, teacher):
    settings = AlignmentSettings(dqfa=0.1, tiafa=0.3, dqfa_form=form)
    made, losses = module(teacher, alignment=settings), {"dqfa": [], "tiafa": []}
    for name, told in losses.items():
        getattr(made.alignment, name).register_forward_hook(lambda _, inputs, output, told=told: told.append(output[0]))
    total = step(made)
    for name, weight in (("dqfa", 0.1), ("tiafa", 0.3)):
        parameters = [p for n, p in getattr(made.alignment, name).named_parameters() if "discriminator" in n]
        mean = (losses[name][0] + losses[name][1]) / 2
        plain = torch.autograd.grad(mean, parameters, retain_graph=True)
        found = torch.autograd.grad(total, parameters, retain_graph=True)
        torch.testing.assert_close(found, tuple(weight * gradient for gradient in plain))
        assert any(gradient.any() for gradient in plain)


def in_turn(made, batches):
    """Return the labels of batches, each in a step of its own."""
    labels = []
    for one in batches:
        labels.append(made.label(one).targets)
        made.on_train_batch_end({"injected": {}}, one, 0)
    return labels


def test_boxes_whose_place_is_always_taken_lose_score_and_then_training(teacher):
    seen = [replace(batch(), frames=[replace(f, id=2 * n + k) for k, f in enumerate(batch().frames)]) for n in range(4)]
    made = {
        s: module(teacher, labels=PseudoLabelSettings(threshold=0.02, stationary_weight=s)) for s in (0.0, 0.5, 1.0)
    }
    first, last = {}, {}
    for stationary_weight, one in made.items():
        one.eval()
        labels = in_turn(one, seen)  # the same pictures under other numbers: nothing moves
        first[stationary_weight], last[stationary_weight] = (
            sum(t.weights.sum().item() for t in found) for found in (labels[0], labels[-1])
        )
    assert first[0.0] == first[0.5] == first[1.0] == last[1.0] > 0
    assert last[0.5] < 0.6 * last[1.0]
    assert last[0.0] == 0


def test_without_a_doubtful_band_what_always_stands_is_background(teacher):
    seen = [replace(batch(), frames=[replace(f, id=2 * n + k) for k, f in enumerate(batch().frames)]) for n in range(4)]
    made = module(teacher, labels=PseudoLabelSettings(threshold=0.02, stationary_weight=0.0, ignore_share=1.0)).eval()
    first, *_, last = in_turn(made, seen)
    assert sum(map(len, first)) > 0
    assert sum(len(t) + len(t.ignore) for t in last) == 0


def test_motion_only_adds_ignored_regions(teacher):
    generator = torch.Generator().manual_seed(3)
    road, seen = batch().images[:1].div(4).byte(), []
    for number in range(8):
        images = road.clone()
        images[:, :, 20:40, 8 * number : 8 * number + 20] = 255
        images += torch.randint(0, 4, images.shape, generator=generator).byte()
        frames = [Frame(number, f"{number}.png", (64, 96), "north", "monday", number)]
        seen.append(Batch(images, torch.zeros(1, 64, 96, dtype=torch.bool), [targets(seed=1)], frames))
    labels = {
        share: in_turn(
            module(teacher, labels=PseudoLabelSettings(threshold=0.9, moving_ignore_share=share)).eval(), seen
        )
        for share in (None, 0.02)
    }
    before, after = ([one for step in labels[share] for one in step] for share in (None, 0.02))
    assert [len(one.boxes) for one in before] == [len(one.boxes) for one in after]
    assert [len(one.ignore) for one in before[:5]] == [len(one.ignore) for one in after[:5]]
    assert all(len(one.ignore) < len(two.ignore) for one, two in zip(before[5:], after[5:], strict=True))


@pytest.mark.parametrize("form", ["dense", "sfa"])
def test_denoising_queries_do_not_reach_the_domain_queries(form, teacher):
    made = module(teacher, alignment=AlignmentSettings(dqfa=0.1, tiafa=0.1, dqfa_form=form))
    with torch.no_grad():
        with_noise = made.detect(batch(), batch().targets)
        without = made.detect(batch())
    assert with_noise.denoising is not None and without.denoising is None
    for one, two in zip(with_noise.features.decoder, without.features.decoder, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    losses = [made.alignment.dqfa(output.features, 1)[0] for output in (with_noise, without)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


SWITCHES = {
    "sfa": {"alignment": AlignmentSettings(dqfa=0.1, tiafa=0.1, dqfa_form="sfa")},
    "one layer": {"alignment": AlignmentSettings(dqfa=0.1, tiafa=0.1, dqfa_layers=[-1])},
    "hard masks": {"alignment": AlignmentSettings(dqfa=0.1, tiafa=0.1, soft_masks=False)},
    "instances": {"alignment": AlignmentSettings(dqfa=0.1, tiafa=0.1, unit="instance")},
    "metric": {"prompt": PromptSettings(enabled=True, metric=0.5)},
    "by score": {"labels": PseudoLabelSettings(0.5, 0.02, weight_by_score=True)},
    "classes alone": {"labels": PseudoLabelSettings(0.5, 0.02, box_loss=False)},
    "dense": {"labels": PseudoLabelSettings(0.5, 0.02, targets="dense", denoising=False)},
    "no denoising": {"labels": PseudoLabelSettings(0.5, 0.02, denoising=False)},
    "hidden blocks": {"labels": PseudoLabelSettings(0.5, 0.02, masked=0.5)},
    "frozen": {"batch_norm": "freeze"},
}


@pytest.fixture(scope="module")
def usual(teacher):
    return step(module(teacher)).item()


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_changes_the_loss_and_leaves_a_gradient_everywhere(switch, teacher, usual):
    made = module(teacher, **SWITCHES[switch])
    loss = step(made)
    loss.backward()
    without = [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [] and loss.isfinite()
    if switch != "frozen":  # this teacher's norms are frozen already
        assert loss.item() != usual


def test_masks_weigh_by_score_where_the_detection_loss_does_not(teacher):
    made = module(teacher)
    seen = {}
    made.alignment.tiafa.forward = lambda features, given, *_: (seen.update(tiafa=given), (torch.zeros(()), {}, []))[1]
    criterion = made.criterion
    made.criterion = lambda output, given: (seen.update(loss=given), criterion(output, given))[1]
    step(made)
    assert sorted({round(w, 3) for t in seen["tiafa"] for w in t.weights.tolist()}) == [0.3, 0.5]
    assert {w for t in seen["loss"] for w in t.weights.tolist()} == {1.0}


def test_dense_targets_are_all_queries_of_the_teacher(teacher):
    labeller = module(teacher, labels=PseudoLabelSettings(0.5, 0.9, targets="dense")).eval()
    labels = labeller.label(batch())
    assert sum(map(len, labels.targets)) == 0
    with torch.no_grad():
        output = labeller.detect(batch())
    torch.testing.assert_close(labels.soft.probs, output.pred_logits.sigmoid())
    torch.testing.assert_close(labels.soft.boxes, output.pred_boxes)


def test_ignored_boxes_count_as_expected_objects_where_asked(teacher):
    found = {
        counted: module(teacher, labels=PseudoLabelSettings(0.5, 0.9, ignore_share=0.02, count_ignored=counted))
        .eval()
        .label(batch())
        .targets[0]
        for counted in (False, True)
    }
    assert len(found[True].ignore) == len(found[False].ignore) > 0
    assert not found[False].ignore_weights.any()
    assert found[True].ignore_weights.min() >= 0.018


def hidden(made, **settings):
    """Return the share of blocks hidden in what the learner sees: in the source's views and in the target's."""
    shares, detect = [], made.detect
    grey = torch.tensor([round(255 * value) for value in made.detector.preprocessing.mean])[:, None, None]

    def look(seen, *rest):
        shares.extend((image[:, ::32, ::32] == grey).all(0).float().mean().item() for image in seen.images)
        return detect(seen, *rest)

    made.detect = look
    step(made, target_weak=batch(), target_strong=batch())
    return shares


@pytest.mark.parametrize("passes", ["separate", "joint"])
def test_views_of_both_domains_are_masked_alike_where_discriminators_judge(passes, teacher):
    labels = PseudoLabelSettings(0.5, 0.02, masked=0.5)
    source, target = torch.tensor(hidden(module(teacher, labels=labels, domain_passes=passes))).chunk(2)
    assert torch.equal(source, target) and 0 < source.mean() < 1  # the same images with the same seeds


def test_without_discriminators_the_target_alone_is_masked(teacher):
    labels = PseudoLabelSettings(0.5, 0.02, masked=0.5)
    shares = hidden(module(teacher, labels=labels, alignment=AlignmentSettings()))
    assert shares[:2] == [0, 0] and sum(shares[2:]) > 0


def test_the_tracks_of_the_target_are_watched(teacher):
    made, logged = module(teacher), {}
    made.log = lambda name, value, **_: logged.setdefault(name, []).append(value)
    one = replace(batch(), frames=[replace(frame, view=View(0, 0, 96, 64)) for frame in batch().frames])
    for _ in range(2):
        step(made, source=one, target_weak=one, target_strong=one)
        made.alignment.tiafa.commit()
    assert logged["tracks/matched"] == [0.0, 1.0]
    assert {key[0] for key in made.alignment.tiafa.bank._frames} == {"north/target/monday"}


def timed(one, times):
    view = View(0, 0, 96, 64)
    frames = [replace(frame, view=view, timestamp=time) for frame, time in zip(one.frames, times, strict=True)]
    return replace(one, frames=frames)


@pytest.mark.parametrize(("unit", "untimed", "remembered"), [("instance", 0, 0), ("instance", 1, 0), ("token", 0, 2)])
def test_features_are_steadied_in_both_domains_or_in_none(unit, untimed, remembered, teacher, caplog):
    made = module(teacher, alignment=AlignmentSettings(tiafa=0.1, unit=unit))
    views = [timed(batch(), [0.0, 1.0]), timed(batch(), [0.0, 1.0])]
    views[untimed] = timed(batch(), [None, None])
    for _ in range(2):
        step(made, source=views[0], target_weak=views[1], target_strong=views[1])
        made.alignment.tiafa.commit()
    assert len(made.alignment.tiafa.bank._frames) == remembered
    other = ("target", "source")[untimed]
    assert sum(f"Only {other} frames have time stamps" in r.message for r in caplog.records) == (unit == "instance")


def test_features_of_two_timed_domains_are_steadied(teacher):
    made = module(teacher, alignment=AlignmentSettings(tiafa=0.1, unit="instance"))
    one = timed(batch(), [0.0, 1.0])
    step(made, source=one, target_weak=one, target_strong=one)
    made.alignment.tiafa.commit()
    assert {key[0] for key in made.alignment.tiafa.bank._frames} == {"north/source/monday", "north/target/monday"}


def test_scenes_are_aligned_without_labels_of_the_target(teacher):
    made = module(teacher, alignment=AlignmentSettings(dqfa=0.1), labels=PseudoLabelSettings(0.0, 0.02))
    made.labeller.label = None  # not called
    views = {"source": batch(), "target_weak": batch(80), "target_strong": batch(80)}
    judged = []
    made.alignment.dqfa.register_forward_pre_hook(lambda _, inputs: judged.append(inputs[1]))
    assert made.training_step(views, 0)["loss"].isfinite()
    assert judged == [SOURCE, TARGET]


def test_a_training_without_an_end_has_no_share_that_is_done(teacher):
    made = module(teacher, alignment=AlignmentSettings(dqfa=0.1, schedule="dann"))
    made._trainer.estimated_stepping_batches = float("inf")
    with pytest.raises(ConfigError, match="their number is unlimited"):
        step(made)
    step(module(teacher, alignment=AlignmentSettings(dqfa=0.1, schedule="constant")))


@pytest.mark.parametrize(("later", "told"), [(True, 0), (False, 1)])
def test_target_frames_that_find_no_neighbour_are_told_of_once(later, told, teacher, caplog):
    made = module(teacher)
    for known in [False] * 500 + [later] * 1500:  # the bank starts empty
        made.neighbours.update([known])
    assert sum("alignment.remembered_frames" in record.message for record in caplog.records) == told


def test_a_joint_pass_equals_two_where_batch_norm_is_frozen(teacher):
    made = [module(teacher, domain_passes=passes, batch_norm="freeze") for passes in ("separate", "joint")]
    separate, joint = (step(one, target_strong=batch()) for one in made)
    torch.testing.assert_close(separate, joint, rtol=1e-4, atol=1e-5)


def test_batches_are_joined_with_padding_and_parted_again():
    one, two = batch(96), batch(80)
    joined = join_batches(one, two)
    assert joined.images.shape == (4, 3, 64, 96) and joined.padding_mask[2:, :, 80:].all()
    assert not joined.padding_mask[:2].any() and not joined.images[2:, :, :, 80:].any()
    assert torch.equal(slice_batch(joined, slice(2, None)).images[..., :80], two.images)


def test_parts_of_an_output_are_what_single_passes_give(teacher):
    detector = load(teacher)
    images = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, alone = slice_output(detector(images), slice(1, 3)), detector(images[1:])
    for name in ("pred_logits", "aux_boxes", "encoder_logits", "sizes"):
        torch.testing.assert_close(getattr(whole, name), getattr(alone, name), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.features.encoder[-1], alone.features.encoder[-1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("setting", "moved"), [("both", {1, 2}), ("source", {1}), ("target", {2}), ("freeze", set())])
def test_batch_norm_remembers_whose_frames_it_is_told_to(setting, moved, teacher):
    made = module(teacher, batch_norm=setting)
    made.detector.backbone.extra = torch.nn.BatchNorm2d(3)  # this teacher's own are frozen
    made.train()
    means = []

    def watch(_, inputs):
        made.detector.backbone.extra(inputs[0])
        means.append(made.detector.backbone.extra.running_mean.clone())

    made.detector.backbone.register_forward_pre_hook(watch)
    step(made)
    before = [torch.zeros(3), *means]
    assert {n + 1 for n in range(2) if not torch.equal(before[n], means[n])} == moved


def test_forgetting_keeps_the_statistics_of_the_batch_in_use():
    norm = torch.nn.BatchNorm1d(2).train()
    x = torch.randn(8, 2) + 3
    with frozen_bn_stats(batch_norms(norm)):
        assert norm(x).mean().abs() < 1e-5
    assert not norm.running_mean.any() and norm.momentum == 0.1


def test_soft_targets_are_the_scores_of_the_boxes_own_queries(teacher):
    made = module(teacher, labels=PseudoLabelSettings(1.0, 0.02, targets="soft"))
    made.detector.eval()
    labels = made.label(batch())
    assert sum(map(len, labels.targets)) == sum(map(len, labels.class_scores)) > 0
    for target, scores in zip(labels.targets, labels.class_scores, strict=True):
        torch.testing.assert_close(scores[torch.arange(len(target)), target.labels], target.weights)


def test_the_ceiling_tells_true_boxes_to_the_alignment_alone(teacher, tmp_path):
    ground_truth = {
        "images": [{"id": 1, "file_name": "0.png", "height": 64, "width": 80, "recording": "monday", "frame": 0}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [30, 10, 20, 20]}],
        "categories": [{"id": 1, "name": load(teacher).classes[0]}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(ground_truth))
    (tmp_path / "0.png").touch()
    made = module(teacher, kind=lambda **given: TrueInstances([tmp_path / "truth.json"], **given))
    seen, align = {}, made.alignment.tiafa.forward
    made.alignment.tiafa.forward = lambda features, given, size, domain, *rest: (
        seen.update({domain: given}), align(features, given, size, domain, *rest))[1]  # fmt: skip
    criterion = made.criterion
    made.criterion = lambda output, given: (seen.update(loss=given), criterion(output, given))[1]
    one = batch(80)
    view = View(20, 0, 60, 32)  # doubled in the batch
    one = replace(one, frames=[replace(frame, view=view, name="0.png") for frame in one.frames])
    step(made, target_weak=one, target_strong=one)
    assert [t.boxes.tolist() for t in seen[TARGET]] == [[[20.0, 20.0, 60.0, 60.0]]] * 2
    assert [len(t) for t in seen["loss"]] == [1, 2]  # the pseudo-labels
    with pytest.raises(DataError, match="has no ground truth"):
        other = replace(one, frames=[replace(frame, name="1.png") for frame in one.frames])
        step(made, target_weak=other, target_strong=other)


@pytest.mark.parametrize("control", ["shuffled_domains", "shuffled_time"])
def test_controls_of_alignment(control, teacher):
    made = module(teacher, alignment=AlignmentSettings(dqfa=0.1, tiafa=0.1, control=control))
    told, stamps = [], []
    for number in range(12):
        progress = Progress(number, 12, 0)
        told.append(tuple(made.alignment._domain_label(domain, progress) for domain in (SOURCE, TARGET)))
        frames = made.alignment._frames(DomainPass(batch(), None), SOURCE, progress)
        stamps.append([frame.timestamp for frame in frames])
    assert (set(told) == {(SOURCE, TARGET)}) == (control != "shuffled_domains")
    assert (stamps == [[0.0, 1.0]] * 12) == (control != "shuffled_time")
    assert all(sorted(times) == [0.0, 1.0] for times in stamps)


def test_dynamic_thresholds_start_at_the_teachers_and_follow_the_learner(teacher):
    labels = PseudoLabelSettings(threshold=0.3, dynamic=True, dynamic_momentum=0.5, dynamic_range=[0.0, 1.0])
    made = module(teacher, labels=labels)
    step(made)
    made.on_train_epoch_end()
    values = made.labeller.thresholds.values
    assert values[1:].tolist() == pytest.approx([0.3] * 4)
    assert 0 < values[0] < 0.3
    assert not module(teacher).labeller.thresholds.values.ne(0.02).any()


def test_confidence_is_the_score_weighted_mean_score(teacher):
    made = module(teacher)
    sure = Detections(torch.zeros(2, 4), torch.tensor([0.8, 0.2]), torch.tensor([0, 0]))
    made.detections = lambda _: [sure, Detections.empty()]
    assert made.confidence(batch()) == pytest.approx([0.68, 0.0])
    assert made.detector.training


WRONG = {
    r"prompt\.places must name": {"prompt": PromptSettings(enabled=True, places=[])},
    r"places: \[decoder\]": {"prompt": PromptSettings(enabled=True, injection="tokens")},
    r"dqfa_layers must name a layer": {"alignment": AlignmentSettings(dqfa=0.1, tiafa=0.1, dqfa_layers=[])},
    r"encoder_layers of DQFA names \[7\]": {
        "alignment": AlignmentSettings(dqfa=0.1, tiafa=0.1, dqfa_form="sfa", dqfa_layers=[7])
    },
    r"dynamic_range must be": {"labels": PseudoLabelSettings(1.0, 0.3, dynamic_range=[0.5])},
    r"alignment\.tiafa must not be negative": {"alignment": AlignmentSettings(tiafa=-1.0)},
    r"nms_iou must lie in 0\.\.1": {"labels": PseudoLabelSettings(1.0, 0.3, nms_iou=1.5)},
    r"batch_norm: target needs domain_passes: separate": {"batch_norm": "target", "domain_passes": "joint"},
    r"must name every class of the teacher \(car,": {"labels": PseudoLabelSettings(1.0, {"car": 0.2})},
    r"needs prompt\.enabled: true": {"prompt": PromptSettings(enabled=False, metric=0.1)},
    r"pseudo_labels\.threshold must lie in 0\.\.1, got 2": {"labels": PseudoLabelSettings(1.0, 2)},
    r"(?s)threshold of car must lie in 0\.\.1, got 5.*of bus must lie in 0\.\.1, got -1": {
        "labels": PseudoLabelSettings(1.0, {"car": 5, "bus": -1, "truck": 0.3, "motorcycle": 0.3, "person": 0.3})
    },
    r"discriminator_factor must not be negative": {"alignment": AlignmentSettings(discriminator_factor=-1)},
    r"max_gap must not be negative, got -1": {"alignment": AlignmentSettings(max_gap=-1.0)},
    r"max_gap must not be negative, got nan": {"alignment": AlignmentSettings(max_gap=float("nan"))},
    r"sfa uses copies of the encoder's layers, which do not see": {
        "prompt": PromptSettings(enabled=True, places=["input", "encoder"]),
        "alignment": AlignmentSettings(dqfa=0.1, dqfa_form="sfa"),
    },
    r"remembered_frames must be at least 1": {"alignment": AlignmentSettings(remembered_frames=0)},
}


@pytest.mark.parametrize("told", WRONG)
def test_contradictions_are_refused(told, teacher):
    with pytest.raises(ConfigError, match=told):
        module(teacher, **WRONG[told])


def test_all_contradictions_are_told_together(teacher):
    with pytest.raises(ConfigError, match=r"(?s)nms_iou must lie.*tiafa must not be negative") as error:
        module(teacher, alignment=AlignmentSettings(tiafa=-1.0), labels=PseudoLabelSettings(1.0, 0.3, nms_iou=2.0))
    assert len(str(error.value).splitlines()) == 2


def test_norms_train_with_the_prompts_where_asked(teacher):
    made = module(teacher, trainable="prompts+norms")
    trained = {name for name, p in made.detector.named_parameters() if p.requires_grad}
    trained = {name for name in trained if not name.startswith("prompt.")}
    assert trained >= {"decoder_norm.weight", "encoder.0.norm.bias", "input_proj.0.1.weight"}
    assert all("norm" in name or name.startswith("input_proj") or "backbone" in name for name in trained)
    assert "input_proj.0.0.weight" not in trained


def test_without_source_it_adapts_source_free_and_says_so(arguments, teacher, tmp_path, capsys):
    given = [a for a in arguments("adapt") if not a.startswith(("--data.source", "--data.val"))]
    given += [f"--model.weights={teacher}", SHORT, "--trainer.log_every_n_steps=1"]
    given += ["--data.curriculum=[0.5,1.0]", "--data.easiness=confidence"]
    assert main([*given, f"--output={tmp_path / 'run'}"]) == 0
    assert "source-free adaptation by the mean teacher; DQFA and TIAFA are off" in capsys.readouterr().out
    after, before = load_file(tmp_path / "run" / "model.safetensors"), load_file(teacher)
    assert not torch.equal(after["encoder.0.norm.weight"], before["encoder.0.norm.weight"])
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert [name for name in header.split(",") if name.startswith("align/")] == ["align/gradient_share_prompt"]
    assert "discriminator/" not in header and "source/" not in header
    wanted = ["pseudo/boxes_car", "pseudo/confidence_0.0", "pseudo/threshold_bus", "prompt/entropy", "ema/distance"]
    assert [name for name in wanted if name not in header.split(",")] == []


def test_source_free_refuses_what_needs_source(arguments, teacher, tmp_path, capsys):
    given = [f"--model.weights={teacher}", SHORT, "--model.pseudo_labels.dynamic=true", "--model.batch_norm=source"]
    assert main([*arguments("adapt", source=[]), *given, f"--output={tmp_path / 'run'}"]) != 0
    told = capsys.readouterr().err
    assert "pseudo_labels.dynamic" in told and "batch_norm: source" in told


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [0.39, 0.95, 0.97]),
        ({"threshold_scale": 1.0}, [0.3, 0.9, 0.97]),
        ({"threshold_scale": 0.5}, [0.15, 0.45, 0.485]),
        ({"threshold": 0.4}, [0.4, 0.4, 0.4]),
    ],
)
def test_what_trains_is_surer_than_what_is_reported(teacher, settings, wanted):
    detector = load(teacher)
    detector.thresholds = dict.fromkeys(detector.classes, 0.3) | {"person": 0.9, "bus": 0.97}
    values = dict(
        zip(detector.classes, build_thresholds(detector, PseudoLabelSettings(**settings)).values, strict=True)
    )
    assert [round(float(values[name]), 6) for name in ("car", "person", "bus")] == wanted


def test_a_settings_mapping_and_lists_come_through_the_command_line(arguments, teacher, tmp_path):
    thresholds = dict.fromkeys(["car", "bus", "truck", "motorcycle", "person"], 0.02)
    given = [f"--model.weights={teacher}", SHORT, f"--model.pseudo_labels.threshold={json.dumps(thresholds)}"]
    given += [
        "--model.prompt.injection=tokens",
        "--model.prompt.places=[decoder]",
        "--model.alignment.dqfa_layers=[-1]",
    ]
    given += ["--model.domain_passes=joint", "--model.pseudo_labels.targets=soft", "--data.curriculum=[0.5,1.0]"]
    given += ["--data.mixed=true", "--example-images=1"]
    assert main([*arguments("adapt"), *given, f"--output={tmp_path / 'run'}"]) == 0
    pictures = (tmp_path / "run" / "checkpoints" / "examples").glob("pseudo*.jpg")
    assert [path.name for path in pictures] == ["pseudo000001-0.jpg"]
    assert load(tmp_path / "run" / "model.safetensors").prompt.describe()["places"] == ["decoder"]


def test_the_number_of_parameters_that_train_is_told(teacher, capsys):
    made = module(teacher, trainable="prompts", alignment=AlignmentSettings())
    made.print = print
    made.on_fit_start()
    count, frame_interval = (sum(p.numel() for p in part.parameters()) for part in (made.detector.prompt, made))
    assert f"{count:,} of {frame_interval:,} parameters train." in capsys.readouterr().out
    assert count < frame_interval / 2
