import math

import pytest
import torch

from cahqp.detectors.layers.basic import FeedForwardBlock, SelfAttentionBlock, inverse_sigmoid, to_tokens


def test_inverse_sigmoid_is_the_inverse_within_its_bounds():
    x = torch.linspace(-6, 6, 25)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid(), 1e-5), x, atol=1e-4, rtol=0)
    bound = math.log(1 / 1e-3)
    torch.testing.assert_close(inverse_sigmoid(torch.tensor([0.0, 1, 7]), 1e-3), torch.tensor([-bound, bound, bound]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("images", [1, 2])
def test_gradients_through_tokens_are_right_for_one_image_too(images, training):
    norm = torch.nn.BatchNorm2d(8).train(training)
    tokens = to_tokens(norm(torch.randn(images, 8, 4, 6)))
    gradient = torch.randn(images, 29, 8)
    torch.cat([torch.zeros(images, 5, 8), tokens], 1).backward(gradient)
    torch.testing.assert_close(norm.bias.grad, gradient[:, 5:].sum((0, 1)))


def test_tokens_run_row_by_row():
    maps = torch.arange(12.0).view(1, 2, 2, 3)
    assert to_tokens(maps)[0].tolist() == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]


def test_a_barred_key_has_no_influence():
    block, x, mask = SelfAttentionBlock(8, 2).eval(), torch.randn(1, 3, 8), torch.zeros(3, 3, dtype=torch.bool)
    mask[0, 2] = True
    before = block(x, torch.zeros(3, 8), mask)
    x[0, 2] += 1
    after = block(x, torch.zeros(3, 8), mask)
    assert torch.equal(before[0, 0], after[0, 0]) and not torch.allclose(before[0, 1], after[0, 1])


def test_position_changes_attention_but_not_the_values():
    block, x = SelfAttentionBlock(8, 2).eval(), torch.randn(1, 1, 8)
    assert torch.equal(block(x, torch.zeros(1, 8)), block(x, torch.randn(1, 8)))  # one key: all attention is its
    x = torch.randn(1, 3, 8)
    assert not torch.allclose(block(x, torch.zeros(3, 8)), block(x, 5 * torch.randn(3, 8)))


def test_feed_forward_is_normed_after_its_residual():
    block, x = FeedForwardBlock(8, 16, "gelu").eval(), torch.randn(2, 8)
    inner = block.linear2(torch.nn.functional.gelu(block.linear1(x)))
    torch.testing.assert_close(block(x), block.norm(x + inner))
