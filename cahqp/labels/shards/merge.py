"""Merging of shards into COCO files of labels and rejected boxes, one frame at a time."""

from __future__ import annotations

import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cahqp.errors import DataError, RunError
from cahqp.files import atomic_write
from cahqp.labels.shards.records import PIXEL_DECIMALS, decode, dumps
from cahqp.labels.shards.shards import ShardIndex, index_shards

DESCRIPTIONS = {"labels.json": "cahqp pseudo-labels", "rejected.json": "cahqp rejected boxes"}


@dataclass(frozen=True)
class Merged:
    """Counts of the merged files.

    Attributes:
        frames: Number of images.
        kept: Number of labels by class name, for every class.
        rejected: Number of rejected boxes by reason.
        ignored: Number of regions to ignore in `labels.json`.
    """

    frames: int
    kept: dict[str, int]
    rejected: dict[str, int]
    ignored: int = 0


class CocoWriter:
    """Streaming writer of one COCO file. Annotations wait in a temporary file until all images are written.

    Args:
        file: COCO file to write.
        spool: Empty temporary file.
        classes: Class names by label.
        category_ids: Category ids by class name.
        description: `description` in `info`. `loadRes` of older pycocotools requires the key.
    """

    def __init__(
        self, file: IO[str], spool: IO[str], classes: Sequence[str], category_ids: Mapping[str, int], description: str
    ) -> None:
        self.file, self.spool = file, spool
        self.classes, self.category_ids = classes, category_ids
        self.images = self.annotations = 0
        file.write(f'{{"info": {dumps({"description": description})},\n"images": [')

    def add(self, image: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]]) -> None:
        """Append a frame. Additional keys of a box, such as `reason` and `track_id`, are copied."""
        self.file.write(("\n" if self.images == 0 else ",\n") + dumps(image))
        self.images += 1
        for box in boxes:
            self.spool.write("\n" if self.annotations == 0 else ",\n")
            self.annotations += 1
            self.spool.write(dumps(self._annotation(int(image["id"]), box)))

    def finish(self) -> None:
        """Write annotations and categories."""
        self.file.write('\n],\n"annotations": [')
        self.spool.seek(0)
        shutil.copyfileobj(self.spool, self.file)
        categories = [{"id": self.category_ids[name], "name": name} for name in self.classes]
        self.file.write(f'\n],\n"categories": {dumps(categories)}}}\n')

    def _annotation(self, image_id: int, box: Mapping[str, Any]) -> dict[str, Any]:
        rest = dict(box)
        category, bbox = self.category_ids[self.classes[rest.pop("label")]], rest.pop("bbox")
        area = round(bbox[2] * bbox[3], PIXEL_DECIMALS)
        entry = {"id": self.annotations, "image_id": image_id, "category_id": category, "bbox": bbox, "area": area}
        return entry | {"iscrowd": 0} | rest


def assign_category_ids(classes: Sequence[str], input_ids: Mapping[str, int]) -> dict[str, int]:
    """Return a COCO category id for each class: the input's ids if it has every class, else 1, 2, ...

    Args:
        classes: Class names of the detector.
        input_ids: Category ids of the input by name; empty for folders and videos.
    """
    if all(name in input_ids for name in classes):
        return {name: input_ids[name] for name in classes}
    return {name: number for number, name in enumerate(classes, start=1)}


def merge(work: Path, classes: Sequence[str], input_ids: Mapping[str, int], output: Path) -> Merged:
    """Write the frames of all shards, in order of position, as `labels.json` and `rejected.json`.

    Ignored boxes are in `labels.json` with `iscrowd` 1, which readers of COCO take for regions to ignore. The bytes
    depend on the records alone, not on the number of processes or their order. Each file is complete or absent.
    `labels.json` is written last, so it marks a complete merge.

    Args:
        work: Directory of the shards.
        classes: Class names of the detector.
        input_ids: Category ids of the input by name, kept if they cover every class.
        output: Directory of the two files.

    Raises:
        DataError: Two frames have the same image id.
        RunError: A shard is damaged, a frame has two different sets of labels, or the disk is full.
    """
    output = Path(output)
    ids = assign_category_ids(classes, input_ids)
    kept, rejected, image_ids, ignored = Counter[str](), Counter[str](), array("q"), 0
    with ExitStack() as stack:
        labels, others = (_open(stack, output / name, classes, ids) for name in DESCRIPTIONS)
        for record in _records(stack, index_shards(work)):
            regions = record.get("ignored", [])
            labels.add(record["image"], [*record["kept"], *regions])
            others.add(record["image"], record["rejected"])
            image_ids.append(record["image"]["id"])
            kept.update(classes[box["label"]] for box in record["kept"])
            rejected.update(box["reason"] for box in record["rejected"])
            ignored += len(regions)
        _check_unique(image_ids)
        labels.finish()
        others.finish()
    return Merged(len(image_ids), {name: kept[name] for name in classes}, dict(sorted(rejected.items())), ignored)


def _open(stack: ExitStack, path: Path, classes: Sequence[str], ids: Mapping[str, int]) -> CocoWriter:
    file = stack.enter_context(atomic_write(path))
    spool = stack.enter_context(tempfile.TemporaryFile("w+", dir=path.parent, encoding="utf-8"))
    return CocoWriter(file, spool, classes, ids, DESCRIPTIONS[path.name])


def _records(stack: ExitStack, index: ShardIndex) -> Iterator[dict[str, Any]]:
    """Yield the record of each position once, in order.

    Raises:
        RunError: Two shards have different records of one position.
    """
    files = [stack.enter_context(path.open("rb")) for path in index.paths]
    previous, last = -1, b""
    for position, shard, offset in zip(index.positions, index.shards, index.offsets, strict=True):
        files[shard].seek(offset)
        line = files[shard].readline()
        if position == previous:
            if line != last:
                message = (
                    f"Frame {position} was labelled twice, with different labels, in {index.paths[shard].parent}. "
                    "Delete that directory and rerun the same command."
                )
                raise RunError(message)
            continue
        previous, last = position, line
        yield decode(line)


def _check_unique(image_ids: array[int]) -> None:
    values = np.sort(np.array(image_ids, np.int64))
    repeated = values[1:][values[1:] == values[:-1]]
    if len(repeated):
        message = f"Two frames have the image id {repeated[0]}. Renumber the images, or relabel in two runs."
        raise DataError(message)
