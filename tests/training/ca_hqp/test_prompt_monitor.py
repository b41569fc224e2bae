import copy

import pytest
import torch

from cahqp.detectors.prompts.injected import Injected, record_injected
from cahqp.detectors.prompts.visual_prompt import VisualPrompt
from cahqp.training.ca_hqp.monitoring import PromptMonitor

LEVELS, DIM = 2, 16


def constant(value, frames=3):
    vectors = torch.zeros(LEVELS, frames, DIM)
    vectors[..., 0] = value
    return Injected(vectors, torch.full((LEVELS, frames), abs(value) / 10))


def test_the_distance_of_the_mean_vectors_is_relative_to_their_length():
    monitor = PromptMonitor()
    monitor.update({0: constant(3.0), 1: constant(1.0)})
    monitor.update({0: constant(3.0), 1: constant(1.0, frames=1)})
    found = monitor.metrics()
    assert float(found["prompt/between_domains"]) == pytest.approx(1.0)  # 2 / mean of 3 and 1
    assert float(found["prompt/length"]) == pytest.approx((6 * 0.3 + 4 * 0.1) / 10)
    assert monitor.metrics() == {}


def test_one_domain_has_a_length_only_and_equal_domains_no_distance():
    monitor = PromptMonitor()
    monitor.update({1: constant(2.0)})
    assert set(monitor.metrics()) == {"prompt/length"}
    monitor.update({0: constant(0.0), 1: constant(0.0)})
    assert float(monitor.metrics()["prompt/between_domains"]) == 0


def test_a_resumed_monitor_continues():
    monitor, resumed = PromptMonitor(), PromptMonitor()
    monitor.update({0: constant(3.0), 1: constant(1.0)})
    resumed.load_state_dict(copy.deepcopy(monitor.state_dict()))
    for each in (monitor, resumed):
        each.update({0: constant(5.0), 1: constant(2.0)})
    assert resumed.metrics() == monitor.metrics()


@pytest.mark.parametrize("places", [["input"], ["decoder"]])
def test_what_is_injected_is_recorded_without_padding(places):
    torch.manual_seed(0)
    prompt = VisualPrompt(DIM, LEVELS, 8, 3, places=places, decoder_layers=1)
    if prompt.injection is not None:
        for parameter in prompt.injection.parameters():
            torch.nn.init.normal_(parameter)
    features = [torch.randn(2, DIM, 4, 6), torch.randn(2, DIM, 2, 3)]
    masks = [torch.zeros(2, *f.shape[2:], dtype=torch.bool) for f in features]
    masks[0][1, :, 4:] = True
    features[0][1, :, :, 4:] = torch.nan
    with record_injected(prompt) as recorded, record_injected(None) as nothing:
        output = prompt(features, masks)
    ((vectors, share),) = recorded
    assert nothing == [] and not vectors.requires_grad and share.shape == (LEVELS, 2)
    if prompt.injection is None:
        assert torch.equal(vectors, output.deep.prompts) and not share.any()
    else:
        torch.testing.assert_close(vectors[0], (output.features[0] - features[0])[:, :, 0, 0], atol=1e-5, rtol=1e-4)
        assert share.min() > 0
