"""LightningModules and the commands that run them; thin, over plain modules.

Importing this imports no Lightning, which takes seconds: commands that only detect do without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cahqp.training.ca_hqp.module import TeacherAdaptation
    from cahqp.training.distillation.data import DistillationData
    from cahqp.training.student import StudentTraining
    from cahqp.training.supervised import SupervisedTraining

__all__ = ["DistillationData", "StudentTraining", "SupervisedTraining", "TeacherAdaptation"]

_MODULES = {
    "DistillationData": "distillation.data",
    "StudentTraining": "student",
    "SupervisedTraining": "supervised",
    "TeacherAdaptation": "ca_hqp.module",
}


def __getattr__(name: str) -> Any:
    """Return a class of `__all__`, imported when it is first asked for."""
    if name not in _MODULES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
