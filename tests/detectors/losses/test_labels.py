import pytest
import torch

from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.errors import DataError
from cahqp.structures import Targets


@pytest.mark.parametrize("label", [3, -1])
@pytest.mark.parametrize("denoising", [6, 0])
def test_a_label_without_a_class_is_named(build, images, label, denoising):
    detector = build("rtdetr", denoising=denoising).train()
    targets = [Targets(torch.tensor([[4.0, 4, 30, 24]]), torch.tensor([label])), Targets.empty()]
    with pytest.raises(DataError, match=rf"labels \[{label}\], but the detector has 3 classes, 0 to 2"):
        SetCriterion(detector.class_loss)(detector(images, None, targets), targets)
