"""The door: `cahqp COMMAND`. Light commands answer without importing torch."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from importlib import import_module

from cahqp import __version__
from cahqp.errors import CahqpError, shortened
from cahqp.files import disk_trouble

# name -> (what it does, module, function that takes the remaining arguments)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "fit": ("train a teacher or a student, or adapt a teacher", "cahqp.cli.lightning", "lightning"),
    "validate": ("measure on the validation frames of a config", "cahqp.cli.lightning", "lightning"),
    "test": ("measure on the test frames of a config", "cahqp.cli.lightning", "lightning"),
    "predict": ("run a config's model over its test frames", "cahqp.cli.lightning", "lightning"),
    "relabel": ("write pseudo-labels for a folder, a video or a COCO file", "cahqp.cli.lightning", "relabel"),
    "calibrate": ("measure what a teacher's scores are worth, on labelled frames", "cahqp.cli.commands", "calibrate"),
    "reformat": ("labels to YOLO, CVAT, Label Studio, COCO, and back as truth", "cahqp.cli.commands", "reformat"),
    "quality": ("report on pseudo-labels, with truth where there is some", "cahqp.cli.commands", "quality"),
    "evaluate": ("average precision of model files on labelled frames", "cahqp.cli.commands", "evaluate"),
    "cycle": ("run or inspect a whole cycle: adapt, relabel, retrain, compare", "cahqp.cli.commands", "cycle"),
    "scenes": ("make recordings of synthetic traffic", "cahqp.cli.commands", "scenes"),
    "publish": ("publish a candidate model file, or keep the running one", "cahqp.cli.commands", "publish"),
    "report": ("write the report of a cycle again", "cahqp.cli.commands", "report"),
    "benchmark": ("measure this machine, or the whole method", "cahqp.cli.commands", "benchmark"),
    "features": ("write what drift is watched on, frame by frame", "cahqp.cli.cycle_commands", "features"),
    "drift": ("say which cameras have drifted, and which show a fault", "cahqp.cli.cycle_commands", "drift"),
    "convert": ("make a model file from a published DINO or RT-DETR checkpoint", "cahqp.cli.commands", "convert"),
    "sample": ("choose the frames worth sending, within a budget", "cahqp.cli.cycle_commands", "sample"),
    "fetch": ("bring frames and videos of a folder or a URL here", "cahqp.cli.cycle_commands", "fetch"),
    "replay": (
        "keep a bounded buffer of past domains, and choose what to replay",
        "cahqp.cli.cycle_commands",
        "replay",
    ),
    "apply-decision": ("carry out what a gate decided", "cahqp.cli.cycle_commands", "apply_decision"),
    "info": ("say what a model file holds", "cahqp.cli.commands", "info"),
    "export": ("write a model file as a checked package for the edge", "cahqp.cli.edge_commands", "export"),
    "detect": ("run a package over frames, a video or a stream, without torch", "cahqp.cli.edge_commands", "detect"),
    "gate": ("decide whether a package may replace the running one", "cahqp.cli.edge_commands", "gate"),
    "registry": ("versions and the one that runs: promote, roll back, verify", "cahqp.cli.edge_commands", "registry"),
    "keygen": ("make a pair of keys to sign packages with", "cahqp.cli.edge_commands", "keygen"),
}


def usage() -> str:
    """Return the help of the door itself."""
    lines = [f"  {name:<10} {text}" for name, (text, _, _) in COMMANDS.items()]
    head = "usage: cahqp COMMAND [options]\n\nVerified continual adaptation of object detectors."
    return "\n".join([head, "\ncommands:", *lines, "\n`cahqp COMMAND --help` tells a command's options."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Command and options; those of the process where not given.

    Returns:
        The exit code: 0 when all went well, 1 for something the user can mend, 2 for an option that cannot be read.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"cahqp {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"cahqp: there is no command {arguments[0]!r}. Known: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    _, module, function = COMMANDS[arguments[0]]
    command: Callable[[list[str]], None] = getattr(import_module(module), function)
    try:
        command(arguments)
    except ArgumentError as error:
        told = shortened(str(error))
        print(f"cahqp {arguments[0]}: {told}\n`cahqp {arguments[0]} --help` tells the options.", file=sys.stderr)
        return 2
    except CahqpError as error:
        print(f"cahqp {arguments[0]}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        print(f"cahqp {arguments[0]}: {trouble}", file=sys.stderr)
        return 1
    except SystemExit as ended:  # after `--help`, or where the run is finished already
        if not isinstance(ended.__context__, KeyboardInterrupt):
            return ended.code if isinstance(ended.code, int) else 143  # which is Lightning's answer to SIGTERM
        return _stopped(arguments[0])
    except KeyboardInterrupt as stop:
        return _stopped(arguments[0], str(stop))
    return 0


def _stopped(command: str, left: str = "") -> int:
    """Tell what an interrupt has left: the words that came with it, or else that nothing is lost."""
    print(f"cahqp {command}: stopped. {left or 'The same command again goes on from here.'}", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
