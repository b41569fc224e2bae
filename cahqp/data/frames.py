"""Opening of folders of images, video files and COCO files as sources of frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cahqp.coco.reader import read_coco_frames
from cahqp.coco.sources import image_names, source_kind
from cahqp.data.sources import FrameSource, ImageFrames, JoinedFrames
from cahqp.data.videos import VideoFrames
from cahqp.frame import Frame


def open_frames(paths: Sequence[Path], frame_interval: float | None = None) -> FrameSource:
    """Open folders, videos and COCO files as one source of frames.

    Args:
        paths: Folders of images (searched with their sub-folders, in natural order), images, videos or COCO files, of
            which only the images are read.
        frame_interval: Seconds between the frames taken from a video; `None` takes all.

    Raises:
        DataError: A path does not exist, is of another kind, contains no frames, or cannot be read.
    """
    sources = [_open(Path(path), frame_interval) for path in paths]
    return sources[0] if len(sources) == 1 else JoinedFrames(sources)


def _open(path: Path, frame_interval: float | None) -> FrameSource:
    kind = source_kind(path)
    if kind == "folder":
        return _open_folder(path)
    if kind == "coco":
        file = read_coco_frames(path)
        return ImageFrames(file.root, file.frames, file.categories)
    if kind == "video":
        return VideoFrames(path, frame_interval)
    return ImageFrames(path.parent, [Frame(1, path.name, (0, 0), recording=path.parent.name)])


def _open_folder(root: Path) -> ImageFrames:
    frames = []
    counts: dict[str, int] = {}
    for number, name in enumerate(image_names(root), 1):
        recording = name.rpartition("/")[0] or root.resolve().name
        index = counts[recording] = counts.get(recording, -1) + 1
        frames.append(Frame(number, name, (0, 0), recording=recording, index=index))
    return ImageFrames(root, frames)
