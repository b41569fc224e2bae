import pytest
import torch

from cahqp.adaptation.prompt_metric import PromptMetric, class_map, proxy_anchor
from cahqp.detectors.prompts.generator import VisualPromptGenerator

CLASSES, SAMPLES = 4, 24


def clusters(shuffled=False):
    """Instances of four classes that lie apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % CLASSES
    rows = 3 * torch.randn(CLASSES, 8, generator=generator)[labels] + 0.3 * torch.randn(SAMPLES, 8, generator=generator)
    return rows, labels[torch.randperm(SAMPLES, generator=generator)] if shuffled else labels


def separation(shuffled):
    """Train prompts alone, and return how much nearer instances are to their own component than to others."""
    torch.manual_seed(1)
    rows, labels = clusters(shuffled)
    generator, metric = VisualPromptGenerator(8, 6, CLASSES), PromptMetric(CLASSES, 8)
    optimizer = torch.optim.Adam([generator.values, *generator.query.parameters()], lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        metric(generator, rows, labels, torch.ones(SAMPLES)).backward()
        optimizer.step()
    similarity = torch.cosine_similarity(generator.query(rows)[:, None], generator.values[None], dim=-1)
    own = torch.eye(CLASSES, dtype=torch.bool)[clusters()[1]]
    return (similarity[own].mean() - similarity[~own].mean()).item()


def test_components_come_to_stand_for_classes_and_shuffled_labels_take_that_away():
    assert separation(shuffled=False) > 0.7
    assert separation(shuffled=True) < 0.35


def test_the_loss_is_proxy_anchors():
    samples, proxies = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    loss = proxy_anchor(samples, proxies, torch.tensor([0, 0]), torch.tensor([1.0, 0.5]), alpha=2.0, delta=0.1)
    s = 2**-0.5
    pull = torch.tensor(1.0).add(torch.tensor(-1.8).exp() + 0.5 * torch.tensor(0.2).exp()).log()
    push = torch.tensor(1.0).add(1.5 * torch.tensor(2 * (s + 0.1)).exp()).log() / 2
    torch.testing.assert_close(loss, pull + push)


def test_without_instances_it_is_zero_and_connected():
    generator, metric = VisualPromptGenerator(8, 6, 2), PromptMetric(CLASSES, 8)
    loss = metric(generator, torch.zeros(0, 8), torch.zeros(0).long(), torch.zeros(0))
    loss.backward()
    assert loss == 0 and not generator.values.grad.any()


def test_classes_share_components_where_there_are_fewer():
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 2.0]])
    assert class_map(means, 2).tolist() == [0, 1, 0, 1]
    assert class_map(means, 4).tolist() == [0, 1, 2, 3]


def test_class_means_are_remembered():
    metric = PromptMetric(2, 1, momentum=0.75)
    generator = VisualPromptGenerator(1, 2, 2)
    for value in (4.0, 8.0):
        metric(generator, torch.tensor([[value]]), torch.tensor([1]), torch.ones(1))
    assert metric.means[:, 0].tolist() == pytest.approx([0.0, 5.0])
