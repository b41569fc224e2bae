import errno
import json
import os
import runpy
import signal
import tempfile
from pathlib import Path

import pytest

from cahqp.__main__ import main
from cahqp.edge.options import KeygenOptions
from cahqp.edge.package import MANIFEST, MODEL
from cahqp.edge.pointer import PREVIOUS, RUNNING
from cahqp.edge.signing import keygen
from cahqp.registry.registry import PromotionRequest, Registry

made = runpy.run_path(str(Path(__file__).with_name("fixed_packages.py")))
make_package, promote, decision_for = made["make_package"], made["promote"], made["decision_for"]


def test_a_published_package_runs_and_can_be_taken_back(registry, tmp_path, capsys):
    first = registry.pointer.version
    decision = decision_for(registry, tmp_path / "p2")
    assert promote(tmp_path, "p2", f"--decision={decision}", f"--data=labels={tmp_path / 'p1'}") == 0
    second = registry.pointer.version
    manifest = registry.versions.read(second)
    assert manifest["parents"] == [first]
    assert manifest["decision"]["reason"] == "as measured"
    assert len(manifest["data"]["labels"]) == 64
    assert main(["registry", "list", f"--registry={registry.root}"]) == 0
    assert f"* {second}  as measured" in capsys.readouterr().out
    assert main(["registry", "verify", f"--registry={registry.root}"]) == 0
    assert main(["registry", "rollback", f"--registry={registry.root}"]) == 0
    assert registry.pointer.version == first
    assert main(["registry", "rollback", f"--registry={registry.root}"]) == 1  # nothing ran before it
    assert main(["registry", "show", f"--registry={registry.root}", f"--version={second}"]) == 0
    assert registry.verify() == []


def test_nothing_replaces_a_running_version_without_a_reason(registry, tmp_path, capsys):
    assert promote(tmp_path, "p2") == 1
    assert "--decision" in capsys.readouterr().err
    assert promote(tmp_path, "p2", f"--decision={decision_for(registry, tmp_path / 'p2', published=False)}") == 0
    assert "Nothing promoted" in capsys.readouterr().out
    assert promote(tmp_path, "p2", f"--decision={decision_for(registry, tmp_path / 'p1')}") == 1
    assert "another package" in capsys.readouterr().err
    assert registry.pointer.generation == 1


def test_a_decision_that_came_too_late_is_refused(registry, tmp_path, capsys):
    make_package(tmp_path / "p3", 3)
    late = decision_for(registry, tmp_path / "p3")
    first = registry.pointer.version
    assert promote(tmp_path, "p2", "--reason=faster", f"--expect={first}") == 0
    assert promote(tmp_path, "p3", f"--decision={late}") == 1
    assert "another process was faster" in capsys.readouterr().err
    assert promote(tmp_path, "p3", "--reason=slower", f"--expect={first}") == 1
    assert registry.pointer.version.startswith("0002")


def test_of_two_controllers_at_once_one_wins(registry, tmp_path):
    make_package(tmp_path / "p3", 3)
    first = registry.pointer.version
    given = ["--reason=race", f"--expect={first}"]
    children = []
    for name in ("p2", "p3"):
        child = os.fork()
        if child == 0:
            os._exit(promote(tmp_path, name, *given))
        children.append(child)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes == [0, 1]
    assert registry.pointer.generation == 2
    assert registry.verify() == []


def test_other_classes_and_other_keys_are_refused(tmp_path, capsys):
    for name in ("ours", "theirs"):
        keygen(KeygenOptions(output=tmp_path / name))
    trusted = f"--trusted={tmp_path / 'ours' / 'public.pem'}"
    make_package(tmp_path / "p1", 1, key=tmp_path / "ours" / "private.pem")
    make_package(tmp_path / "forged", 2, key=tmp_path / "theirs" / "private.pem")
    make_package(tmp_path / "unsigned", 3)
    make_package(tmp_path / "dogs", 4, ["cat", "dog"], tmp_path / "ours" / "private.pem")
    assert promote(tmp_path, "p1", trusted) == 0
    told = {"forged": "is signed with key", "unsigned": "is not signed", "dogs": "has other classes"}
    for name, words in told.items():
        assert promote(tmp_path, name, trusted, "--reason=x") == 1
        assert words in capsys.readouterr().err
    assert promote(tmp_path, "forged", "--reason=x") == 1  # the registry remembers its key
    assert Registry(tmp_path / "registry").pointer.generation == 1


def test_what_runs_becomes_a_new_version_once_it_is_signed(tmp_path):
    keygen(KeygenOptions(output=tmp_path / "ours"))
    trusted = tmp_path / "ours" / "public.pem"
    make_package(tmp_path / "plain", 1)
    make_package(tmp_path / "signed", 1, key=tmp_path / "ours" / "private.pem")
    assert promote(tmp_path, "plain") == 0
    assert promote(tmp_path, "signed", f"--trusted={trusted}", "--reason=keys") == 0
    registry = Registry(tmp_path / "registry")
    assert registry.pointer.generation == 2
    assert registry.versions.problems(registry.pointer.version, trusted) == []
    assert promote(tmp_path, "signed", f"--trusted={trusted}", "--reason=again") == 0
    assert Registry(tmp_path / "registry").pointer.generation == 2


def test_collecting_keeps_what_runs_and_the_way_back(registry, tmp_path):
    for seed in (3, 4):
        make_package(tmp_path / f"p{seed}", seed)
    for name in ("p2", "p3", "p4"):
        assert promote(tmp_path, name, "--reason=x") == 0
    assert main(["registry", "gc", f"--registry={registry.root}", "--keep=1"]) == 0
    assert [name[:4] for name in registry.versions.names()] == ["0003", "0004"]
    assert registry.rollback()[:4] == "0003"
    assert registry.verify() == []


