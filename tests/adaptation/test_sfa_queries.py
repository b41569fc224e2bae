import copy

import pytest
import torch
from torch import nn

from cahqp.adaptation.sfa_queries import SFAQueryAlignment
from cahqp.detectors.dino import EncoderLayer
from cahqp.detectors.layers.decoder import DecoderLayer
from cahqp.errors import ConfigError

LEVELS = 2


class LayerFeatures:
    """The features of `conftest`, with what enters the first encoder layer."""

    def __init__(self, features, backbone=None):
        self.encoder, self.decoder = features.encoder, features.decoder
        self.spatial_shapes, self.padding = features.spatial_shapes, features.padding
        made = [torch.randn(2, 8, h, w, requires_grad=True) for h, w in features.spatial_shapes]
        self.backbone = made if backbone is None else backbone


@pytest.fixture
def layers():
    torch.manual_seed(3)
    encoder = nn.ModuleList(EncoderLayer(8, 2, LEVELS, 2, 16, 0.0) for _ in range(3))
    decoder = nn.ModuleList(DecoderLayer(8, 2, LEVELS, 2, 16) for _ in range(3))
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        if "sampling_offsets" in name or "attention_weights" in name:
            nn.init.normal_(parameter, std=0.3)
    return encoder, decoder


@pytest.fixture
def alignment(layers):
    torch.manual_seed(1)
    return SFAQueryAlignment(*layers, 8, (0, -1), hidden=16)


@pytest.fixture
def seen(features):
    torch.manual_seed(2)
    return LayerFeatures(features)


def entering(features):
    return [*features.backbone, *features.encoder, *features.decoder]


def test_features_get_the_reversed_gradient_and_the_branch_does_not(alignment, seen):
    def grads(scale):
        loss, _ = alignment(seen, 1, scale)
        return torch.autograd.grad(loss, [*entering(seen), *alignment.parameters()], allow_unused=True)

    count = len(entering(seen))
    plain, turned = grads(-1.0), grads(0.5)
    for one, two in zip(plain[:count], turned[:count], strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(two, -0.5 * one)
    reached = [one is not None and bool(one.any()) for one in plain[:count]]
    # The maps and the outputs of the first two encoder layers enter one; the last is the decoder's memory.
    assert reached == [True] * count
    learned, learned_too = ([g for g in grads if g is not None] for grads in (plain[count:], turned[count:]))
    torch.testing.assert_close(learned, learned_too)
    for name in ("encoder", "decoder"):
        query = alignment.branches[name].query
        assert torch.autograd.grad(alignment(seen, 1)[0], query)[0].any()


def test_the_detectors_own_layers_learn_nothing_from_the_queries(alignment, layers, seen):
    alignment(seen, 0)[0].backward()
    assert all(p.grad is None for part in layers for p in part.parameters())
    assert alignment.branches["encoder"].layers[0].self_attn.value_proj.weight.grad.any()


def test_the_encoders_query_is_that_of_a_masked_fifth_level(alignment, layers, seen):
    """What SFA computes inside: one more level of one cell, whose column no query sees."""
    branch, (encoder, _) = alignment.branches["encoder"], layers
    shapes = [*seen.spatial_shapes, (1, 1)]
    padding = torch.cat([seen.padding, seen.padding.new_zeros(2, 1)], 1)
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in seen.backbone], 1)
    x = torch.cat([tokens, branch.query.expand(2, -1, -1)], 1)
    ratios = torch.tensor([[[1.0, 1], [1, 1]], [[4 / 6, 1], [2 / 3, 1]]])
    centre = torch.cat([0.5 * ratios, torch.full((2, 1, 2), 0.5)], 1)
    reference = torch.rand(2, x.shape[1], LEVELS + 1, 2)
    reference[:, -1] = centre
    position = torch.zeros_like(x)
    position[:, -1:] = branch.position
    wide = _with_masked_level(encoder[0])
    inside = wide(x, position, reference, shapes, padding)
    seen.encoder = [inside[:, :-1], *seen.encoder[1:]]
    queries = branch.queries(seen, 1.0)
    valid = ~padding[:, -1]
    torch.testing.assert_close(queries[0][valid, 0], inside[valid, -1])
    narrow = encoder[0](tokens, position[:, :-1], reference[:, :-1, :-1], shapes[:-1], seen.padding)
    torch.testing.assert_close(inside[:, :-1], narrow)


def test_the_decoders_query_is_one_more_whose_box_is_the_image(alignment, layers, seen):
    """What the detector's layer makes of it: it attends to the objects and itself, and reads round the whole image."""
    branch, (_, decoder) = alignment.branches["decoder"], layers
    objects = torch.cat([seen.decoder[0], branch.query.expand(2, -1, -1)], 1)
    position = torch.zeros_like(objects)
    position[:, -1:] = branch.position
    reference = torch.rand(2, objects.shape[1], LEVELS, 4)
    reference[0, -1] = torch.tensor([0.5, 0.5, 1, 1])
    reference[1, -1] = torch.tensor([[2 / 6, 0.5, 4 / 6, 1], [1 / 3, 0.5, 2 / 3, 1]])  # its right part is padding
    memory = seen.encoder[-1].masked_fill(seen.padding[..., None], 0.0)
    inside = decoder[0](objects, position, reference, memory, list(seen.spatial_shapes), seen.padding)
    queries = branch.queries(seen, 1.0)
    torch.testing.assert_close(queries[0][:, 0], inside[:, -1])


def _with_masked_level(layer):
    """Return a layer of one level more, to which no query attends."""
    wide = EncoderLayer(8, 2, LEVELS + 1, 2, 16, 0.0)
    state = copy.deepcopy(layer.state_dict())
    for name, ends in (("sampling_offsets", (2, LEVELS, 4)), ("attention_weights", (2, LEVELS, 2))):
        for kind in ("weight", "bias"):
            old = state[f"self_attn.{name}.{kind}"].reshape(*ends, -1)
            barred = -torch.inf if name == "attention_weights" and kind == "bias" else 0.0
            more = torch.full((ends[0], 1, *old.shape[2:]), barred)
            shape = (-1, 8) if kind == "weight" else (-1,)
            state[f"self_attn.{name}.{kind}"] = torch.cat([old, more], 1).reshape(shape)
    wide.load_state_dict(state)
    return wide


def test_padding_has_no_influence_on_loss_or_gradients(alignment, features, seen):
    def run(value):
        maps = [m.detach().clone() for m in seen.backbone]
        cells = torch.split(seen.padding, [m.shape[2] * m.shape[3] for m in maps], 1)
        for m, padded in zip(maps, cells, strict=True):
            m.movedim(1, -1)[padded.view(2, *m.shape[2:])] = value
        loss, _ = alignment(LayerFeatures(features.with_padded(value), maps), 1)
        return loss, *torch.autograd.grad(loss, list(alignment.parameters()), materialize_grads=True)

    for calm, wild in zip(run(0.0), run(torch.nan), strict=True):
        assert torch.equal(calm, wild)


def test_accuracy_is_told_per_branch_and_missing_layers_are_named(alignment, layers, seen):
    _, accuracy = alignment(seen, 0)
    assert set(accuracy) == {"encoder_query", "decoder_query"}
    with pytest.raises(ConfigError, match=r"encoder_layers of DQFA names \[3\]; this encoder has 3 layers"):
        SFAQueryAlignment(*layers, 8, (0, 3))
