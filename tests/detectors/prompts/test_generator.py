import math

import pytest
import torch

from cahqp.detectors.prompts.generator import CBAM, VisualPromptGenerator, attention_entropy
from cahqp.errors import ConfigError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def padded(width: int = 6, valid: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(2, 5, width, dtype=torch.bool)
    mask[1, :, valid:] = True
    return torch.randn(2, 16, 5, width), mask


@pytest.mark.parametrize("attention", ["normalized", "softmax", "cosine"])
def test_padded_values_have_no_influence(attention):
    generator, (features, mask) = VisualPromptGenerator(16, 8, 3, attention), padded()
    prompt, weights = generator(features, mask)
    other, _ = generator(features.masked_fill(mask[:, None], torch.nan), mask)
    assert torch.equal(prompt, other)
    assert prompt.shape == (2, 8) and weights.shape == (2, 3)


def test_the_amount_of_padding_has_no_influence():
    generator, (features, mask) = VisualPromptGenerator(16, 8, 3), padded()
    features = -features.abs()  # So that a maximum over zeroed padding would show.
    alone, _ = generator(features[1:, :, :, :4], mask[1:, :, :4])
    among, _ = generator(features, mask)
    torch.testing.assert_close(among[1:], alone)


def test_an_image_does_not_depend_on_its_batch():
    cbam, (features, mask) = CBAM(16).train(), padded()
    torch.testing.assert_close(cbam(features, mask)[:1], cbam(features[:1], mask[:1]))


def test_cbam_gates_lie_between_zero_and_one_and_differ():
    cbam, (features, mask) = CBAM(16), padded()
    gate = (cbam(features, mask) / features)[0]
    assert gate.min() > 0 and gate.max() < 1
    assert gate.std((1, 2)).min() > 1e-4 and gate.std(0).min() > 1e-4


@pytest.mark.parametrize("attention", ["normalized", "softmax"])
def test_softmax_weights_are_a_distribution_and_the_prompt_their_mean(attention):
    generator, (features, mask) = VisualPromptGenerator(16, 8, 3, attention), padded()
    prompt, weights = generator(features, mask)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    torch.testing.assert_close(prompt, weights @ generator.values)


def test_cosine_weights_are_codas():
    generator, (features, mask) = VisualPromptGenerator(16, 8, 3, "cosine"), padded()
    _, weights = generator(features, mask)
    generator.keys.data *= -7
    _, turned = generator(features, mask)
    torch.testing.assert_close(turned, -weights)
    assert weights.abs().max() <= 1


def test_cbam_gates_by_mean_and_maximum_of_channels_and_places():
    """The formula of Woo et al. 2018 on one image without padding; the spatial gate is normalised over its places."""
    cbam, features = CBAM(16), torch.randn(1, 16, 5, 6)
    torch.nn.init.constant_(cbam.bias, 0.3)
    channel = cbam.channel(features.mean((2, 3))) + cbam.channel(features.amax((2, 3)))
    gated = features * channel.sigmoid()[:, :, None, None]
    maps = cbam.spatial(torch.cat([gated.amax(1, keepdim=True), gated.mean(1, keepdim=True)], 1))
    place = (maps - maps.mean()) / (maps.var(unbiased=False) + 1e-5).sqrt() + 0.3
    expected = gated * place.sigmoid()
    torch.testing.assert_close(cbam(features, torch.zeros(1, 5, 6, dtype=torch.bool)), expected)


@pytest.mark.parametrize("attention", ["normalized", "softmax", "cosine"])
def test_components_are_weighed_by_the_formula(attention):
    generator, query = VisualPromptGenerator(16, 8, 3, attention), torch.randn(2, 8)
    generator.cbam.forward = lambda features, mask: features
    generator.query.weight.data, generator.query.bias.data = torch.eye(8, 16), torch.zeros(8)
    features = torch.cat([query, torch.randn(2, 8)], 1)[:, :, None, None].expand(-1, -1, 5, 6)
    _, weights = generator(features, torch.zeros(2, 5, 6, dtype=torch.bool))
    for image in range(2):
        if attention == "softmax":
            scores = [float(query[image] @ key) / math.sqrt(8) for key in generator.keys]
            expected = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
        elif attention == "normalized":
            scores = [
                2 * math.sqrt(8) * float(query[image] @ key / query[image].norm() / key.norm())
                for key in generator.keys
            ]
            expected = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
        else:
            pairs = zip(generator.selectors, generator.keys, strict=True)
            chosen = [(query[image] * selector, key) for selector, key in pairs]
            expected = [float(one @ key / (one.norm() * key.norm())) for one, key in chosen]
        assert weights[image].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("attention", ["normalized", "cosine"])
def test_the_prompt_depends_on_the_image_and_every_parameter_learns(attention):
    generator, (features, mask) = VisualPromptGenerator(16, 8, 3, attention), padded()
    prompt, _ = generator(features, mask)
    prompt.square().sum().backward()
    assert not torch.allclose(prompt[0], prompt[1])
    assert all(p.grad.any() for p in generator.parameters())


def test_entropy_runs_from_one_component_to_all_alike():
    assert attention_entropy(torch.tensor([[1.0, 0.0, 0.0]])).item() == pytest.approx(0, abs=1e-6)
    assert attention_entropy(torch.full((2, 4), -0.3)).item() == pytest.approx(1)
    assert attention_entropy(torch.tensor([[0.5, 0.5, 0, 0]])).item() == pytest.approx(math.log(2) / math.log(4))


def test_unknown_attention_is_refused():
    with pytest.raises(ConfigError, match="normalized, softmax, cosine"):
        VisualPromptGenerator(16, attention="sigmoid")
