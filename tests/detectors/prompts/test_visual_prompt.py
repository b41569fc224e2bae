import copy

import pytest
import torch

from cahqp.detectors.prompts.visual_prompt import VisualPrompt, record_attention
from cahqp.errors import ConfigError

INJECTIONS = ["add", "concat", "cross_attention"]
each_injection = pytest.mark.parametrize("injection", INJECTIONS)


def levels() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(0)
    features = [torch.randn(2, 16, 4, 6), torch.randn(2, 16, 2, 3)]
    features[0][0, 0, 0, :2] = torch.tensor([-0.0, 0.0])
    masks = [torch.zeros(2, 4, 6, dtype=torch.bool), torch.zeros(2, 2, 3, dtype=torch.bool)]
    masks[0][1, :, 4:], masks[1][1, :, 2:] = True, True
    return features, masks


def prompt(injection: str, opened: bool = False, **settings) -> VisualPrompt:
    made = VisualPrompt(16, 2, prompt_dim=8, components=3, injection=injection, heads=4, **settings)
    if opened:
        for parameter in made.injection.parameters():
            torch.nn.init.normal_(parameter)
    return made


@each_injection
@pytest.mark.parametrize("attention", ["normalized", "softmax", "cosine"])
@pytest.mark.parametrize("training", [True, False])
def test_fresh_prompt_changes_no_bit(injection, attention, training):
    features, masks = levels()
    outputs = prompt(injection, attention=attention).train(training)(features, masks).features
    for before, after in zip(features, outputs, strict=True):
        assert torch.equal(before.view(torch.int32), after.view(torch.int32))


@pytest.mark.parametrize(("attention", "reads"), [("normalized", True), ("softmax", False), ("cosine", False)])
def test_only_the_normalized_query_is_made_before_the_norm(attention, reads):
    (features, masks), module = levels(), prompt("add", attention=attention)
    plain, other = (module(features, masks, [f + n for f in features]).attention for n in (0.0, 3.0))
    assert torch.equal(plain, module(features, masks).attention)
    assert torch.equal(plain, other) != reads


def test_the_centre_of_the_queries_is_subtracted_from_the_next_step_on():
    (features, masks), module = levels(), prompt("add").train()
    before = module(features, masks).attention
    assert torch.equal(module(features, masks).attention, before)  # a step that is repeated
    module.commit()
    after = module(features, masks).attention
    mean = module.generator.queries(features[0], masks[0]).mean(0)
    torch.testing.assert_close(module.centres.values[0] / 2**16, mean, atol=1e-4, rtol=0)
    apart = [(attention[:, 0] - attention[:, 1]).norm() for attention in (before, after)]
    assert apart[1] > 2 * apart[0]


def test_centres_rest_in_evaluation_and_other_attentions_have_none():
    (features, masks), module = levels(), prompt("add").eval()
    module(features, masks)
    module.commit()
    assert not module.centres.values.any()
    assert prompt("add", attention="softmax").centres is None


@each_injection
def test_the_injection_opens_after_a_step(injection):
    (features, masks), module = levels(), prompt(injection)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(output.sin().sum() for output in module(features, masks).features).backward()
        optimizer.step()
    assert not torch.equal(module(features, masks).features[0], features[0])
    assert all(parameter.grad.any() for parameter in module.generator.parameters())


@each_injection
def test_padding_passes_unchanged_and_has_no_influence_even_on_gradients(injection):
    (features, masks), module = levels(), prompt(injection, opened=True)
    wild = [f.masked_fill(m[:, None], torch.nan) for f, m in zip(features, masks, strict=True)]
    outputs = module(wild, masks).features
    for before, after, mask in zip(module(features, masks).features, outputs, masks, strict=True):
        valid = ~mask[:, None].expand_as(before)
        assert torch.equal(before[valid], after[valid])
        assert after[~valid].isnan().all()
    for feature, after, mask in zip(features, module(features, masks).features, masks, strict=True):
        assert torch.equal(after.movedim(1, -1)[mask], feature.movedim(1, -1)[mask])
    sum(o.nan_to_num().sum() for o in outputs).backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@each_injection
def test_an_opened_prompt_depends_on_the_bank(injection):
    (features, masks), module = levels(), prompt(injection, opened=True)
    before = module(features, masks).features[0][0] - features[0][0]
    module.generator.values.data *= 2
    after = module(features, masks).features[0][0] - features[0][0]
    assert not torch.allclose(before, after)


@each_injection
def test_describe_builds_the_same_module(injection):
    module = prompt(injection, attention="cosine", opened=True)
    rebuilt = VisualPrompt(**module.describe())
    rebuilt.load_state_dict(module.state_dict())
    features, masks = levels()
    assert torch.equal(rebuilt(features, masks).features[1], module(features, masks).features[1])


@each_injection
def test_runs_under_autocast_and_keeps_the_features_type(injection):
    (features, masks), module = levels(), prompt(injection)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = module(features, masks).features
        halves = module([f.bfloat16() for f in features], masks).features
    assert torch.equal(outputs[0], features[0])
    assert halves[0].dtype is torch.bfloat16


def test_attention_is_recorded_inside_the_block_only_and_the_module_can_be_copied():
    (features, masks), module = levels(), prompt("add")
    module(features, masks)
    with record_attention(module) as recorded, record_attention(None) as nothing:
        attention = module(features, masks).attention
    copy.deepcopy(module)(features, masks)
    assert attention.shape == (2, 2, 3)
    assert [a is attention for a in recorded] == [True]
    assert nothing == []
    assert not attention.requires_grad


def test_errors_list_the_allowed_settings():
    with pytest.raises(ConfigError, match="add, concat, tokens, cross_attention"):
        VisualPrompt(16, 2, injection="multiply")
    with pytest.raises(ConfigError, match="heads=3 must divide dim=16"):
        VisualPrompt(16, 2, injection="cross_attention", heads=3)
