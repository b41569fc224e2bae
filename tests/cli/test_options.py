import errno
from argparse import ArgumentError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from safetensors import SafetensorError

from cahqp.__main__ import main
from cahqp.cli.commands import COMMANDS, Command, load_object
from cahqp.cli.options import parse
from cahqp.errors import ConfigError
from cahqp.runs.options import flags


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner options.

    Attributes:
        views: Number of views.
    """

    views: int = 2


@dataclass(frozen=True, kw_only=True)
class Example:
    """Options of an example.

    Attributes:
        frames: Files of frames.
        threshold: Score in [0, 1].
        dry_run: Only print.
        size: Height and width.
        kinds: Formats.
        inner: More options.
    """

    frames: list[Path]
    threshold: float | None = None
    dry_run: bool = False
    size: tuple[int, int] | None = None
    kinds: list[Literal["a", "b"]] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)


def read(*arguments):
    return parse(Example, arguments, "cahqp example")


def test_lists_take_several_values_and_booleans_none():
    options = read("--frames", "1", "2", "--dry-run", "--kinds", "a")
    assert options == Example(frames=[Path("1"), Path("2")], dry_run=True, kinds=["a"])


def test_a_boolean_is_a_flag_that_can_be_negated():
    assert not read("--frames=1", "--dry-run", "--no-dry-run").dry_run


@pytest.mark.parametrize("given", [["--size", "720", "1280"], ["--size=[720,1280]"], ["--size", "[720, 1280]"]])
def test_a_tuple_takes_its_values_bare_or_in_brackets(given):
    assert read("--frames=1", *given, "--dry-run") == Example(frames=[Path("1")], size=(720, 1280), dry_run=True)


def test_a_config_gives_any_of_them_and_the_command_line_wins(tmp_path):
    (tmp_path / "c.yaml").write_text("frames: [x, y]\nthreshold: 0.5\ndry_run: true\n")
    options = read(f"--config={tmp_path / 'c.yaml'}", "--threshold=0.2")
    assert options == Example(frames=[Path("x"), Path("y")], threshold=0.2, dry_run=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--frames=1", "--treshold=0.3"], "Did you mean --threshold?"),
        ([], "required: frames"),
        (["--frames=1", "--dry_run"], "Did you mean --dry-run?"),
        (["--frames=1", "--dry-run=true"], "Give --dry-run or --no-dry-run."),
        (["--frames=1", "--kinds=c"], "Expected a typing.Literal"),
        (["--frames=1", "--threshold=high"], "threshold"),
    ],
)
def test_wrong_command_lines_name_the_option(arguments, words):
    with pytest.raises(ArgumentError, match=words.replace("?", r"\?")):
        read(*arguments)


@pytest.mark.parametrize("given", [["--frames=1", "--frames=2"], ["--frames", "1", "2", "--fra", "3"]])
def test_a_list_given_twice_is_refused_rather_than_replaced(given):
    with pytest.raises(ConfigError, match="--frames is given more than once"):
        read(*given)


@pytest.mark.parametrize("given", [["--frames="], ["--frames", ""], ["--frames", "a", ""], ["--frames=a", "--kinds="]])
def test_empty_values_are_refused(given):
    with pytest.raises((ArgumentError, ConfigError), match=r"(?s)frames.*empty|kinds"):
        read(*given)


def test_an_empty_path_in_a_config_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("frames: ['']\n")
    with pytest.raises(ArgumentError, match="empty"):
        read(f"--config={tmp_path / 'c.yaml'}")


@pytest.mark.parametrize(
    "command",
    [
        ["relabel", "--weights=w", "--output=o", "--frames", ""],
        ["relabel", "--weights=w", "--output=", "--frames=x"],
        ["fetch", "--output=o", "--frames", ""],
        ["detect", "--weights", "", "--output=o", "--frames=x"],
        ["registry", "list", "--registry="],
        ["fit", "--config=configs/teacher/resnet18.yaml", "--data.train=['']", "--output=o"],
        ["fit", "--config=configs/teacher/resnet18.yaml", "--output="],
    ],
    ids=" ".join,
)
def test_no_command_takes_an_empty_path_for_the_working_directory(command, capsys):
    assert main(command) in (1, 2)
    assert "empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("unable to write: No space left on device (28)"),
    ],
    ids=["system", "safetensors", "torch"],
)
def test_a_full_disk_is_one_message_in_every_command(monkeypatch, capsys, error):
    def fail(self, *_):
        try:
            raise error
        finally:
            if isinstance(error, OSError):
                raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(Command, "run", fail)
    assert main(["info", "x"]) == 1
    assert "The disk is full: Free some space and rerun" in capsys.readouterr().err


def test_bare_values_take_the_names_of_positionals():
    options = parse(Inner, ["3"], "cahqp inner", positional=("views",))
    assert options == Inner(views=3)


def test_help_lists_every_option_with_its_text(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    text = capsys.readouterr().out
    assert all(word in text for word in ("--frames", "Files of frames.", "--inner.views", "Score in [0, 1]."))


@pytest.mark.parametrize(
    "options",
    [
        Example(frames=[Path("a b"), Path("c")]),
        Example(frames=[Path("a")], threshold=0.25, size=(1, 2), dry_run=True, kinds=["b", "a"], inner=Inner(views=7)),
    ],
)
def test_flags_give_the_same_options_back(options):
    assert read(*flags(options)) == options


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.options])
def test_every_option_of_a_command_is_documented(name):
    options = load_object(COMMANDS[name].options)
    for option in options.__dataclass_fields__:
        assert f"        {option}: " in documented(options), f"{name}: {option}"


def documented(options):
    return "\n".join(kind.__doc__ or "" for kind in options.__mro__)
