"""Opening of folders of images, video files and COCO files as sources of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cahqp.coco.naming import Naming, Origin, hint_at_times
from cahqp.coco.reader import read_coco_frames
from cahqp.coco.sources import image_names, source_kind
from cahqp.data.sources import FrameSource, ImageFrames, JoinedFrames
from cahqp.data.videos import VideoFrames
from cahqp.frame import Frame


def open_frames(
    paths: Sequence[Path], frame_interval: float | None = None, naming: Naming | None = None
) -> FrameSource:
    """Open folders, videos and COCO files as one source of frames.

    Args:
        paths: Folders of images (searched with their sub-folders, in natural order), images, videos or COCO files, of
            which only the images are read.
        frame_interval: Seconds between the frames taken from a video; `None` takes all.
        naming: Rule for camera and time of frames; `None` leaves them to COCO files and folders.

    Raises:
        DataError: A path does not exist, is of another kind, contains no frames, or cannot be read.
    """
    sources = [_open(Path(path), frame_interval) for path in paths]
    for path, source in zip(paths, sources, strict=True):
        if naming is not None:
            source.frames = _named(source, path, naming)
        elif Path(path).is_dir():
            hint_at_times([frame.name for frame in source.frames], str(path))
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


def _named(source: FrameSource, path: Path, naming: Naming) -> list[Frame]:
    """Return the frames of a source with camera, recording and time by a rule; a video has one name."""
    files = [source.path(position) for position in range(len(source))]
    if None in files:
        (clip,) = naming.origins([Path(path).as_posix()], [Path(path)], str(path))
        start = clip.seconds
        times = [None if start is None else start + (frame.timestamp or 0.0) for frame in source.frames]
        origins = [clip._replace(seconds=time) for time in times]
    else:
        names = [frame.name for frame in source.frames]
        origins = naming.origins(names, [file for file in files if file is not None], str(path))
    return [_with_origin(frame, origin) for frame, origin in zip(source.frames, origins, strict=True)]


def _with_origin(frame: Frame, origin: Origin) -> Frame:
    camera = origin.camera or frame.camera
    return replace(
        frame,
        camera=camera,
        recording=origin.recording or origin.camera or frame.recording,
        index=frame.index if origin.number is None else origin.number,
        timestamp=frame.timestamp if origin.seconds is None else origin.seconds,
    )
