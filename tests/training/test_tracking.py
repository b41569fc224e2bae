import pytest
import wandb

from cahqp.__main__ import main


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """W&B as on a machine without an account, with all that it writes in the test's own folder."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()


def test_nothing_is_tracked_unless_asked_for(elsewhere, arguments, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("W&B was started")

    monkeypatch.setattr(wandb, "init", refuse)
    assert main([*arguments("fit"), "--trainer.max_epochs=1", f"--output={tmp_path / 'runs' / 'a'}"]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]


@pytest.mark.slow
def test_offline_tracking_needs_no_account(elsewhere, arguments, tmp_path):
    given = ["--wandb=offline", "--trainer.max_epochs=1", f"--output={tmp_path / 'runs' / 'a'}"]
    assert main([*arguments("fit"), *given]) == 0
    wandb.teardown()  # as when the process ends: only now all is on the disk
    (log,) = (tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb")
    assert [text for text in ("train/loss", "val/ap50", "learning_rate") if text.encode() not in log.read_bytes()] == []


def test_tracking_does_not_make_another_run(arguments, trained, capsys):
    given = ["--wandb=offline", "--trainer.max_epochs=2", f"--output={trained['teacher']}"]
    assert main([*arguments("fit"), *given]) == 0
    assert "finished already" in capsys.readouterr().out
