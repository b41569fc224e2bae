import math

import pytest
import torch

from cahqp.adaptation.domain_adversary import Discriminator, dann_schedule, domain_loss, gradient_reversal


def test_reversal_keeps_values_and_turns_and_scales_the_gradient():
    x = torch.randn(3, requires_grad=True)
    y = gradient_reversal(x, 0.5)
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.equal(x, y)
    assert x.grad.tolist() == [-0.5, -1.0, -1.5]


def test_reversal_uses_the_scale_of_the_forward():
    x, scale = torch.ones(2, requires_grad=True), torch.tensor(0.25)
    y = gradient_reversal(x, scale)
    scale.fill_(9.0)
    y.sum().backward()
    assert x.grad.tolist() == [-0.25, -0.25]


def test_a_step_down_the_loss_helps_the_discriminator_and_hurts_it_through_the_features():
    torch.manual_seed(0)
    features, judge = torch.randn(64, 8, requires_grad=True), Discriminator(8, 16)
    before, _ = domain_loss(judge(gradient_reversal(features)), 1)
    before.backward()
    worse, _ = domain_loss(judge(features.detach() - 5.0 * features.grad), 1)
    with torch.no_grad():
        for parameter in judge.parameters():
            parameter -= 0.05 * parameter.grad
    better, _ = domain_loss(judge(features.detach()), 1)
    assert better < before < worse


def test_schedule_is_computed_afresh():
    assert dann_schedule(0.0, 0.3) == 0.0
    assert dann_schedule(0.5, 0.3) == pytest.approx(0.3 * (2 / (1 + math.exp(-5)) - 1))
    assert dann_schedule(0.5) == dann_schedule(0.5)
    assert dann_schedule(7.0) == dann_schedule(1.0) < 1.0


def test_loss_and_accuracy_are_averaged_with_the_weights():
    logits = torch.tensor([2.0, -3.0, 5.0])
    loss, accuracy = domain_loss(logits, 1, torch.tensor([3.0, 1.0, 0.0]))
    assert loss.item() == pytest.approx((3 * math.log1p(math.exp(-2)) + math.log1p(math.exp(3))) / 4)
    assert accuracy.item() == 0.75
    assert domain_loss(logits, 0)[1].item() == pytest.approx(1 / 3)


def test_loss_without_weight_is_zero_connected_and_has_no_accuracy():
    judge = Discriminator(4, 8)
    loss, accuracy = domain_loss(judge(torch.zeros(0, 4)), 0)
    loss.backward()
    assert loss == 0
    assert accuracy.isnan()
    assert all(p.grad is not None and not p.grad.any() for p in judge.parameters())


def test_loss_is_float32_under_bf16_autocast():
    judge = Discriminator(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = judge(torch.randn(5, 4))
        loss, _ = domain_loss(logits, 1)
    assert logits.dtype is torch.bfloat16
    outside, _ = domain_loss(logits, 1)
    assert loss.dtype is outside.dtype is torch.float32
    assert loss.item() == outside.item() == domain_loss(logits.float(), 1)[0].item()


def test_unknown_domain_is_refused():
    with pytest.raises(ValueError, match=r"0 \(source\) or 1 \(target\)"):
        domain_loss(torch.zeros(1), 2)
