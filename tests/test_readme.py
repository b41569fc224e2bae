"""The commands of README and of docs/stages.md, run as they stand there on data of a few small frames."""

import inspect
import re
import shlex
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import cv2
import pytest
import torch
import yaml

from cahqp.__main__ import main
from cahqp.coco.decoding import read_image
from cahqp.detectors import model_file
from cahqp.files import read_json, write_json
from cahqp.training.ca_hqp.module import TeacherAdaptation
from cahqp.training.ca_hqp.settings import AlignmentSettings, PromptSettings, PseudoLabelSettings

ROOT = Path(__file__).parent.parent
README = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/stages.md"))
SMALL = ["--width=112", "--height=64"]
TINY = ["--config=configs/overlays/tiny.yaml", "--data.batch_size=2", "--trainer.enable_progress_bar=false"]
ALSO = {"fit": TINY, "relabel": ["--accelerator=cpu"], "evaluate": ["--resamples=20"], "scenes": SMALL}
# This environment stands for them: they need a network, and minutes.
INSTALLING = {"python3 -m venv .venv", ".venv/bin/pip install .", ". .venv/bin/activate"}

pytestmark = pytest.mark.filterwarnings("ignore")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands():
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def of_cahqp(*verbs):
    split = [shlex.split(line)[1:] for line in commands() if line.startswith("cahqp ")]
    return [arguments for arguments in split if arguments[0] in verbs]


def scenes(folder, first, hour, frames=4):
    settings = [f"--recordings=2 --frames={frames} --first-recording={first} --hour=[{hour}]", *SMALL]
    assert main(["scenes", f"--output={folder}", *" ".join(settings).split()]) == 0


def coco(name, folder):
    """Write a COCO file beside the folders of images, as a stranger's would be."""
    document = read_json(folder / "annotations.json")
    for image in document["images"]:
        image["file_name"] = f"{folder.name}/images/{image['file_name']}"
    write_json(folder.parent / name, document)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The directory a reader stands in: the repository's configs, and `my/` with frames of two domains."""
    root = tmp_path_factory.mktemp("workplace")
    for folder in ("configs", "weights"):
        (root / folder).symlink_to(ROOT / folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for number, (name, hour) in enumerate(
            {"source_train": "12,15", "source_val": "12,15", "night_test": "21,22"}.items()
        ):
            scenes(Path("my") / name, 100 * number, hour)
            coco(f"{name}.json", Path("my") / name)
        scenes(Path("my/made"), 900, "21,22")
        shutil.copytree("my/made/images", "my/night")
        film = cv2.VideoWriter("my/night.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 2, (112, 64))
        for path in sorted(Path("my/night").rglob("*.jpg")):
            film.write(read_image(path)[:, :, ::-1])
        film.release()
        assert [main(arguments) for arguments in of_cahqp("init")] == [0]
        yield root


@pytest.fixture
def at_work(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    return workplace


def embolden(path):
    """Let an untrained model find something, as a trained one would; nothing below 0.05 becomes a label."""
    detector = model_file.load(path)
    with torch.no_grad():
        for head in detector.class_heads:
            head.bias += 4.0
    detector.thresholds = dict.fromkeys(detector.classes, 0.1)
    model_file.save(path, detector)


def test_every_command_is_of_a_kind_that_is_checked():
    checked = {"help", "--help", *ALSO, "init", "cycle", "publish", "info"}
    strange = [
        line
        for line in commands()
        if line not in INSTALLING and not line.startswith("make ") and shlex.split(line)[:2][1] not in checked
    ]
    assert not strange


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make ")])
def test_make_commands_exist(line):
    asked = subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stderr


def test_make_alone_tells_every_target():
    told = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [name for name in phony[1].split() if f"make {name} " not in told] == []


def test_demo_weights_are_trained_on_the_demos_scenes():
    plan = yaml.safe_load((ROOT / "configs/cycle/demo-full.yaml").read_text())["scenes"]
    lines = re.findall(r"^SOURCE_(?:TRAIN|VAL) := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [dict(text.removeprefix("--").split("=") for text in shlex.split(line)) for line in lines]
    made = [{key.replace("-", "_"): yaml.safe_load(value) for key, value in settings.items()} for settings in made]
    assert made == [plan["source_train"], plan["source_val"]]


def told_settings():
    text = (ROOT / "docs/adaptation.md").read_text(encoding="utf-8")
    return {
        key: yaml.safe_load(value) for key, value in re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", text, re.MULTILINE)
    }


def test_the_documented_settings_of_adaptation_are_those_of_the_code():
    groups = {"prompt": PromptSettings, "alignment": AlignmentSettings, "pseudo_labels": PseudoLabelSettings}
    known = {f"{name}.{key}": value for name, group in groups.items() for key, value in asdict(group()).items()}
    arguments = inspect.signature(TeacherAdaptation).parameters.values()
    plain = {a.name: a.default for a in arguments if a.default not in (None, inspect.Parameter.empty)}
    assert told_settings() == {**known, **plain}


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).is_file()] == []


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_the_demos_weights_can_be_made_again(model):
    named = yaml.safe_load((ROOT / "configs/cycle/demo.yaml").read_text())[model]["weights"]
    assert named is None or f" {named}\n" in (ROOT / "Makefile").read_text()


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "relabel" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", of_cahqp("scenes"), ids=" ".join)
def test_scenes(at_work, arguments):
    assert main([*arguments, *SMALL]) == 0
    assert Path(arguments[arguments.index("--output") + 1], "annotations.json").is_file()


@pytest.mark.parametrize("arguments", of_cahqp("cycle"), ids=" ".join)
def test_cycle(at_work, capsys, arguments):
    dry = ["--dry-run"] if arguments[1] == "run" and "--dry-run" not in arguments else []
    assert main([*arguments, *dry]) == 0
    assert "evaluate" in capsys.readouterr().out


@pytest.mark.slow
def test_the_stages_by_hand(at_work):
    for arguments in of_cahqp("fit", "relabel", "evaluate", "publish", "info"):
        assert main([*arguments, *ALSO.get(arguments[0], [])]) == 0, arguments
        if "runs/teacher" in arguments:
            embolden(Path("runs/teacher/model.safetensors"))
    assert Path("runs/published/model.safetensors").is_file()
