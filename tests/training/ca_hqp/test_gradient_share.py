"""Gradient shares of the terms, from single steps of a tiny teacher."""

import pytest
import torch

from cahqp.frame import Frame
from cahqp.structures import Batch, Targets
from cahqp.training.ca_hqp.alignment import Progress
from cahqp.training.ca_hqp.gradient_share import gradient_shares
from cahqp.training.ca_hqp.module import TeacherAdaptation
from cahqp.training.ca_hqp.settings import AlignmentSettings, PromptSettings

LAYERS = [0, -1]


def batch(width):
    images = torch.randint(0, 255, (2, 3, 64, width), generator=torch.Generator().manual_seed(width))
    boxes = torch.tensor([[4.0, 4, 40, 40], [20, 10, 60, 50]])
    return Batch(
        images.to(torch.uint8),
        torch.zeros(2, 64, width, dtype=torch.bool),
        [Targets(boxes, torch.zeros(2).long(), seed=n) for n in (1, 2)],
        [Frame(n, f"{n}.png", (64, width)) for n in range(2)],
    )


@pytest.fixture
def adaptation(teacher):
    """Return a module with both branches and a prompt, its passes and its weighted losses."""

    def build(kind="separate", prompt=True, **settings):
        torch.manual_seed(0)
        alignment = AlignmentSettings(**{"dqfa": 0.1, "tiafa": 0.1, "temporal": False, **settings})
        made = TeacherAdaptation(
            teacher, prompt=PromptSettings(enabled=prompt), alignment=alignment, batch_norm="freeze", domain_passes=kind
        )
        made.log = lambda *_, **__: None
        passes = made.run_passes(batch(96), batch(96), None)
        losses = made.source_loss(passes) | made.target_loss(passes)
        result = made.alignment(passes, made.detector.prompt, Progress(5, 10, 0))
        return made, passes, losses | {name: made.alignment.weights[name] * v for name, v in result.losses.items()}

    return build


def shares(made, passes, losses, **more):
    found = gradient_shares(losses, passes, made.detector, LAYERS, **more)
    return {name.removeprefix("align/gradient_share_"): float(value) for name, value in found.items()}


def test_a_share_is_the_ratio_of_two_gradients_at_the_encoders_output(adaptation):
    made, passes, losses = adaptation(prompt=False, dqfa=0.0)
    outputs = [passed.output.features.encoder[-1] for passed in passes.values()]

    def norm(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, outputs, retain_graph=True)]).norm()

    expected = norm(losses["tiafa"]) / norm(losses["source"] + losses["target"])
    assert shares(made, passes, losses) == {"tiafa": pytest.approx(float(expected))}


def test_the_share_of_the_prompt_is_that_of_its_parameters(adaptation):
    made, passes, losses = adaptation(dqfa=0.0, tiafa=0.0)

    def norm(module):
        grads = torch.autograd.grad(losses["source"] + losses["target"], list(module.parameters()), retain_graph=True)
        return torch.cat([g.flatten() for g in grads]).norm()

    expected = float(norm(made.detector.prompt) / norm(made.detector.encoder))
    assert shares(made, passes, losses) == {"prompt": pytest.approx(expected)}
    assert expected > 0


def test_a_frozen_prompt_has_no_share(adaptation):
    made, passes, losses = adaptation()
    made.detector.prompt.requires_grad_(False)
    assert set(shares(made, passes, losses)) == {"dqfa", "tiafa"}


@pytest.mark.parametrize(("setting", "factor"), [("weight", 3.0), ("reversal", 5.0)])
def test_weight_and_reversal_count(setting, factor, adaptation):
    given = {"reversal": 0.1, "schedule": "constant"}
    before = shares(*adaptation(**given))
    given |= {"dqfa": 0.3, "tiafa": 0.3} if setting == "weight" else {"reversal": 0.5}
    after = shares(*adaptation(**given))
    assert before["dqfa"] > 0 and before["tiafa"] > 0
    assert after == pytest.approx({**before, **{name: factor * before[name] for name in ("dqfa", "tiafa")}}, rel=1e-4)


def test_a_joint_pass_has_the_shares_of_separate_passes(adaptation):
    separate, joint = (shares(*adaptation(kind)) for kind in ("separate", "joint"))
    assert joint == pytest.approx(separate, rel=0.02)


def test_shares_change_no_gradient_and_a_factor_cancels(adaptation):
    plain, measured = (adaptation() for _ in range(2))
    found = shares(*measured)
    assert shares(*measured, scale=1024.0) == pytest.approx(found, rel=1e-4)
    assert all(p.grad is None for p in measured[0].parameters())
    for _, _, losses in (plain, measured):
        torch.stack(list(losses.values())).sum().backward()
    for one, two in zip(plain[0].parameters(), measured[0].parameters(), strict=True):
        assert (one.grad is None and two.grad is None) or torch.equal(one.grad, two.grad)


def test_mixed_precision_agrees_roughly(adaptation):
    with torch.autocast("cpu", torch.bfloat16):
        half = shares(*adaptation())
    assert half == pytest.approx(shares(*adaptation()), rel=0.3)
