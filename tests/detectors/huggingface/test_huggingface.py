"""Detectors of transformers as students, narrow, with random weights and without downloads."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

import cahqp
from cahqp.detectors import HuggingFaceDetector
from cahqp.detectors.huggingface.families import FAMILIES
from cahqp.detectors.layers import denoising
from cahqp.detectors.losses import criterion
from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.detectors.model_file import load, save
from cahqp.detectors.prompts.visual_prompt import VisualPrompt
from cahqp.edge.export.to_onnx import to_onnx
from cahqp.errors import ConfigError, WeightsError
from cahqp.structures import Batch, Targets
from cahqp.training.student import StudentTraining

CONFIGS = json.loads((Path(__file__).parents[1] / "data" / "tiny_transformers.json").read_text())
CLASSES = ["car", "bus", "person"]


@pytest.fixture(params=list(CONFIGS))
def family(request):
    return request.param


def make(family, **settings):
    detector = HuggingFaceDetector(
        CLASSES, config={"model_type": family, **CONFIGS[family]}, size=(64, 96), **settings
    ).eval()
    # Boxes and the choice of queries depend on the image, as after some training.
    for name, parameter in detector.named_parameters():
        if "bbox_embed" in name and name.endswith("layers.2.weight"):
            torch.nn.init.normal_(parameter, std=0.05)
        elif parameter.dim() > 1 and "embed" not in name and "sampling_offsets" not in name:
            torch.nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        detector.train()(torch.randn(2, 3, 64, 96))
    for norm in norms:
        norm.momentum = 0.1
    return detector.eval()


def published(family, folder, names, **settings):
    """Write a folder like a published one."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    config = transformers.CONFIG_MAPPING[family].from_dict({**CONFIGS[family], **labels, **settings})
    model = transformers.AutoModelForObjectDetection.from_config(config).eval()
    model.save_pretrained(folder)
    if FAMILIES[family].correct is not None:
        FAMILIES[family].correct(model)
    return model


def test_every_family_is_tested():
    assert CONFIGS.keys() == FAMILIES.keys()


def test_outputs_equal_those_of_transformers(family, tmp_path, images):
    model = published(family, tmp_path, CLASSES)
    detector = HuggingFaceDetector(CLASSES, str(tmp_path)).eval()
    with torch.no_grad():
        own, reference = detector(images), model(images)
    torch.testing.assert_close(own.pred_logits, reference.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(own.pred_boxes, reference.pred_boxes, atol=1e-5, rtol=0)
    tokens = sum(h * w for h, w in own.features.spatial_shapes)
    assert own.features.encoder[-1].shape == (2, tokens, 32) and own.features.padding.shape == (2, tokens)
    assert own.features.backbone[-1].shape[:2] == (2, 32)


def test_features_have_the_described_shape(family, images, targets):
    detector = make(family).train()
    features, shape = detector(images, None, targets).features, detector.alignment_shape
    assert [m.shape[1] for m in features.backbone] == [shape.input_dim] * shape.input_levels
    assert len(features.spatial_shapes) == shape.levels and shape.dim % shape.heads == 0
    assert [t.shape[::2] for t in features.encoder] == [(2, shape.dim)] * shape.encoder_layers
    assert [q.shape for q in features.decoder] == [(2, detector.queries, shape.dim)] * shape.decoder_layers
    assert all(tensor.requires_grad for tensor in [*features.backbone, *features.encoder, *features.decoder])


def test_padding_has_no_influence(images):
    detector = make("deformable_detr")
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[:, :, 64:] = True
    with torch.no_grad():
        padded, cut = (
            detector(images.masked_fill(mask[:, None], 0.0), mask),
            detector.model(images.masked_fill(mask[:, None], 0.0), pixel_mask=(~mask).long()),
        )
    torch.testing.assert_close(padded.pred_boxes, cut.pred_boxes)
    assert padded.sizes.tolist() == [[64, 64]] * 2 and padded.features.padding.any()
    with pytest.raises(ConfigError, match="takes no padded images"):
        make("rt_detr")(images, mask)


@pytest.mark.parametrize("boxes", ["everywhere", "in one image", "nowhere"])
def test_every_parameter_gets_a_gradient(family, images, targets, boxes):
    detector = make(family).train()
    given = {"everywhere": targets, "in one image": [targets[0], Targets.empty()]}.get(boxes, [Targets.empty()] * 2)
    losses = SetCriterion(detector.class_loss)(detector(images, None, given), given)
    sum(value.sum() for value in losses.values()).backward()
    trained = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in trained.values())


