"""The documentation: its reference is complete, and its commands exist."""

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest

from cahqp.cli.commands import COMMANDS, load_object
from cahqp.cli.training import COMMON
from cahqp.errors import option

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def hooks():
    """The modules of docs/hooks, which MkDocs imports from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs/hooks"))
        yield importlib.import_module
        for name in ("reference", "keys", "pages"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def pages(hooks):
    return "\n".join(hooks("reference").command_pages().values())


def spellings(command):
    if command.options is None:
        return [name for entries in COMMON.values() for name, _ in entries]
    return [option(field.name) for field in dataclasses.fields(load_object(command.options))]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_has_every_option_with_its_meaning(pages, name):
    section = pages.split(f"## cahqp {name}\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(--[^`]+)` \|(?:.* \|)? (.*) \|$", section.replace("\\|", "/"), re.MULTILINE))
    assert [text for text in spellings(COMMANDS[name]) if not rows.get(text.replace("|", "/"))] == []


def test_the_reference_links_every_command(hooks):
    index = hooks("reference").index_page()
    assert [name for name in COMMANDS if f"[`cahqp {name}`]" not in index] == []
