"""LightningModules and the commands that run them; thin, over plain modules."""

from cahqp.training.adaptation import TeacherAdaptation
from cahqp.training.evaluate import evaluate, info
from cahqp.training.relabel import relabel
from cahqp.training.soft_data import DistillationData
from cahqp.training.student import StudentTraining
from cahqp.training.supervised import SupervisedTraining

__all__ = [
    "DistillationData",
    "StudentTraining",
    "SupervisedTraining",
    "TeacherAdaptation",
    "evaluate",
    "info",
    "relabel",
]
