import pytest
import torch

from cahqp.detectors.layers.hybrid_encoder import HybridEncoder


def test_the_next_layers_box_loss_reaches_the_box_head_before_it_and_no_further(build, images):
    detector = build("rtdetr", decoder_layers=3)
    detector(images).pred_boxes.sum().backward()
    reached = [bool(head.layers[0].weight.grad.any()) for head in detector.box_heads]
    assert reached == [False, True, True]


def test_padded_images_are_refused(build, images):
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 60:] = True
    with pytest.raises(ValueError, match="takes no padded images"):
        build("rtdetr")(images, mask)


def test_proposals_send_no_gradient_into_the_decoders_start(build, images):
    """The published model detaches the chosen rows and their boxes."""
    detector = build("rtdetr")
    out = detector(images)
    (out.pred_logits.sum() + out.pred_boxes.sum()).backward()
    assert detector.proposal_proj.weight.grad is None and detector.proposal_box.layers[0].weight.grad is None


@pytest.mark.parametrize("backbone", ["resnet10t", "mobilenetv3_small_050", "convnext_atto"])
@pytest.mark.parametrize("size", [(64, 96), (72, 104)])
def test_any_backbone_at_any_size(build, backbone, size):
    """At the second size ConvNeXt rounds down where the encoder rounds up."""
    detector = build("rtdetr", backbone=backbone, size=size)
    with torch.no_grad():
        assert detector(torch.randn(1, 3, *size)).pred_boxes.isfinite().all()


@pytest.mark.parametrize(("name", "convolutions"), [("resnet18vd", 16), ("resnet34vd", 32), ("resnet50vd", 48)])
def test_published_backbones_have_their_depth(build, name, convolutions):
    backbone = build("rtdetr", backbone=name, backbone_width=8).backbone
    in_branches = [n for n, _ in backbone.stages.named_modules() if n.endswith(".conv") and ".branch." in n]
    assert len(in_branches) == convolutions
    assert backbone.channels == [16 * k * (4 if name == "resnet50vd" else 1) for k in (1, 2, 4)]


def test_the_encoder_keeps_the_sizes_of_its_maps():
    encoder = HybridEncoder([8, 8, 8], 16, 2, 16, 1, 0.5, 0.0).eval()
    shapes = [(9, 13), (5, 7), (3, 4)]
    fused = encoder([torch.randn(1, 16, *shape) for shape in shapes])
    assert [tuple(f.shape) for f in fused] == [(1, 16, *shape) for shape in shapes]


def test_every_map_influences_every_other():
    encoder = HybridEncoder([8, 8, 8], 16, 2, 16, 1, 0.5, 0.0).eval()
    maps = [torch.randn(1, 16, s, s, requires_grad=True) for s in (8, 4, 2)]
    for fused in encoder(maps):
        for gradient in torch.autograd.grad(fused.square().sum(), maps, retain_graph=True):
            assert gradient.any()


def test_images_are_not_normalised_by_default(build):
    white = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert (build("rtdetr").preprocessing.normalise(white) == 1).all()
    assert (build("rtdetr", mean=(0.5, 0.5, 0.5)).preprocessing.normalise(white) == 0.5).all()
