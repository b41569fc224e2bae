"""A device that has run a newer version of a registry refuses an older one, unless its owner signed the rollback."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cahqp.__main__ import main
from cahqp.edge.options import KeygenOptions
from cahqp.edge.pointer import PREVIOUS, RUNNING, read_pointer, sign_pointer, write_pointer
from cahqp.edge.signing import keygen
from cahqp.registry.registry import PromotionRequest, Registry

make_package = runpy.run_path(str(Path(__file__).with_name("fixed_packages.py")))["make_package"]


@pytest.fixture
def fleet(tmp_path):
    """A registry with two signed versions and signed pointers, a frame, and a copy of the first state."""
    keygen(KeygenOptions(output=tmp_path / "keys"))
    (tmp_path / "frames").mkdir()
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / "frames" / "0.png")
    registry = Registry(tmp_path / "registry")
    for number in (1, 2):
        package = make_package(tmp_path / f"package{number}", number, key=tmp_path / "keys" / "private.pem")
        registry.promote(package, PromotionRequest(reason="test"), *keys(tmp_path))
        shutil.copytree(registry.root, tmp_path / f"copy{number}")
    return tmp_path


def keys(root):
    return root / "keys" / "public.pem", root / "keys" / "private.pem"


def detect(root, registry="registry", **options):
    number = len(list(root.glob("out*")))
    given = {"weights": root / registry, "frames": root / "frames", "output": root / f"out{number}"}
    given |= {"trusted": root / "keys" / "public.pem", "state": root / "state.json"} | options
    return main(["detect", *(f"--{name}={value}" for name, value in given.items() if value is not None)])


def test_a_copy_of_an_earlier_registry_is_refused(fleet, capsys):
    assert detect(fleet) == 0
    assert json.loads((fleet / "state.json").read_text())["generation"] == 2
    assert detect(fleet) == 0
    assert detect(fleet, "copy1") == 1
    assert "older than before: generation 1" in capsys.readouterr().err
    assert detect(fleet, "copy1", state=None) == 0  # what a device without a state cannot know
    shutil.copy(fleet / "copy1" / RUNNING, fleet / "registry" / RUNNING)
    assert detect(fleet) == 1


def test_a_signed_rollback_is_accepted(fleet, capsys):
    assert detect(fleet) == 0
    rollback = ["registry", "rollback", f"--registry={fleet / 'registry'}", f"--trusted={keys(fleet)[0]}"]
    assert main(rollback) == 1
    assert "Give that key with --key" in capsys.readouterr().err
    assert main([*rollback, f"--key={keys(fleet)[1]}"]) == 0
    assert detect(fleet) == 0
    assert read_pointer(fleet / "registry" / RUNNING).generation == 3
    assert detect(fleet, "copy2") == 1


def test_a_pointer_that_nobody_signed_is_refused(fleet, capsys):
    path = fleet / "registry" / RUNNING
    content = json.loads(path.read_text())
    del content["signature"]
    path.write_text(json.dumps(content))
    assert detect(fleet) == 1
    assert "is not signed" in capsys.readouterr().err
    assert not (fleet / "state.json").exists()


@pytest.mark.parametrize("change", ["generation", "key", "signature"])
def test_a_forged_pointer_is_refused(fleet, change):
    path, earlier = fleet / "registry" / RUNNING, read_pointer(fleet / "copy1" / RUNNING)
    content = json.loads(path.read_text())
    if change == "generation":  # a first pointer that claims to be new, with a right hash of its own
        write_pointer(path, replace(earlier, generation=9))
    elif change == "key":
        keygen(KeygenOptions(output=fleet / "others"))
        write_pointer(path, sign_pointer(earlier, fleet / "others" / "private.pem"))
    else:
        content["signature"]["signature"] = "x" * 88
        path.write_text(json.dumps(content))
    assert detect(fleet) == 1


def test_files_of_an_earlier_signed_package_in_the_running_version_are_refused(fleet, capsys):
    registry = fleet / "registry"
    versions = sorted(path.name for path in (registry / "versions").iterdir())
    for file in ("package.json", "model.onnx", "package.sig"):
        shutil.copy(registry / "versions" / versions[0] / file, registry / "versions" / versions[1] / file)
    assert detect(fleet, state=None) == 1
    assert "names another package" in capsys.readouterr().err


def test_a_repaired_pointer_counts_as_newer(fleet):
    assert detect(fleet) == 0
    (fleet / "registry" / RUNNING).write_text("{}")
    assert (fleet / "registry" / PREVIOUS).exists()
    Registry(fleet / "registry").rollback(None, *keys(fleet))
    assert detect(fleet) == 0


def test_a_registry_gets_a_signature_later(fleet):
    registry = Registry(fleet / "later")
    registry.promote(fleet / "package1", PromotionRequest(), keys(fleet)[0])
    assert detect(fleet, "later") == 1
    registry.promote(fleet / "package1", PromotionRequest(), *keys(fleet))
    assert detect(fleet, "later") == 0


def test_a_state_needs_a_registry_and_a_key(fleet, capsys):
    assert detect(fleet, "package1") == 1
    assert "Give --weights a registry" in capsys.readouterr().err
    assert detect(fleet, trusted=None) in (1, 2)
    assert "--trusted" in capsys.readouterr().err
    (fleet / "state.json").write_text('{"generation": "many"}')
    assert detect(fleet) == 1
    assert "invalid entries" in capsys.readouterr().err


def test_another_private_key_signs_nothing(fleet, capsys):
    keygen(KeygenOptions(output=fleet / "others"))
    arguments = ["registry", "rollback", f"--registry={fleet / 'registry'}", f"--trusted={keys(fleet)[0]}"]
    assert main([*arguments, f"--key={fleet / 'others' / 'private.pem'}"]) == 1
    assert "Give both halves of one pair" in capsys.readouterr().err
