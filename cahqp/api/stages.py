"""Stages as functions: each does what its command does, and returns the run."""

from __future__ import annotations

import json
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cahqp.api.runs import CycleRun, Run
from cahqp.cli.options import check_configs
from cahqp.cycle.run import CycleRunOptions
from cahqp.errors import ConfigError, DataError, RunError, shortened
from cahqp.relabelling.options import RelabelOptions
from cahqp.yaml_policy import read_yaml

Paths = Path | str | Sequence[Path | str]


def fit(configs: Paths, output: Path | str, settings: Mapping[str, Any] | None = None) -> Run:
    """Train as `cahqp fit` does. If interrupted, call it again with the same arguments to resume.

    Args:
        configs: YAML files, each laid over the earlier ones.
        output: New run directory. A finished run of the same settings and inputs is returned as it is.
        settings: Values laid over the configs, by dotted key: `{"model.weights": path, "trainer.max_epochs": 5}`.

    Raises:
        CahqpError: A setting, a file or the data cannot be used.
    """
    files = [configs] if isinstance(configs, (str, Path)) else list(configs)
    missing = [str(file) for file in files if not Path(file).is_file()]
    if missing:
        message = f"configs: {', '.join(missing)} does not exist. Relative paths start in the working directory."
        raise DataError(message)
    flags = [f"--{key}={_text(value)}" for key, value in (settings or {}).items()]
    arguments = ["fit", *(f"--config={file}" for file in files), *flags, f"--output={output}"]
    check_configs(arguments)
    _train(arguments)
    return Run(Path(output))


def adapt(configs: Paths, output: Path | str, settings: Mapping[str, Any] | None = None) -> Run:
    """Adapt a teacher to frames without labels: `fit` with a `TeacherAdaptation`.

    Args:
        configs: As for `fit`, such as `configs/teacher/demo_adapt.yaml`.
        output: As for `fit`.
        settings: As for `fit`; usually `model.weights`, `data.source` and `data.target`.

    Raises:
        CahqpError: As `fit`, or the configs train something else.
    """
    _check_module("adapt", "TeacherAdaptation", configs, settings)
    return fit(configs, output, settings)


def retrain(configs: Paths, output: Path | str, settings: Mapping[str, Any] | None = None) -> Run:
    """Retrain a student on pseudo-labels or soft labels: `fit` with a `StudentTraining`.

    Args:
        configs: As for `fit`, such as `configs/student/demo_retrain.yaml`.
        output: As for `fit`.
        settings: As for `fit`; usually `model.weights`, `data.source` and `data.pseudo`.

    Raises:
        CahqpError: As `fit`, or the configs train something else.
    """
    _check_module("retrain", "StudentTraining", configs, settings)
    return fit(configs, output, settings)


def relabel(options: RelabelOptions) -> Run:
    """Label frames as `cahqp relabel` does. If interrupted, call it again to resume.

    Args:
        options: Options of the command.

    Raises:
        CahqpError: Options, files or frames cannot be used.
    """
    from cahqp.relabelling.command import relabel as run_relabel

    run_relabel(options)
    return Run(options.output)


def run_cycle(options: CycleRunOptions) -> CycleRun:
    """Run a plan as `cahqp cycle run` does. If interrupted, call it again to resume.

    Args:
        options: Options of the command.

    Raises:
        CahqpError: The plan is invalid, or a stage failed.
    """
    from cahqp.cycle.run import run

    return CycleRun(run(options))


def _check_module(function: str, expected: str, configs: Paths, settings: Mapping[str, Any] | None) -> None:
    """Refuse configs of another LightningModule.

    Raises:
        ConfigError: The last config with `model.class_path`, or the settings, name another one.
    """
    files = [configs] if isinstance(configs, (str, Path)) else configs
    named = [_module_of(Path(file)) for file in files if Path(file).is_file()]
    named += [str((settings or {}).get(key) or "") for key in ("model", "model.class_path")]
    last = next((name for name in reversed(named) if name), expected)
    if last.rpartition(".")[2] != expected:
        message = f"{function} trains a {expected}, and `model` is {last}. Give another config, or call cahqp.fit."
        raise ConfigError(message)


def _module_of(config: Path) -> str:
    check_configs([f"--config={config}"])
    content = read_yaml(config)
    model = content.get("model") if isinstance(content, dict) else None
    return str(model.get("class_path", "")) if isinstance(model, dict) else str(model or "")


def _text(value: Any) -> str:
    """Return a value as the command line spells it."""
    if isinstance(value, (str, Path)):
        return str(value)
    return json.dumps(value, default=str)  # paths in lists become text


def _train(arguments: list[str]) -> None:
    from cahqp.cli.lightning import lightning

    try:
        lightning(arguments, own_process=False)
    except ArgumentError as error:
        raise ConfigError(shortened(str(error))) from error
    except SystemExit as ended:  # Lightning ends the process after a signal, cahqp if the run is finished already
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from ended
        if ended.code:
            message = f"The training was stopped (exit code {ended.code}). Call it again to resume."
            raise RunError(message) from ended
