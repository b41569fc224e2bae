"""`cahqp convert`: a model file from a published checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cahqp.detectors.base import Detector
from cahqp.detectors.model_file import count_parameters, save
from cahqp.detectors.published.checkpoint_file import CheckpointFile, read_checkpoint
from cahqp.detectors.published.class_mapping import ClassPlan, parse_classes, plan_classes
from cahqp.detectors.published.layouts import Published, problem_list, understand
from cahqp.detectors.published.shapes import Asked
from cahqp.errors import WeightsError

LABELS = "label_content.weight"


def convert(
    weights: Path,
    output: Path,
    classes: str | None = None,
    names: str | None = None,
    size: tuple[int, int] | None = None,
    queries: int | None = None,
    heads: int = 8,
    sampling: Literal["bilinear", "discrete"] = "bilinear",
) -> None:
    """Make a model file from a published checkpoint of DINO or RT-DETR.

    Known are DINO as its authors and as detrex publish it, and RT-DETR as its authors and as transformers publish it.

    Args:
        weights: The checkpoint, read without running anything in it: .pth, .pt, .bin, .safetensors, or the folder of a
            Hugging Face model.
        output: The model file to write, such as coco.safetensors.
        classes: Wanted classes, such as person,vehicle=car+bus+truck. A class that the checkpoint knows by name keeps
            its weights, a union scores as the best of its parts, others start untrained. All where not given.
        names: The classes of the checkpoint's own outputs, in order, where they are not COCO's.
        size: Height and width that an RT-DETR was trained for; 640,640 where its file does not say.
        queries: Of an RT-DETR, where they are not 300.
        heads: Attention heads; no published checkpoint has another number.
        sampling: `discrete` for the dsp models of RT-DETRv2, whose files do not differ from the others.
    """
    asked = Asked(heads=heads, queries=queries, size=size, sampling=sampling)
    own = tuple(name.strip() for name in names.split(",")) if names else None
    wanted = parse_classes(classes) if classes else None
    file = read_checkpoint(weights)
    published = understand(file, own, asked)
    plan = plan_classes(wanted, published.names)
    detector = build(file, published, plan)
    digest = save(output, detector)
    for line in summary(published, plan, detector, count_parameters(output)):
        print(line)
    print(f"{output} {digest}")


def load_published(
    path: Path, classes: str | None = None, names: tuple[str, ...] | None = None, asked: Asked | None = None
) -> Detector:
    """Return the detector of a published checkpoint, in eval mode; arguments as in `convert`.

    Raises:
        WeightsError: The file cannot be used; the message says why.
    """
    file = read_checkpoint(path)
    published = understand(file, names, asked or Asked())
    return build(file, published, plan_classes(parse_classes(classes) if classes else None, published.names))


def build(file: CheckpointFile, published: Published, plan: ClassPlan) -> Detector:
    """Return the detector with the checkpoint's weights, and its provenance.

    Raises:
        WeightsError: Weights are missing or have another shape than the architecture's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # classes that the checkpoint does not know start alike every time
        detector = published.architecture(  # type: ignore[call-arg]
            **published.settings, classes=list(plan.names), members=plan.members
        )
    own = detector.state_dict()
    tensors = {name: with_classes(name, tensor, own, plan) for name, tensor in published.tensors.items()}
    counters = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
    tensors = {**counters, **tensors}
    problems = [f"missing {name}" for name in own if name not in tensors]
    problems += [f"unknown {name}" for name in tensors if name not in own]
    problems += [
        f"{name} is {list(tensors[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        raise WeightsError(problem_list(file, f"{published.layout} (names are ours)", problems))
    detector.load_state_dict(tensors)
    detector.provenance = {
        "converted_from": file.path.name,
        "sha256": file.digest,
        "layout": published.layout,
        "place": file.place,
        "untrained_classes": list(plan.new),
    }
    return detector.eval()


def with_classes(name: str, tensor: Tensor, own: dict[str, Tensor], plan: ClassPlan) -> Tensor:
    """Return a weight with the rows of the wanted classes, where it has rows of classes at all."""
    if name == LABELS:
        return _labels(tensor, own[LABELS], plan)
    if name.startswith(("class_heads.", "proposal_class.")) and name in own:
        return _rows(tensor, own[name], plan)
    return tensor


def _rows(theirs: Tensor, fresh: Tensor, plan: ClassPlan) -> Tensor:
    """Return one row per member of each class, a fresh one for a class that is new."""
    rows, place = [], 0
    for members in plan.rows:
        count = max(1, len(members))
        rows.append(theirs[list(members)] if members else fresh[place : place + count])
        place += count
    return torch.cat(rows)


def _labels(theirs: Tensor, fresh: Tensor, plan: ClassPlan) -> Tensor:
    """Return the denoising labels: the mean of a union's parts, and a last row for empty slots.

    Rows beyond the classes are never asked for: official DINO keeps one too many, detrex none for empty slots.
    """
    rows = [theirs[list(m)].mean(0) if m else fresh[index] for index, m in enumerate(plan.rows)]
    return torch.stack([*rows, torch.zeros_like(fresh[0])])


def summary(published: Published, plan: ClassPlan, detector: Detector, parameters: int) -> list[str]:
    """Return what a user should read after a conversion."""
    lines = [
        f"{published.layout}: {type(detector).__name__}, {detector.settings['backbone']}, {parameters:,} parameters"
    ]
    lines += published.notes
    known = [name for name in published.names if name is not None]
    unions = [name for name, rows in zip(plan.names, plan.rows, strict=True) if len(rows) > 1]
    kept = [name for name in plan.names if name not in plan.new]
    lines.append(
        f"{len(kept)} of {len(plan.names)} classes keep their weights" + (": " + ", ".join(kept)) * (len(kept) < 20)
    )
    if unions:
        lines.append(f"unions, which score as the best of their parts: {', '.join(unions)}")
    if plan.new:
        lines.append(f"not known to the checkpoint, untrained: {', '.join(plan.new)}. Train with fit before use.")
    left = len(known) - len({row for rows in plan.rows for row in rows})
    if left:
        lines.append(f"{left} classes of the checkpoint are left out")
    return lines
