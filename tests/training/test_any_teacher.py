"""Adaptation of every kind of detector that can be a teacher, narrow and with random weights."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cahqp.__main__ import main
from cahqp.detectors import RTDETR, HuggingFaceDetector
from cahqp.detectors.huggingface.families import FAMILIES
from cahqp.detectors.model_file import load, read_metadata, save
from cahqp.errors import ConfigError
from cahqp.frame import Frame, View
from cahqp.structures import Batch, Targets
from cahqp.training.ca_hqp.labelling import PseudoLabels
from cahqp.training.ca_hqp.module import TeacherAdaptation
from cahqp.training.ca_hqp.settings import AlignmentSettings, PromptSettings, PseudoLabelSettings

CONFIGS = json.loads((Path(__file__).parents[1] / "detectors" / "data" / "tiny_transformers.json").read_text())
CLASSES = ["car", "bus", "truck", "motorcycle", "person"]
SIZE = (64, 96)
TERMS = {"source", "target", "dqfa", "tiafa"}


def build(kind):
    torch.manual_seed(0)
    if kind == "rtdetr":
        narrow = {"backbone_width": 8, "dim": 32, "heads": 4, "points": 2, "fusion_blocks": 1, "ffn_dim": 32}
        detector = RTDETR(CLASSES, size=SIZE, queries=20, denoising=10, encoder_dim=48, **narrow)
    else:
        detector = HuggingFaceDetector(CLASSES, config={"model_type": kind, **CONFIGS[kind]}, size=SIZE)
    for name, parameter in detector.named_parameters():
        if ("bbox_embed" in name or "box_heads" in name) and name.endswith("layers.2.weight"):
            torch.nn.init.normal_(parameter, std=0.05)
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        detector.train()(torch.randn(2, 3, *SIZE))
    for norm in norms:
        norm.momentum = 0.1
    return detector.eval()


@pytest.fixture(scope="module", params=["rtdetr", *FAMILIES])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def weights(kind, tmp_path_factory):
    path = tmp_path_factory.mktemp(kind) / "model.safetensors"
    save(path, build(kind))
    return path


@pytest.fixture(scope="module")
def deimv2(tmp_path_factory):
    path = tmp_path_factory.mktemp("deimv2") / "model.safetensors"
    save(path, build("deimv2"))
    return path


def batch(seed):
    images = torch.randint(0, 255, (2, 3, *SIZE), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    boxes = [torch.tensor([[4.0, 4, 40, 40]]), torch.tensor([[10.0, 20, 50, 60], [5, 5, 20, 30]])]
    found = [Targets(b, torch.arange(len(b)), seed=seed + n) for n, b in enumerate(boxes)]
    view = View(0, 0, SIZE[1], SIZE[0])
    frames = [Frame(n, f"{n}.png", SIZE, "north", "monday", n, float(seed + n), view=view) for n in range(2)]
    return Batch(images, torch.zeros(2, *SIZE, dtype=torch.bool), found, frames)


class Adaptation(TeacherAdaptation):
    """Adaptation in the middle of a run. It is its own average, and pseudo-labels are given."""

    def __init__(self, weights, **settings):
        torch.manual_seed(0)
        terms = {
            "prompt": PromptSettings(enabled=True),
            "alignment": AlignmentSettings(dqfa=0.1, tiafa=0.1),
            "pseudo_labels": PseudoLabelSettings(threshold=0.02),
        }
        super().__init__(weights, **terms | settings)
        self.run_seed = 0
        self._trainer = SimpleNamespace(estimated_stepping_batches=10, global_step=5, log_every_n_steps=0)

    def averaged_teacher(self):
        return self.detector

    def log(self, *_, **__):
        pass

    def label(self, weak):
        return PseudoLabels([replace(t, weights=torch.full((len(t),), 0.5)) for t in weak.targets])

    def losses(self):
        labels = self.label(batch(30))
        passes = self.run_passes(batch(10), self.target_view(batch(30), labels), labels)
        return self.source_loss(passes) | self.target_loss(passes) | self.alignment_losses(passes)


def train(module, optimizer, seeds):
    for seed in seeds:
        optimizer.zero_grad()
        torch.manual_seed(seed)  # dropout, as at the start of each batch of a run
        views = {"source": batch(seed), "target_weak": batch(seed + 1), "target_strong": batch(seed + 1)}
        module.training_step(views, 0)["loss"].backward()
        optimizer.step()
        module.labeller.commit()
        module.alignment.commit()


def test_a_fresh_prompt_changes_no_detection(weights):
    images = torch.rand(2, 3, *SIZE)
    module = Adaptation(weights)
    with torch.no_grad():
        one, two = load(weights)(images), module.detector.eval()(images)
    assert module.detector.prompt is not None
    assert torch.equal(one.pred_logits, two.pred_logits) and torch.equal(one.pred_boxes, two.pred_boxes)


def test_the_gradient_of_each_term_reaches_the_backbone_and_of_all_every_parameter(weights):
    module = Adaptation(weights)
    losses = module.losses()
    assert losses.keys() == TERMS
    backbone = [p for p in module.detector.backbone_parameters() if p.requires_grad]
    prompt = list(module.detector.prompt.injection.parameters())
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, [*backbone, *prompt], retain_graph=True, allow_unused=True)
        reached = [g is not None and bool(g.isfinite().all() and g.any()) for g in gradients]
        assert any(reached[: len(backbone)]) and all(reached[len(backbone) :]), name
    torch.stack(list(losses.values())).sum().backward()
    assert not [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]


def test_resumed_equals_uninterrupted_and_the_file_contains_the_prompt(weights, tmp_path):
    whole, resumed = Adaptation(weights), Adaptation(weights)
    optimizers = [torch.optim.AdamW(m.parameter_groups()) for m in (whole, resumed)]
    train(whole, optimizers[0], [1])
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for module, optimizer in zip((whole, resumed), optimizers, strict=True):
        train(module, optimizer, [2])
    one, two = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one if isinstance(one[name], torch.Tensor))
    save(tmp_path / "model.safetensors", whole.detector)
    again, images = load(tmp_path / "model.safetensors"), torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        trained, loaded = whole.detector.eval()(images), again(images)
        again.prompt = None
        without = again(images)
    assert torch.equal(trained.pred_logits, loaded.pred_logits)
    assert not torch.equal(trained.pred_logits, without.pred_logits)


def test_the_prompt_leaves_padding_unchanged(kind, weights):
    detector = Adaptation(weights).detector.eval()
    for parameter in detector.prompt.injection.parameters():
        torch.nn.init.ones_(parameter)
    images, mask = torch.rand(2, 3, *SIZE), torch.zeros(2, *SIZE, dtype=torch.bool)
    mask[1, :, 64:] = True
    if kind == "rtdetr" or not FAMILIES[kind].takes_padding:
        with pytest.raises((ConfigError, ValueError), match="takes no padded images"):
            detector(images, mask)
        return
    with torch.no_grad():
        prompted = detector(images, mask).features
        detector.prompt = None
        plain = detector(images, mask).features
    changed = torch.cat([(a != b).any(1).flatten(1) for a, b in zip(prompted.backbone, plain.backbone, strict=True)], 1)
    assert prompted.padding.any() and torch.equal(changed, ~prompted.padding)


def test_the_backbone_stays_if_only_the_transformer_trains(deimv2):
    detector = Adaptation(deimv2, trainable="prompts+transformer").detector
    assert not any(p.requires_grad for p in detector.backbone_parameters())
    assert any(p.requires_grad for p in detector.parameters())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": PromptSettings(enabled=True, places=["encoder"])}, "places.*needs a DINO teacher, got"),
        ({"alignment": AlignmentSettings(dqfa=0.1, dqfa_form="sfa")}, "copies layers of DINO, got .* dqfa_form: dense"),
        ({"alignment": AlignmentSettings(dqfa=0.1, dqfa_layers=[7])}, "encoder_layers of DQFA names"),
        ({"activation_checkpointing": True}, "activation_checkpointing: true needs a DINO teacher"),
    ],
)
def test_settings_for_dino_alone_are_refused(settings, words, deimv2):
    with pytest.raises(ConfigError, match=words):
        Adaptation(deimv2, **settings)


def test_soft_targets_replace_the_hard_class_loss(deimv2):
    module = Adaptation(deimv2, pseudo_labels=PseudoLabelSettings(threshold=0.02, targets="soft"))
    labels = module.label(batch(30))
    scores = [torch.full((len(t), len(CLASSES)), 0.1) for t in labels.targets]
    passes = module.run_passes(None, module.target_view(batch(30), labels), replace(labels, class_scores=scores))
    assert module.target_loss(passes)["target"].isfinite()


def test_metric_term_needs_tokens_as_wide_as_the_maps(tmp_path):
    save(tmp_path / "model.safetensors", build("rtdetr"))
    with pytest.raises(ConfigError, match="got 48 and 32 channels"):
        Adaptation(tmp_path / "model.safetensors", prompt=PromptSettings(enabled=True, metric=0.1))


def test_a_command_adapts_deimv2(arguments, deimv2, tmp_path):
    given = [f"--model.weights={deimv2}", "--trainer.max_epochs=1"]
    assert main([*arguments("adapt"), *given, f"--output={tmp_path / 'run'}"]) == 0
    written = read_metadata(tmp_path / "run" / "model.safetensors")
    assert written["prompt"]["levels"] == 1 and written["architecture"] == "HuggingFaceDetector"
