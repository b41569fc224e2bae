"""`cahqp benchmark store`: what asking a teacher once, not in every epoch, saves on this machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything

from cahqp.benchmarks.speed.command import build_module
from cahqp.data.frames import open_frames
from cahqp.data.transforms import strong
from cahqp.detectors.base import Detector
from cahqp.detectors.model_file import load, save
from cahqp.errors import ConfigError, check_numbers
from cahqp.files import atomic_write, write_json
from cahqp.relabel.options import SoftStoreSettings
from cahqp.relabel.soft_labels import SoftAnswers, ViewsToAsk, store_key
from cahqp.training.distillation.loss import answers
from cahqp.training.distillation.store import SoftLabelStore, SoftLabelWriter
from cahqp.training.distillation.views import SoftFrames, join, stored_frames
from cahqp.training.student import StudentTraining

EPOCHS, VIEWS = (4, 12, 24, 48), (1, 2, 4, 8)


@dataclass(frozen=True)
class Terms:
    """Seconds a frame, and how they add up.

    Attributes:
        teacher: Of one view through the teacher, its making included.
        student: Of one view through a training step, its making included.
        read: Of reading a view's answers from the store.
    """

    teacher: float
    student: float
    read: float

    def gain(self, epochs: int, views: int) -> float:
        """Return how many times faster the whole is, the store's making included."""
        return epochs * (self.teacher + self.student) / (views * self.teacher + epochs * self.student)


def command(arguments: list[str]) -> None:
    """Run `cahqp benchmark store`."""
    # No `auto_cli`: there `--config` would mean a file of this command's own options.
    parser = ArgumentParser(prog="cahqp benchmark store", exit_on_error=False)
    parser.add_function_arguments(store, as_group=False)
    store(**parser.parse_args(arguments[2:]).as_dict())


def store(
    config: Path,
    teacher: Path,
    frames: Path,
    output: Path,
    batch_size: int = 4,
    images: int = 16,
    epochs: int = 0,
    views: int = 4,
    rounds: int = 3,
    seed: int = 0,
) -> None:
    """Measure the terms of the possible gain, E (t_T + t_S) / (M t_T + E t_S), and, on request, whole runs.

    Args:
        config: YAML file of a student's training.
        teacher: Model file of the teacher, or the YAML file of a training, whose teacher is then untrained.
        frames: Folder of images or COCO file, whose labels are not read.
        output: Folder for `store.md` and `store.json`.
        batch_size: Views in a batch.
        images: Frames that are used, the first of them.
        epochs: Epochs of the whole runs, with and without a store; 0 measures the terms alone.
        views: Views of each frame in the store.
        rounds: Times that everything is measured, by turns; the median counts.
        seed: Of weights and views.
    """
    check_numbers(shares={}, counts={"--batch_size": batch_size, "--images": images, "--rounds": rounds})
    seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(config, teacher, frames, Path(folder), batch_size, images, views, seed)
        terms = bench.terms(rounds)
        whole = bench.whole(epochs, terms, rounds) if epochs else None
    write_json(output / "store.json", {"terms": asdict(terms), "whole": whole})
    with atomic_write(output / "store.md") as file:
        file.write(page(terms, whole))
    print(page(terms, whole), end="")


