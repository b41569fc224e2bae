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
        function: `module:function` below `cahqp`; it takes the options, or the command line without an options class.
        options: `module:Class` below `cahqp`, a dataclass that can be imported without torch.
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

COMMANDS: dict[str, Command] = {
    "fit": Command(TRAIN, "train a teacher or a student, or adapt a teacher", "cli.training:train"),
    "validate": Command(TRAIN, "measure on the validation frames of a config", "cli.training:train"),
    "test": Command(TRAIN, "measure on the test frames of a config", "cli.training:train"),
    "predict": Command(TRAIN, "run a config's model over its test frames", "cli.training:train"),
    "convert": Command(
        TRAIN, "convert a published DINO or RT-DETR checkpoint to a model file",
        "detectors.published.convert:convert", "detectors.published.options:ConvertOptions", ("weights", "output"),
    ),
    "info": Command(
        TRAIN, "describe a model file",
        "inference.evaluate:info", "inference.options:InfoOptions", ("file",),
    ),
    "relabel": Command(
        LABEL, "write pseudo-labels for folders, videos or COCO files",
        "relabelling.command:relabel", "relabelling.options:RelabelOptions",
    ),
    "calibrate": Command(
        LABEL, "fit score calibration on labelled frames",
        "relabelling.calibrate:calibrate", "relabelling.options:CalibrateOptions",
    ),
    "import": Command(
        LABEL, "read YOLO, VOC, CVAT, Label Studio, COCO variants or a public data set as one COCO file",
        "labels.imports.command:import_labels", "labels.imports.options:ImportOptions", ("format", "source"),
    ),
    "inspect": Command(
        LABEL, "describe data sets, and find copies across their splits",
        "reports.inspect_data:inspect", "reports.options:InspectOptions", ("data",),
    ),
    "reformat": Command(
        LABEL, "convert labels to YOLO, CVAT, Label Studio or COCO, and back",
        "labels.formats.command:reformat", "labels.formats.options:ReformatOptions",
    ),
    "quality": Command(
        LABEL, "report on pseudo-labels, with ground truth if given",
        "reports.quality:quality", "reports.options:QualityOptions",
    ),
    "recompose": Command(
        LABEL, "rebuild labelled frames of fixed cameras from background and labelled objects",
        "relabelling.recompose:recompose", "relabelling.recompose_options:RecomposeOptions",
    ),
    "repair-labels": Command(
        LABEL, "repair one type of label error from ground truth, for analysis only",
        "labels.repair:repair_labels", "labels.repair_options:RepairOptions",
    ),
    "evaluate": Command(
        MEASURE, "measure average precision of model files on labelled frames",
        "inference.evaluate:evaluate", "inference.options:EvaluateOptions",
    ),
    "benchmark adapt": Command(
        MEASURE, "compare adaptation arms over seeds, with intervals",
        "benchmarks.adapt.command:adapt", "benchmarks.options:AdaptBenchmarkOptions",
    ),
    "benchmark attention": Command(
        MEASURE, "time the forms of deformable attention on this machine",
        "benchmarks.speed.attention:attention", "benchmarks.options:AttentionBenchmarkOptions",
    ),
    "benchmark gate": Command(
        MEASURE, "measure how often the gate is wrong, on simulated candidates",
        "benchmarks.gate:gate", "benchmarks.options:GateBenchmarkOptions",
    ),
    "benchmark page": Command(
        MEASURE, "write the pages of adaptation benchmarks again from their figures",
        "benchmarks.adapt.page:page", "benchmarks.options:PageOptions",
    ),
    "benchmark measure": Command(
        MEASURE, "measure AP and operating points of models on labelled frames",
        "benchmarks.adapt.measure:measure", "inference.options:BenchmarkMeasureOptions",
    ),
    "benchmark relabel": Command(
        MEASURE, "time relabelling beside the teacher's forward passes",
        "benchmarks.relabel:time_relabel", "benchmarks.label_options:RelabelBenchmarkOptions",
    ),
    "benchmark speed": Command(
        MEASURE, "measure images per second and memory of a config, beside a reference",
        "benchmarks.speed.command:speed", "benchmarks.options:SpeedBenchmarkOptions",
    ),
    "benchmark store": Command(
        MEASURE, "time training with and without a soft-label store",
        "benchmarks.soft_labels:time_store", "benchmarks.label_options:StoreBenchmarkOptions",
    ),
    "init": Command(
        CYCLE, "write a plan and its configs for your own cameras",
        "cycle.init.command:init", "cycle.init.options:InitOptions", ("folder",),
    ),
    "cycle run": Command(
        CYCLE, "run or resume a cycle: adapt, relabel, retrain, compare, publish",
        "cycle.run:run", "cycle.run:CycleRunOptions",
    ),
    "cycle status": Command(
        CYCLE, "show the state of each stage and the next command",
        "cycle.status:status", "cycle.status:CycleStatusOptions",
    ),
    "cycle compare": Command(
        CYCLE, "compare finished cycles of one plan with several seeds",
        "cycle.compare:compare", "cycle.compare:CycleCompareOptions",
    ),
    "publish": Command(
        CYCLE, "publish a candidate model file, or keep the running one",
        "cycle.publish:publish", "cycle.publish:PublishOptions",
    ),
    "report": Command(CYCLE, "rewrite the report of a cycle", "reports.cycle:report", "reports.options:ReportOptions"),
    "replay": Command(
        CYCLE, "update a bounded replay buffer of past domains",
        "cycle.replay_buffer:replay", "cycle.replay_buffer:ReplayOptions",
    ),
    "apply-decision": Command(
        CYCLE, "carry out the decision of a gate",
        "cycle.apply_decision:apply_decision", "cycle.apply_decision:ApplyDecisionOptions",
    ),
    "fetch": Command(
        WATCH, "copy frames and videos from a folder or a URL",
        "cycle.fetch.command:fetch", "cycle.fetch.options:FetchOptions", ("frames", "output"),
    ),
    "features": Command(
        WATCH, "write the per-frame signals that drift detection reads",
        "drift.features:features", "drift.options:FeaturesOptions",
    ),
    "drift": Command(WATCH, "detect drifted and faulty cameras", "drift.command:drift", "drift.options:DriftOptions"),
    "sample": Command(
        WATCH, "choose frames to upload within a budget",
        "cycle.sample:sample", "cycle.sample:SampleOptions",
    ),
    "export": Command(
        EDGE, "export a model file as a checked package",
        "edge.export.command:export", "edge.options:ExportOptions",
    ),
    "detect": Command(
        EDGE, "run a package over frames, a video or a stream, without torch",
        "edge.detect:detect", "edge.options:DetectOptions",
    ),
    "gate": Command(
        EDGE, "decide whether a package may replace the running one",
        "gate.command:gate", "gate.options:GateOptions",
    ),
    "keygen": Command(
        EDGE, "make a key pair for signing packages",
        "edge.signing:keygen", "edge.options:KeygenOptions",
    ),
    "registry list": Command(
        EDGE, "list all versions",
        "registry.command:list_versions", "registry.options:RegistryOptions",
    ),
    "registry show": Command(
        EDGE, "print the manifest of a version",
        "registry.command:show", "registry.options:ShowOptions",
    ),
    "registry promote": Command(
        EDGE, "make a package the running version",
        "registry.command:promote", "registry.options:PromoteOptions",
    ),
    "registry rollback": Command(
        EDGE, "run an earlier version again",
        "registry.command:rollback", "registry.options:RollbackOptions",
    ),
    "registry verify": Command(
        EDGE, "check every byte of a registry",
        "registry.command:verify", "registry.options:VerifyOptions",
    ),
    "registry gc": Command(EDGE, "remove old versions", "registry.command:gc", "registry.options:CollectOptions"),
    "registry push": Command(
        EDGE, "copy a version to a URL or W&B",
        "registry.command:push", "registry.options:PushOptions",
    ),
    "completion": Command(
        TOOLS, "print the completion script of a shell: source <(cahqp completion bash)",
        "cli.completion:completion", "cli.completion:CompletionOptions", ("shell",),
    ),
    "scenes": Command(
        TOOLS, "render recordings of synthetic traffic",
        "scenes.write:scenes", "scenes.options:ScenesOptions",
    ),
}  # fmt: skip


def load_object(path: str) -> Any:
    """Return the object of `module:name` below `cahqp`, importing its module."""
    module, _, name = path.partition(":")
    return getattr(import_module(f"cahqp.{module}"), name)


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
    return "\n".join(
        [
            *lines,
            "",
            "Every command: --quiet prints warnings and errors only, --verbose log messages and tracebacks too.",
            "`cahqp COMMAND --help` lists the options of a command, `cahqp -V` prints the version.",
        ]
    )
