"""Operations that `cahqp benchmark speed` times: training step, inference, relabelling and the criterion.

Each runs for our detector and, where it has an equivalent, for RT-DETR of the `transformers` library.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn

from cahqp.benchmarks.options import SpeedBenchmarkOptions
from cahqp.benchmarks.speed.inputs import build_module, make_batch
from cahqp.benchmarks.speed.reference import build_reference, reference_labels
from cahqp.benchmarks.speed.timer import Workload
from cahqp.data.frames import open_frames
from cahqp.detectors.base import DenoisingOutput, Detector, Output
from cahqp.detectors.layers.denoising import denoising_queries
from cahqp.detectors.losses.targets import pad_targets
from cahqp.inference.frames import FrameLoader, FrameSet, fixed_batches
from cahqp.labels.candidates import encode
from cahqp.labels.rules import CANDIDATE_FLOOR
from cahqp.labels.shards.shards import LabelShards
from cahqp.relabelling.shard_writer import SingleTeacher

STEP, INFERENCE, RELABELLING, CRITERION = "training step", "inference", "relabelling", "criterion"
MATCHING = "matching and denoising"
CAHQP, TRANSFORMERS = "cahqp", "transformers"


class PhaseBenchmark:
    """Workloads of a detector and of its reference on one random batch; the folder is for frames to relabel."""

    def __init__(self, options: SpeedBenchmarkOptions, folder: Path) -> None:
        torch.set_num_threads(options.threads or torch.get_num_threads())
        seed_everything(options.seed, verbose=False)
        module = build_module(options.fit_config)
        batch = make_batch(module, options.batch_size, options.boxes)
        self.device, self.precision, self.folder = torch.device(options.device), options.precision, folder
        self.detector, self.criterion, self.batch = (
            module.detector.to(self.device),
            module.criterion,
            batch.to(self.device),
        )
        self.reference: Any
        self.reference, self.about = build_reference(self.detector) if options.reference else (None, "not requested")
        height, width = self.batch.images.shape[-2:]
        self.sizes = torch.tensor([[height, width]] * len(batch), dtype=torch.float32, device=self.device)
        self.labels = reference_labels(self.batch.targets, height, width)
        self.shape = criterion_shape(self.detector)
        self.slots = max(len(targets) for targets in self.batch.targets)
        # The rate is too low to move weights: all steps are timed on the same boxes.
        self.optimizer = torch.optim.AdamW(self.detector.parameters(), lr=1e-9)
        if self.reference is not None:
            self.reference = self.reference.to(self.device)
            self.reference_optimizer = torch.optim.AdamW(self.reference.parameters(), lr=1e-9)

    def phases(self) -> dict[str, dict[str, Workload]]:
        """Return the workloads of every phase by implementation."""
        detector, reference = self.detector, self.reference
        phases = {
            STEP: {CAHQP: Workload(self._step, detector.train)},
            INFERENCE: {CAHQP: Workload(self._infer, detector.eval)},
            RELABELLING: {CAHQP: Workload(self._relabel, detector.eval)},
            CRITERION: {CAHQP: Workload(self._criterion())},
            MATCHING: {CAHQP: Workload(self._match)},
        }
        if reference is not None:
            phases[STEP][TRANSFORMERS] = Workload(self._reference_step, reference.train)
            phases[INFERENCE][TRANSFORMERS] = Workload(self._reference_inference(), reference.eval)
            phases[CRITERION][TRANSFORMERS] = Workload(self._reference_criterion())
        return phases

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _pixels(self) -> Tensor:
        return self.detector.preprocessing.normalise(self.batch.images, self.batch.padding_mask)

    def _step(self) -> None:
        with self._autocast():
            output = self.detector(self._pixels(), self.batch.padding_mask, self.batch.targets)
            losses = self.criterion(output, self.batch.targets)
        _descend(_total(losses), self.optimizer)

    def _reference_step(self) -> None:
        with self._autocast():
            loss = self.reference(self._pixels(), labels=self.labels).loss
        _descend(loss, self.reference_optimizer)

    @torch.no_grad()
    def _infer(self) -> None:
        with self._autocast():
            output = self.detector(self._pixels(), self.batch.padding_mask)
        self.detector.decode(output, output.sizes)

    def _reference_inference(self) -> Callable[[], None]:
        import transformers

        processor, sizes = transformers.RTDetrImageProcessor(), self.sizes.long()

        @torch.no_grad()
        def infer() -> None:
            with self._autocast():
                output = self.reference(self._pixels())
            processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)

        return infer

    def _relabel(self) -> None:
        """Relabel a batch of full-HD frames on disk: read, resize, detect, write the candidates."""
        root = self.folder / "frames"
        if not root.is_dir():
            write_frames(root, len(self.batch))
        frames = FrameSet(open_frames([root]), self.detector.preprocessing)
        teacher, shards = SingleTeacher(self.detector, CANDIDATE_FLOOR), LabelShards(self.folder / "shards", 0)
        for loaded in FrameLoader(frames, fixed_batches(len(frames), len(self.batch))):
            assert loaded.batch is not None
            with self._autocast():
                candidates = teacher.predict_step(loaded.to(self.device), 0)
            for position, frame, of_frame in zip(loaded.positions, loaded.batch.frames, candidates, strict=True):
                shards.append(encode(position, frame, of_frame))
        shards.close()

    def _predictions(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Return random outputs: of the decoder (layers, images, noised + queries, ...), of proposals, and `noised`."""
        size, classes, denoising = len(self.batch), len(self.detector.classes), self.shape["denoising"]
        layers, queries = self.shape["decoder_layers"], self.shape["queries"]
        noised = max(1, denoising // self.slots) * 2 * self.slots if denoising else 0
        logits = torch.randn(layers, size, noised + queries, classes, device=self.device) - 3
        boxes = torch.rand(layers, size, noised + queries, 4, device=self.device) * 0.4 + 0.05
        return logits, boxes, logits[0, :, noised:].clone(), boxes[0, :, noised:].clone(), noised

    def _criterion(self) -> Callable[[], None]:
        """Return denoising queries, matching and losses, forward and backward, on random predictions."""
        *predictions, noised = self._predictions()
        embedding = nn.Embedding(len(self.detector.classes) + 1, self.shape["dim"], device=self.device)

        def run() -> None:
            logits, boxes, proposal_logits, proposals = (each.detach().requires_grad_() for each in predictions)
            queries = self._denoising_queries()
            if queries is not None:
                embedding(queries.labels)
                queries.attention_mask(proposal_logits.shape[1])
            denoising = None
            if noised:
                groups = noised // (2 * self.slots)
                denoising = DenoisingOutput(logits[:, :, :noised], boxes[:, :, :noised], groups, self.slots)
            logits, boxes = logits[:, :, noised:], boxes[:, :, noised:]
            output = Output(
                logits[-1], boxes[-1], logits[:-1], boxes[:-1], proposal_logits, proposals, self.sizes,
                None, denoising,  # type: ignore[arg-type]
            )  # fmt: skip
            _total(self.criterion(output, self.batch.targets)).backward()  # type: ignore[no-untyped-call]

        return run

    def _denoising_queries(self) -> Any:
        return denoising_queries(
            self.batch.targets, self.sizes, len(self.detector.classes), number=self.shape["denoising"],
            label_noise=0.5, box_noise=1.0, eps=1e-5,
        )  # fmt: skip

    def _reference_criterion(self) -> Callable[[], None]:
        from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss
        from transformers.models.rt_detr import modeling_rt_detr

        *predictions, _ = self._predictions()
        config = self.reference.config
        embedding = nn.Embedding(config.num_labels + 1, config.d_model, device=self.device)

        def run() -> None:
            logits, boxes, proposal_logits, proposals = (each.detach().requires_grad_() for each in predictions)
            noised = modeling_rt_detr.get_contrastive_denoising_training_group(  # type: ignore[no-untyped-call]
                targets=self.labels, num_classes=config.num_labels, num_queries=config.num_queries,
                class_embed=embedding, num_denoising_queries=config.num_denoising,
                label_noise_ratio=config.label_noise_ratio, box_noise_scale=config.box_noise_scale,
            )  # fmt: skip
            logits, boxes = logits.transpose(0, 1), boxes.transpose(0, 1)
            loss = RTDetrForObjectDetectionLoss(  # type: ignore[no-untyped-call]
                logits[:, -1], self.labels, self.device, boxes[:, -1], config, logits, boxes,
                enc_topk_logits=proposal_logits, enc_topk_bboxes=proposals, denoising_meta_values=noised[3],
            )[0]  # fmt: skip
            loss.backward()

        return run

    @cached_property
    def _matched(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        return self._predictions()

    def _match(self) -> None:
        """Make denoising queries and match all layers, as one training step does."""
        logits, boxes, proposal_logits, proposals, noised = self._matched
        self._denoising_queries()
        all_logits = torch.cat([logits[:, :, noised:], proposal_logits[None]])
        all_boxes = torch.cat([boxes[:, :, noised:], proposals[None]])
        self.criterion.matcher(all_logits, all_boxes, pad_targets(self.batch.targets, self.sizes))


def criterion_shape(detector: Detector) -> dict[str, int]:
    """Return layers, queries, denoising queries and width of a detector, one of ours or one of transformers."""
    settings = detector.settings
    if "decoder_layers" in settings:
        return {name: settings[name] for name in ("decoder_layers", "queries", "denoising", "dim")}
    config = settings["config"]
    names = {"decoder_layers": "decoder_layers", "queries": "num_queries", "dim": "d_model"}
    return {name: config[key] for name, key in names.items()} | {"denoising": config.get("num_denoising", 0)}


def _total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.sum() for value in losses.values()]).sum()


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def write_frames(root: Path, count: int) -> None:
    """Write JPEG frames of 1080 x 1920 pixels with smooth content, as costly to decode as a camera's."""
    root.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        small = generator.integers(0, 256, (34, 60, 3), dtype=np.uint8)
        picture = cv2.resize(small, (1920, 1080), interpolation=cv2.INTER_CUBIC)
        (root / f"{number:04d}.jpg").write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
