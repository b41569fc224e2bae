"""Prompts inside encoder and decoder, on a whole detector."""

import copy

import pytest
import torch
from torch import nn

from cahqp.detectors import DINO
from cahqp.detectors.layers.basic import AttentionCall
from cahqp.detectors.model_file import load, save
from cahqp.detectors.prompts.deep import TokenInjection, exact_sum
from cahqp.detectors.prompts.visual_prompt import VisualPrompt, record_attention
from cahqp.errors import ConfigError
from cahqp.structures import Targets

FORMS = [(way, [place]) for way in ("add", "concat", "cross_attention") for place in ("input", "encoder", "decoder")]
FORMS += [("tokens", ["decoder"]), ("cross_attention", ["input", "encoder", "decoder"])]
each_form = pytest.mark.parametrize(("injection", "places"), FORMS, ids=lambda v: "+".join(v) if type(v) is list else v)


@pytest.fixture(scope="module")
def plain() -> DINO:
    torch.manual_seed(0)
    detector = DINO(
        ["car", "bus"], backbone="resnet10t", backbone_options={"channels": [8, 16, 16, 32], "stem_width": 8},
        size=(64, 96), dim=32, heads=4, points=2, levels=3, encoder_layers=2, decoder_layers=2, ffn_dim=32, queries=10,
        denoising=8,
    )  # fmt: skip
    for name, parameter in detector.named_parameters():
        if "attention" in name and name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)  # as training leaves them: prompts of zero would not be nothing
    return detector


def prompted(plain, injection, places, opened=False):
    detector = copy.deepcopy(plain)
    detector.prompt = VisualPrompt(32, 3, 16, 3, "softmax", injection, 4, places, 2, 2)
    detector.prompt.copy_weights(detector.encoder, detector.decoder)
    if opened:
        for module in (detector.prompt.injection, detector.prompt.encoder_ways, detector.prompt.decoder_ways):
            for parameter in [] if module is None else module.parameters():
                nn.init.normal_(parameter, std=0.3)
    return detector


def batch():
    generator = torch.Generator().manual_seed(1)
    images, padding = torch.rand(2, 3, 64, 96, generator=generator), torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[1, :, 64:] = True
    return images.masked_fill(padding[:, None], 0.0), padding


def run(detector, training=False, targets=None, images=None):
    given, padding = batch()
    with torch.no_grad():
        return detector.train(training)(given if images is None else images, padding, targets)


