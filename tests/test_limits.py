"""Work that a file or an option asks for has a limit, and exceeding it is one message."""

import os
import time
from pathlib import Path

import pytest
import yaml

from cahqp.__main__ import main
from cahqp.coco.decoding import read_image
from cahqp.coco.document import read_document
from cahqp.errors import CahqpError, ConfigError
from cahqp.files import read_json
from cahqp.gate.options import GateOptions
from cahqp.inference.options import EvaluateOptions
from cahqp.runs.directory import content_hash
from cahqp.runs.schema import parse
from cahqp.yaml_policy import read_yaml

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))


@pytest.fixture(params=["a.jpg", "a.json", "a.yaml", "a.mp4", "a.pem", "a.safetensors"])
def fifo(request, tmp_path):
    os.mkfifo(tmp_path / request.param)
    return tmp_path / request.param


def test_nothing_waits_for_a_fifo(fifo, tmp_path, capsys):
    readers = {
        ".jpg": [read_image],
        ".json": [read_json, read_document, content_hash],
        ".yaml": [parse],
        ".mp4": [content_hash],
        ".pem": [],
        ".safetensors": [content_hash],
    }
    for read in readers[fifo.suffix]:
        with pytest.raises(CahqpError):
            read(fifo)
    commands = [
        ["info", str(fifo)],
        ["detect", f"--weights={fifo}", f"--frames={fifo}", f"--output={tmp_path / 'o'}"],
        ["cycle", "run", f"--plan={fifo}", f"--output={tmp_path / 'o'}"],
        ["drift", "--reference", f"a={fifo}", "--frames", str(fifo), f"--output={tmp_path / 'o'}"],
        ["registry", "list", f"--registry={fifo}"],
    ]
    for command in commands:
        assert main(command) in (0, 1), command
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("read", [read_image, read_document, read_json])
def test_devices_are_no_files(read):
    with pytest.raises(CahqpError, match=r"regular file"):
        read(Path("/dev/zero"))


@pytest.mark.parametrize("text", [LAUGHS, MERGES, "a: &a [*a]\n", "[" * 5000, "a: 2020-13-45\n"], ids=range(5))
def test_yaml_cannot_grow(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(yaml.YAMLError):
        read_yaml(tmp_path / "p.yaml")
    with pytest.raises(ConfigError, match="not readable YAML"):
        parse(tmp_path / "p.yaml")
    assert main(["relabel", f"--config={tmp_path / 'p.yaml'}"]) == 1
    assert time.process_time() - start < 5


def test_ordinary_aliases_work(tmp_path):
    (tmp_path / "p.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert read_yaml(tmp_path / "p.yaml") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}
    (tmp_path / "p.yaml").write_text("")
    assert read_yaml(tmp_path / "p.yaml") is None


@pytest.mark.parametrize("value", [10**12, 200_000])
def test_resamples_have_a_limit(value):
    paths = {"candidate": Path("a"), "running": Path("b"), "output": Path("c")}
    with pytest.raises(ConfigError, match=r"--resamples must be at most 100,000"):
        GateOptions(**paths, resamples=value)
    with pytest.raises(ConfigError, match=r"--resamples must be at most 100,000"):
        EvaluateOptions(weights=["w"], frames=["f"], output=Path("o"), resamples=value)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e9])
def test_the_time_of_a_gate_has_a_limit(value):
    with pytest.raises(ConfigError, match="--max-minutes"):
        GateOptions(candidate=Path("a"), running=Path("b"), output=Path("c"), max_minutes=value)
