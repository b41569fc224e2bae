"""Both detectors compared with the published code (IDEA-Research/DINO, lyuwenyu/RT-DETR; float32, CPU).

`data/*.npz` hold recorded outputs and losses only. Weights, images and targets are generated from names and seeds.
"""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.detectors.published.checkpoint_file import CheckpointFile
from cahqp.detectors.published.class_mapping import plan_classes
from cahqp.detectors.published.convert import build_detector
from cahqp.detectors.published.key_maps import DINO_OFFICIAL, RTDETR_PUBLISHED, rename
from cahqp.detectors.published.layouts import recognise
from cahqp.detectors.published.options import ArchitectureHints
from cahqp.structures import Targets, collate, valid_sizes

DATA = Path(__file__).parents[1] / "data"


def case(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(DATA / name) as file:
        arrays = dict(file)
    return json.loads(arrays.pop("meta").tobytes()), arrays


def parameter(key: str, shape: list[int]) -> torch.Tensor:
    """Return the values of a parameter in the recorded run, from its name and shape."""
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        z = np.abs(z) * np.float32(0.2) + np.float32(0.9)
    elif key.endswith("sampling_offsets.bias"):
        z = z * np.float32(1.5)
    elif len(shape) == 1 and key.endswith(".weight"):
        z = 1 + np.float32(0.05) * z
    elif len(shape) == 1:
        z = z * np.float32(0.05)
    elif key in ("transformer.tgt_embed.weight", "transformer.level_embed", "label_enc.weight"):
        z = z * np.float32(0.5)
    elif re.search(r"bbox_(embed|head).*layers\.2\.weight", key):
        z = z * np.float32(0.02)
    else:
        z = z / np.float32(np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(z)


def loaded(meta, hints=None):
    """Return the recorded model, read like a checkpoint."""
    state = {name: parameter(key, shape) for name, shape, dtype, key in meta["parameters"] if "float" in dtype}
    names = tuple(str(i) for i in range(meta["config"]["num_classes"]))
    file = CheckpointFile(Path("published.pth"), "", "model", state)
    published = recognise(file, names, hints or ArchitectureHints())
    detector = build_detector(file, published, plan_classes(None, names))
    detector.max_detections = 30
    return detector


def images(meta) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(meta["image_seed"])
    draw = (lambda s: rng.uniform(0, 1, s)) if meta.get("image_distribution") == "uniform" else rng.standard_normal
    made = [torch.from_numpy(draw((3, h, w)).astype(np.float32)) for h, w in meta["image_sizes"]]
    mask = collate([(image.to(torch.uint8), None, None) for image in made]).padding_mask
    padded = torch.zeros(len(made), 3, *mask.shape[1:])
    for row, image in enumerate(made):
        padded[row, :, : image.shape[1], : image.shape[2]] = image
    return padded, mask


def targets(meta) -> list[Targets]:
    rng, made = np.random.default_rng(meta["target_seed"]), []
    for index, (height, width) in enumerate(meta["image_sizes"]):
        count = (3, 0, 5)[index % 3]
        centre, side = rng.uniform(0.25, 0.75, (count, 2)), rng.uniform(0.05, 0.4, (count, 2))
        labels = torch.from_numpy(rng.integers(0, meta["config"]["num_classes"], count))
        corners = np.concatenate([centre - side / 2, centre + side / 2], 1) * [width, height, width, height]
        made.append(Targets(torch.from_numpy(corners).float(), labels))
    return made


def near(found: torch.Tensor, recorded: np.ndarray) -> None:
    np.testing.assert_allclose(found.detach(), recorded, atol=1e-4, rtol=0)


def near_scores(found: torch.Tensor, recorded: np.ndarray) -> None:
    near(found.sigmoid(), 1 / (1 + np.exp(-recorded)))


def near_detections(detector, output, sizes, arrays) -> None:
    for row, found in enumerate(detector.decode(output, sizes)):
        near(found.scores, arrays["result_scores"][row])
        assert found.labels.tolist() == arrays["result_labels"][row].tolist()
        side = sizes[row].max()
        near(found.boxes / side, arrays["result_boxes"][row] / side.numpy())


def published_losses(recorded: dict, names: list[str], class_name: str, weights=(1, 1, 1)) -> dict[str, list[float]]:
    """Return losses in the order of cahqp: the decoder's layers, then the encoder's."""
    parts = zip(("class", "bbox", "giou"), (class_name, "loss_bbox", "loss_giou"), weights, strict=True)
    return {own: [weight * recorded[published + name] for name in names] for own, published, weight in parts}


def near_losses(found: dict[str, torch.Tensor], expected: dict[str, list[float]], total: float) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].detach(), values, rtol=1e-3, err_msg=name)
    assert sum(float(v.detach().sum()) for v in found.values()) == pytest.approx(total, rel=1e-4)