def test_denoising_changes_no_other_prediction(images, targets):
    for family in ("rt_detr", "rt_detr_v2", "d_fine", "deimv2"):
        detector = make(family)
        with torch.no_grad():
            without = detector(images)
            for module in detector.train().modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
            found = detector(images, None, targets)
            again = detector(images, None, targets)
        assert found.denoising.groups == 3 and found.denoising.slots == 3
        assert torch.equal(found.denoising.logits, again.denoising.logits), "noise is a function of the image"
        torch.testing.assert_close(found.pred_logits, without.pred_logits, atol=1e-5, rtol=0)


def test_losses_are_the_mean_over_groups_of_queries(images, targets):
    """RF-DETR has three groups, each matched to every box. Losses of equal groups are those of one."""
    detector = make("rf_detr").train()
    out = detector(images, None, targets)
    assert out.groups == 3 and out.aux_logits.shape[:3] == (8, 2, 10) and out.pred_logits.shape[1] == 10
    alike = replace(
        out,
        aux_logits=out.pred_logits.expand(8, -1, -1, -1),
        aux_boxes=out.pred_boxes.expand(8, -1, -1, -1),
    )
    one = replace(out, aux_logits=alike.aux_logits[:2], aux_boxes=alike.aux_boxes[:2], groups=1)
    totals = [sum(v.sum() for v in SetCriterion("varifocal")(o, targets).values()) for o in (alike, one)]
    torch.testing.assert_close(totals[0], totals[1])


