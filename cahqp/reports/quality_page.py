"""The page of `cahqp quality`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cahqp.labels.formats.coco import LabelImage, Labels
from cahqp.reports.boxes import drawn, legend, load_picture
from cahqp.reports.html import Markup, document, element, section, table
from cahqp.reports.tables import percent


def page(told: Mapping[str, Any], labels: Labels, root: Path, shown: Sequence[int]) -> Markup:
    """Return the whole page.

    Args:
        told: What `quality.json` holds.
        labels: The labels.
        root: Folder of the images.
        shown: Rows of the images to show.
    """
    said = (
        f"{sum(told['labels'].values()):,} labels on {told['images']:,} images, {told['empty_images']:,} of them empty."
    )
    return document(
        "cahqp: labels",
        element("header", element("h1", "Pseudo-labels"), element("p", said, class_="soft")),
        section("By class", _classes(told)),
        section("Against truth", *_measured(told)),
        section("Against the source", *_balance(told)),
        section("Time and agreement", *_time(told)),
        section("Calibration, estimated without truth", *_drift(told)),
        section("What was dropped", table(["reason", "boxes"], [[k, f"{v:,}"] for k, v in told["rejected"].items()])),
        section("Frames worth a look", *_pictures(labels, root, shown)),
    )


def _classes(told: Mapping[str, Any]) -> Markup:
    rows = []
    for name, count in told["labels"].items():
        spread = told["scores"][name]
        scores = [f"{spread[key]:.2f}" for key in ("p5", "p50", "p95")] if spread else ["-"] * 3
        rows.append([name, f"{count:,}", f"{told['doubtful'][name]:,}", *scores])
    return table(["class", "labels", "doubtful", "score: 5 %", "median", "95 %"], rows)


def _measured(told: Mapping[str, Any]) -> list[Markup]:
    if "measured" not in told:
        return []
    found = told["measured"]
    keys = ("precision", "recall", "f1", "ap50")
    rows = [["all", *(percent(found[key]) for key in keys)]]
    rows += [[name, *(percent(own[key]) for key in keys)] for name, own in found["per_class"].items()]
    count = found["unreadable"]
    said = f"{count} image{'s' * (count != 1)} of the truth could not be read when labelled: left out here."
    left_out = [element("p", said)] if count else []
    return [table(["in %", "precision", "recall", "F1", "AP50"], rows), *left_out]


def _balance(told: Mapping[str, Any]) -> list[Markup]:
    if "balance" not in told:
        return []
    keys = ("labels", "source")
    rows = [
        [name, *(percent(own[key]) for key in keys), *(f"{own[key + '_per_image']:.2f}" for key in keys)]
        for name, own in told["balance"].items()
    ]
    head = ["class", "share of labels, %", "of the source, %", "labels per image", "source per image"]
    return [table(head, rows)]


def _time(told: Mapping[str, Any]) -> list[Markup]:
    tracks, temporal, disagreements = told["tracks"], told["temporal"], told["disagreements"]
    lines = []
    if tracks["count"]:
        lines.append(f"{tracks['count']:,} tracks, half of them longer than {tracks['median_length']:g} frames.")
        lines.append(f"{told['filled']:,} labels fill gaps.")
    for reason, count in temporal.get("left_alone", {}).items():
        lines.append(f"Time was left aside in {count} recordings: {reason}.")
    for reason, count in temporal.get("left_alone_in_part", {}).items():
        lines.append(f"Time was left aside in {count} parts of long recordings: {reason}.")
    if disagreements["of"]:
        lines.append(
            f"On {disagreements['boxes']:,} of {disagreements['of']:,} labels not all views and teachers agree."
        )
    return [element("p", line) for line in lines]


def _drift(told: Mapping[str, Any]) -> list[Markup]:
    if "drift" not in told:
        return []
    keys = ("distance", "expected_error", "unknown")
    rows = [[name, *(percent(own[key]) for key in keys)] for name, own in told["drift"].items()]
    head = ["in %", "distance of scores from the source", "expected calibration error", "scores the source never gave"]
    return [table(head, rows)]


def _pictures(labels: Labels, root: Path, shown: Sequence[int]) -> list[Markup]:
    if not shown:
        return []
    return [
        legend(dict(labels.categories)),
        *(_picture(n, labels.images[row], labels, root) for n, row in enumerate(shown)),
    ]


def _picture(number: int, image: LabelImage, labels: Labels, root: Path) -> Markup:
    ids = {name: key for key, name in labels.categories.items()}
    boxes = [
        {"bbox": list(box.bbox), "category_id": ids[box.name]} | ({} if box.score is None else {"score": box.score})
        for box in image.boxes
        if not box.ignored
    ]
    picture = load_picture([root], image.name)
    caption = element("figcaption", f"{image.name}: {len(boxes)} labels")
    return element("figure", drawn(picture, boxes, labels.categories, f"frame-{number}", embed=True), caption)
