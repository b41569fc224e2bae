"""What tests of whole commands share: tiny recordings, tiny configs, and the commands themselves."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "disabled")  # whatever a test forgets, nobody's account is asked

import gc
import http.server
import json
import logging
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from cahqp.__main__ import main
from cahqp.registry.registry import Registry

CLASSES = ["car", "bus", "truck", "motorcycle", "person"]
DINO = {
    "class_path": "cahqp.detectors.DINO",
    "init_args": {
        "classes": CLASSES,
        "backbone": "resnet10t",
        "backbone_options": {"channels": [8, 16, 16, 32], "stem_width": 8},
        "size": [64, 96],
        "dim": 32,
        "heads": 4,
        "points": 2,
        "levels": 3,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "ffn_dim": 32,
        "queries": 20,
        "max_detections": 20,
        "denoising": 10,
    },
}
RTDETR = {
    "class_path": "cahqp.detectors.RTDETR",
    "init_args": {
        "classes": CLASSES,
        "backbone_width": 8,
        "size": [64, 96],
        "dim": 32,
        "heads": 4,
        "points": 2,
        "fusion_blocks": 1,
        "decoder_layers": 1,
        "ffn_dim": 32,
        "queries": 20,
        "max_detections": 20,
        "denoising": 10,
    },
}
TERMS = {"prompt": {"enabled": True}, "alignment": {"dqfa": 0.1, "tiafa": 0.1}}
OPTIMIZER = {"learning_rate": 1e-3, "warmup": 2}


def _scenes(folder, first, recordings, frames, hour="[12,15]"):
    given = [f"--recordings={recordings}", f"--frames={frames}", f"--first-recording={first}", f"--hour={hour}"]
    assert main(["scenes", f"--output={folder}", "--width=96", "--height=64", "--image-format=png", *given]) == 0
    return folder / "annotations.json"


@pytest.fixture(scope="session", autouse=True)
def quiet_lightning():
    """Take away Lightning's log handlers: they would write to what was stderr when it was first imported."""
    import lightning.pytorch  # noqa: F401

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """COCO files of synthetic traffic, by name; never written to."""
    root = tmp_path_factory.mktemp("recordings")
    return {
        "day": _scenes(root / "day", 0, 2, 3),
        "val": _scenes(root / "val", 10, 1, 4),
        "night": _scenes(root / "night", 20, 2, 3, "[21,22]"),
    }


@pytest.fixture
def night(recordings, tmp_path):
    """A copy of the night's COCO file that a test may break."""
    shutil.copytree(recordings["night"].parent, tmp_path / "night")
    (tmp_path / "night" / "manifest.json").unlink()
    return tmp_path / "night" / "annotations.json"


@pytest.fixture(scope="session")
def configs(tmp_path_factory):
    """Configs of every kind of training, without data: `fit`, `student`, `adapt` and `retrain`."""
    root = tmp_path_factory.mktemp("configs")
    trainer = {"accelerator": "cpu", "max_epochs": 3, "log_every_n_steps": 1, "enable_progress_bar": False}
    feed = {"batch_size": 2, "batches_per_epoch": 3, "val": []}
    adaptation = {**TERMS, "pseudo_labels": {"threshold": 0.02}}
    kinds = {
        "fit": ("SupervisedTraining", {"detector": DINO}, "LabelledData", {"train": []}),
        "student": ("SupervisedTraining", {"detector": RTDETR}, "LabelledData", {"train": []}),
        "adapt": ("TeacherAdaptation", adaptation, "AdaptationData", {"source": [], "target": []}),
        "retrain": ("StudentTraining", {}, "StudentData", {"source": [], "pseudo": []}),
    }  # fmt: skip
    for name, (module, init, kind, roles) in kinds.items():
        config = {
            "model": {"class_path": module, "init_args": {**init, "optimizer": OPTIMIZER}},
            "data": {"class_path": kind, "init_args": {**feed, **roles}},
            "trainer": {**trainer, "enable_model_summary": False},
            "ema": {"decay": 0.9},
        }
        (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return {name: root / f"{name}.yaml" for name in kinds}


def data_flags(recordings, **roles):
    """Return `--data.ROLE=[FILES]` for names of recordings or paths."""
    found = {role: [str(recordings.get(name, name)) for name in names] for role, names in roles.items()}
    return [f"--data.{role}={json.dumps(files)}" for role, files in found.items()]


@pytest.fixture(scope="session")
def arguments(recordings, configs):
    """Return the command line of a training without its output: `arguments("fit")`."""
    roles = {
        "fit": {"train": ["day"], "val": ["val"]},
        "student": {"train": ["day"], "val": ["val"]},
        "adapt": {"source": ["day"], "target": ["night"], "val": ["val"]},
        "retrain": {"source": ["day"], "pseudo": ["night"], "val": ["val"]},
    }

    def build(kind, command="fit", **changed):
        config = [f"--config={configs[kind]}"]
        return [command, *config, *data_flags(recordings, **{**roles[kind], **changed})]

    return build


@pytest.fixture(scope="session")
def trained(arguments, tmp_path_factory):
    """Run directories of a teacher and a student, trained for a moment; never written to."""
    root = tmp_path_factory.mktemp("trained")
    for kind, name in (("fit", "teacher"), ("student", "student")):
        assert main([*arguments(kind), f"--output={root / name}", "--trainer.max_epochs=2"]) == 0
    return {name: root / name for name in ("teacher", "student")}


@pytest.fixture(scope="session")
def teacher(trained):
    """The teacher's model file."""
    return trained["teacher"] / "model.safetensors"


@pytest.fixture(scope="session")
def student(trained):
    """The student's model file."""
    return trained["student"] / "model.safetensors"


@pytest.fixture(scope="session")
def cahqp():
    """Run `python -m cahqp ...` as a process of its own."""

    def run(*arguments, cwd=None, env=None, timeout=120):
        command = [sys.executable, "-m", "cahqp", *map(str, arguments)]
        environment = {**os.environ, **(env or {})}
        return subprocess.run(
            command, cwd=cwd, env=environment, timeout=timeout, capture_output=True, text=True, check=False
        )

    return run


def forked(run):
    """Run a function in a forked process, which ends with its exit code, and return the process's number."""
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    child = os.fork()
    if child == 0:
        gc.disable()  # what other tests left behind may want to join threads that are not in this process
        code = 70
        try:
            code = run()
        except BaseException:  # noqa: BLE001  the process ends here, whatever happened
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


@pytest.fixture(scope="session")
def apart():
    """Run a function in a forked process and return its exit code, 0 where it raised nothing."""

    def run(work):
        return os.waitstatus_to_exitcode(os.waitpid(forked(lambda: work() or 0), 0)[1])

    return run


@pytest.fixture(scope="session")
def killed():
    """Run a command in a forked process that is killed with SIGKILL the moment `prepare` decides; say how it ended."""

    def run(arguments, prepare):
        def work():
            prepare()
            return main([str(a) for a in arguments])

        return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])

    return run


