from dataclasses import replace

import pytest
import torch

from cahqp.adaptation.domain_queries import DomainQueryAlignment, attend
from cahqp.errors import ConfigError


@pytest.fixture
def alignment() -> DomainQueryAlignment:
    torch.manual_seed(1)
    return DomainQueryAlignment(8, (0, -1), (0, -1), heads=2, hidden=16)


def gradients(alignment, features, scale, domain=1):
    tensors = [*features.encoder, *features.decoder]
    loss, _ = alignment(features, domain, scale)
    return torch.autograd.grad(loss, [*tensors, *alignment.parameters()], allow_unused=True), len(tensors)


def test_features_get_the_reversed_gradient_and_the_query_its_attention_and_discriminator_do_not(alignment, features):
    forward, count = gradients(alignment, features, -1.0)
    backward, _ = gradients(alignment, features, 0.5)
    for plain, turned in zip(forward[:count], backward[:count], strict=True):
        assert (plain is None) == (turned is None)
        if plain is not None:
            torch.testing.assert_close(turned, -0.5 * plain)
    for plain, turned in zip(forward[count:], backward[count:], strict=True):
        assert plain.any()
        torch.testing.assert_close(turned, plain)


def test_a_step_down_the_loss_helps_the_query_and_hurts_it_through_the_features(alignment, features):
    before, _ = alignment(features, 1)
    before.backward()
    kept, query = features.encoder, alignment.branches["encoder"].query
    features.encoder = [t if t.grad is None else t - 20 * t.grad for t in kept]
    worse, _ = alignment(features, 1)
    features.encoder = kept
    query.data -= 0.1 * query.grad
    assert alignment(features, 1)[0] < before < worse


@pytest.mark.parametrize("masked", [True, False])
def test_folded_attention_is_multi_head_attention(features, masked):
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    torch.nn.init.normal_(attention.in_proj_bias)
    query, tokens, padding = torch.randn(2, 1, 8), features.encoder[0], features.padding if masked else None
    expected, _ = attention(query, tokens, tokens, key_padding_mask=padding)
    torch.testing.assert_close(attend(attention, query, tokens, padding), expected)


def test_only_the_chosen_layers_are_touched(alignment, features):
    grads, _ = gradients(alignment, features, 1.0)
    assert [g is not None for g in grads[:6]] == [True, False, True] * 2


def test_the_query_passes_on_from_layer_to_layer(features):
    alignment = DomainQueryAlignment(8, (0, 1), (), heads=2, hidden=16)
    query = alignment.branches["encoder"]
    seen = []
    query.layers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    query.layers[0].register_forward_hook(lambda _, __, output: seen.append(output))
    alignment(features, 0)
    assert seen[1] is seen[0]


def test_padding_has_no_influence_on_loss_or_gradients(alignment, features):
    def run(value):
        filled = features.with_padded(value)
        loss, _ = alignment(filled, 1)
        return loss, *torch.autograd.grad(loss, [filled.encoder[0], *alignment.parameters()])

    for calm, wild in zip(run(0.0), run(torch.nan), strict=True):
        assert torch.equal(calm, wild)
    assert not run(1e6)[1][features.padding].any()


def test_the_amount_of_padding_has_no_influence(alignment, features):
    valid = ~features.padding[1]
    with_padding = replace(features, encoder=[e[1:] for e in features.encoder], padding=features.padding[1:])
    without = replace(
        with_padding, encoder=[e[1:, valid] for e in features.encoder], padding=features.padding[1:, valid]
    )
    some, none = (alignment.branches["encoder"](f, 1, 1.0)[0] for f in (with_padding, without))
    torch.testing.assert_close(some, none)


def test_accuracy_is_told_per_branch(alignment, features):
    _, source = alignment(features, 0)
    _, target = alignment(features, 1)
    assert set(source) == {"encoder_query", "decoder_query"}
    torch.testing.assert_close(source["encoder_query"] + target["encoder_query"], torch.tensor(1.0))
    assert not source["decoder_query"].requires_grad


def test_loss_is_float32_under_autocast(alignment, features):
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = alignment(features, 1)
    assert loss.dtype is torch.float32


def test_missing_layers_are_named(features):
    with pytest.raises(ConfigError, match=r"encoder_layers of DQFA names \[5\]; this encoder has 3 layers"):
        DomainQueryAlignment(8, (0, 5), heads=2)(features, 0)
    with pytest.raises(ConfigError, match="needs a layer"):
        DomainQueryAlignment(8, (), ())