@each_form
def test_a_fresh_prompt_changes_no_bit_of_any_detection(plain, injection, places):
    one, two = run(plain), run(prompted(plain, injection, places))
    for name in ("pred_logits", "pred_boxes", "encoder_logits"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert all(torch.equal(a, b) for a, b in zip(one.features.encoder, two.features.encoder, strict=True))


@each_form
def test_a_fresh_prompt_changes_no_training_output_with_denoising_queries(plain, injection, places):
    targets = [Targets(torch.tensor([[5.0, 5, 30, 40]]), torch.tensor([1]), seed=3), Targets.empty()]
    one, two = (run(d, True, targets) for d in (plain, prompted(plain, injection, places)))
    torch.testing.assert_close(one.pred_logits, two.pred_logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.denoising.logits, two.denoising.logits, atol=1e-6, rtol=0)


@each_form
def test_an_open_prompt_changes_detections_and_is_in_the_file(plain, injection, places, tmp_path):
    detector = prompted(plain, injection, places, opened=True)
    opened = run(detector)
    assert not torch.allclose(opened.pred_logits, run(plain).pred_logits, atol=1e-4)
    save(tmp_path / "model.safetensors", detector)
    assert torch.equal(run(load(tmp_path / "model.safetensors")).pred_logits, opened.pred_logits)


@each_form
def test_every_parameter_of_a_prompt_learns_once_it_is_open(plain, injection, places):
    detector = prompted(plain, injection, places, opened=True).train()
    output = detector(*batch())
    (output.pred_logits.sin().sum() + output.pred_boxes.sin().sum()).backward()
    without = [name for name, p in detector.prompt.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of keys shifts all scores alike; the softmax does not see it. CBAM's last bias is gone after its norm.
    assert [name for name in without if "in_proj_bias" not in name] == []


@each_form
def test_padded_tokens_have_no_influence(plain, injection, places):
    detector = prompted(plain, injection, places, opened=True)
    images, padding = batch()
    # The backbone sees over the border of the padding, so only what enters the prompt is looked at.
    with torch.no_grad():
        _, maps, masks = detector.eval()._project(images, padding)
        other = [m + 5.0 * mask[:, None] for m, mask in zip(maps, masks, strict=True)]
        seen = [detector.prompt(m, masks).deep for m in (maps, other)]
    assert (seen[0] is None) == (places == ["input"])
    if seen[0] is not None:
        assert torch.equal(seen[0].prompts, seen[1].prompts)
        shapes = [m.shape[2:] for m in maps]
        flat = torch.cat([m.flatten(1) for m in masks], 1)
        tokens = torch.randn(2, flat.shape[1], 32)
        after = seen[0].encoder(0, tokens, shapes, flat)
        assert torch.equal(after[flat], tokens[flat])
        assert torch.equal(after, tokens) == ("encoder" not in places)


def test_cross_attention_starts_from_the_attention_of_its_layer(plain):
    detector = prompted(plain, "cross_attention", ["encoder", "decoder"])
    dense, own = detector.decoder[1].self_attn.attention, detector.prompt.decoder_ways[1].attention
    assert all(torch.equal(own.state_dict()[name], value) for name, value in dense.state_dict().items())
    deformable, own = detector.encoder[1].self_attn, detector.prompt.encoder_ways[1].attention
    assert torch.equal(own.in_proj_weight[64:], deformable.value_proj.weight)
    assert torch.equal(own.out_proj.bias, deformable.output_proj.bias)
    with torch.no_grad():
        own.out_proj.bias += 1
    assert not torch.equal(own.out_proj.bias, deformable.output_proj.bias)


def test_tokens_with_an_open_gate_are_extra_keys_and_values_that_queries_barred_from_others_see():
    torch.manual_seed(0)
    injection, attention = TokenInjection(8, 4, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    nn.init.ones_(injection.gate)
    x, components = torch.randn(2, 5, 8), torch.randn(2, 3, 4)
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[0, 1:] = True
    plain, _ = attention(x, x, x, attn_mask=mask)
    keys = torch.cat([x, injection.lift(components)], 1)
    expected, weights = attention(x, keys, keys, attn_mask=torch.cat([mask, mask.new_zeros(5, 3)], 1))
    found = injection.attended(components.mean(1), components, AttentionCall(plain, x, x, attention, mask))
    torch.testing.assert_close(found, expected)
    assert weights[:, 0, 5:].gt(0).all() and not weights[:, 0, 1:5].any()
    assert torch.equal(exact_sum(torch.tensor(-0.0), torch.tensor(0.0)).signbit(), torch.tensor(True))


@pytest.mark.parametrize("control", ["constant", "other_image"])
def test_controls_take_the_image_away(plain, control):
    torch.manual_seed(2)
    _, maps, masks = plain._project(*batch())
    free, held = (VisualPrompt(32, 3, 16, 3, control=c) for c in ("none", control))
    held.load_state_dict(free.state_dict(), strict=False)
    free_attention, controlled = (module(maps, masks).attention for module in (free, held))
    rolled, same = free_attention.roll(1, 1), controlled[:, :1].expand(-1, 2, -1)
    torch.testing.assert_close(controlled, rolled if control == "other_image" else same)
    assert not torch.allclose(controlled, free_attention)


def in_control(plain):
    """A detector whose images get another image's prompt, after a step on two images, and that step's attention."""
    detector = copy.deepcopy(plain)
    detector.prompt = VisualPrompt(32, 3, 16, 3, control="other_image")
    for parameter in detector.prompt.injection.parameters():
        nn.init.normal_(parameter)
    with record_attention(detector.prompt) as attention:
        detector.train()(*batch())
    return detector, attention[0]


def test_the_other_image_of_an_evaluation_comes_from_training(plain, tmp_path):
    detector, attention = in_control(plain)
    first = attention[:, 1]  # rolled by one: the second got the first one's
    save(tmp_path / "model.safetensors", detector, {})
    loaded = load(tmp_path / "model.safetensors")
    images, masks = batch()
    with torch.no_grad(), record_attention(loaded.prompt) as recorded:
        found = detector.eval()(images, masks).pred_logits
        alone = torch.cat([loaded(images[n : n + 1], masks[n : n + 1]).pred_logits for n in range(len(images))])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(recorded[-1][:, 0], first)


def test_the_other_image_is_not_averaged_with_others(plain):
    assert not in_control(plain)[0].prompt.other_weights.is_floating_point()  # EMA copies such buffers


def test_an_image_alone_in_training_has_no_other(plain):
    images, masks = batch()
    with pytest.raises(ConfigError, match=r"data\.batch_size, and data\.target_batch_size"):
        in_control(plain)[0](images[:1], masks[:1])


@pytest.mark.parametrize("control", ["none", "constant"])
def test_without_that_control_nothing_more_is_kept(control):
    assert list(dict(VisualPrompt(32, 3, control=control).named_buffers())) == ["centres.values"]


def test_tokens_need_a_dense_attention_and_places_are_known():
    with pytest.raises(ConfigError, match=r"places=\['decoder'\]"):
        VisualPrompt(32, 3, injection="tokens", heads=4)
    with pytest.raises(ConfigError, match="input, encoder, decoder"):
        VisualPrompt(32, 3, places=["backbone"], heads=4)
