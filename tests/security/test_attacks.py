"""Hostile files, one change each: every command ends with a message, and reaches nothing outside its folders."""

import shutil
import tempfile
from pathlib import PurePosixPath

import pytest
from fuzz.guard import Guard
from security.attacks import ATTACKS
from security.commands import COMMANDS
from security.run import run
from security.sets import SETS

from cahqp.__main__ import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of valid files, cases and outputs, with its guard."""
    root = tmp_path_factory.mktemp("attacks")
    return root, Guard([], [root, tempfile.gettempdir()])


@pytest.fixture(scope="module")
def valid(place):
    """Return a function that returns the folder of the valid files of a set, made once."""

    def get(name):
        folder = place[0] / name / "valid"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            SETS[name].make(folder)
        return folder

    return get


@pytest.fixture
def outcome(place, valid, tmp_path):
    """Return a function that runs a command on a copy of its files, after a change."""

    def get(command, change=None, file=None):
        name = COMMANDS[command][0]
        folder = place[0] / name / "case"  # plans contain absolute paths
        shutil.copytree(valid(name), folder)
        try:
            if change is not None:
                change(folder, file)
            (tmp_path / "out").mkdir()
            return run(command, folder, tmp_path / "out", main, place[1])
        finally:
            folder.rename(tmp_path / "case")

    return get


@pytest.mark.parametrize("command", COMMANDS)
def test_valid_files_pass(outcome, command):
    found = outcome(command)
    assert (found.code, found.problem) == (0, None), found.printed


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.command}-{PurePosixPath(attack.file).name}")
def test_an_attack_ends_in_a_message(outcome, attack):
    found = outcome(attack.command, attack.change, attack.file)
    assert found.problem is None, found.problem
    assert found.code in (1, 2), found.printed
    assert attack.message in found.printed
