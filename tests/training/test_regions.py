"""Regions to ignore are of all classes to the metric that picks a checkpoint and to thresholds, as in training."""

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from cahqp.evaluation.ground_truth import GroundTruth, ImagePredictions, Predictions
from cahqp.evaluation.metrics import average_precision
from cahqp.frame import Frame
from cahqp.inference.frames import _ground_truth
from cahqp.structures import Targets
from cahqp.training.base import _with_regions

CLASSES = ("bicycle", "bus", "car")
CAR = torch.tensor([[10.0, 10, 30, 30]])
REGION = torch.tensor([[50.0, 50, 90, 90]])
WITHIN = torch.tensor([[55.0, 55, 75, 75]])


@pytest.fixture(params=[0, 1])
def targets(request):
    return Targets(CAR, torch.tensor([2]), ignore=REGION[: request.param])


SAID = {"boxes": torch.cat([WITHIN, CAR]), "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([2, 2])}


def test_a_car_within_a_region_does_not_count_against_a_checkpoint(targets):
    metric = MeanAveragePrecision()
    metric.update([SAID], [_with_regions(targets, len(CLASSES))])
    assert metric.compute()["map_50"] == pytest.approx(1.0 if len(targets.ignore) else 0.5, abs=1e-3)


def test_nor_against_a_threshold(targets):
    image = _ground_truth(0, Frame(1, "a.jpg", (100, 100)), targets, len(CLASSES))
    answers = {0: ImagePredictions(*(np.asarray(SAID[key]) for key in ("boxes", "scores", "labels")))}
    found = average_precision(GroundTruth(CLASSES, (image,)), Predictions(CLASSES, answers))
    assert found.ap50 == pytest.approx(1.0 if len(targets.ignore) else 0.5, abs=1e-3)
