"""Labels that come back from a review by people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from cahqp.errors import DataError
from cahqp.labels.formats.coco import HUMAN, LabelBox, LabelImage, Labels


def accept(labels: Labels) -> Labels:
    """Return the labels as accepted by a person: every box is ground truth, every image is reviewed."""
    return replace(labels, images=tuple(_accept_image(image) for image in labels.images))


def _accept_image(image: LabelImage) -> LabelImage:
    """Return an image with all boxes as ground truth, without the model's regions to ignore."""
    boxes = tuple(_as_ground_truth(box) for box in image.boxes if not _is_doubtful(box))
    return replace(image, boxes=boxes, reviewed=True)


def _is_doubtful(box: LabelBox) -> bool:
    """Return whether a model, not a person, made the box a region to ignore."""
    return box.ignored and "reason" in box.more


def _as_ground_truth(box: LabelBox) -> LabelBox:
    more = {key: value for key, value in box.more.items() if key not in ("uncertainty", "weight", "reason")}
    return replace(box, score=None, origin=HUMAN, more=more)


def merge_review(labels: Labels, like: Labels, reviewed: bool = False) -> Labels:
    """Return the labels that were sent out, with the reviewed images replaced.

    Args:
        labels: Labels that came back. Images are matched by name; boxes of a person become ground truth.
        like: Labels that were sent out. Images that did not come back keep their boxes.
        reviewed: A person accepted all boxes and images that came back. The model's untouched regions to ignore are
            removed.

    Raises:
        DataError: An image or a class that came back was not sent out, or an image has another size.
    """
    returned = {image.name: image for image in labels.images}
    _check_sizes(returned, like)
    images = sorted(returned.keys() - {image.name for image in like.images})
    classes = sorted({b.name for i in labels.images for b in i.boxes} - set(like.categories.values()))
    if images or classes:
        message = (
            f"The returned labels name {', '.join((images or classes)[:5])}, which was not sent out. "
            "Give --like the labels.json that was sent out for review."
        )
        raise DataError(message)
    return replace(like, images=tuple(_merge_image(image, returned.get(image.name), reviewed) for image in like.images))


def _merge_image(sent: LabelImage, returned: LabelImage | None, reviewed: bool) -> LabelImage:
    if returned is None:
        return sent
    untouched = {_key(box): box for box in sent.boxes}  # with keys that the format of the review does not store
    boxes = tuple(_merge_box(box, untouched.get(_key(box))) for box in returned.boxes)
    merged = LabelImage(sent.entry, boxes, returned.reviewed or any(box.origin == HUMAN for box in boxes))
    return _accept_image(merged) if reviewed else merged


def _key(box: LabelBox) -> tuple[object, ...]:
    # Formats that mark every box as a person's remove the score of regions to ignore.
    return box.name, box.bbox, None if box.ignored else box.score, box.ignored


def _merge_box(box: LabelBox, sent: LabelBox | None) -> LabelBox:
    """Return the sent box if nobody touched it, and ground truth if a person drew the box."""
    if sent is not None and _is_doubtful(sent):
        return sent
    return _as_ground_truth(box) if box.origin == HUMAN else sent or box


def unique_images(labels: Labels) -> Labels:
    """Return labels with each image once; of repeated images, the reviewed one.

    Raises:
        DataError: None or more than one of the repeated images are reviewed.
    """
    groups: dict[str, list[LabelImage]] = {}
    for image in labels.images:
        groups.setdefault(image.name, []).append(image)
    chosen, unclear = [], []
    for name, group in groups.items():
        reviewed = [image for image in group if image.reviewed or any(box.origin == HUMAN for box in image.boxes)]
        chosen.append((reviewed or group)[0])
        if len(group) > 1 and len(reviewed) != 1:
            unclear.append(f"{name} ({len(group)} times, {len(reviewed)} of them reviewed)")
    if unclear:
        message = f"Images are repeated: {', '.join(unclear[:5])}. Keep one of each in the export."
        raise DataError(message)
    return Labels(labels.categories, tuple(chosen))


def match_names(labels: Labels, like: Labels) -> Labels:
    """Return the labels with the names that were sent out: tools that store uploads remove folders from names.

    Args:
        labels: Labels that came back. A name that was not sent out is matched by its last part, if one image has it.
        like: Labels that were sent out.
    """
    sent = {image.name for image in like.images}
    owners: dict[str, list[str]] = {}
    for name in sent:
        owners.setdefault(PurePosixPath(name).name, []).append(name)
    images = []
    for image in labels.images:
        found = owners.get(PurePosixPath(image.name).name, [])
        renamed = found[0] if image.name not in sent and len(found) == 1 else image.name
        images.append(replace(image, entry={**image.entry, "file_name": renamed}))
    return replace(labels, images=tuple(images))


def check_sizes(labels: Labels, like: Labels | None, path: Path) -> None:
    """Check that the size of every image is known.

    Args:
        labels: Labels that came back.
        like: Labels that were sent out; they contain the sizes of their images.
        path: File named in the error.

    Raises:
        DataError: The size of an image is unknown: Label Studio writes it with boxes only.
    """
    known = {image.name for image in like.images} if like is not None else set()
    unknown = [i.name for i in labels.images if i.name not in known and not i.entry.get("width")]
    if unknown:
        message = (
            f"{path} does not contain the size of {', '.join(unknown[:5])}. Give --like the labels that were sent out."
        )
        raise DataError(message)


def _check_sizes(returned: Mapping[str, LabelImage], like: Labels) -> None:
    changed = []
    for image in like.images:
        if image.name in returned:
            sent, back = (f"{e.get('width')}x{e.get('height')}" for e in (image.entry, returned[image.name].entry))
            known = returned[image.name].entry.get("width")
            changed += [f"{image.name} ({back}, sent out as {sent})"] if known and sent != back else []
    if changed:
        message = (
            f"Images came back with another size: {', '.join(changed[:5])}. Boxes are in pixels of the stored image, "
            "and tools that apply an EXIF orientation swap the sides. Rotate the stored images first."
        )
        raise DataError(message)
