import pytest
import torch

from cahqp.structures import valid_sizes


def test_the_next_layers_box_loss_reaches_the_box_head_before_it_and_no_further(build, images):
    detector = build("dino", decoder_layers=3, shared_heads=False)
    detector(images).pred_boxes.sum().backward()
    reached = [bool(head.layers[0].weight.grad.any()) for head in detector.box_heads]
    assert reached == [False, True, True]


def test_heads_are_shared_or_one_per_layer(build):
    assert len(build("dino").class_heads) == len(build("dino").box_heads) == 1
    apart = build("dino", shared_heads=False)
    assert len(apart.class_heads) == len(apart.box_heads) == 2


def test_one_head_each_with_equal_weights_detects_as_a_shared_one(build, images):
    shared, apart = build("dino"), build("dino", shared_heads=False)
    state = shared.state_dict()
    state |= {n.replace("heads.0", "heads.1"): v for n, v in state.items() if "heads.0" in n}
    apart.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(shared(images).pred_boxes, apart(images).pred_boxes)


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 48:], mask[1, :, 64:] = True, True
    return torch.randn(2, 3, 64, 96).masked_fill(mask[:, None], 0), mask


def cut(maps: list[torch.Tensor], masks: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the second image's valid parts alone."""
    sizes = [tuple(valid_sizes(k)[1].int().tolist()) for k in masks]
    alone = [m[1:, :, :h, :w] for m, (h, w) in zip(maps, sizes, strict=True)]
    return alone, [torch.zeros_like(m[:, 0], dtype=torch.bool) for m in alone]


def test_the_amount_of_padding_has_no_influence_on_encoder_and_proposals(build):
    """Before them, convolutions and GroupNorm do see padding, here as in the published code.

    So does the decoder: published query positions are scaled by the valid share of the finest level.
    """
    detector, (images, mask) = build("dino"), padded_batch()
    with torch.no_grad():
        _, maps, masks = detector._project(images, mask)
        alone = cut(maps, masks)
        detector._project = lambda *_: (maps, maps, masks)
        among = detector(images, mask)
        detector._project = lambda *_: (alone[0], *alone)
        by_itself = detector(images[1:, :, :48, :64], mask[1:, :48, :64])
    valid = among.features.encoder[-1][1, ~among.features.padding[1]]
    torch.testing.assert_close(valid, by_itself.features.encoder[-1][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(among.encoder_logits[1:], by_itself.encoder_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(among.encoder_boxes[1:], by_itself.encoder_boxes, atol=1e-5, rtol=0)
    assert among.sizes.tolist() == [[64, 96], [48, 64]]


def test_padded_features_have_no_influence(build):
    detector, (images, mask) = build("dino"), padded_batch()
    with torch.no_grad():
        _, maps, masks = detector._project(images, mask)
        plain = detector(images, mask)
        detector._project = lambda *_: (
            maps,
            [m.masked_fill(k[:, None], 50.0) for m, k in zip(maps, masks, strict=True)],
            masks,
        )
        filled = detector(images, mask)
    torch.testing.assert_close(filled.pred_logits, plain.pred_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(filled.pred_boxes, plain.pred_boxes, atol=1e-5, rtol=0)


def test_the_padding_mask_is_carried_to_every_level(build):
    detector, (images, mask) = build("dino"), padded_batch()
    with torch.no_grad():
        features = detector(images, mask).features
    assert features.spatial_shapes == [(8, 12), (4, 6), (2, 3)]
    assert [len(features.encoder), len(features.decoder)] == [2, 2]
    level = features.padding[1, :96].view(8, 12)
    assert level[:6, :8].logical_not().all() and level[6:].all() and level[:, 8:].all()


def test_a_mask_of_no_padding_is_no_mask(build, images):
    detector = build("dino")
    with torch.no_grad():
        masked = detector(images, torch.zeros(2, 64, 96, dtype=torch.bool))
        assert torch.equal(masked.pred_boxes, detector(images).pred_boxes)


@pytest.mark.parametrize(
    ("backbone", "strides", "levels"),
    [("mobilenetv3_small_050", (8, 16, 32), 4), ("convnext_atto", (16,), 2), ("resnet10t", (4, 8, 16, 32), 5)],
)
def test_any_backbone_at_any_stride(build, backbone, strides, levels):
    detector = build("dino", backbone=backbone, backbone_options=None, strides=strides, levels=levels)
    with torch.no_grad():
        out = detector(torch.randn(1, 3, 75, 107))
    assert len(out.features.spatial_shapes) == levels and out.pred_boxes.isfinite().all()


def test_it_keeps_the_aspect_ratio_by_default(build):
    kept = build("dino", size=None, short_side=60, max_side=100).preprocessing
    assert kept.target_size(720, 1280) == (56, 99) and kept.target_size(100, 100) == (60, 60)
    assert build("dino", size=(64, 96)).preprocessing.target_size(720, 1280) == (64, 96)
