"""Models for Python code: `cahqp.load("model.safetensors").predict("frame.jpg")`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, overload

import numpy as np
from PIL import Image

from cahqp.api.inputs import Input, Pixels, Source, is_single, read_inputs
from cahqp.api.results import Result
from cahqp.edge.detections import EdgeDetections, Floats
from cahqp.edge.streams import is_stream
from cahqp.errors import ConfigError, WeightsError, check_numbers
from cahqp.evaluation.ground_truth import ImagePredictions

if TYPE_CHECKING:
    from cahqp.detectors.base import Detector

Threshold = float | Mapping[str, float] | None


class Backend(Protocol):
    """Program that runs a model: `Predictor` with torch, `Runtime` with onnxruntime."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label."""

    @property
    def thresholds(self) -> Floats:
        """(C,) operating thresholds."""

    @property
    def batch(self) -> int:
        """Number of images to detect on at a time."""

    def detect(self, images: Sequence[Pixels]) -> Sequence[EdgeDetections | ImagePredictions]:
        """Return all detections of each (H, W, 3) uint8 RGB image, best first."""


class Model:
    """Detector that is ready for images. `cahqp.load` makes it.

    Args:
        backend: Program that runs the model.
        path: File or directory of the model.
    """

    def __init__(self, backend: Backend, path: Path) -> None:
        self.backend = backend
        self.path = path

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.backend.classes

    @property
    def thresholds(self) -> dict[str, float]:
        """Operating threshold by class; 0.5 for a class without a measured one."""
        return dict(zip(self.classes, (round(float(value), 4) for value in self.backend.thresholds), strict=True))

    @property
    def detector(self) -> Detector:
        """The PyTorch module.

        Raises:
            ConfigError: The model is a package, which runs without PyTorch.
        """
        detector: Detector | None = getattr(self.backend, "detector", None)
        if detector is None:
            message = f"{self.path} is a package, which has no PyTorch module. Load its model.safetensors."
            raise ConfigError(message)
        return detector

    def __repr__(self) -> str:
        limits = ", ".join(f"{name} {value:g}" for name, value in self.thresholds.items())
        return f"<Model {self.path}: {limits}>"

    @overload
    def predict(self, source: Image.Image | Pixels, threshold: Threshold = None) -> Result: ...
    @overload
    def predict(self, source: list[Source] | tuple[Source, ...], threshold: Threshold = None) -> list[Result]: ...
    @overload
    def predict(self, source: Path | str, threshold: Threshold = None) -> Result | Iterator[Result]: ...
    def predict(
        self, source: Source | list[Source] | tuple[Source, ...], threshold: Threshold = None
    ) -> Result | list[Result] | Iterator[Result]:
        """Detect objects: one result for an image, a list for a list, an iterator for a folder, video or stream.

        Arrays are RGB. OpenCV's `imread` and `VideoCapture` return BGR: give `image[:, :, ::-1]`.

        Args:
            source: Path of an image, folder, video or COCO file, URL of a stream, PIL image, (H, W, 3) uint8 RGB array,
                or a list of these. Labels in a COCO file are not read.
            threshold: Minimum score in 0..1, for all classes or by class name. Default: the model's own thresholds.

        Raises:
            BrokenImageError: An image file cannot be decoded. In folders, such files are left out with a warning.
            ConfigError: A threshold is out of range, or of an unknown class.
            DataError: A source does not exist, or is of another kind.
            WeightsError: Inference fails.
        """
        found = self.stream(source, threshold)
        if isinstance(source, (list, tuple)):
            return list(found)
        return next(found) if is_single(source) else found

    def stream(
        self, source: Source | list[Source] | tuple[Source, ...], threshold: Threshold = None
    ) -> Iterator[Result]:
        """Return an iterator over the results of any source; images are read and detected on as it advances.

        Args:
            source: As for `predict`.
            threshold: As for `predict`.

        Raises:
            CahqpError: As `predict`.
        """
        limits = self._limits(threshold)
        sources = list(source) if isinstance(source, (list, tuple)) else [source]
        size = 1 if any(isinstance(one, str) and is_stream(one) for one in sources) else self.backend.batch
        if isinstance(source, (list, tuple)):
            opened = [read_inputs(one, f"images[{number}]") for number, one in enumerate(sources)]
        else:
            opened = [read_inputs(source)]
        return self._results(chain.from_iterable(opened), size, limits)

    def _results(self, inputs: Iterator[Input], size: int, limits: Floats) -> Iterator[Result]:
        while batch := list(islice(inputs, size)):
            found = self.backend.detect([one.pixels for one in batch])
            for given, (boxes, scores, labels) in zip(batch, found, strict=True):
                kept = scores >= limits[labels]
                values = boxes[kept], scores[kept], labels[kept]
                yield Result(*values, self.classes, given.pixels, given.name, given.timestamp)

    def _limits(self, threshold: Threshold) -> Floats:
        """Return the (C,) minimum scores."""
        if threshold is None:
            return self.backend.thresholds
        if not isinstance(threshold, Mapping):
            check_numbers({"threshold": threshold}, {})
            return np.full(len(self.classes), threshold, np.float32)
        if unknown := sorted(set(threshold) - set(self.classes)):
            message = f"threshold: {', '.join(unknown)} is no class of {self.path}. Known: {', '.join(self.classes)}."
            raise ConfigError(message)
        check_numbers({f"threshold of {name}": value for name, value in threshold.items()}, {})
        own = zip(self.classes, self.backend.thresholds, strict=True)
        return np.array([threshold.get(name, value) for name, value in own], np.float32)


