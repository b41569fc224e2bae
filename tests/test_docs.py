"""The documentation: its reference is complete, and its commands exist."""

import dataclasses
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

import cahqp.cli.lightning  # noqa: F401  all classes that a config may name
from cahqp.__main__ import main
from cahqp.cli.commands import COMMANDS, find, load_object
from cahqp.cli.options import parse
from cahqp.cli.training import COMMON
from cahqp.cli.training_arguments import all_subclasses
from cahqp.data.base import DetectionData
from cahqp.detectors import model_file
from cahqp.errors import option
from cahqp.files import read_json, write_json
from cahqp.training.base import DetectionModule
from cahqp.training.callbacks.alarms import Alarms
from cahqp.training.callbacks.ema import EMA

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
    rows = dict(re.findall(r"^\| `(--[^`]+)` \| ([^|]*) \|", section.replace("\\|", "/"), re.MULTILINE))
    assert [text for text in spellings(COMMANDS[name]) if not rows.get(text.replace("|", "/"))] == []


def test_the_reference_links_every_command(hooks):
    index = hooks("reference").index_page()
    assert [name for name in COMMANDS if f"[`cahqp {name}`]" not in index] == []


def shell_commands(page, languages="sh|bash|"):
    """Return the command lines of cahqp in a page's fenced blocks."""
    blocks = re.findall(rf"^```(?:{languages})\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    calls = [re.search(r"^(?:torchrun .* -m )?cahqp (.+)$", line) for line in lines]
    return [shlex.split(call[1], comments=True) for call in calls if call]


def keys_of(base):
    return {name for kind in all_subclasses(base) for name in inspect.signature(kind).parameters} - {"kwargs"}


def unknown_training_options(arguments):
    """Return the options of `fit` that neither the command line, a class of cahqp nor the Trainer has."""
    known = {"config", "output", "seed", "wandb", "example-images", "print-config", "help", "help-all", "model", "data"}
    groups = {"model": keys_of(DetectionModule) | {"help"}, "data": keys_of(DetectionData) | {"help"}}
    groups |= {"trainer": set(inspect.signature(Trainer).parameters), "ema": keys_of(EMA), "alarms": keys_of(Alarms)}
    flags = [text[2:].partition("=")[0] for text in arguments if text.startswith("--")]
    paths = [[*flag.split("."), ""][:2] for flag in flags]
    return [group for group, key in paths if key not in groups.get(group, {""}) or (not key and group not in known)]


PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("**/*.md")])
COMMAND_LINES = [(page.relative_to(ROOT), arguments) for page in PAGES for arguments in shell_commands(page)]


@pytest.mark.parametrize(
    ("page", "arguments"), COMMAND_LINES, ids=[f"{page}: {' '.join(args)}" for page, args in COMMAND_LINES]
)
def test_commands_in_the_documentation_can_be_parsed(page, arguments):
    name, command = find(arguments)
    if arguments == ["--help"]:
        return
    assert command is not None, f"no command {name}"
    rest = arguments[len(name.split()) :]
    if command.options is None:
        assert unknown_training_options(rest) == []
    else:
        assert parse(load_object(command.options), rest, f"cahqp {name}", "", command.positional)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_commands_of_the_page_on_labels_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    for arguments in shell_commands(ROOT / "docs/labels.md", "sh"):
        assert main(arguments) == 0, arguments


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_first_commands_of_the_page_on_the_edge_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main("scenes --output made --recordings 2 --frames 15 --width 112 --height 64".split()) == 0
    shutil.copytree("made/images", "frames")
    document = read_json(Path("made/annotations.json"))
    for image in document["images"]:
        image["file_name"] = f"frames/{image['file_name']}"
    write_json(Path("canary.json"), document)
    shutil.copy(ROOT / "weights/demo-student.safetensors", "student.safetensors")
    retrained = model_file.load(Path("student.safetensors"))
    retrained.thresholds = dict.fromkeys(retrained.classes, 0.2)
    model_file.save(Path("retrained.safetensors"), retrained)
    for arguments in shell_commands(ROOT / "docs/edge.md", "sh")[:8]:
        assert main(arguments) == 0, arguments
    assert "running" in capsys.readouterr().out


DRY_RUNS = [(page, args) for page, args in COMMAND_LINES if "--dry-run" in args and "configs/cycle/" in " ".join(args)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("page", "arguments"), DRY_RUNS, ids=[str(page) for page, _ in DRY_RUNS])
def test_plans_in_the_documentation_are_valid(tmp_path, monkeypatch, page, arguments):
    for folder in ("configs", "weights"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
@pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium here; CI installs one (apt-get install chromium)"
)
def test_every_page_of_the_site_fits_a_phone_and_loads_nothing_from_elsewhere(site):
    from playwright.sync_api import sync_playwright

    foreign, too_wide, broken = set(), [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(offline=True, viewport={"width": 390, "height": 844}).new_page()
        page.on("request", lambda request: foreign.add(request.url.split(":")[0]))
        for path in sorted(site.rglob("*.html")):
            page.goto(path.as_uri())
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                too_wide.append(path.name)
            broken += page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
        browser.close()
    assert (foreign - {"file", "data", "blob"}, too_wide, broken) == (set(), [], [])


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/design.md"])
def test_paths_of_the_code_in_the_developers_pages_exist(page):
    paths = re.findall(r"`((?:cahqp|tests|configs|docs)/[\w./-]+)`", (ROOT / page).read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_design_names_every_package():
    design = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    entries = [path for path in (ROOT / "cahqp").iterdir() if path.name.isidentifier() and path.name[0] != "_"]
    assert [path.name for path in entries if f"`{path.name}/`" not in design] == []
