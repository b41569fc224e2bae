import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import cahqp
from cahqp.__main__ import main
from cahqp.edge.detections import EdgeDetections
from cahqp.edge.export import command as exporting
from cahqp.edge.export.parity import Parity
from cahqp.edge.options import KeygenOptions
from cahqp.edge.package import MODEL, read_package
from cahqp.edge.runtime import Runtime
from cahqp.edge.signing import keygen
from cahqp.errors import WeightsError
from cahqp.runs.directory import verify


def run(edge, output, *given, weights="student"):
    return main(["export", f"--weights={edge / weights}.safetensors", f"--output={output}", *map(str, given)])


def test_a_package_says_what_its_model_file_says(edge):
    package = edge / "student-package"
    said = json.loads((package / "package.json").read_text())
    parity = said["checked"]["parity"]
    assert parity["frames"] == 6
    assert parity["detections"] > 20
    assert (parity["pixels"] < 0.5, parity["scores"] < 1e-3, parity["lost"]) == (True, True, 0)
    assert (said["input"]["height"], said["input"]["width"], said["classes"][1]) == (64, 96, "bus")
    assert verify(package) == []
    assert str(Path(cahqp.__file__).parents[1]).encode() not in (package / MODEL).read_bytes()


def test_a_model_that_keeps_the_aspect_ratio_wants_the_size_of_frames(edge, tmp_path, capsys):
    assert run(edge, tmp_path / "p", weights="teacher") == 1
    assert "--frame-size" in capsys.readouterr().err
    given = ["--frame-size", 80, 140, "--check-frames=3", f"--frames={edge / 'frames'}"]
    assert run(edge, tmp_path / "p", *given, weights="teacher") == 0
    runtime = Runtime(read_package(tmp_path / "p"))
    assert runtime.package.manifest["input"]["width"] == 112
    assert main(["detect", f"--weights={tmp_path / 'p'}", f"--frames={edge / 'frames'}", f"--output={tmp_path}/d"]) == 0
    with pytest.raises(Exception, match="--frame-size 80 80"):
        runtime.detect([np.zeros((80, 80, 3), np.uint8)])


def test_a_package_that_says_something_else_is_not_written(edge, tmp_path, monkeypatch, capsys):
    real = exporting.to_onnx

    def moved(detector, path, *given):
        real(detector, path, *given)
        model = onnx.load(path)
        node = next(n for n in model.graph.node if "boxes" in n.output)
        node.output[0] = "exact"
        shift = onnx.numpy_helper.from_array(np.array([0.02, 0, 0, 0], np.float32), "shift")
        model.graph.initializer.append(shift)
        model.graph.node.append(onnx.helper.make_node("Add", ["exact", "shift"], ["boxes"]))
        onnx.save(model, path)

    monkeypatch.setattr(exporting, "to_onnx", moved)
    assert run(edge, tmp_path / "p", f"--frames={edge / 'frames'}") == 1
    assert "boxes differ by up to 2.8" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_int8_keeps_the_decoder_in_float(edge, coco, tmp_path, capsys):
    given = ["--precision=int8", "--calibration", coco("calibration", range(20, 26)), "--check-frames=2"]
    assert run(edge, tmp_path / "p", *given, "--labelled", coco("labelled", range(6)), "--max-loss=0.5") == 0
    assert "frames/s, float32" in capsys.readouterr().out
    said = json.loads((tmp_path / "p" / "package.json").read_text())
    scopes = {name.split("/")[2].partition(".")[0] for name in said["quantised"]}
    assert scopes == {"backbone", "input_proj", "encoder"}
    assert said["checked"]["int8"]["ap50_float32"] > 0.9  # its own answers are the truth here
    small = (tmp_path / "p" / MODEL).stat().st_size
    assert small < 0.8 * (edge / "student-package" / MODEL).stat().st_size
    decoder = [n for n in onnx.load(tmp_path / "p" / MODEL).graph.node if "/decoder" in n.name]
    assert decoder
    assert not [n.name for n in decoder if "Linear" in n.op_type]


def test_int8_is_measured_on_other_frames_than_it_was_fitted_to(edge, coco, tmp_path, capsys):
    measured = coco("measured", range(4))
    given = ["--precision=int8", "--labelled", measured, "--check-frames=1"]
    assert run(edge, tmp_path / "p", *given) == 1
    assert "--calibration" in capsys.readouterr().err
    assert run(edge, tmp_path / "p", *given, "--calibration", coco("again", range(3, 6))) == 1
    assert "1 frames are in both" in capsys.readouterr().err


def test_an_int8_package_that_loses_too_much_is_not_written(edge, coco, tmp_path, capsys):
    black = coco("black", [None] * 3)
    given = ["--precision=int8", "--calibration", black, "--labelled", coco("lost", range(6)), "--check-frames=1"]
    assert run(edge, tmp_path / "p", *given) == 1
    assert "INT8 loses" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_a_signed_package_opens_with_its_key_alone(edge, tmp_path):
    for name in ("ours", "theirs"):
        keygen(KeygenOptions(output=tmp_path / name))
    given = [f"--key={tmp_path / 'ours' / 'private.pem'}", "--check-frames=1"]
    assert run(edge, tmp_path / "p", *given) == 0
    package = tmp_path / "p"
    assert read_package(package, tmp_path / "ours" / "public.pem").key
    with pytest.raises(WeightsError, match="is signed with key"):
        read_package(package, tmp_path / "theirs" / "public.pem")
    changed = (package / "package.json").read_text().replace('"bus"', '"van"')
    (package / "package.json").write_text(changed)
    with pytest.raises(WeightsError, match="does not match its content"):
        read_package(package, tmp_path / "ours" / "public.pem")


def test_parity_does_not_mind_the_order(edge):
    def found(order):
        boxes = np.array([[0, 0, 9, 9], [20, 20, 30, 30], [0, 0, 9, 9]], np.float32)
        return EdgeDetections(boxes[order], np.array([0.9, 0.9, 0.9], np.float32)[order], np.array([0, 0, 1])[order])

    parity = Parity()
    parity.add(found([0, 1, 2]), found([2, 1, 0]))
    assert parity.problems() == []
    assert parity.detections == 6
    parity.add(found([0, 1, 2]), found([0, 2]))
    assert "boxes differ by up to 21.00 px" in str(parity.problems())
    parity.add(found([0, 1]), found([2]))
    assert "no counterpart" in str(parity.problems())


@pytest.mark.parametrize("command", ["export", "gate"])
def test_a_folder_may_be_called_by_a_date(edge, tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    package = str(edge / "student-package")
    given = {
        "export": [f"--weights={edge / 'student'}.safetensors", "--frames", "20240105"],
        "gate": [f"--candidate={package}", f"--running={package}", "--source", "20240105"],
    }
    assert main([command, *given[command], "--output=out"]) == 1
    assert "20240105 does not exist" in capsys.readouterr().err


def test_a_stream_is_refused_without_its_password(edge, tmp_path, capsys):
    assert run(edge, tmp_path / "p", "--frames", "rtsp://user:secret@camera/1?token=hidden") == 1
    told = capsys.readouterr().err
    assert "rtsp://camera/1 is a stream" in told
    assert "secret" not in told and "hidden" not in told