def load(path: Path | str, device: str = "cpu", trusted: Path | None = None) -> Model:
    """Load a model.

    Args:
        path: Model file (.safetensors); directory of a package, or a registry with a running version, which needs no
            torch; run directory with a model file; or folder that `save_pretrained` of transformers wrote.
        device: `cpu`, `cuda` or `cuda:N`.
        trusted: Ed25519 public key (PEM) that must have signed the package.

    Raises:
        ConfigError: This machine lacks the device, or a library is not installed.
        RunError: A package or registry cannot be read.
        WeightsError: The model is missing, damaged or of another kind.
    """
    path = Path(path)
    if _is_package(path):
        return Model(_open_package(path, device, trusted), path)
    if trusted is not None:
        message = f"trusted checks the signature of a package, and {path} is none. Load a package, or leave it out."
        raise ConfigError(message)
    from cahqp.inference.device import check_device
    from cahqp.predictor import Predictor

    place = check_device(device, "device=")
    return Model(Predictor(_open_detector(path).to(place)), path)


def _is_package(path: Path) -> bool:
    from cahqp.edge.package import MANIFEST
    from cahqp.edge.pointer import RUNNING

    return (path / MANIFEST).is_file() or (path / RUNNING).is_file()


def _open_package(path: Path, device: str, trusted: Path | None) -> Backend:
    from cahqp.edge.package import read_package
    from cahqp.edge.runtime import Runtime

    providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    if device not in providers:
        message = f"device={device!r} is not supported for packages. Give {' or '.join(providers)}."
        raise ConfigError(message)
    return Runtime(read_package(path, trusted), providers=(providers[device],))


def _open_detector(path: Path) -> Detector:
    from cahqp.detectors import model_file

    if not path.is_dir():
        return model_file.load(path)
    if (path / "config.json").is_file():
        from cahqp.detectors.huggingface.detector import from_folder

        return from_folder(path)
    if (path / "model.safetensors").is_file():
        return model_file.load(path / "model.safetensors")
    message = (
        f"{path} contains no model. Give a model file (.safetensors), a package or registry, a run directory with "
        "model.safetensors, or a folder with config.json of transformers."
    )
    raise WeightsError(message)
