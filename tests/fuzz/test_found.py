"""What fuzzing has found: values that ended in a traceback, or in 2 GB of memory, and now end in a message."""

import hashlib
import io
import random
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fuzz import frame_targets, label_targets, model_targets, plan_targets
from fuzz.mutations import Mutator
from numpy.lib import format as npy
from security.changes import picture, put, text

from cahqp.coco.decoding import read_image
from cahqp.edge.package import MANIFEST, MODEL
from cahqp.errors import CahqpError
from cahqp.files import disk_trouble, path_inside, read_limited

TARGETS = {t.name: t for part in (label_targets, plan_targets, model_targets, frame_targets) for t in part.TARGETS}

FOUND = [
    *(
        ("calibration", "calibration.json", place, value)
        for place, value in [
            ("curves.car.x", [0.5, 0.1]),
            ("curves.car.x", []),
            ("curves.car.y", 7),
            ("curves.car", None),
            ("curves", []),
            ("source.car.hits", "2"),
            ("source.car.hits", "1"),
            ("source.car.scores", ["x"]),
            ("source", {}),
            ("source.car.decided", []),
            ("source.car.objects", -1),
            ("identity", 3),
            ("method", "none"),
            ("format", "2"),
        ]
    ),
    *(
        ("soft-labels", "soft/store.json", place, value)
        for place, value in [
            ("key", None),
            ("key.layout", {}),
            ("key.layout.queries", 10**12),
            ("key.layout.kept", 3),
            ("key.views", 0),
            ("key.classes", "ab"),
            ("key.classes", ["a"]),
            ("frames", [["a"]]),
            ("frames", [["../x", "", "", 0]]),
            ("frames.0.3", "1"),
            ("missing", None),
            ("complete", 1),
            ("root", 7),
            ("format", []),
        ]
    ),
    *(
        ("replay-buffer", "buffer/buffer.json", place, value)
        for place, value in [("domains", 7), ("domains.0", []), ("domains.0.frames", 0), ("domains.0.held", 10**6)]
    ),
    *(
        ("signals", file, place, value)
        for file, place, value in [
            ("night/signals.json", "images.0.frame", 10**400),
            ("night/signals.json", "images.0.camera", None),
            ("night/signals.json", "root", []),
            ("drift/drift.json", "cameras.north.since", "1"),
            ("drift/drift.json", "cameras.north.verdict", "moved"),
            ("drift/manifest.json", "settings.window", "8"),
        ]
    ),
    *(
        ("run-directory", file, place, value)
        for file, place, value in [
            ("run/manifest.json", "outputs", ["a"]),
            ("run/manifest.json", "inputs.frames", None),
            ("run/manifest.json", "seed", "2"),
            ("begun.partial/identity.json", "settings", 7),
            ("state.json", "adapt", 7),
            ("state.json", "adapt.seconds", "long"),
            ("state.json", "adapt.key", None),
        ]
    ),
    ("cameras", "before/taken.json", "files", 7),
    ("label-studio", "label-studio/tasks.json", "0.annotations.0.result.0.value.rectanglelabels", [7]),
    ("coco", "labels.json", "annotations.0.track_id", "x"),
    ("coco", "source.json", "root", "é" * 300),
]


@pytest.fixture
def read(tmp_path):
    """Return a function that reads changed files of a target with all its readers."""

    def run(name, change=None, file=None):
        folder = tmp_path / "case"
        if not folder.is_dir():
            folder.mkdir()
            (tmp_path / "output").mkdir()
            TARGETS[name].make(folder)
        if change is not None:
            change(folder, file)
        TARGETS[name].read(folder, tmp_path / "output", Mutator(random.Random(0), tmp_path, "", {}, thorough=True))

    return run


@pytest.mark.parametrize(("name", "file", "place", "value"), FOUND)
def test_a_value_of_another_kind_is_a_message(read, name, file, place, value):
    try:
        read(name, put(place, value), file)
    except OSError as error:
        assert disk_trouble(error) is not None
    except CahqpError:
        return
    else:
        pytest.fail("it was accepted")


def npz(**changed):
    """Return a change of `features.npz`."""

    def change(folder, file):
        with np.load(folder / file) as arrays:
            content = {name: arrays[name] for name in arrays.files}
        with (folder / file).open("wb") as target:
            changed.pop("save", np.savez)(target, **content | changed)

    return change


@pytest.mark.parametrize(
    "change",
    [
        npz(features=np.zeros(24, np.float32)),
        npz(features=np.full((24, 8), np.nan, np.float32)),
        npz(scores=np.zeros((24, 3), np.float32)),
        npz(readable=np.ones(24, np.float32)),
        npz(save=np.savez_compressed),
        npz(plain=np.array([{}] * 24)),
        text(b"PK"),
    ],
)
def test_signals_of_another_kind_are_a_message(read, change):
    with pytest.raises(CahqpError, match=r"features\.npz"):
        read("signals", change, "night/features.npz")


def test_a_header_that_claims_another_size_is_refused_before_it_is_allocated(read):
    def change(folder, file):
        with zipfile.ZipFile(folder / file) as old:
            content = {name: old.read(name) for name in old.namelist()}
        header = io.BytesIO()
        npy.write_array_header_1_0(header, {"shape": (10**12, 10), "fortran_order": False, "descr": "<f4"})
        with zipfile.ZipFile(folder / file, "w") as new:
            for name, data in (content | {"scores.npy": header.getvalue()}).items():
                new.writestr(name, data)

    with pytest.raises(CahqpError, match="size that its header states"):
        read("signals", change, "night/features.npz")


@pytest.mark.parametrize(("old", "new"), [(b"boxes", b"box\xffs"), (b"logits", b"\xff\xfegits")])
def test_names_in_a_model_that_are_no_text_are_a_message(read, old, new):
    def change(folder, file):
        data = (folder / file).read_bytes().replace(old, new)
        (folder / file).write_bytes(data)
        put("files", {MODEL: hashlib.sha256(data).hexdigest()})(folder, f"package/{MANIFEST}")

    with pytest.raises(CahqpError, match=r"UTF-8|refuses the model"):
        read("package", change, f"package/{MODEL}")


@pytest.fixture
def little_memory():
    """Limit the memory of this process to 256 MB more than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_small_file_takes_little_memory_whatever_its_limit(tmp_path, little_memory):
    (tmp_path / "a").write_bytes(b"x")
    assert read_limited(tmp_path / "a", 2 << 30) == b"x"


def test_a_chunk_of_an_image_allocates_no_more_than_the_file_has(tmp_path, little_memory):
    data = bytearray(picture(".png"))
    place = data.index(b"IDAT") - 4
    data[place : place + 4] = (2**31 - 1).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    assert read_image(tmp_path / "a.png").shape == (24, 32, 3)


def test_a_class_that_only_a_region_to_ignore_has_stays_a_class(read):
    def change(folder, file):
        (folder / file).write_text("names: {0: car}\n")
        for path in (folder / "yolo" / "labels").rglob("*.txt"):
            path.write_text("\n".join(line for line in path.read_text().splitlines() if line[0] == "0"))

    read("yolo", change, "yolo/data.yaml")


@pytest.mark.parametrize("name", ["..", "a/../b", "/a", "a\\b", "C:a", "\0", "\ud800", "é" * 200, ""])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(CahqpError, match="name inside a folder"):
        path_inside(tmp_path, name)