class Bench:
    """A teacher, a student and frames to measure with.

    Args:
        config: YAML file of the student's training.
        teacher: Model file, or YAML file of a training.
        frames: Folder or COCO file.
        folder: For the store, and for a teacher that has no file.
        batch_size: Views in a batch.
        images: Frames that are used.
        views: Views of each frame.
        seed: Decides the views.
    """

    def __init__(
        self,
        config: Path,
        teacher: Path,
        frames: Path,
        folder: Path,
        batch_size: int,
        images: int,
        views: int,
        seed: int,
    ) -> None:
        module = build_module(config)
        if not isinstance(module, StudentTraining):
            module = StudentTraining(detector=module.detector)
        self.student = module.train()
        self.teacher = _teacher(teacher, folder)
        if self.teacher.classes != self.student.detector.classes:
            message = f"{teacher} and {config} have other classes. Measure a student with its own teacher."
            raise ConfigError(message)
        self.source = open_frames([frames])
        self.count = min(images, len(self.source))
        self.folder, self.batch_size, self.views, self.seed = folder, batch_size, views, seed
        self.optimizer = torch.optim.AdamW(self.student.parameter_groups(), lr=1e-6)

    def generate(self, folder: Path) -> SoftLabelStore:
        """Make a store of the frames as `relabel --soft` does."""
        key = store_key(self.teacher, SoftStoreSettings(views=self.views), self.seed)
        frames = list(self.source.frames)[: self.count]
        root = self.source.path(0)
        if root is None:
            message = "benchmark store needs frames with files of their own: give a folder or a COCO file."
            raise ConfigError(message)
        folder.mkdir()
        base = Path(str(root.resolve()).removesuffix(frames[0].name))
        writer = SoftLabelWriter(folder, key, str(base), frames)
        batches = [list(range(s, min(s + self.batch_size, self.count))) for s in range(0, self.count, self.batch_size)]
        asking = SoftAnswers(self.teacher, writer)
        loaded = ViewsToAsk(self.source, self.teacher, batches, self.views, self.seed)
        with torch.no_grad():
            for number in range(len(loaded)):
                asking.predict_step(loaded[number], number)
        writer.finish()
        return SoftLabelStore(folder)

    def epoch(self, number: int, store: SoftLabelStore | None) -> None:
        """Train once on one view of every frame: its answers from the store, or from the teacher."""
        seen = strong(self.student.detector.preprocessing)
        if store is not None:
            views = SoftFrames(stored_frames(store), seen, views=self.views, store=store)
        else:
            asked = strong(self.teacher.preprocessing)
            views = SoftFrames(self.source, seen, views=self.views, seed=self.seed, asked=asked)
        for start in range(0, self.count, self.batch_size):
            last = min(start + self.batch_size, self.count)
            batch = join([], [views[(number, position)] for position in range(start, last)])
            if batch.asked is not None:
                with torch.no_grad():
                    images = self.teacher.preprocessing.normalise(batch.asked.images, batch.asked.padding_mask)
                    batch.soft = answers(self.teacher(images, batch.asked.padding_mask))
            self.optimizer.zero_grad()
            loss = torch.stack([value.sum() for value in self.student.soft_losses(batch).values()]).sum()
            torch.autograd.backward(loss)
            self.optimizer.step()

    def terms(self, rounds: int) -> Terms:
        """Measure the terms by turns."""
        store = self.generate(self.folder / "first")
        self.epoch(0, store)  # warms up
        found: dict[str, list[float]] = {"teacher": [], "student": [], "read": []}
        for turn in range(rounds):
            found["teacher"].append(_seconds(partial(self.generate, self.folder / f"turn{turn}")) / self.views)
            found["student"].append(_seconds(lambda: self.epoch(0, store)))
            found["read"].append(_seconds(lambda: [store.read(i, 0) for i in range(self.count)]))
        return Terms(**{name: statistics.median(values) / self.count for name, values in found.items()})

    def whole(self, epochs: int, terms: Terms, rounds: int) -> dict[str, float]:
        """Measure whole runs by turns: with a store, its making included, and with the teacher in every step."""
        online, offline = [], []
        for turn in range(rounds):
            online.append(_seconds(partial(self._online, epochs)))
            offline.append(_seconds(partial(self._offline, epochs, self.folder / f"whole{turn}")))
        gain = statistics.median(online) / statistics.median(offline)
        possible = terms.gain(epochs, self.views)
        return {
            "epochs": epochs,
            "views": self.views,
            "online": statistics.median(online),
            "offline": statistics.median(offline),
            "gain": gain,
            "possible": possible,
            "share": gain / possible,
        }

    def _online(self, epochs: int) -> None:
        for number in range(epochs):
            self.epoch(number, None)

    def _offline(self, epochs: int, folder: Path) -> None:
        store = self.generate(folder)
        for number in range(epochs):
            self.epoch(number, store)


def _teacher(path: Path, folder: Path) -> Detector:
    """Return the teacher of a model file, or an untrained one of a training's config."""
    if path.suffix == ".safetensors":
        return load(path)
    save(folder / "teacher.safetensors", build_module(path).detector)
    return load(folder / "teacher.safetensors")


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def page(terms: Terms, whole: dict[str, float] | None) -> str:
    """Return what was measured as Markdown."""
    head = [
        f"One view: teacher {terms.teacher:.4f} s, student's step {terms.student:.4f} s, reading "
        f"{1e6 * terms.read:.0f} us ({terms.read / terms.student:.2%} of a step). Gains, the store's making included:",
        "",
        "| views | " + " | ".join(f"E={epochs}" for epochs in EPOCHS) + " |",
        "|" + "---|" * (len(EPOCHS) + 1),
    ]
    rows = [f"| {m} | " + " | ".join(f"{terms.gain(e, m):.2f}" for e in EPOCHS) + " |" for m in VIEWS]
    tail = []
    if whole is not None:
        tail = [
            "",
            f"Whole runs of {whole['epochs']} epochs with {whole['views']} views: {whole['online']:.1f} s with the "
            f"teacher in every step, {whole['offline']:.1f} s with a store: {whole['gain']:.2f} times faster, "
            f"{whole['share']:.1%} of the possible {whole['possible']:.2f}.",
        ]
    return "\n".join([*head, *rows, *tail, ""])
