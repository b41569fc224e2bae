"""Options of `cahqp import`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cahqp.errors import ConfigError

ImportFormat = Literal[
    "acdc", "bdd100k", "cityscapes", "coco", "cvat", "foggy-cityscapes", "label-studio", "sim10k", "ua-detrac", "voc",
    "yolo",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Read labels in another layout and write one validated COCO file. Images stay where they are.

    Beside the output, `NAME.source.json` contains the folder of the images, and `NAME.report.json` the counts.

    Attributes:
        format: Layout of the labels.
        source: Folder of the data set, or its file of labels.
        output: New COCO file, such as `coco.json`. It is never overwritten.
        images: Folder of the images. Default: the folder that the layout prescribes.
        select: KEY=VALUE of the images to take, such as `split=train timeofday=night`. Values of one key are
            alternatives; different keys must all match. KEY!=VALUE leaves images out. Default: all images.
        map: OLD=NEW names of classes. Several classes may get one name; `OLD=` leaves a class out.
        classes: Classes to take, in the order of their category ids. Boxes of other classes are left out and counted.
            Default: all, in the order of the source.
        on_invalid: `refuse` stops at invalid boxes and images and lists them. `drop` leaves them out and counts them.
        oriented: View that boxes are drawn on where an image has an EXIF orientation and the file contains no size that
            decides it: `stored` pixels, or `upright` as viewers show it. Default: such images are invalid.
    """

    format: ImportFormat
    source: Path
    output: Path
    images: Path | None = None
    select: list[str] = field(default_factory=list)
    map: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    on_invalid: Literal["refuse", "drop"] = "refuse"
    oriented: Literal["stored", "upright"] | None = None

    def __post_init__(self) -> None:
        if self.output.suffix.lower() != ".json":
            message = f"--output {self.output} must be the name of a JSON file, such as coco.json."
            raise ConfigError(message)
        _ = self.renamed, self.selected

    @property
    def renamed(self) -> dict[str, str]:
        """New name of each class in `map`; empty for a class to leave out."""
        return {old: new for old, new in (_pair("--map", text) for text in self.map)}

    @property
    def selected(self) -> dict[str, set[str]]:
        """Values of each key in `select`; a key that ends with `!` has values to leave out."""
        values: dict[str, set[str]] = {}
        for key, value in (_pair("--select", text) for text in self.select):
            values.setdefault(key, set()).add(value)
        return values


def _pair(flag: str, text: str) -> tuple[str, str]:
    left, sign, right = text.partition("=")
    if not (left and sign):
        message = f"{flag} {text!r} must have the form NAME=VALUE, such as {flag} bicycle=bike."
        raise ConfigError(message)
    return left, right
