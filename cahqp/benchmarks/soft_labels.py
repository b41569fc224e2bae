"""`cahqp benchmark store`: time saved by running the teacher once instead of in every epoch."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import seed_everything

from cahqp.benchmarks.label_options import StoreBenchmarkOptions
from cahqp.benchmarks.speed.inputs import build_module
from cahqp.data.frames import open_frames
from cahqp.data.transforms import strong
from cahqp.detectors.base import Detector
from cahqp.detectors.model_file import load, save
from cahqp.errors import ConfigError
from cahqp.files import atomic_write, write_json
from cahqp.inference.frames import fixed_batches
from cahqp.relabelling.options import SoftStoreSettings
from cahqp.relabelling.soft_labels import SoftTeacher, TeacherViews, store_key
from cahqp.training.distillation.loss import soft_targets
from cahqp.training.distillation.store import SoftLabelStore, SoftLabelWriter
from cahqp.training.distillation.views import SoftFrames, join_soft_views, stored_frames
from cahqp.training.student import StudentTraining

EPOCHS, VIEWS = (4, 12, 24, 48), (1, 2, 4, 8)


@dataclass(frozen=True)
class Terms:
    """Seconds per frame.

    Attributes:
        teacher: One view through the teacher, including its augmentation.
        student: One view through a training step, including its augmentation.
        read: Reading the soft labels of one view from the store.
    """

    teacher: float
    student: float
    read: float

    def gain(self, epochs: int, views: int) -> float:
        """Return the speed-up of a training, including the time to fill the store."""
        return epochs * (self.teacher + self.student) / (views * self.teacher + epochs * self.student)


def time_store(options: StoreBenchmarkOptions) -> None:
    """Time single steps and, on request, whole runs, and write `store.md` and `store.json`.

    Raises:
        ConfigError: Teacher and student have different classes, or frames have no files.
    """
    seed_everything(options.seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        bench = StoreBench(options, Path(folder))
        terms = bench.time_terms()
        whole = bench.time_whole_runs(terms) if options.epochs else None
    write_json(options.output / "store.json", {"terms": asdict(terms), "whole": whole})
    with atomic_write(options.output / "store.md") as file:
        file.write(page(terms, whole))
    print(page(terms, whole), end="")


class StoreBench:
    """Teacher, student and frames of the measurement.

    Args:
        options: Options of the command.
        folder: Folder for stores, and for a teacher without a model file.
    """

    def __init__(self, options: StoreBenchmarkOptions, folder: Path) -> None:
        module = build_module(options.fit_config)
        if not isinstance(module, StudentTraining):
            module = StudentTraining(detector=module.detector)
        self.student = module.train()
        self.teacher = _load_teacher(options.teacher, folder)
        if self.teacher.classes != self.student.detector.classes:
            message = f"{options.teacher} and {options.fit_config} have other classes. Give a student its own teacher."
            raise ConfigError(message)
        self.options, self.folder = options, folder
        self.source = open_frames([options.frames])
        self.count = min(options.images, len(self.source))
        self.batches = fixed_batches(self.count, options.batch_size)
        self.optimizer = torch.optim.AdamW(self.student.parameter_groups(), lr=1e-6)

    def fill_store(self, folder: Path) -> SoftLabelStore:
        """Return a store of the frames, filled as `cahqp relabel --soft` does."""
        views, seed = self.options.views, self.options.seed
        key = store_key(self.teacher, SoftStoreSettings(views=views), seed)
        frames = list(self.source.frames)[: self.count]
        image = self.source.path(0)
        if image is None:
            message = "benchmark store needs frames with files of their own: give a folder or a COCO file."
            raise ConfigError(message)
        folder.mkdir()
        root = os.path.relpath(str(image.resolve()).removesuffix(frames[0].name), folder.resolve())
        writer = SoftLabelWriter(folder, key, root, frames)
        teacher = SoftTeacher(self.teacher, writer)
        loaded = TeacherViews(self.source, self.teacher, self.batches, views, seed)
        with torch.no_grad():
            for number in range(len(loaded)):
                teacher.predict_step(loaded[number], number)
        writer.finish()
        return SoftLabelStore(folder)

    def train_epoch(self, number: int, store: SoftLabelStore | None) -> None:
        """Train once on one view of every frame.

        Args:
            number: Number of the epoch.
            store: Source of the soft labels; `None` runs the teacher in every step.
        """
        augmentation = strong(self.student.detector.preprocessing)
        if store is not None:
            views = SoftFrames(stored_frames(store), augmentation, views=self.options.views, store=store)
        else:
            views = SoftFrames(
                self.source,
                augmentation,
                views=self.options.views,
                seed=self.options.seed,
                teacher_augmentation=strong(self.teacher.preprocessing),
            )
        for positions in self.batches:
            batch = join_soft_views([], [views[(number, position)] for position in positions])
            if batch.teacher_views is not None:
                with torch.no_grad():
                    batch.soft = soft_targets(self.teacher, batch.teacher_views)
            self.optimizer.zero_grad()
            loss = torch.stack([value.sum() for value in self.student.soft_losses(batch).values()]).sum()
            torch.autograd.backward(loss)
            self.optimizer.step()

    def time_terms(self) -> Terms:
        """Time the terms in alternation, after one epoch for warm-up."""
        store = self.fill_store(self.folder / "first")
        self.train_epoch(0, store)
        seconds: dict[str, list[float]] = {"teacher": [], "student": [], "read": []}
        for turn in range(self.options.rounds):
            seconds["teacher"].append(_time(partial(self.fill_store, self.folder / f"turn{turn}")) / self.options.views)
            seconds["student"].append(_time(lambda: self.train_epoch(0, store)))
            seconds["read"].append(_time(lambda: [store.read(index, 0) for index in range(self.count)]))
        return Terms(**{name: statistics.median(values) / self.count for name, values in seconds.items()})

    def time_whole_runs(self, terms: Terms) -> dict[str, float]:
        """Time runs in alternation: with a store, including the time to fill it, and with the teacher in every step."""
        epochs, views = self.options.epochs, self.options.views
        online, offline = [], []
        for turn in range(self.options.rounds):
            online.append(_time(partial(self._train, None)))
            offline.append(_time(partial(self._train, self.folder / f"whole{turn}")))
        gain = statistics.median(online) / statistics.median(offline)
        possible = terms.gain(epochs, views)
        return {
            "epochs": epochs,
            "views": views,
            "online": statistics.median(online),
            "offline": statistics.median(offline),
            "gain": gain,
            "possible": possible,
            "share": gain / possible,
        }

    def _train(self, folder: Path | None) -> None:
        store = None if folder is None else self.fill_store(folder)
        for number in range(self.options.epochs):
            self.train_epoch(number, store)


def _load_teacher(path: Path, folder: Path) -> Detector:
    """Return the teacher of a model file, or an untrained teacher from a training config."""
    if path.suffix == ".safetensors":
        return load(path)
    save(folder / "teacher.safetensors", build_module(path).detector)
    return load(folder / "teacher.safetensors")


def _time(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def page(terms: Terms, whole: dict[str, float] | None) -> str:
    """Return the results as Markdown."""
    lines = [
        f"One view: teacher {terms.teacher:.4f} s, student's step {terms.student:.4f} s, reading "
        f"{1e6 * terms.read:.0f} us ({terms.read / terms.student:.2%} of a step). Speed-up, including the time to fill "
        "the store:",
        "",
        "| views | " + " | ".join(f"E={epochs}" for epochs in EPOCHS) + " |",
        "|" + "---|" * (len(EPOCHS) + 1),
        *(f"| {m} | " + " | ".join(f"{terms.gain(e, m):.2f}" for e in EPOCHS) + " |" for m in VIEWS),
    ]
    if whole is not None:
        lines += [
            "",
            f"Whole runs of {whole['epochs']} epochs with {whole['views']} views: {whole['online']:.1f} s with the "
            f"teacher in every step, {whole['offline']:.1f} s with a store: {whole['gain']:.2f} times faster, "
            f"{whole['share']:.1%} of the possible {whole['possible']:.2f}.",
        ]
    return "\n".join([*lines, ""])
