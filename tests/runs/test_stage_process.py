import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cahqp.runs import stage_process
from cahqp.runs.stage_process import StageProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stages are forked on Linux only")

# Without torch, which takes seconds to import.
LIGHT = "import sys; from cahqp.cli import stage_server as s; s._MODULES = (); sys.exit(s.serve())"
SLEEP = """import time
from cahqp.edge import signing
signing.keygen = lambda options: print(1, flush=True) or time.sleep(99)
"""
DRIVER = """
import sys
from pathlib import Path
from cahqp.runs import stage_process
stage_process.SERVER = (sys.executable, "-c", {server!r})
stage_process.SHARED.execute(["keygen", "--output=keys"], Path("log"), lambda seconds, line: None)
"""


@pytest.fixture
def stages(monkeypatch, tmp_path):
    monkeypatch.setattr(stage_process, "SERVER", (sys.executable, "-c", LIGHT))
    monkeypatch.chdir(tmp_path)
    shared = StageProcess()
    yield lambda *words: shared.execute(words, tmp_path / "logs/stage.log", lambda seconds, line: None)
    shared.close()


def test_stages_share_a_process_and_keep_their_exit_codes(stages, tmp_path):
    assert stages("scenes", "--output=a", "--recordings=1", "--frames=1", "--width=96", "--height=64") == 0
    assert stages("keygen") == 2
    assert stages("report", "--run=nowhere", "--output=r") == 1
    assert (tmp_path / "a/annotations.json").is_file()
    log = (tmp_path / "logs/stage.log").read_text()
    assert log.count("$ cahqp ") == 3 and "cahqp report: nowhere" in log


def test_a_stage_has_the_folder_and_environment_of_its_caller(stages, monkeypatch, tmp_path):
    assert stages("keygen") == 2
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert stages("scenes", "--output=b", "--recordings=1", "--frames=1", "--width=96", "--height=64") == 0
    assert (tmp_path / "elsewhere/b/manifest.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_stage_outlives_its_caller(number, tmp_path):
    code = DRIVER.format(server=SLEEP + LIGHT)
    driver = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        # Tests in the background of a shell ignore interrupts, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: "\n1\n" in (Path(tmp_path / "log").read_text() if Path(tmp_path / "log").exists() else ""))
    server = children(driver.pid)[0]
    stage = children(server)[0]
    os.kill(driver.pid, number)
    driver.wait(20)
    wait_for(lambda: not Path(f"/proc/{stage}").exists() and not Path(f"/proc/{server}").exists())


def children(parent):
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def wait_for(true):
    ends = time.monotonic() + 30
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)
