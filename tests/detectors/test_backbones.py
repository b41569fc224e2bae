import pytest
import timm
import torch
from safetensors.torch import save_file

from cahqp.detectors.backbones import ResNetVd, TimmBackbone
from cahqp.errors import WeightsError


@pytest.mark.parametrize(
    ("name", "strides"), [("resnet10t", (4, 32)), ("mobilenetv3_small_050", (8, 16)), ("convnext_atto", (4, 8, 16, 32))]
)
def test_maps_come_at_the_strides_asked_for(name, strides):
    backbone = TimmBackbone(name, strides)
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, strides, strict=True)
    ]


def test_a_stride_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"\[4, 8, 16, 32\], not \[2, 64\]"):
        TimmBackbone("convnext_atto", (2, 8, 64))


@pytest.mark.parametrize(
    ("name", "frozen", "trained"),
    [
        ("resnet10t", "body.layer1.0.conv1.weight", "body.layer2.0.conv1.weight"),
        ("mobilenetv3_small_050", "body.blocks.0.0.conv_dw.weight", "body.blocks.1.0.conv_pw.weight"),
        ("convnext_atto", "body.stages_1.blocks.0.conv_dw.weight", "body.stages_2.downsample.0.weight"),
    ],
)
def test_only_the_first_stages_are_frozen(name, frozen, trained):
    parameters = dict(TimmBackbone(name, (16,), frozen_stages=2).named_parameters())
    still = [n for n, p in parameters.items() if not p.requires_grad]
    assert frozen in still and trained in parameters and trained not in still
    names = list(parameters)
    assert still == names[: names.index(still[-1]) + 1]


def test_too_many_frozen_stages_are_refused():
    with pytest.raises(ValueError, match="has 4 stages, frozen_stages=7"):
        TimmBackbone("convnext_atto", (8,), frozen_stages=7)


def test_frozen_norms_change_neither_parameters_nor_statistics():
    backbone = TimmBackbone("resnet10t", (8,), freeze_norm=True).train()
    before = {n: b.clone() for n, b in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 32, 32))
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(before[n], b) for n, b in backbone.named_buffers())
    assert not any(".bn" in name for name, _ in backbone.named_parameters())


def test_backbone_weights_are_read_and_misfits_are_named(tmp_path):
    trained, path = TimmBackbone("resnet10t", (8, 16, 32)), tmp_path / "backbone.safetensors"
    state = trained.body.state_dict()
    save_file({**state, "fc.weight": torch.zeros(10, 512)}, path)
    loaded = TimmBackbone("resnet10t", (8, 16, 32), weights=path)
    assert all(torch.equal(state[n], v) for n, v in loaded.body.state_dict().items())
    del state["layer2.0.conv1.weight"]
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"1 weights are missing or misshapen, \['layer2.0.conv1.weight'\]"):
        TimmBackbone("resnet10t", (8, 16, 32), weights=path)


@pytest.mark.parametrize(
    ("name", "deeper"), [("resnet10t", "layer2.1.conv1.weight"), ("convnext_atto", "stages.2.blocks.9.conv_dw.weight")]
)
def test_the_file_of_a_deeper_backbone_is_refused(name, deeper, tmp_path):
    state, path = TimmBackbone(name, (8, 16, 32)).body.state_dict(), tmp_path / "backbone.safetensors"
    save_file({**state, deeper: torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=f"deeper backbone: its {deeper}"):
        TimmBackbone(name, (8, 16, 32), weights=path)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto"])
def test_the_file_of_the_whole_classifier_fits_where_stages_are_cut_off(name, tmp_path):
    path = tmp_path / "backbone.safetensors"
    save_file(timm.create_model(name).state_dict(), path)
    TimmBackbone(name, (8, 16), weights=path)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_resnet_vd_rounds_odd_sizes_up(bottleneck):
    backbone = ResNetVd((1, 1, 1, 1), 8, bottleneck).eval()
    maps = backbone(torch.zeros(1, 3, 70, 101))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, h, w) for c, (h, w) in zip(backbone.channels, [(9, 13), (5, 7), (3, 4)], strict=True)
    ]
