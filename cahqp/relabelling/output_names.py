"""File names of labelled frames, and the folder of their images."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from cahqp.data.sources import FrameSource, JoinedFrames
from cahqp.errors import DataError
from cahqp.files import path_inside
from cahqp.frame import Frame


class OutputNames:
    """File names of the frames in `labels.json`.

    Images stay where they are. If a frame has no file, as in a video, all images are saved beside the labels, so that
    the labels can be trained on.

    Args:
        source: Frames of the input.

    Attributes:
        source: Frames of the input.
        saved: Whether the images are saved into the run directory.
        root: Folder that the names are relative to; `None` if `saved`.

    Raises:
        DataError: An image is in the input twice.
    """

    def __init__(self, source: FrameSource) -> None:
        self.source = source
        paths = [source.path(position) for position in range(len(source))]
        self.saved = any(path is None for path in paths)
        parts = source.sources if isinstance(source, JoinedFrames) else [source]
        roots = [str(Path(getattr(part, "root", ".")).resolve()) for part in parts]
        self.root = None if self.saved else Path(os.path.commonpath(roots))
        self._names = [self._name(frame, path) for frame, path in zip(source.frames, paths, strict=True)]
        if self.saved:  # a.jpg and a.png of one folder are both saved as JPEG
            repeated = self._repeated()
            for position, path in enumerate(paths):
                if path is not None and self._names[position] in repeated:
                    self._names[position] = f"{self._names[position].removesuffix('.jpg')}{path.suffix}.jpg"
        if repeated := self._repeated():
            first = min(repeated)
            message = f"{first!r} is in the input {repeated[first]} times. Give each input once."
            raise DataError(message)

    def __getitem__(self, position: int) -> str:
        """Return the file name of a frame."""
        return self._names[position]

    def rename(self, position: int, frame: Frame) -> Frame:
        """Return the frame with its name in the labels."""
        return replace(frame, name=self._names[position])

    def image_folder(self, work: Path) -> Path:
        """Return the folder of the images.

        Args:
            work: Directory of the run.
        """
        return work / "images" if self.root is None else self.root

    def _repeated(self) -> dict[str, int]:
        return {name: count for name, count in Counter(self._names).items() if count > 1}

    def _name(self, frame: Frame, path: Path | None) -> str:
        if self.root is not None and path is not None:
            absolute = path.absolute() if path.is_symlink() else path.resolve()
            return Path(os.path.relpath(absolute, self.root)).as_posix()
        name = Path(frame.name.replace("@", "_"))
        stem = name.with_suffix("") if path else name
        saved = f"{frame.recording or 'frames'}/{stem.as_posix().replace('/', '_')}.jpg"
        path_inside(Path("images"), saved)  # the recording may come from a file that anyone wrote
        return saved