def steps(at, act):
    """Let `act` happen in place of the write step number `at`: a sync, a rename, or the making of a file."""
    count = iter(range(10_000))
    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (tempfile, "mkstemp")):
        original = getattr(owner, name)

        def step(*given, original=original, **named):
            if next(count) == at:
                act()
            return original(*given, **named)

        setattr(owner, name, step)


def test_killed_at_any_step_exactly_one_version_runs_and_verifies(registry, tmp_path, contents):
    start, states, seen, ended, step = contents(registry.root), [], [], -signal.SIGKILL, 0
    while ended == -signal.SIGKILL:
        restore(registry.root, start)
        child = os.fork()
        if child == 0:
            steps(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
            registry.promote(tmp_path / "p2", PromotionRequest(reason="x"))
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert registry.verify() == []
        seen.append(registry.pointer.version[:4])
        registry.promote(tmp_path / "p2", PromotionRequest(reason="x"))
        assert registry.verify() == []
        states.append(contents(registry.root))
        step += 1
    assert ended == 0
    assert all(state == states[-1] for state in states)
    assert seen == sorted(seen)
    assert seen.count("0001") > 12
    assert seen.count("0002") > 1  # killed after the rename, and not at all


def restore(root, start):
    for path in sorted(root.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    for name, data in start.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written")])
def test_a_full_or_read_only_disk_changes_nothing(registry, tmp_path, monkeypatch, capsys, code, words):
    before = (registry.root / RUNNING).read_bytes()
    make = tempfile.mkstemp
    for at in (0, 1, 2, 3, 1):  # the files, the old pointer, and with the version there, the new one
        count = iter(range(100))

        def fail(*given, at=at, count=count, **named):
            if next(count) == at:
                raise OSError(code, os.strerror(code), str(Path(named["dir"]) / "x"))
            return make(*given, **named)

        monkeypatch.setattr(tempfile, "mkstemp", fail)
        assert promote(tmp_path, "p2", "--reason=x") == 1
        assert words in capsys.readouterr().err
        assert (registry.root / RUNNING).read_bytes() == before
        assert registry.verify() == []
    monkeypatch.setattr(tempfile, "mkstemp", make)
    assert promote(tmp_path, "p2", "--reason=x") == 0
    assert (registry.root / PREVIOUS).is_file()


def test_a_finished_version_goes_out_to_s3(registry, monkeypatch):
    server_module = pytest.importorskip("moto.server", reason="moto stands in for S3")
    s3fs = pytest.importorskip("s3fs", reason="fsspec needs it for s3://")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        system = s3fs.S3FileSystem(endpoint_url=f"http://{host}:{port}")
        system.mkdir("depot")
        assert main(["registry", "push", f"--registry={registry.root}", "--to=s3://depot/site"]) == 0
        pointer = json.loads(system.cat_file("depot/site/running.json"))
        there = f"depot/site/versions/{pointer['version']}"
        here = registry.versions.root / pointer["version"]
        for path in here.iterdir():
            assert system.cat_file(f"{there}/{path.name}") == path.read_bytes()
    finally:
        server.stop()


def test_a_version_becomes_an_artifact(registry, monkeypatch):
    import wandb

    logged = []

    class Run:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def log_artifact(self, artifact, aliases):
            logged.append((artifact.type, sorted(artifact.manifest.entries), aliases))

    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    assert main(["registry", "push", f"--registry={registry.root}", "--wandb=fleet"]) == 0
    assert logged == [("edge-package", [MODEL, MANIFEST, "version.json"], [registry.pointer.version])]


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("memory://user:secret@site/one?token=hidden", 0, "memory://site/one has"),
        ("ftp://user:secret@127.0.0.1:1/x?token=hidden", 1, "ftp://127.0.0.1:1/x cannot be reached"),
        ("nosuch://user:secret@site/x?token=hidden", 1, "nosuch://site/x cannot be opened"),
    ],
)
def test_where_a_version_goes_is_told_without_a_password(registry, capsys, url, code, words):
    assert main(["registry", "push", f"--registry={registry.root}", f"--to={url}"]) == code
    told = "".join(capsys.readouterr())
    assert words in told
    assert "secret" not in told and "hidden" not in told


def test_a_store_that_refuses_is_told_without_its_password(registry, capsys, monkeypatch):
    def refuse(*_):
        raise OSError("quota of https://user:secret@site/x?sig=hidden and of /x?sig=hidden for secret")

    monkeypatch.setattr("cahqp.registry.push._put", refuse)
    url = "memory://user:secret@site?sig=hidden"
    assert main(["registry", "push", f"--registry={registry.root}", f"--to={url}"]) == 1
    report = capsys.readouterr().err
    assert "memory://site cannot be written (quota of https://site/x and of /x?***" in report
    assert "secret" not in report and "hidden" not in report


def test_registry_commands_leave_the_files_of_a_folder_alone(registry, tmp_path):
    (registry.root / ".draft.tmp").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".draft.tmp").write_text("mine")
    left = registry.root / ".running.json.x1.tmp"
    left.write_text("of a killed command")
    assert main(["registry", "gc", f"--registry={registry.root}"]) == 0
    main(["registry", "rollback", f"--registry={tmp_path / 'other'}"])
    assert (registry.root / ".draft.tmp").exists() and (tmp_path / "other" / ".draft.tmp").exists()
    assert not left.exists()


def test_parents_may_be_numbers(tmp_path):
    make_package(tmp_path / "p1", 1)
    assert promote(tmp_path, "p1", "--parents", "12345678", "87654321") == 0
    registry = Registry(tmp_path / "registry")
    assert registry.versions.read(registry.pointer.version)["parents"] == ["12345678", "87654321"]
