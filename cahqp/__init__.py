"""Verified continual adaptation of object detectors: a cloud teacher, pseudo-labels, an edge student.

Attributes are imported on first use, so that `import cahqp` takes no time and imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cahqp.version import __version__ as __version__

if TYPE_CHECKING:
    from cahqp.api.model import Model as Model
    from cahqp.api.model import load as load
    from cahqp.api.results import Detection as Detection
    from cahqp.api.results import Result as Result
    from cahqp.api.runs import CycleRun as CycleRun
    from cahqp.api.runs import Run as Run
    from cahqp.api.stages import adapt as adapt
    from cahqp.api.stages import fit as fit
    from cahqp.api.stages import relabel as relabel
    from cahqp.api.stages import retrain as retrain
    from cahqp.api.stages import run_cycle as run_cycle
    from cahqp.cycle.run import CycleRunOptions as CycleRunOptions
    from cahqp.relabelling.options import RelabelOptions as RelabelOptions
else:
    _MODULES = {
        "api.model": ("Model", "load"),
        "api.results": ("Detection", "Result"),
        "api.runs": ("CycleRun", "Run"),
        "api.stages": ("adapt", "fit", "relabel", "retrain", "run_cycle"),
        "cycle.run": ("CycleRunOptions",),
        "relabelling.options": ("RelabelOptions",),
    }
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            message = f"module 'cahqp' has no attribute {name!r}"
            raise AttributeError(message)
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"cahqp.{_MODULE_OF[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULE_OF})
