"""What was changed or damaged on the way into a registry, or in it."""

import hashlib
import json
import runpy
from pathlib import Path

import pytest

from cahqp.__main__ import main
from cahqp.edge.package import MANIFEST, MODEL, package_files
from cahqp.edge.pointer import PREVIOUS, RUNNING
from cahqp.errors import WeightsError

made = runpy.run_path(str(Path(__file__).with_name("fixed_packages.py")))
make_package, promote, decision_for, flip = (made[n] for n in ("make_package", "promote", "decision_for", "flip"))


@pytest.mark.parametrize("victim", [MODEL, MANIFEST, "version.json", "pointer", "candidate"])
def test_what_was_tampered_with_is_refused(registry, tmp_path, capsys, victim):
    running = registry.versions.root / registry.pointer.version
    given = [f"--decision={decision_for(registry, tmp_path / 'p2')}"]
    before = (registry.root / RUNNING).read_bytes()
    places = {"pointer": registry.root / RUNNING, "candidate": tmp_path / "p2" / MODEL}
    flip(places.get(victim, running / victim))
    changed = (registry.root / RUNNING).read_bytes()
    assert promote(tmp_path, "p2", *given) == 1
    assert "changed" in capsys.readouterr().err
    assert (registry.root / RUNNING).read_bytes() == changed
    assert victim == "pointer" or changed == before
    assert victim == "candidate" or main(["registry", "verify", f"--registry={registry.root}"]) == 1


def test_a_damaged_pointer_is_mended_by_a_rollback(registry, tmp_path):
    first = registry.pointer.version
    assert promote(tmp_path, "p2", "--reason=x") == 0
    flip(registry.root / RUNNING)
    assert main(["registry", "rollback", f"--registry={registry.root}"]) == 0
    assert registry.pointer.version == first
    assert registry.verify() == []


def test_damage_after_a_rollback_does_not_bring_back_what_was_left(registry, tmp_path):
    good = registry.pointer.version
    assert promote(tmp_path, "p2", "--reason=x") == 0
    assert registry.rollback() == good
    flip(registry.root / RUNNING)
    assert registry.rollback() == good
    assert registry.verify() == []


@pytest.mark.parametrize("named", [False, True])
def test_a_damaged_pointer_to_the_only_version_is_mended_by_a_rollback(registry, tmp_path, named):
    only = registry.pointer.version
    flip(registry.root / RUNNING)
    given = [f"--to={only}"] if named else []
    assert main(["registry", "rollback", f"--registry={registry.root}", *given]) == 0
    assert registry.pointer.version == only
    assert registry.verify() == []
    assert promote(tmp_path, "p2", "--reason=x") == 0


def test_a_first_promotion_that_was_killed_before_its_copy_of_the_pointer_makes_it_up(registry, tmp_path):
    (registry.root / PREVIOUS).unlink()
    assert promote(tmp_path, "p1") == 0
    assert (registry.root / PREVIOUS).read_bytes() == (registry.root / RUNNING).read_bytes()


def test_damage_to_the_pointer_before_is_told_and_mended_without_a_change_of_what_runs(registry, tmp_path, capsys):
    assert promote(tmp_path, "p2", "--reason=x") == 0
    running = (registry.root / RUNNING).read_bytes()
    flip(registry.root / PREVIOUS)
    assert main(["registry", "verify", f"--registry={registry.root}"]) == 1
    told = capsys.readouterr().err
    assert f"{PREVIOUS} was changed or damaged" in told
    assert "registry gc" in told
    assert "rollback" not in told
    assert main(["registry", "gc", f"--registry={registry.root}"]) == 0
    assert registry.verify() == []
    assert (registry.root / RUNNING).read_bytes() == running


@pytest.mark.parametrize("package", ["p1", "p2"])
def test_a_promotion_writes_a_damaged_pointer_before_anew(registry, tmp_path, package):
    flip(registry.root / PREVIOUS)
    assert promote(tmp_path, package, "--reason=x") == 0
    assert registry.verify() == []


def test_a_pointer_that_is_gone_is_mended_by_the_rollback_that_is_advised(registry, tmp_path, capsys):
    first = registry.pointer.version
    (registry.root / RUNNING).unlink()
    assert main(["registry", "list", f"--registry={registry.root}"]) == 1
    assert promote(tmp_path, "p2", "--reason=x") == 1
    told = capsys.readouterr().err
    assert told.count("Run `cahqp registry rollback` to restore") == 2
    assert "Promote a package" not in told
    assert main(["registry", "rollback", f"--registry={registry.root}"]) == 0
    assert registry.pointer.version == first
    assert registry.verify() == []


def test_where_both_pointers_are_damaged_what_ran_is_promoted_again(registry, capsys):
    first = registry.pointer.version
    for name in (RUNNING, PREVIOUS):
        flip(registry.root / name)
    assert main(["registry", "rollback", f"--registry={registry.root}"]) == 1
    assert "the running version is unknown" in capsys.readouterr().err
    for name in (RUNNING, PREVIOUS):
        (registry.root / name).unlink()
    assert promote(registry.root.parent, f"registry/versions/{first}") == 0
    assert registry.verify() == []


@pytest.mark.parametrize("name", ["../secret.txt", "..", ".", "", "a/b", "a\\b", "a\0b"])
def test_a_package_that_names_a_file_outside_is_refused(tmp_path, capsys, name):
    path = make_package(tmp_path / "p", 1)
    (tmp_path / "secret.txt").write_text("top secret")
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][name] = hashlib.sha256(b"").hexdigest()
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="not a plain file name"):
        package_files(path)
    assert promote(tmp_path, "p") == 1
    assert "not a plain file name" in capsys.readouterr().err
    assert not list((tmp_path / "registry").rglob("secret.txt"))


def test_a_version_that_was_tampered_with_is_no_way_back(registry, tmp_path, capsys):
    first = registry.pointer.version
    assert promote(tmp_path, "p2", "--reason=x") == 0
    flip(registry.versions.root / first / MODEL)
    assert main(["registry", "rollback", f"--registry={registry.root}"]) == 1
    assert "Nothing was changed" in capsys.readouterr().err
    assert registry.pointer.version != first


def test_a_tampered_version_is_not_sent(registry, tmp_path, capsys):
    flip(registry.versions.root / registry.pointer.version / MODEL)
    assert main(["registry", "push", f"--registry={registry.root}", f"--to={tmp_path / 'out'}"]) == 1
    assert "Nothing was sent" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