def test_two_ranks_train_as_one(images, targets, monkeypatch):
    """The second rank has no box; see the same test of cahqp's detectors."""
    detector = make("rt_detr").train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()

    def gradients(images, targets):
        detector.zero_grad()
        losses = SetCriterion(detector.class_loss)(detector(images, None, targets), targets)
        sum(value.sum() for value in losses.values()).backward()
        return {name: p.grad.clone() for name, p in detector.named_parameters() if p.requires_grad}

    targets = [targets[0], Targets.empty()]
    whole = gradients(images, targets)
    monkeypatch.setattr(denoising, "maximum_over_ranks", lambda count, device: 3)
    monkeypatch.setattr(criterion, "world_size", lambda: 2)
    monkeypatch.setattr(criterion, "sum_over_ranks", lambda value: torch.tensor(3.0))
    first, second = (gradients(images[rank : rank + 1], [targets[rank]]) for rank in range(2))
    for name, expected in whole.items():
        averaged = (first[name] + second[name]) / 2
        assert (averaged - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name


def batch_of(targets):
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    return Batch(images, torch.zeros(2, 64, 96, dtype=torch.bool), targets, [])


def test_a_student_trains_also_on_a_batch_without_boxes(family, targets):
    module = StudentTraining(make(family).train())
    module.log = lambda *_, **__: None
    optimizer = torch.optim.AdamW(module.parameter_groups())
    half = replace(targets[0], weights=torch.full((3,), 0.5))
    for given in ([Targets.empty()] * 2, [half, targets[1]]):
        before = [p.clone() for p in module.parameters()]
        optimizer.zero_grad()
        module.training_step(batch_of(given), 0).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
        optimizer.step()
        assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_the_model_file_detects_the_same(family, tmp_path, images):
    detector = make(family, max_detections=7)
    save(tmp_path / "model.safetensors", detector)
    again = load(tmp_path / "model.safetensors")
    with torch.no_grad():
        first, second = detector(images), again(images)
    assert torch.equal(first.pred_logits, second.pred_logits) and torch.equal(first.pred_boxes, second.pred_boxes)
    assert (again.classes, again.max_detections) == (detector.classes, 7)
    assert again.preprocessing == detector.preprocessing and again.settings == detector.settings


@pytest.mark.parametrize("kind", ["rt_detr_v2", "deimv2"])
def test_it_is_exported_with_a_prompt(tmp_path, images, kind):
    detector = make(kind)
    shape = detector.alignment_shape
    detector.prompt = VisualPrompt(shape.input_dim, shape.input_levels, heads=shape.heads).eval()
    for parameter in detector.prompt.injection.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    to_onnx(detector, tmp_path / "model.onnx", (64, 96), 1, "grid_sample")
    logits, boxes = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": images[:1].numpy()})
    with torch.no_grad():
        expected = detector(images[:1])
    torch.testing.assert_close(torch.from_numpy(logits), expected.pred_logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.from_numpy(boxes), expected.pred_boxes, atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="Remove --sampling gather"):
        to_onnx(detector, tmp_path / "other.onnx", (64, 96), 1, "gather")


def test_classes_known_by_name_keep_their_rows(family, tmp_path, images, caplog):
    model = published(family, tmp_path, ["person", "motorbike", "car", "dog"])
    detector = HuggingFaceDetector(["car", "lorry", "motorcycle"], str(tmp_path)).eval()
    assert detector.untrained_classes == ("lorry",)
    assert "does not know lorry" in caplog.text
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if any(head in name for head in ("class_embed", "enc_score_head", "class_labels_classifier")):
                found = detector.model.state_dict()[name]
                assert len(found) == len(weight) - 1
                assert torch.equal(found[0], weight[2]) and torch.equal(found[2], weight[1])


def test_a_union_scores_as_the_best_of_its_parts(tmp_path, images, targets):
    model = published("d_fine", tmp_path, ["person", "truck", "car", "bus"])
    unions = {"vehicle": ["car", "bus", "truck"]}
    detector = HuggingFaceDetector(["vehicle", "person"], str(tmp_path), class_from=unions).eval()
    assert detector.untrained_classes == ()
    with torch.no_grad():
        own, reference = detector(images).pred_logits, model(images).logits
    torch.testing.assert_close(own, torch.stack([reference[..., 1:].amax(-1), reference[..., 0]], -1))
    save(tmp_path / "model.safetensors", detector)
    assert torch.equal(load(tmp_path / "model.safetensors")(images).pred_logits, detector(images).pred_logits)
    labels = [replace(target, labels=target.labels % 2) for target in targets]
    output = detector.train()(images, None, labels)
    assert output.denoising.logits.shape[-1] == output.encoder_logits.shape[-1] == 2
    sum(value.sum() for value in SetCriterion("varifocal")(output, labels).values()).backward()


@pytest.mark.parametrize(
    ("unions", "words"),
    [
        ({"lorry": ["truck"]}, "class_from.lorry is none of the classes car, person"),
        ({"car": []}, "class_from.car must name one or more"),
        ({"car": ["auto"]}, "class_from names auto, which the model does not have"),
    ],
)
def test_a_wrong_union_is_refused(unions, words, tmp_path):
    published("rt_detr", tmp_path, ["person", "car"])
    with pytest.raises(ConfigError, match=words):
        HuggingFaceDetector(["car", "person"], str(tmp_path), class_from=unions)


def test_weights_are_left_alone_on_request(tmp_path):
    model = published("rt_detr", tmp_path, CLASSES)
    detector = HuggingFaceDetector(CLASSES, str(tmp_path), pretrained=False)
    assert detector.untrained_classes == tuple(CLASSES)
    weight = "model.decoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(detector.model.state_dict()[weight], model.state_dict()[weight])


def test_preprocessing_is_that_of_the_image_processor(tmp_path):
    published("rt_detr", tmp_path, CLASSES)
    assert HuggingFaceDetector(CLASSES, str(tmp_path)).preprocessing.size == (640, 640)
    transformers.RTDetrImageProcessor(
        size={"height": 320, "width": 480}, do_normalize=True, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 0.5]
    ).save_pretrained(tmp_path)
    found = HuggingFaceDetector(CLASSES, str(tmp_path)).preprocessing
    assert (found.size, found.mean, found.std) == ((320, 480), (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert HuggingFaceDetector(CLASSES, str(tmp_path), size=(64, 64)).preprocessing.size == (64, 64)


def test_deimv2_is_corrected(tmp_path, images):
    """Its queries come from the encoder's tokens, and keep the positions of their first boxes in every layer."""
    published("deimv2", tmp_path, CLASSES)
    detector = HuggingFaceDetector(CLASSES, str(tmp_path)).eval()
    model = detector.model.model
    assert not [name for name in detector.state_dict() if "enc_output" in name]
    assert isinstance(model.enc_bbox_head.act, torch.nn.SiLU) and isinstance(
        model.decoder.pre_bbox_head.act, torch.nn.SiLU
    )
    positions = []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(
            lambda _, __, given: positions.append(given["position_embeddings"]), with_kwargs=True
        )
    detector.train()(images)
    first, second = positions
    assert torch.equal(first, second)
    detector(images.flip(3))
    assert not torch.equal(positions[2], first), "the next image gets its own positions"
    copy.deepcopy(detector)


def test_deimv2_with_the_hybrid_encoder_exposes_its_projections(images):
    settings = {"encoder_type": "hybrid", "encoder_layers": 1, "encoder_in_channels": [16, 24, 32]}
    settings |= {"decoder_in_channels": [32] * 3, "feat_strides": [8, 16, 32], "num_feature_levels": 3}
    settings |= {"decoder_n_points": 4, "use_gateway": True, "model_type": "deimv2", "share_bbox_head": False}
    backbone = {**CONFIGS["deimv2"]["backbone_config"], "out_features": ["stage1", "stage2", "stage3"]}
    config = {**CONFIGS["deimv2"], **settings, "backbone_config": backbone}
    detector = HuggingFaceDetector(CLASSES, config=config, size=(64, 96))
    maps = detector(images).features.backbone
    assert [m.shape[1] for m in maps] == [32] * 3
    names = {id(p): name for name, p in detector.named_parameters()}
    backbone_names = {names[id(p)] for p in detector.backbone_parameters()}
    assert backbone_names and not [name for name in backbone_names if "input_proj" in name]


def test_code_beside_a_model_is_neither_imported_nor_kept(tmp_path):
    published("deimv2", tmp_path, CLASSES)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForObjectDetection": "modeling.Model"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "modeling.py").write_text("raise SystemExit")
    save(tmp_path / "own.safetensors", HuggingFaceDetector(CLASSES, str(tmp_path)))
    assert load(tmp_path / "own.safetensors").kind == "deimv2"


def test_sizes_that_the_encoder_cannot_fuse_are_refused():
    with pytest.raises(ConfigError, match=r"multiples of 32 for deimv2, got \[48, 96\]"):
        HuggingFaceDetector(CLASSES, config={"model_type": "deimv2", **CONFIGS["deimv2"]}, size=(48, 96))


def test_missing_parts_of_the_published_training_are_logged(caplog):
    assert [len(make(family).left_out) for family in CONFIGS] == [0, 0, 2, 3, 0, 1, 0, 0]
    assert caplog.text.count("d_fine trains without FGL") <= 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "detr"}, "softmax"),
        ({"model_type": "lw_detr"}, "lw_detr is not a supported detector.*Use one of rt_detr"),
        ({"model_type": "bert"}, "bert is not a supported detector"),
        ({"model_type": "rtdetr"}, "config.model_type must be one of rt_detr"),
        ({"d_model": 3}, "config.model_type must be one of"),
        ({"model_type": "deformable_detr", "two_stage": True, "with_box_refine": True}, "two_stage"),
    ],
)
def test_other_models_are_refused_by_name(config, words):
    with pytest.raises(ConfigError, match=words):
        HuggingFaceDetector(CLASSES, config=config)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read .*save_pretrained"):
        HuggingFaceDetector(CLASSES, str(tmp_path))
    with pytest.raises(ConfigError, match="not both or neither"):
        HuggingFaceDetector(CLASSES)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    published("rt_detr", tmp_path, CLASSES)
    published("rt_detr", tmp_path / "other", CLASSES, decoder_layers=1)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"missing model.decoder"):
        HuggingFaceDetector(CLASSES, str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigError, match="cannot be read"):
        HuggingFaceDetector(CLASSES, str(tmp_path))


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'cahqp\[hf\]'"):
        HuggingFaceDetector(CLASSES, config={"model_type": "rt_detr"})


def test_python_loads_a_folder_with_all_its_classes(tmp_path):
    names = ["N/A", "motorbike", "N/A", "car"]
    published("rt_detr", tmp_path, names)
    transformers.RTDetrImageProcessor(size={"height": 64, "width": 96}, do_normalize=False).save_pretrained(tmp_path)
    model = cahqp.load(tmp_path)
    assert model.classes == ("motorcycle", "car")
    found = model.predict(np.zeros((48, 64, 3), np.uint8), threshold=0)
    assert len(found) > 0 and model.detector.untrained_classes == ()
