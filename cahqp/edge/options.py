"""Options of `cahqp export`, `cahqp detect` and `cahqp keygen`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cahqp.coco.naming_options import NamingOptions
from cahqp.errors import ConfigError, check_numbers
from cahqp.files import redact_url

Sampling = Literal["grid_sample", "gather"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Export a model file as an edge package, and check it against PyTorch on frames.

    The package is a directory with `model.onnx`, `package.json` (classes, preprocessing, decoding, thresholds, hashes)
    and, with a key, `package.sig`. Nothing is written if ONNX and PyTorch disagree.

    Attributes:
        weights: Model file.
        output: New directory for the package. It is never overwritten.
        frames: Folders, videos or COCO files for the check. Default none: synthetic frames, empty and crowded.
        precision: `int8` quantises the convolutions of backbone and encoder; decoder and heads stay in float.
        calibration: For `int8`, frames from which activation ranges are measured. They must not occur in `labelled`.
        labelled: For `int8`, COCO files on which AP50 is compared with float32.
        frame_size: Height and width of the camera's frames, for a model that keeps their aspect ratio.
        batch: Fixed batch size of the package.
        sampling: `gather` avoids GridSample, which some runtimes such as some versions of TensorRT compute wrongly.
        key: Ed25519 private key (PEM) that signs the package.
        check_frames: Maximum number of frames for the check.
        calibration_frames: Number of frames for calibration.
        max_loss: Largest drop of AP50 in 0..1 by `int8` on `labelled`.
        seed: Seed of the synthetic frames.
    """

    weights: Path
    output: Path
    frames: list[str] = field(default_factory=list)
    precision: Literal["float32", "int8"] = "float32"
    calibration: list[str] = field(default_factory=list)
    labelled: list[Path] = field(default_factory=list)
    frame_size: tuple[int, int] | None = None
    batch: int = 1
    sampling: Sampling = "grid_sample"
    key: Path | None = None
    check_frames: int = 200
    calibration_frames: int = 100
    max_loss: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges and the inputs that `int8` needs.

        Raises:
            ConfigError: An option is out of range, or options do not fit together.
        """
        check_numbers(
            {"--max-loss": self.max_loss}, {"--batch": self.batch, "--check-frames": self.check_frames}
        )  # fmt: skip
        if self.precision == "float32" and (self.calibration or self.labelled):
            message = "--calibration and --labelled require --precision int8. Add it, or remove them."
            raise ConfigError(message)
        if self.precision == "int8" and not (self.calibration and self.labelled):
            message = (
                "--precision int8 needs --calibration (frames for activation ranges) and --labelled (other frames, "
                "with labels). An INT8 package is written only with its AP50 compared to float32."
            )
            raise ConfigError(message)
        for option in ("frames", "calibration"):
            streams = [source for source in getattr(self, option) if "://" in source]
            if streams:
                message = (
                    f"--{option} takes files and folders, which can be read twice; {redact_url(streams[0])} is a "
                    "stream. Record it first."
                )
                raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class DetectOptions(NamingOptions):
    """Detect objects with a package, and write one line of JSON per frame.

    Attributes:
        weights: Package, or a registry with a running version.
        frames: Folder, image, COCO file, video, URL of a stream (rtsp://...), or webcam (0, /dev/video0). A stream is
            reopened if it breaks.
        output: New directory for `detections.jsonl`. It is never overwritten.
        threshold: Lowest score in 0..1 that is written. Default none: the package's own threshold of each class.
        draw: Also write the frames with their boxes to `drawn/`.
        threads: Number of threads of onnxruntime.
        providers: Execution providers of onnxruntime in order of preference.
        trusted: Ed25519 public key (PEM) that must have signed the package.
        expect: SHA-256 of the package's `package.json`. Another package is refused, even one with the same signature.
        state: JSON file that remembers the newest pointer of the registry. A pointer that is older or not signed is
            refused. Needs `trusted` and a registry. Keep it out of reach of those who can write the registry.
        isolated: Refuse this process the network, and all files but the package, the frames and the folder of `output`.
            Linux only.
        patience: Seconds without a frame after which a stream is given up.
        max_frames: Maximum number of frames. Default none: no maximum.
        compare: After the run, also measure the rate of the model alone on as many frames.
    """

    weights: Path
    frames: str
    output: Path
    threshold: float | None = None
    draw: bool = False
    threads: int = 1
    providers: list[str] = field(default_factory=lambda: ["CPUExecutionProvider"])
    trusted: Path | None = None
    expect: str | None = None
    state: Path | None = None
    isolated: bool = False
    patience: float = 60.0
    max_frames: int | None = None
    compare: bool = False

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: An option is out of range, needs another one, or a stream cannot be read.
        """
        check_numbers(
            {"--threshold": self.threshold}, {"--threads": self.threads, "--max-frames": self.max_frames}
        )  # fmt: skip
        if self.state is not None and self.trusted is None:
            message = "--state compares signed pointers of a registry. Give the public key with --trusted."
            raise ConfigError(message)
        if self.isolated and "://" in self.frames:
            message = (
                "--isolated refuses the network, and --frames is a stream. Remove one of them, or use a container."
            )
            raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class KeygenOptions:
    """Make a pair of Ed25519 keys: `private.pem` signs packages where they are exported, `public.pem` checks them.

    Attributes:
        output: New directory for the keys. It is never overwritten.
    """

    output: Path
