import math

import numpy as np
import pytest
import torch

from cahqp.detectors.layers import deformable
from cahqp.detectors.layers.deformable import DeformableAttention, deformable_attention, sampling_form

SHAPES = [(4, 6), (2, 3)]


def inputs(dtype=torch.float32):
    value = torch.randn(2, 30, 2, 3, dtype=dtype)
    locations = torch.rand(2, 5, 2, 2, 3, 2, dtype=dtype) * 1.6 - 0.3  # also outside the map
    weights = torch.rand(2, 5, 2, 2, 3, dtype=dtype).flatten(3).softmax(-1).view(2, 5, 2, 2, 3)
    return value, locations, weights


def bilinear(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """Read (h, w, D) at pixels where 0.5 is the first cell's centre; zeros lie outside."""
    total = np.zeros(image.shape[2])
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                share = (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row))
                total += share * image[row, column]
    return total


def brute_force(value, locations, weights) -> np.ndarray:
    value, locations, weights = (t.double().numpy() for t in (value, locations, weights))
    out = np.zeros((*locations.shape[:3], value.shape[3]))
    for image, query, head, level, point in np.ndindex(locations.shape[:5]):
        height, width = SHAPES[level]
        start = sum(h * w for h, w in SHAPES[:level])
        cells = value[image, start : start + height * width, head].reshape(height, width, -1)
        x, y = locations[image, query, head, level, point]
        share = weights[image, query, head, level, point]
        out[image, query, head] += share * bilinear(cells, x * width, y * height)
    return out.reshape(*out.shape[:2], -1)


def test_sampling_equals_reading_point_by_point():
    value, locations, weights = inputs()
    sampled = deformable_attention(value, SHAPES, locations, weights)
    np.testing.assert_allclose(sampled.numpy(), brute_force(value, locations, weights), atol=1e-6)


def test_gradients_are_right():
    value, locations, weights = inputs(torch.float64)
    arguments = [t.requires_grad_() for t in (value, locations[:, :2].clone(), weights[:, :2].clone())]
    assert torch.autograd.gradcheck(lambda v, x, w: deformable_attention(v, SHAPES, x, w), arguments)


def module(heads=2) -> DeformableAttention:
    made = DeformableAttention(6, heads, 2, 3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("corners", [2, 4])
def test_points_lie_around_their_reference(corners):
    attention, tokens, query = module(), torch.randn(2, 30, 6), torch.randn(2, 5, 6)
    reference = torch.rand(2, 5, 2, corners)
    offsets = attention.sampling_offsets(query).view(2, 5, 2, 2, 3, 2)
    weights = attention.attention_weights(query).view(2, 5, 2, 6).softmax(-1).view(2, 5, 2, 2, 3)
    locations = torch.zeros_like(offsets)
    for level, (height, width) in enumerate(SHAPES):
        centre = reference[:, :, None, level, None, :2]
        side = torch.tensor([1 / width, 1 / height])
        if corners == 4:
            side = reference[:, :, None, level, None, 2:] / 2 / 3  # half the box, shared by the three points
        locations[:, :, :, level] = centre + offsets[:, :, :, level] * side
    read = brute_force(attention.value_proj(tokens).view(2, 30, 2, 3).detach(), locations.detach(), weights.detach())
    expected = attention.output_proj(torch.from_numpy(read).float())
    torch.testing.assert_close(attention(query, reference, tokens, SHAPES), expected, atol=1e-5, rtol=1e-5)


def test_padding_reads_as_zero():
    attention, tokens, query = module(), torch.randn(1, 30, 6), torch.randn(1, 5, 6)
    reference, padding = torch.rand(1, 5, 1, 2), torch.rand(1, 30) < 0.5
    out = attention(query, reference, tokens, SHAPES, padding)
    other = attention(query, reference, tokens.masked_fill(padding[..., None], 1e6), SHAPES, padding)
    assert torch.equal(out, other)
    assert not torch.allclose(out, attention(query, reference, tokens, SHAPES))


def test_each_head_of_a_new_module_samples_its_own_direction():
    bias = DeformableAttention(8, 4, 2, 3).sampling_offsets.bias.view(4, 2, 3, 2)
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    torch.testing.assert_close(bias[:, 1, 2], 3 * directions, atol=1e-6, rtol=0)
    assert torch.equal(bias[:, 0], bias[:, 1])


def test_mixed_precision_keeps_locations_exact():
    attention, shapes = DeformableAttention(32, 4, 1, 4), [(90, 160)]
    tokens, query, reference = torch.randn(1, 14400, 32), torch.randn(1, 50, 32), torch.rand(1, 50, 1, 2)
    exact = attention(query, reference, tokens, shapes)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(query, reference, tokens, shapes)
    assert (mixed - exact).norm() / exact.norm() < 0.02


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of heads 4"):
        DeformableAttention(6, 4, 1, 1)


def results(form, *arguments):
    """Return what a form computes, and its gradients."""
    arguments = [t.clone().requires_grad_() for t in arguments]
    with sampling_form(form):
        out = deformable_attention(arguments[0], SHAPES, *arguments[1:])
    return [out, *torch.autograd.grad(out, arguments, torch.linspace(-1, 1, out.numel()).view_as(out))]


def test_gathers_equal_grid_sample():
    given = inputs()
    for gathered, reference in zip(results("gather", *given), results("grid_sample", *given), strict=True):
        torch.testing.assert_close(gathered, reference, atol=1e-5, rtol=1e-5)


def test_the_form_for_export_needs_no_grid_sample():
    value, locations, weights = inputs()
    with sampling_form("gather"):
        traced = torch.jit.trace(lambda v, x, w: deformable_attention(v, SHAPES, x, w), (value, locations, weights))
    assert "grid_sample" not in str(traced.inlined_graph) and "gather" in str(traced.inlined_graph)
    again = inputs()
    torch.testing.assert_close(traced(*again), deformable_attention(again[0], SHAPES, *again[1:]))


def test_an_unknown_form_is_refused_and_an_error_leaves_the_old_one():
    with pytest.raises(ValueError, match="one of auto, grid_sample, gather, triton, got 'cuda'"), sampling_form("cuda"):
        pass
    with pytest.raises(KeyError), sampling_form("gather"):
        raise KeyError
    assert deformable._form == "auto"
