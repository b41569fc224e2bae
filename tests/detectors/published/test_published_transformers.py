"""RT-DETR compared with transformers' with the same random weights, on squares and rectangles.

Both deviate from the published code on purpose. On rectangles the encoder's position grid keeps rows and columns apart
(the published one mixes them up), and discrete sampling bounds x by the width (the published one by the height). On
squares, the only shape of the published models, all three agree. transformers cannot stop before the last layer, so
RT-DETR-R50-m is not compared.
"""

import json

import pytest
import torch
import transformers
from scipy.optimize import linear_sum_assignment

from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.detectors.published.checkpoint_file import read_checkpoint
from cahqp.detectors.published.class_mapping import plan_classes
from cahqp.detectors.published.convert import build_detector
from cahqp.detectors.published.layouts import recognise
from cahqp.detectors.published.options import ArchitectureHints
from cahqp.errors import WeightsError
from cahqp.structures import Targets

CASES = {
    "first, 18 layers": ("RTDetr", "basic", {}),
    "first, 50 layers, wider encoder": (
        "RTDetr",
        "bottleneck",
        {"encoder_hidden_dim": 48, "decoder_in_channels": [48] * 3},
    ),
    "second": ("RTDetrV2", "basic", {"decoder_offset_scale": 0.7, "decoder_n_points": 2}),
    "second, discrete": ("RTDetrV2", "basic", {"decoder_method": "discrete", "decoder_n_points": 3}),
}


def random_model(kind, block, settings):
    """A narrow model whose boxes, scores and sampling points depend on the image."""
    widths = [8 * 2**i * (4 if block == "bottleneck" else 1) for i in range(4)]
    depths = [3, 4, 6, 3] if block == "bottleneck" else [2, 2, 2, 2]
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=widths,
        depths=depths,
        layer_type=block,
        out_features=["stage2", "stage3", "stage4"],
    )
    narrow = {"d_model": 32, "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3, "hidden_expansion": 0.5}
    narrow |= {"decoder_ffn_dim": 48, "encoder_ffn_dim": 40, "decoder_layers": 2, "num_queries": 30}
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=backbone, encoder_in_channels=widths[1:], num_labels=7, **{**narrow, **settings}
    )
    model = getattr(transformers, f"{kind}ForObjectDetection")(config).eval()
    for name, parameter in model.named_parameters():
        if "bbox" in name and name.endswith("layers.2.weight"):
            torch.nn.init.normal_(parameter, std=0.05)
        elif "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.dim() > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
    return model


def load_published(folder, names=None):
    file = read_checkpoint(folder)
    published = recognise(file, names, ArchitectureHints())
    return build_detector(file, published, plan_classes(None, published.names))


def far_apart(detector, own, model, reference, size) -> float:
    """Return the largest difference of detections in any order, in scores and in shares of the image."""
    processor = transformers.RTDetrImageProcessor()
    sizes = torch.tensor([size] * len(own.pred_boxes))
    worst = 0.0
    for one, other in zip(
        detector.decode(own, sizes),
        processor.post_process_object_detection(reference, threshold=0.0, target_sizes=sizes),
        strict=True,
    ):
        assert len(one) == len(other["scores"]) == model.config.num_queries
        apart = (one.boxes[:, None] - other["boxes"]).abs().amax(-1) / max(size)
        apart = torch.maximum(apart, (one.scores[:, None] - other["scores"]).abs())
        apart = apart + (one.labels[:, None] != other["labels"])
        worst = max(worst, float(apart[linear_sum_assignment(apart)].max()))
    return worst


@pytest.fixture(params=list(CASES))
def pair(request, tmp_path):
    model = random_model(*CASES[request.param])
    model.save_pretrained(tmp_path)
    detector = load_published(tmp_path, names=tuple("abcdefg"))
    detector.max_detections = 30
    return detector, model


def test_detections_equal_those_of_transformers(pair):
    detector, model = pair
    for size in ((96, 96), (64, 128)):
        images = torch.rand(2, 3, *size)
        with torch.no_grad():
            assert far_apart(detector, detector(images), model, model(images), size) < 1e-4


def test_losses_equal_those_of_transformers(pair):
    """All layers and the proposals, on a batch with an empty image, without denoising, whose noise is random."""
    detector, model = pair
    images = torch.rand(2, 3, 96, 96)
    boxes = torch.tensor([[10.0, 20, 50, 60], [30, 5, 90, 70], [60, 60, 80, 94]])
    targets = [Targets(boxes, torch.tensor([0, 4, 6])), Targets.empty()]
    centred = torch.cat([boxes[:, :2] + boxes[:, 2:], 2 * (boxes[:, 2:] - boxes[:, :2])], 1) / 2 / 96
    labels = [{"class_labels": targets[0].labels, "boxes": centred}]
    labels += [{"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}]
    with torch.no_grad():
        own = SetCriterion(detector.class_loss)(detector(images), targets)
        reference = model(images, labels=labels).loss
    assert float(sum(value.sum() for value in own.values())) == pytest.approx(float(reference), rel=1e-3)


def test_class_names_of_the_config_are_kept(tmp_path):
    model = random_model("RTDetr", "basic", {})
    model.config.id2label = dict(enumerate(["motorbike", "car", "b", "c", "d", "e", "f"]))
    model.save_pretrained(tmp_path)
    assert load_published(tmp_path).classes == ("motorbike", "car", "b", "c", "d", "e", "f")
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"7 outputs, not COCO's 80 or 91.*--names"):
        load_published(tmp_path)


def test_preprocessing_is_that_of_the_folder(tmp_path):
    random_model("RTDetrV2", "basic", {"decoder_n_points": 2}).save_pretrained(tmp_path)
    processor = {"size": {"height": 512, "width": 480}, "do_normalize": True}
    processor |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    names = [f"class {number}" for number in range(7)]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = load_published(tmp_path, names).preprocessing
    assert (found.size, found.mean, found.std) == ((512, 480), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor, "do_normalize": False}))
    assert load_published(tmp_path, names).preprocessing.mean == (0, 0, 0)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 800}}))
    with pytest.raises(WeightsError, match="resizes images to"):
        load_published(tmp_path, names)
