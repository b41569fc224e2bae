"""Finished runs and cycles for Python code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahqp.api.model import Model, load
from cahqp.errors import RunError
from cahqp.files import natural_key
from cahqp.runs.directory import verify
from cahqp.runs.manifest import MANIFEST, read_manifest


@dataclass(frozen=True)
class Run:
    """Finished run directory.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """Command, version, seed, settings, hashes of inputs and outputs, and metrics.

        Raises:
            RunError: The run is not finished, or its manifest is damaged.
        """
        return read_manifest(self.path)

    @property
    def metrics(self) -> dict[str, Any]:
        """Figures of the manifest.

        Raises:
            RunError: The run is not finished, or its manifest is damaged.
        """
        metrics: dict[str, Any] = self.manifest["metrics"]
        return metrics

    @property
    def model(self) -> Path:
        """Model file of a training.

        Raises:
            RunError: The run wrote none.
        """
        return self._file("model.safetensors")

    @property
    def labels(self) -> Path:
        """COCO file of a labelling.

        Raises:
            RunError: The run wrote none.
        """
        return self._file("labels.json")

    def load(self, device: str = "cpu") -> Model:
        """Return the model of a training; see `cahqp.load`.

        Args:
            device: `cpu`, `cuda` or `cuda:N`.

        Raises:
            CahqpError: The run wrote no model, or it cannot be loaded.
        """
        return load(self.model, device)

    def verify(self) -> list[str]:
        """Return one line for each file that is missing, changed or unknown to the manifest."""
        return verify(self.path)

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            message = f"{self.path} contains no {name}: it is a run of `cahqp {self.manifest['command']}`."
            raise RunError(message)
        return path


@dataclass(frozen=True)
class CycleRun:
    """Directory of a cycle.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def stages(self) -> dict[str, Run]:
        """Finished stages by name, such as `relabel` or `round-01/relabel`, in natural order."""
        folders = [file.parent.relative_to(self.path) for file in self.path.rglob(MANIFEST)]
        finished = [path for path in folders if path.suffix != ".partial" and path.parts[:1] not in ((), ("stale",))]
        return {name: Run(self.path / name) for name in sorted((p.as_posix() for p in finished), key=natural_key)}

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Figures of each finished stage."""
        return {name: run.metrics for name, run in self.stages.items()}

    @property
    def model(self) -> Path:
        """Published model file, in a plan of rounds that of the last round.

        Raises:
            RunError: No stage has published a model.
        """
        published = [run for name, run in self.stages.items() if name.rpartition("/")[2] == "published"]
        if not published:
            message = f"{self.path} contains no published model yet. Run the cycle to its end."
            raise RunError(message)
        return published[-1].model

    @property
    def report(self) -> Path:
        """HTML report.

        Raises:
            RunError: There is none yet.
        """
        for path in (self.path / "report" / "report.html", self.path / "report.html"):
            if path.is_file():
                return path
        message = f"{self.path} contains no report yet. Run the cycle to its end."
        raise RunError(message)
