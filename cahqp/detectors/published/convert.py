"""`cahqp convert`: a model file from a published checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cahqp.detectors.base import Detector, mismatches
from cahqp.detectors.model_file import count_parameters, save
from cahqp.detectors.published.checkpoint_file import CheckpointFile, read_checkpoint
from cahqp.detectors.published.class_mapping import ClassPlan, parse_classes, plan_classes
from cahqp.detectors.published.layouts import PublishedModel, problem_list, recognise
from cahqp.detectors.published.options import ConvertOptions
from cahqp.errors import WeightsError

LABELS = "label_content.weight"


def convert(options: ConvertOptions) -> None:
    """Convert a published checkpoint of DINO or RT-DETR to a model file.

    Raises:
        WeightsError: The checkpoint or the classes cannot be used.
    """
    names = [name.strip() for name in options.names.split(",")] if options.names else None
    requested = parse_classes(options.classes) if options.classes else None
    file = read_checkpoint(options.weights)
    published = recognise(file, names, options)
    plan = plan_classes(requested, published.names)
    detector = build_detector(file, published, plan)
    digest = save(options.output, detector)
    for line in summary(published, plan, detector, count_parameters(options.output)):
        print(line)
    print(f"{options.output} {digest}")


def build_detector(file: CheckpointFile, published: PublishedModel, plan: ClassPlan) -> Detector:
    """Return the detector in eval mode with the checkpoint's weights and its provenance.

    Raises:
        WeightsError: Weights are missing or have another shape than the architecture's.
    """
    layout, architecture = published.layout, published.architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # new classes start with the same weights in every conversion
        detector = layout.detector(  # type: ignore[call-arg]
            **architecture.settings, classes=list(plan.names), members=plan.members
        )
    own = detector.state_dict()
    tensors = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
    tensors |= {name: _map_classes(name, tensor, own, plan) for name, tensor in architecture.tensors.items()}
    if problems := mismatches(own, tensors):
        raise WeightsError(problem_list(file, f"{layout.name} (with the names of cahqp)", problems))
    detector.load_state_dict(tensors)
    detector.provenance = {
        "converted_from": file.path.name,
        "sha256": file.digest,
        "layout": layout.name,
        "place": file.place,
        "untrained_classes": list(plan.new),
    }
    return detector.eval()


def _map_classes(name: str, tensor: Tensor, own: Mapping[str, Tensor], plan: ClassPlan) -> Tensor:
    """Return a weight; in class heads and denoising labels, the rows of the planned classes, new ones untrained."""
    if name == LABELS:
        # The last row is for empty slots: official DINO has one row too many, detrex lacks it. A union gets a mean.
        rows = [tensor[list(m)].mean(0) if m else own[name][index] for index, m in enumerate(plan.rows)]
        return torch.stack([*rows, torch.zeros_like(own[name][0])])
    if not name.startswith(("class_heads.", "proposal_class.")) or name not in own:
        return tensor
    untrained = torch.split(own[name], plan.counts)
    return torch.cat([tensor[list(m)] if m else rows for m, rows in zip(plan.rows, untrained, strict=True)])


def summary(published: PublishedModel, plan: ClassPlan, detector: Detector, parameters: int) -> list[str]:
    """Return the lines that `convert` prints."""
    backbone = detector.settings["backbone"]
    lines = [f"{published.layout.name}: {type(detector).__name__}, {backbone}, {parameters:,} parameters"]
    lines += published.architecture.notes
    kept = [name for name in plan.names if name not in plan.new]
    listed = f": {', '.join(kept)}" if len(kept) < 20 else ""
    lines.append(f"{len(kept)} of {len(plan.names)} classes keep their weights{listed}")
    unions = [name for name, rows in zip(plan.names, plan.rows, strict=True) if len(rows) > 1]
    if unions:
        lines.append(f"unions, which score as the best of their parts: {', '.join(unions)}")
    if plan.new:
        lines.append(f"not in the checkpoint, untrained: {', '.join(plan.new)}. Train with fit before use.")
    known = [name for name in published.names if name is not None]
    left = len(known) - len({row for rows in plan.rows for row in rows})
    if left:
        lines.append(f"{left} classes of the checkpoint are left out")
    return lines