@pytest.fixture(scope="session")
def killed_after():
    """Run a command in a forked process that is killed with SIGKILL after some seconds; say how it ended."""

    def run(arguments, seconds):
        child = forked(lambda: main([str(a) for a in arguments]))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


@pytest.fixture(scope="session")
def two_processes():
    """Run a command on two ranks, as Lightning starts them, and return their exit codes; a hang is an error."""

    def run(arguments, seconds=240):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def work(rank):
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": 0}
            os.environ |= {name: str(value) for name, value in {**place, "WORLD_SIZE": 2}.items()}
            rank_zero_only.rank = rank
            return main([str(a) for a in arguments])

        from lightning.pytorch.utilities import rank_zero_only

        ranks = [forked(partial(work, rank)) for rank in (0, 1)]
        codes = {}
        deadline = time.monotonic() + seconds
        while len(codes) < 2:
            for child in set(ranks) - codes.keys():
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.05)
        return [codes[child] for child in ranks]

    return run


def contents(folder: Path):
    """Return every file of a directory with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session", name="contents")
def contents_fixture():
    """The function `contents`."""
    return contents


@pytest.fixture
def registry(tmp_path):
    """A registry that runs the first of two packages."""
    made = runpy.run_path(str(Path(__file__).parent / "registry" / "fixed_packages.py"))
    for seed in (1, 2):
        made["make_package"](tmp_path / f"p{seed}", seed)
    assert made["promote"](tmp_path, "p1") == 0
    return Registry(tmp_path / "registry")


@pytest.fixture
def write_coco(tmp_path):
    """Write a COCO file of small images, one car in each, and return its path.

    Each recording is a grey of its own, each frame a little brighter than the last; `change(document)` may break it.
    """

    def write(name="a", frames=4, recording="north", first=0, size=(24, 32), change=None, grey=50, suffix=".png"):
        folder = tmp_path / name
        images, annotations = [], []
        for number in range(frames):
            file_name = f"{recording}/{first + number:03d}{suffix}"
            path = folder / "images" / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((*size, 3), (grey + 3 * (first + number)) % 256, np.uint8))
            entry = {"id": number + 1, "file_name": file_name, "height": size[0], "width": size[1]}
            images.append({**entry, "camera": recording, "frame": first + number})
            box = {"id": number + 1, "image_id": number + 1, "category_id": 7, "bbox": [4, 6, 10, 8]}
            annotations.append({**box, "area": 80, "iscrowd": 0})
        document = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "car"}]}
        if change is not None:
            change(document)
        path = folder / "annotations.json"
        path.write_text(json.dumps(document))
        return path

    return write


class _Files(http.server.SimpleHTTPRequestHandler):
    """Files of the server's folder, with ranges and ETags; `server.cut` ends each answer after so many bytes."""

    def do_GET(self):
        data = (self.server.folder / self.path.lstrip("/")).read_bytes()
        tag = f'"{len(data)}-{sum(data) % 997}"'
        start = 0
        if "Range" in self.headers and self.headers.get("If-Range") == tag:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.server.ranges.append(start)
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.server.cut])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(tmp_path):
    """A local server of the files in its `folder`, at `url`; `ranges` lists the first byte of each answer."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    server.folder, server.ranges, server.cut = tmp_path / "served", [], None
    server.folder.mkdir()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
