"""`cahqp relabel`: label frames with a teacher, resumable after an interruption."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only

from cahqp.data.frames import open_frames
from cahqp.data.sources import FrameSource
from cahqp.detectors.base import Detector
from cahqp.detectors.model_file import load
from cahqp.errors import DataError
from cahqp.files import write_json
from cahqp.labels.formats import write_format
from cahqp.labels.formats.yolo import check_names
from cahqp.labels.rules import Rules
from cahqp.labels.shards.merge import merge
from cahqp.relabelling.options import RelabelOptions
from cahqp.relabelling.output_names import OutputNames
from cahqp.relabelling.pipeline import LabelPipeline, label_candidates
from cahqp.relabelling.shard_writer import CANDIDATES, read_broken, write_candidates
from cahqp.relabelling.soft_labels import write_store
from cahqp.runs.directory import RunDirectory
from cahqp.runs.evidence import analysis_mark
from cahqp.training.lightning_errors import lightning_errors


def relabel(options: RelabelOptions) -> None:
    """Label frames: write `labels.json`, `rejected.json` and the options' other files.

    Raises:
        CahqpError: Options, files or frames cannot be used.
    """
    with lightning_errors():
        _relabel(options)


def _relabel(options: RelabelOptions) -> None:
    seed_everything(options.seed, verbose=False)
    detector = load(options.weights)
    source = open_frames(options.frames, options.frame_interval, options.naming)
    formats = sorted(set(options.format) - {"coco"})
    if "yolo" in formats:  # checked before hours of work
        names = OutputNames(source)
        check_names(names[position] for position in range(len(source)))
    run = RunDirectory(options.output, "relabel", options.settings, options.input_files, options.seed)
    first = (getattr(rank_zero_only, "rank", None) or 0) == 0
    if first and not run.begin():
        print(f"{options.output} is finished already: nothing to do.")
        return
    try:
        _label(options, run, detector, source, formats, first)
    except BaseException:
        if first:
            run.discard_empty()
        raise


def _label(
    options: RelabelOptions,
    run: RunDirectory,
    detector: Detector,
    source: FrameSource,
    formats: Sequence[str],
    first: bool,
) -> None:
    pipeline = LabelPipeline(options, detector, source)
    loading = {"batch_size": options.batch_size, "workers": options.workers}
    thumbnails = options.moving_ignore_share is not None
    names = write_candidates(
        _trainer(options, run.work), pipeline.teacher, pipeline.frames, run.work, **loading, thumbnails=thumbnails
    )
    if options.soft:
        write_store(_trainer(options, run.work), detector, names, run.work, options)
    if first:
        metrics = complete(run, names, pipeline.rules, formats)
        print(f"{run.output}: {metrics['boxes']} labels on {metrics['frames']} frames.")


def _trainer(options: RelabelOptions, work: Path) -> Trainer:
    return Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        precision=options.precision,
        logger=False,
        callbacks=[TQDMProgressBar(refresh_rate=10)],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=work,
    )


def complete(run: RunDirectory, names: OutputNames, rules: Rules, formats: Sequence[str] = ()) -> dict[str, Any]:
    """Turn the candidates of a run directory into label files, and complete the directory.

    Args:
        run: Run directory with the candidates of all frames.
        names: File names of the frames.
        rules: Rules that turn candidates into labels.
        formats: Additional formats to write.

    Returns:
        Metrics of the manifest.

    Raises:
        DataError: Frames have no candidates.
    """
    source = names.source
    categories = getattr(source, "categories", None) or {}
    labels = label_candidates(run.work, rules)
    merged = merge(labels, rules.classes, {name: key for key, name in categories.items()}, run.work)
    broken = read_broken(run.work, names)
    missing = len(source) - merged.frames - len(broken)
    if missing:
        message = f"{missing} of {len(source)} frames were not labelled. Rerun the same command to resume."
        raise DataError(message)
    if broken:
        write_json(run.work / "quarantine.json", {"images": broken})
    root = "images" if names.root is None else os.path.relpath(names.root, run.work.resolve())
    write_json(run.work / "source.json", {"root": Path(root).as_posix()})
    for name in formats:
        write_format(run.work / "labels.json", name, run.work / name)
    metrics = {"frames": merged.frames, "boxes": sum(merged.kept.values()), "kept": merged.kept, "broken": len(broken)}
    metrics |= {} if rules.plain else {"ignored": merged.ignored}
    metrics |= analysis_mark(run.inputs.values())
    run.finish(metrics)
    shutil.rmtree(run.output / Path(CANDIDATES).parts[0])  # last, because a resumed run needs the shards
    return metrics
