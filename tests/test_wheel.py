"""README's lines for one's own cameras, run with an installed wheel in a folder without a clone."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
HEADING = "## Run it on your own cameras"
SIZE = (112, 64)

pytestmark = pytest.mark.slow


def lines():
    """Return the lines of the block under the heading that begins with `cahqp init`."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(HEADING)[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    block = next(text for text in blocks if text.startswith("cahqp init"))
    return [shlex.split(line)[1:] for line in block.replace("\\\n", " ").splitlines()]


def frame(random, brightness):
    """Return a noisy frame and the boxes of its car and its person."""
    image = random.integers(brightness // 2, brightness, (SIZE[1], SIZE[0], 3), np.uint8)
    boxes = []
    for width, height, colour in ((30, 14, (20, 20, 200)), (8, 20, (30, 200, 30))):
        x, y = int(random.integers(0, SIZE[0] - width)), int(random.integers(0, SIZE[1] - height))
        cv2.rectangle(image, (x, y), (x + width, y + height), colour, -1)
        boxes.append([x, y, width, height])
    return image, boxes


def labelled(folder, name, seed, brightness, frames=6):
    random = np.random.default_rng(seed)
    (folder / name).mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, frames + 1):
        image, boxes = frame(random, brightness)
        cv2.imwrite(str(folder / name / f"{number}.png"), image)
        size = {"width": SIZE[0], "height": SIZE[1]}
        images.append({"id": number, "file_name": f"{name}/{number}.png", "recording": name, **size})
        for category, box in enumerate(boxes, 1):
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box}
            annotations.append(row | {"area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(document))


def unlabelled(folder, seed):
    random = np.random.default_rng(seed)
    (folder / "night").mkdir()
    for number in range(6):
        cv2.imwrite(str(folder / "night" / f"{number}.png"), frame(random, 60)[0])
    film = cv2.VideoWriter(str(folder / "night.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 2, SIZE)
    for _ in range(8):
        film.write(frame(random, 60)[0])
    film.release()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the installed wheel. Dependencies come from the environment of the tests."""
    root = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(root / "dist")]
    subprocess.run([*pip, "wheel", *built, str(ROOT)], check=True, cwd=root)
    (wheel,) = (root / "dist").glob("cahqp-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(root / "site"), str(wheel)], check=True, cwd=root)
    return root / "site"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    root = tmp_path_factory.mktemp("cameras")
    for seed, (name, brightness) in enumerate({"source_train": 200, "source_val": 200, "night_test": 60}.items()):
        labelled(root / "my", name, seed, brightness)
    unlabelled(root / "my", 9)
    return root


def run(site, place, *words):
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def test_readmes_lines_run_from_a_wheel(installed, workplace):
    where = run(installed, workplace, "-c", "import cahqp; print(cahqp.__file__)").stdout
    assert Path(where.strip()).is_relative_to(installed)
    verbs = []
    for words in lines():
        smoke = ["--smoke"] if words[0] == "init" else []
        done = run(installed, workplace, "-m", "cahqp", *words, *smoke)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        verbs.append(" ".join([*words[:2], *(["dry"] if "--dry-run" in words else [])]))
    assert verbs == ["init my", "cycle run dry", "cycle run", "cycle status"]
    assert list(workplace.rglob("report.html"))
