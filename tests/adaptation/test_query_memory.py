import copy

import pytest
import torch

from cahqp.adaptation.domain_adversary import Discriminator, domain_loss
from cahqp.adaptation.domain_queries import DomainQueryAlignment
from cahqp.adaptation.query_memory import PRESENT, QueryMemory

SIZE = 5


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return Discriminator(8, 16)


def queries(seed, count=2):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def judged(memory, discriminator, *seeds, domain=1):
    """Return the loss of each batch of queries, each in a step of its own."""
    losses = []
    for seed in seeds:
        losses.append(memory.judge(discriminator, 0, queries(seed), domain)[0])
        memory.commit()
    return losses


def test_past_queries_have_half_of_the_loss_and_the_oldest_are_dropped(discriminator):
    *_, last = judged(QueryMemory(SIZE), discriminator, 1, 2, 3, 4)
    past = torch.cat([queries(seed) for seed in (1, 2, 3)])[-SIZE:]
    present, remembered = (domain_loss(discriminator(rows), 1)[0] for rows in (queries(4), past))
    torch.testing.assert_close(last, PRESENT * present + (1 - PRESENT) * remembered)


def test_domains_and_layers_have_memories_of_their_own(discriminator):
    memory = QueryMemory(SIZE)
    judged(memory, discriminator, 1, domain=0)
    plain = domain_loss(discriminator(queries(2)), 1)[0]
    assert torch.equal(memory.judge(discriminator, 0, queries(2), 1)[0], plain)
    plain = domain_loss(discriminator(queries(2)), 0)[0]
    assert torch.equal(memory.judge(discriminator, 3, queries(2), 0)[0], plain)


def test_without_a_size_nothing_is_stored(discriminator):
    first, second = judged(QueryMemory(0), discriminator, 1, 1)
    assert torch.equal(first, second)


def test_a_step_that_is_repeated_computes_the_same(discriminator):
    memory = QueryMemory(SIZE)
    judged(memory, discriminator, 1)
    stopped = memory.judge(discriminator, 0, queries(2), 1)[0]
    again = QueryMemory(SIZE)
    again.load_state_dict(copy.deepcopy(memory.state_dict()))
    assert torch.equal(again.judge(discriminator, 0, queries(2), 1)[0], stopped)


def test_a_resumed_memory_continues(discriminator):
    whole, resumed = QueryMemory(SIZE), QueryMemory(SIZE)
    judged(whole, discriminator, 1, 2)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for one, two in zip(judged(whole, discriminator, 3, 4), judged(resumed, discriminator, 3, 4), strict=True):
        assert torch.equal(one, two)


def test_features_get_the_gradient_that_they_get_without_a_memory(features):
    torch.manual_seed(1)
    with_memory = DomainQueryAlignment(8, heads=2, hidden=16, memory=SIZE)
    without = DomainQueryAlignment(8, heads=2, hidden=16)
    without.load_state_dict(with_memory.state_dict(), strict=False)
    with_memory(features, 1)
    with_memory.commit()
    tensors = [features.encoder[0], features.decoder[-1]]
    grads = [torch.autograd.grad(each(features, 1, 0.5)[0], tensors) for each in (with_memory, without)]
    for one, two in zip(*grads, strict=True):
        assert one.any()
        torch.testing.assert_close(one, two)
