"""What `cahqp benchmark speed` times: each phase as ours does it and, where there is one, as the reference does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from cahqp.benchmarks.speed.reference import reference_of, their_labels
from cahqp.data.frames import open_frames
from cahqp.detectors.base import DenoisingOutput, Detector, Output
from cahqp.detectors.layers.denoising import denoising_queries
from cahqp.detectors.losses.criterion import SetCriterion
from cahqp.detectors.losses.targets import pad_targets
from cahqp.inference.frames import FrameLoader, FrameSet, detect, fixed_batches
from cahqp.labels.select import select
from cahqp.labels.shards.shards import LabelShards
from cahqp.structures import Batch
from cahqp.training.base import DetectionModule

Precision = Literal["float32", "bf16"]
STEP, INFERENCE, RELABELLING, CRITERION = "training step", "inference", "relabelling", "criterion"
MATCHING = "matching and denoising"
OURS, REFERENCE = "cahqp", "transformers"


@dataclass(frozen=True)
class Way:
    """One way of doing a phase.

    Attributes:
        run: What is timed.
        prepare: What comes before it and is not.
    """

    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


class Bench:
    """A module, its reference and a batch to time them with.

    Args:
        module: On the CPU.
        batch: Random images with boxes, on the CPU.
        folder: For frames to relabel.
        device: Where everything runs.
        precision: `bf16` runs the models under autocast.
        with_reference: Look for a reference.
    """

    def __init__(
        self,
        module: DetectionModule,
        batch: Batch,
        folder: Path,
        device: torch.device,
        precision: Precision = "float32",
        with_reference: bool = True,
    ) -> None:
        self.detector, self.batch, self.folder = module.detector.to(device), batch.to(device), folder
        self.criterion, self.device, self.precision = module.criterion, device, precision
        self.reference: Any
        self.reference, self.about = reference_of(self.detector) if with_reference else (None, "not asked for")
        self.labels = their_labels(self.batch.targets, *self.batch.images.shape[-2:])
        self.shape = shape_of(self.detector)
        # A rate that moves nothing: the hundredth step is timed on the boxes of the first.
        self.optimizer = torch.optim.AdamW(self.detector.parameters(), lr=1e-9)
        if self.reference is not None:
            self.reference = self.reference.to(device)
            self.their_optimizer = torch.optim.AdamW(self.reference.parameters(), lr=1e-9)

    def phases(self) -> dict[str, dict[str, Way]]:
        """Return every phase with its ways."""
        detector, model = self.detector, self.reference
        found = {
            STEP: {OURS: Way(self._step, detector.train)},
            INFERENCE: {OURS: Way(self._infer, detector.eval)},
            RELABELLING: {OURS: Way(self._relabel, detector.eval)},
            CRITERION: {OURS: self._criterion()},
            MATCHING: {OURS: Way(self._matching)},
        }
        if model is not None:
            found[STEP][REFERENCE] = Way(self._their_step, model.train)
            found[INFERENCE][REFERENCE] = Way(self._their_inference(), model.eval)
            found[CRITERION][REFERENCE] = self._their_criterion()
        return found

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _pixels(self) -> Tensor:
        return self.detector.preprocessing.normalise(self.batch.images, self.batch.padding_mask)

    def _step(self) -> None:
        with self._autocast():
            output = self.detector(self._pixels(), self.batch.padding_mask, self.batch.targets)
            losses = self.criterion(output, self.batch.targets)
        _descend(torch.stack([value.sum() for value in losses.values()]).sum(), self.optimizer)

    def _their_step(self) -> None:
        with self._autocast():
            loss = self.reference(self._pixels(), labels=self.labels).loss
        _descend(loss, self.their_optimizer)

    @torch.no_grad()
    def _infer(self) -> None:
        with self._autocast():
            output = self.detector(self._pixels(), self.batch.padding_mask)
        self.detector.decode(output, output.sizes)

    def _their_inference(self) -> Callable[[], None]:
        import transformers

        processor = transformers.RTDetrImageProcessor()
        sizes = torch.tensor([self.batch.images.shape[-2:]] * len(self.batch), device=self.device)

        @torch.no_grad()
        def infer() -> None:
            with self._autocast():
                output = self.reference(self._pixels())
            processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)

        return infer

    def _relabel(self) -> None:
        """Do what `cahqp relabel` does to a batch of full-HD frames on disk: read, resize, detect, select, write."""
        root = self.folder / "frames"
        if not root.is_dir():
            write_frames(root, len(self.batch))
        frames = FrameSet(open_frames([root]), self.detector.preprocessing)
        shards = LabelShards(self.folder / "shards", 0)
        for batch in FrameLoader(frames, fixed_batches(len(frames), len(self.batch))):
            assert batch.batch is not None
            with self._autocast():
                found = detect(self.detector, batch.batch.to(self.device))
            for position, frame, one in zip(batch.positions, batch.batch.frames, found, strict=True):
                shards.write(position, frame, select(one.to("cpu"), frame.size, self.detector.classes))
        shards.close()

    def _answers(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Return logits and boxes as a decoder in training gives them, those of proposals, and the denoising part."""
        size, classes = len(self.batch), len(self.detector.classes)
        layers, queries = self.shape["decoder_layers"], self.shape["queries"]
        most = max(len(t) for t in self.batch.targets)
        noised = max(1, self.shape["denoising"] // most) * 2 * most if self.shape["denoising"] else 0
        logits = torch.randn(layers, size, noised + queries, classes, device=self.device) - 3
        boxes = torch.rand(layers, size, noised + queries, 4, device=self.device) * 0.4 + 0.05
        return logits, boxes, logits[0, :, noised:].clone(), boxes[0, :, noised:].clone(), noised

    def _criterion(self) -> Way:
        """Return denoising queries, matching and losses, forward and backward, on made-up predictions."""
        given = self._answers()
        start, sizes = given[4], _sizes(self.batch)
        slots = max(len(t) for t in self.batch.targets)
        table = nn.Embedding(len(self.detector.classes) + 1, self.shape["dim"], device=self.device)

        def run() -> None:
            logits, boxes, first, proposals = (one.detach().requires_grad_() for one in given[:4])
            noised = self._noised(sizes)
            if noised is not None:
                table(noised.labels)
                noised.attention_mask(first.shape[1])
            groups = start // (2 * slots)
            denoising = DenoisingOutput(logits[:, :, :start], boxes[:, :, :start], groups, slots) if start else None
            mine, places = logits[:, :, start:], boxes[:, :, start:]
            output = Output(
                mine[-1], places[-1], mine[:-1], places[:-1], first, proposals, sizes, None, denoising  # type: ignore[arg-type]
            )  # fmt: skip
            losses = self.criterion(output, self.batch.targets)
            torch.stack([value.sum() for value in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]

        return Way(run)

    def _noised(self, sizes: Tensor) -> Any:
        return denoising_queries(
            self.batch.targets, sizes, len(self.detector.classes), number=self.shape["denoising"], label_noise=0.5,
            box_noise=1.0, eps=1e-5,
        )  # fmt: skip

    def _their_criterion(self) -> Way:
        from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss
        from transformers.models.rt_detr import modeling_rt_detr as theirs

        given, config = self._answers(), self.reference.config
        table = nn.Embedding(config.num_labels + 1, config.d_model, device=self.device)

        def run() -> None:
            logits, boxes, first, proposals = (one.detach().requires_grad_() for one in given[:4])
            noised = theirs.get_contrastive_denoising_training_group(  # type: ignore[no-untyped-call]
                targets=self.labels, num_classes=config.num_labels, num_queries=config.num_queries, class_embed=table,
                num_denoising_queries=config.num_denoising, label_noise_ratio=config.label_noise_ratio,
                box_noise_scale=config.box_noise_scale,
            )  # fmt: skip
            mine, places = logits.transpose(0, 1), boxes.transpose(0, 1)
            loss = RTDetrForObjectDetectionLoss(  # type: ignore[no-untyped-call]
                mine[:, -1], self.labels, self.device, places[:, -1], config, mine, places, enc_topk_logits=first,
                enc_topk_bboxes=proposals, denoising_meta_values=noised[3],
            )[0]  # fmt: skip
            loss.backward()

        return Way(run)

    def _matching(self) -> None:
        """Make denoising queries and match all layers, as one training step does."""
        sizes = _sizes(self.batch)
        logits, boxes, first, proposals, start = self._answers_kept()
        self._noised(sizes)
        criterion: SetCriterion = self.criterion
        all_logits = torch.cat([logits[:, :, start:], first[None]])
        all_boxes = torch.cat([boxes[:, :, start:], proposals[None]])
        criterion.matcher(all_logits, all_boxes, pad_targets(self.batch.targets, sizes))

    def _answers_kept(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        if not hasattr(self, "_kept"):
            self._kept = self._answers()
        return self._kept


def shape_of(detector: Detector) -> dict[str, int]:
    """Return the numbers that decide what the criterion works on: of ours, or of a model of transformers."""
    own = detector.settings
    if "decoder_layers" in own:
        return {name: own[name] for name in ("decoder_layers", "queries", "denoising", "dim")}
    theirs = own["config"]
    names = {"decoder_layers": "decoder_layers", "queries": "num_queries", "dim": "d_model"}
    return {name: theirs[their] for name, their in names.items()} | {"denoising": theirs.get("num_denoising", 0)}


def _sizes(batch: Batch) -> Tensor:
    height, width = batch.images.shape[-2:]
    return torch.tensor([[height, width]] * len(batch), dtype=torch.float32, device=batch.images.device)


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def write_frames(root: Path, count: int) -> None:
    """Write JPEG frames of 1080 x 1920 pixels with a smooth picture, as a camera's are to a decoder."""
    root.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        small = generator.integers(0, 256, (34, 60, 3), dtype=np.uint8)
        picture = cv2.resize(small, (1920, 1080), interpolation=cv2.INTER_CUBIC)
        (root / f"{number:04d}.jpg").write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
