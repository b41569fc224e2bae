"""Table of commands; a command's modules are imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from cahqp.cli.options import parse


class Command(NamedTuple):
    """One command.

    Attributes:
        group: Heading in the list of commands.
        help: One line.
        function: `module:function`; it takes the options, or the command line where there is no options class.
        options: `module:Class` of a dataclass that can be imported without torch.
        positional: Options that may be given without their flag, in this order.
    """

    group: str
    help: str
    function: str
    options: str | None = None
    positional: tuple[str, ...] = ()

    def run(self, name: str, arguments: Sequence[str]) -> None:
        """Parse the options and run the command.

        Args:
            name: The command's name, such as `registry promote`.
            arguments: The command line after the name.
        """
        if self.options is None:
            load_object(self.function)([*name.split(), *arguments])
            return
        options = parse(load_object(self.options), arguments, f"cahqp {name}", self.help, self.positional)
        load_object(self.function)(options)


TRAIN, LABEL, MEASURE, CYCLE, WATCH, EDGE, TOOLS = (
    "Train", "Label", "Measure", "Run cycles", "Watch cameras", "Deploy to the edge", "Tools",
)  # fmt: skip

_LIGHTNING = "cahqp.cli.lightning:lightning"

COMMANDS: dict[str, Command] = {
    "fit": Command(TRAIN, "train a teacher or a student, or adapt a teacher", _LIGHTNING),
    "validate": Command(TRAIN, "measure on the validation frames of a config", _LIGHTNING),
    "test": Command(TRAIN, "measure on the test frames of a config", _LIGHTNING),
    "predict": Command(TRAIN, "run a config's model over its test frames", _LIGHTNING),
    "convert": Command(
        TRAIN,
        "convert a published DINO or RT-DETR checkpoint to a model file",
        "cahqp.detectors.published.convert:convert",
        "cahqp.detectors.published.options:ConvertOptions",
        ("weights", "output"),
    ),
    "info": Command(
        TRAIN,
        "describe a model file",
        "cahqp.inference.evaluate:info",
        "cahqp.inference.options:InfoOptions",
        ("file",),
    ),
    # Label
    "relabel": Command(
        LABEL,
        "write pseudo-labels for folders, videos or COCO files",
        "cahqp.relabel.command:relabel",
        "cahqp.relabel.options:RelabelOptions",
    ),
    "calibrate": Command(
        LABEL,
        "fit score calibration on labelled frames",
        "cahqp.relabel.calibrate:calibrate",
        "cahqp.relabel.options:CalibrateOptions",
    ),
    "reformat": Command(
        LABEL,
        "convert labels to YOLO, CVAT, Label Studio or COCO, and back",
        "cahqp.labels.formats.command:reformat",
        "cahqp.labels.formats.options:ReformatOptions",
    ),
    "quality": Command(
        LABEL,
        "report on pseudo-labels, with ground truth if given",
        "cahqp.reports.quality:quality",
        "cahqp.reports.options:QualityOptions",
    ),
    # Measure
    "evaluate": Command(
        MEASURE,
        "measure average precision of model files on labelled frames",
        "cahqp.inference.evaluate:evaluate",
        "cahqp.inference.options:EvaluateOptions",
    ),
    "benchmark adapt": Command(
        MEASURE,
        "compare adaptation arms over seeds, with intervals",
        "cahqp.benchmarks.adapt.command:adapt",
        "cahqp.benchmarks.options:AdaptBenchmarkOptions",
    ),
    "benchmark attention": Command(
        MEASURE,
        "time the forms of deformable attention on this machine",
        "cahqp.benchmarks.speed.attention:attention",
        "cahqp.benchmarks.options:AttentionBenchmarkOptions",
    ),
    "benchmark gate": Command(
        MEASURE,
        "measure how often the gate is wrong, on simulated candidates",
        "cahqp.benchmarks.gate:gate",
        "cahqp.benchmarks.options:GateBenchmarkOptions",
    ),
    "benchmark measure": Command(
        MEASURE,
        "measure AP and operating points of models on labelled frames",
        "cahqp.benchmarks.adapt.measure:measure",
        "cahqp.inference.options:MeasureOptions",
    ),
    "benchmark relabel": Command(
        MEASURE,
        "time relabelling beside the teacher's forward passes",
        "cahqp.benchmarks.relabel:time_relabel",
        "cahqp.benchmarks.label_options:RelabelBenchmarkOptions",
    ),
    "benchmark speed": Command(
        MEASURE,
        "measure images per second and memory of a config, beside a reference",
        "cahqp.benchmarks.speed.command:speed",
        "cahqp.benchmarks.options:SpeedBenchmarkOptions",
    ),
    "benchmark store": Command(
        MEASURE,
        "time training with and without a soft-label store",
        "cahqp.benchmarks.soft_labels:time_store",
        "cahqp.benchmarks.label_options:StoreBenchmarkOptions",
    ),
    # Cycles
    "cycle run": Command(
        CYCLE,
        "run or resume a cycle: adapt, relabel, retrain, compare, publish",
        "cahqp.cycle.run:run",
        "cahqp.cycle.run:CycleRunOptions",
    ),
    "cycle status": Command(
        CYCLE,
        "show the state of each stage and the next command",
        "cahqp.cycle.status:status",
        "cahqp.cycle.status:CycleStatusOptions",
    ),
    "cycle compare": Command(
        CYCLE,
        "compare finished cycles of one plan with several seeds",
        "cahqp.cycle.compare:compare",
        "cahqp.cycle.compare:CycleCompareOptions",
    ),
    "publish": Command(
        CYCLE,
        "publish a candidate model file, or keep the running one",
        "cahqp.cycle.publish:publish",
        "cahqp.cycle.publish:PublishOptions",
    ),
    "report": Command(
        CYCLE, "rewrite the report of a cycle", "cahqp.reports.cycle:report", "cahqp.reports.options:ReportOptions"
    ),
    "replay": Command(
        CYCLE,
        "update a bounded replay buffer of past domains",
        "cahqp.cycle.replay_buffer:replay",
        "cahqp.cycle.replay_buffer:ReplayOptions",
    ),
    "apply-decision": Command(
        CYCLE,
        "carry out the decision of a gate",
        "cahqp.cycle.apply_decision:apply_decision",
        "cahqp.cycle.apply_decision:ApplyDecisionOptions",
    ),
    # Cameras
    "fetch": Command(
        WATCH,
        "copy frames and videos from a folder or a URL",
        "cahqp.cycle.fetch:fetch",
        "cahqp.cycle.fetch:FetchOptions",
    ),
    "features": Command(
        WATCH,
        "write the per-frame signals that drift detection reads",
        "cahqp.drift.features:features",
        "cahqp.drift.options:FeaturesOptions",
    ),
    "drift": Command(
        WATCH,
        "detect drifted and faulty cameras",
        "cahqp.drift.command:drift",
        "cahqp.drift.options:DriftOptions",
    ),
    "sample": Command(
        WATCH,
        "choose frames to upload within a budget",
        "cahqp.cycle.sample:sample",
        "cahqp.cycle.sample:SampleOptions",
    ),
    # Edge
    "export": Command(
        EDGE,
        "export a model file as a checked package",
        "cahqp.edge.export.command:export",
        "cahqp.edge.options:ExportOptions",
    ),
    "detect": Command(
        EDGE,
        "run a package over frames, a video or a stream, without torch",
        "cahqp.edge.detect:detect",
        "cahqp.edge.options:DetectOptions",
    ),
    "gate": Command(
        EDGE,
        "decide whether a package may replace the running one",
        "cahqp.gate.command:gate",
        "cahqp.gate.options:GateOptions",
    ),
    "keygen": Command(
        EDGE,
        "make a key pair for signing packages",
        "cahqp.edge.signing:keygen",
        "cahqp.edge.options:KeygenOptions",
    ),
    "registry list": Command(
        EDGE, "list all versions", "cahqp.registry.command:list_versions", "cahqp.registry.options:RegistryOptions"
    ),
    "registry show": Command(
        EDGE, "print the manifest of a version", "cahqp.registry.command:show", "cahqp.registry.options:ShowOptions"
    ),
    "registry promote": Command(
        EDGE,
        "make a package the running version",
        "cahqp.registry.command:promote",
        "cahqp.registry.options:PromoteOptions",
    ),
    "registry rollback": Command(
        EDGE,
        "run an earlier version again",
        "cahqp.registry.command:rollback",
        "cahqp.registry.options:RollbackOptions",
    ),
    "registry verify": Command(
        EDGE, "check every byte of a registry", "cahqp.registry.command:verify", "cahqp.registry.options:VerifyOptions"
    ),
    "registry gc": Command(
        EDGE, "remove old versions", "cahqp.registry.command:gc", "cahqp.registry.options:CollectOptions"
    ),
    "registry push": Command(
        EDGE, "copy a version to a URL or W&B", "cahqp.registry.command:push", "cahqp.registry.options:PushOptions"
    ),
    # Tools
    "scenes": Command(
        TOOLS,
        "render recordings of synthetic traffic",
        "cahqp.scenes.write:scenes",
        "cahqp.scenes.options:ScenesOptions",
    ),
}


def load_object(path: str) -> Any:
    """Return the object of `module:name`, importing its module."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def find(arguments: Sequence[str]) -> tuple[str, Command | None]:
    """Return the name at the start of a command line, and its command; `None` if there is no such command."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, COMMANDS[name]
    return arguments[0], None


def usage(prefix: str = "") -> str:
    """Return the list of commands, by group.

    Args:
        prefix: First word of the commands to list, such as `registry`; all of them if empty.
    """
    lines = [f"usage: cahqp {prefix + ' ' if prefix else ''}COMMAND [options]"]
    lines += [] if prefix else ["", "Verified continual adaptation of object detectors."]
    names = [name for name in COMMANDS if not prefix or name.startswith(f"{prefix} ")]
    width = max(map(len, names)) + 2
    group = ""
    for name in names:
        if COMMANDS[name].group != group:
            group = COMMANDS[name].group
            lines += ["", f"{group}:"]
        lines.append(f"  {name:<{width}}{COMMANDS[name].help}")
    return "\n".join([*lines, "", "`cahqp COMMAND --help` lists the options of a command."])
