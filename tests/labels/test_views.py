import numpy as np
import torch

from cahqp.data.transforms import strong
from cahqp.frame import View
from cahqp.structures import Preprocessing, Targets


def test_view_maps_boxes_back_to_the_original() -> None:
    image = np.zeros((60, 100, 3), np.uint8)
    box = torch.tensor([[40.0, 20.0, 60.0, 40.0]])
    rule = strong(Preprocessing(size=(32, 64)))
    checked = 0
    for seed in range(20):
        _, targets = rule(image, Targets(box, torch.tensor([0])), seed)
        inside = (targets.boxes > 0.1).all() and (targets.boxes[:, 2:] < torch.tensor([63.9, 31.9])).all()
        if len(targets) and inside:
            back = rule.view(60, 100, seed).to_original(targets.boxes, torch.tensor([32.0, 64.0]))
            torch.testing.assert_close(back, box, atol=1e-3, rtol=0)
            there = rule.view(60, 100, seed).from_original(box, torch.tensor([32.0, 64.0]))
            torch.testing.assert_close(there, targets.boxes, atol=1e-3, rtol=0)
            checked += 1
    assert checked >= 10


def test_a_box_is_cut_at_the_border_of_the_view() -> None:
    boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0], [90.0, 50.0, 99.0, 59.0]])
    seen = View(20, 10, 60, 50, mirrored=True).from_original(boxes, torch.tensor([80.0, 80.0]))
    assert seen.tolist() == [[60.0, 0.0, 80.0, 40.0], [0.0, 80.0, 0.0, 80.0]]