def test_dino_equals_the_published_one():
    """ResNet-50, four scales; the second image is smaller and padded."""
    meta, arrays = case("dino_r50_4scale.npz")
    detector = loaded(meta)
    pixels, mask = images(meta)
    with torch.no_grad():
        output = detector(pixels, mask)
    near_scores(output.pred_logits, arrays["pred_logits"])
    near(output.pred_boxes, arrays["pred_boxes"])
    near_scores(output.aux_logits, arrays["aux_logits"])
    near(output.aux_boxes, arrays["aux_boxes"])
    near_scores(output.encoder_logits, arrays["interm_logits"])
    near(output.encoder_boxes, arrays["interm_boxes"])
    near_detections(detector, output, valid_sizes(mask), arrays)
    layers = ["_0", "_1", "_2", "_3", "_4", "", "_interm"]
    expected = published_losses(meta["losses"], layers, "loss_ce", (1, 5, 2))
    near_losses(SetCriterion("focal")(output, targets(meta)), expected, meta["total_loss"])


def test_rtdetr_equals_the_published_one():
    """ResNet-18vd at 256 pixels, also in training mode with BatchNorm frozen."""
    meta, arrays = case("rtdetr_r18.npz")
    detector = loaded(meta, ArchitectureHints(queries=40, size=(256, 256)))
    with torch.no_grad():
        output = detector(images(meta)[0])
    near_scores(output.pred_logits, arrays["pred_logits"])
    near(output.pred_boxes, arrays["pred_boxes"])
    near_detections(detector, output, torch.tensor(meta["original_sizes_wh"]).flip(1), arrays)
    detector.train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        output = detector(images(meta)[0])
    near_scores(output.pred_logits, arrays["train_logits"])
    near(output.pred_boxes, arrays["train_boxes"])
    near_scores(torch.cat([output.aux_logits, output.encoder_logits[None]]), arrays["aux_logits"])
    near(torch.cat([output.aux_boxes, output.encoder_boxes[None]]), arrays["aux_boxes"])
    expected = published_losses(meta["losses"], ["_aux_0", "_aux_1", "", "_aux_2"], "loss_vfl")
    near_losses(SetCriterion("varifocal")(output, targets(meta)), expected, meta["total_loss"])


@pytest.mark.parametrize("name", ["encoder.input_proj.1.norm.weight", "decoder.enc_output.proj.bias"])
def test_the_second_versions_names_have_rules(name):
    assert rename({name: torch.zeros(1)}, RTDETR_PUBLISHED).unknown == []


def test_names_without_a_rule_are_listed():
    found = rename({"label_enc.weight": torch.zeros(1), "ema.step": torch.zeros(1)}, DINO_OFFICIAL)
    assert list(found.tensors) == ["label_content.weight"] and found.unknown == ["ema.step"]


def test_copies_of_a_weight_must_be_equal():
    state = {"class_embed.0.bias": torch.zeros(1), "transformer.decoder.class_embed.0.bias": torch.ones(1)}
    assert rename(state, DINO_OFFICIAL).differing == ["class_embed.0.bias and transformer.decoder.class_embed.0.bias"]
    state["transformer.decoder.class_embed.0.bias"] = torch.zeros(1)
    assert rename(state, DINO_OFFICIAL).differing == []
