import math

import pytest
import torch

from cahqp.detectors.layers.positions import box_positions, grid_positions, sine_positions


def waves(value: float, dim: int, temperature: float) -> list[float]:
    """Sine and cosine in turn, each pair slower than the one before (Attention is all you need, 3.5)."""
    out = []
    for pair in range(dim // 2):
        angle = value / temperature ** (2 * pair / dim)
        out += [math.sin(angle), math.cos(angle)]
    return out


@pytest.mark.parametrize(("temperature", "offset"), [(20.0, 0.0), (10000.0, -0.5)])
def test_sine_positions_count_the_valid_cells(temperature, offset):
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    mask[1, 2:], mask[1, :, 4:] = True, True
    positions = sine_positions(mask, 8, temperature, offset)
    for image, (height, width) in enumerate([(3, 5), (2, 4)]):
        for row in range(height):
            for column in range(width):
                y = (row + 1 + offset) / height * 2 * math.pi
                x = (column + 1 + offset) / width * 2 * math.pi
                expected = torch.tensor(waves(y, 4, temperature) + waves(x, 4, temperature))
                torch.testing.assert_close(positions[image, row, column], expected, atol=1e-4, rtol=0)


def test_box_positions_are_y_x_w_h():
    x, y, w, h = 0.2, 0.7, 0.1, 0.4
    expected = [wave for value in (y, x, w, h) for wave in waves(value * 2 * math.pi, 6, 10000)]
    torch.testing.assert_close(box_positions(torch.tensor([x, y, w, h]), 6), torch.tensor(expected))


def test_grid_positions_encode_the_row_then_the_column():
    positions = grid_positions(2, 3, 8).view(2, 3, 8)
    for row in range(2):
        for column in range(3):
            expected = [f(v / 10000**k) for v in (row, column) for f in (math.sin, math.cos) for k in (0.0, 0.5)]
            torch.testing.assert_close(positions[row, column], torch.tensor(expected))


def test_grid_positions_equal_the_published_ones_on_squares():
    side, dim = 5, 16
    w, h = torch.meshgrid(torch.arange(side * 1.0), torch.arange(side * 1.0), indexing="ij")
    omega = 1 / 10000 ** (torch.arange(dim // 4) / (dim // 4))
    across, down = w.flatten()[:, None] * omega, h.flatten()[:, None] * omega
    published = torch.cat([across.sin(), across.cos(), down.sin(), down.cos()], 1)
    torch.testing.assert_close(grid_positions(side, side, dim), published)
