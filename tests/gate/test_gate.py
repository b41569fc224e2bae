import json

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from cahqp.__main__ import main
from cahqp.benchmarks.gate import curve
from cahqp.benchmarks.options import GateBenchmarkOptions
from cahqp.edge.package import MODEL, read_package, write_manifest
from cahqp.errors import ConfigError
from cahqp.gate.decision import RuntimeCost, SetEvidence, decide, lower_bound
from cahqp.gate.options import GateLimits

SAME = RuntimeCost(10, 5)


def evidence(difference=0.02, low=0.0, role="source", name="source", classes=None):
    return SetEvidence(name, role, 0.5 + difference, 0.5, low, "recordings", 12, classes or {})


def decided(*sets, candidate=SAME, **limits):
    return decide(sets, GateLimits(**limits), candidate, SAME)


def test_a_better_candidate_is_published():
    said = decided(evidence(), evidence(0.0, -0.009, "replay", "night"))
    assert said["published"]
    assert said["reason"] == "Published: +1.0 points of AP50 over 2 sets."


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ([evidence(), evidence(0.01, -0.02, "replay", "night")], "on night it may be 2.0 points"),
        ([evidence(-0.003), evidence(0.001, 0.0, "replay", "night")], "mean AP50 over 2 sets is 0.1 points below"),
        ([evidence(), evidence(-0.001, 0.0, "canary", "canary")], "over the canary"),
        ([evidence(classes={"bus": (-0.08, -0.01)})], "loses 8.0 points of AP50 of bus"),
        ([evidence(low=float("nan"))], "it may be"),
    ],
)
def test_a_worse_candidate_is_kept_out_with_its_reason(sets, words):
    said = decided(*sets)
    assert not said["published"]
    assert words in said["reason"]


def test_a_loss_of_a_class_that_may_be_an_accident_is_let_pass():
    assert decided(evidence(classes={"bus": (-0.08, 0.01), "car": (-0.04, -0.03)}))["published"]


def test_the_canary_decides_where_there_is_one():
    assert decided(evidence(-0.004, -0.009), evidence(0.03, 0.0, "canary", "canary"))["published"]


def test_slow_and_large_candidates_are_kept_out():
    assert "longer than allowed" in decided(evidence(), candidate=RuntimeCost(16, 5))["reason"]
    assert "longer than allowed" in decided(evidence(), candidate=RuntimeCost(11, 5), max_milliseconds=10.5)["reason"]
    assert "has 8.0 MB (allowed: 7.5)" in decided(evidence(), candidate=RuntimeCost(10, 8))["reason"]
    assert decided(evidence(), candidate=RuntimeCost(14, 7))["published"]


def test_limits_that_nothing_could_keep_to_are_refused(capsys):
    given = ["gate", "--candidate=new", "--running=old", "--output=decision"]
    assert main([*given, "--max-slowdown=-1", "--max-milliseconds=0", "--max-growth=0"]) == 1
    told = capsys.readouterr().err
    assert all(
        text in told
        for text in ("--max-slowdown must", "--max-milliseconds must be a number above 0, got 0", "--max-growth must")
    )


def test_nothing_is_decided_without_labels_that_may_decide():
    with pytest.raises(ConfigError, match="--canary"):
        decided(evidence(role="replay"))


def test_the_bound_of_few_groups_is_wider():
    assert lower_bound(0.02, 0.01, 10) == pytest.approx(0.02 - 0.01 * 1.1747, abs=1e-4)
    assert lower_bound(0.02, 0.01, 1000) == pytest.approx(0.01, abs=1e-4)
    assert lower_bound(0.02, 0.01, 1) == float("-inf")


def test_simulated_candidates_are_told_apart(tmp_path):
    options = GateBenchmarkOptions(output=tmp_path, recordings=12, frames=40, decisions=12, resamples=100)
    found = curve(options, (-3, 2))
    assert found["-3"]["published"] == 0.0
    assert found["+2"]["published"] > 0.7
    assert found["-3"]["mean_difference"] == pytest.approx(-3, abs=1)
    assert found["+2"]["mean_difference"] == pytest.approx(2, abs=1)


def blocks(seed):
    """A frame of blocks, (64, 96, 3) uint8 BGR."""
    random = np.random.default_rng(seed)
    image = np.full((64, 96, 3), random.integers(0, 200), np.uint8)
    for _ in range(12):
        top, left = random.integers(0, 50), random.integers(0, 80)
        image[top : top + 14, left : left + 16] = random.integers(0, 256, 3)
    return image


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A package of an opinionated model, and three sets of frames whose truth is what it says of them."""
    from cahqp.detectors import RTDETR
    from cahqp.detectors.model_file import save
    from cahqp.edge.runtime import Runtime

    root = tmp_path_factory.mktemp("gate")
    torch.manual_seed(7)
    small = {"dim": 32, "heads": 4, "points": 2, "ffn_dim": 32, "decoder_layers": 1, "queries": 12}
    detector = RTDETR(["car", "bus", "person"], backbone_width=8, fusion_blocks=1, size=(64, 96), **small)
    pictures = [blocks(number) for number in range(20)]
    views = torch.from_numpy(np.stack(pictures)[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        detector.box_heads[0].layers[-1].weight.normal_(std=0.3)
        head = detector.class_heads[0]
        head.weight.normal_(std=0.6)
        logits = detector.eval()(views).pred_logits.flatten(0, 1)
        scale = 2 / logits.std(0)  # every class is seen here and there, none everywhere
        head.bias.copy_((head.bias - logits.mean(0)) * scale)
        head.weight.mul_(scale[:, None])
    save(root / "model.safetensors", detector)
    given = [f"--weights={root / 'model.safetensors'}", f"--output={root / 'package'}", "--check-frames=2"]
    assert main(["export", *given]) == 0
    runtime = Runtime(read_package(root / "package"))
    for name, first in (("truth", 0), ("night", 20), ("dusk", 40)):
        shown = pictures if first == 0 else [blocks(first + number) for number in range(20)]
        write_set(root, name, shown, first, runtime)
    return root


def write_set(root, name, pictures, before, runtime):
    images, annotations = [], []
    for number, image in enumerate(pictures, start=before + 1):
        cv2.imwrite(str(root / f"{number}.png"), image)
        where = {"recording": f"r{(number - before - 1) // 2}", "frame": number}
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 64, **where})
        found = runtime.detect([image[:, :, ::-1]])[0].filter_by_score(np.full(3, 0.7, np.float32))
        for box, label in zip(found.boxes.astype(float).tolist(), found.labels.tolist(), strict=True):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "bbox": bbox}
            annotations.append(row)
    categories = [{"id": number, "name": name} for number, name in enumerate(runtime.classes, start=1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{name}.json").write_text(json.dumps(coco))


def gate(running, candidate, output, *given):
    places = [f"--candidate={candidate}", f"--running={running / 'package'}", f"--output={output}"]
    assert main(["gate", *places, "--resamples=60", "--max-slowdown=20", *given]) == 0
    return json.loads((output / "decision.json").read_text())


def shuffled(model):
    wrap(model, "logits", "Gather", numpy_helper.from_array(np.array([1, 2, 0]), "order"), axis=2)


def moved(model):
    wrap(model, "boxes", "Add", numpy_helper.from_array(np.array([0.1, 0.05, 0, 0], np.float32), "by"))


def without_a_class(model):
    wrap(model, "logits", "Add", numpy_helper.from_array(np.array([0, -50, 0], np.float32), "less"))


def not_finite(model):
    wrap(model, "boxes", "Mul", numpy_helper.from_array(np.array([np.nan, 1, 1, 1], np.float32), "none"))


def badly_converted(model):
    weight = next(w for w in model.graph.initializer if len(w.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, :, ::-1].copy() * 0.1, weight.name))


def no_operator(model):
    model.graph.node[-1].op_type = "Nonsense"


def wrap(model, name, operator, constant, **attributes):
    """Let an output go through one more operator."""
    for node in model.graph.node:
        node.output[:] = ["before" if n == name else n for n in node.output]
    model.graph.initializer.append(constant)
    model.graph.node.append(helper.make_node(operator, ["before", constant.name], [name], **attributes))


def spoiled(running, path, spoil):
    """A package whose hashes are right and whose model is not."""
    path.mkdir()
    manifest = json.loads((running / "package" / "package.json").read_text())
    model = onnx.load(running / "package" / MODEL)
    spoil(model)
    onnx.save(model, path / MODEL)
    write_manifest(path, {key: value for key, value in manifest.items() if key not in ("files", "format")})
    return path


def test_a_package_that_does_the_same_is_published(running, tmp_path):
    ground_truth = running / "truth.json"
    said = gate(
        running, running / "package", tmp_path / "g", "--source", str(ground_truth), f"--labels={ground_truth}",
        "--replay",
        f"night={running / 'night.json'}", f"dusk={running / 'dusk.json'}",
    )  # fmt: skip
    assert said["published"], said["reason"]
    assert said["sets"]["source"]["running_ap50"] > 0.9
    assert list(said["sets"]["source"]["classes"]) == ["bus", "car", "person"]
    assert list(said["sets"]) == ["dusk", "night", "source"]
    assert said["sets"]["source"]["groups"] == 10
    assert said["candidate"] == said["running"]
    assert said["advice"]["candidate"] == said["advice"]["running"]


@pytest.mark.parametrize("spoil", [shuffled, moved, without_a_class, not_finite, badly_converted])
def test_spoiled_candidates_are_refused(running, tmp_path, spoil):
    candidate = spoiled(running, tmp_path / "bad", spoil)
    said = gate(running, candidate, tmp_path / "g", f"--source={running / 'truth.json'}")
    assert not said["published"]
    assert said["reasons"]


def test_a_broken_int8_export_is_refused(running, tmp_path):
    from cahqp.edge.export.quantize import quantise

    spoiled(running, tmp_path / "bad", lambda model: None)
    black = iter([np.zeros((1, 3, 64, 96), np.float32)] * 2)
    quantise(running / "package" / MODEL, tmp_path / "int8.onnx", black)
    spoiled(running, tmp_path / "int8", lambda model: model.CopyFrom(onnx.load(tmp_path / "int8.onnx")))
    said = gate(running, tmp_path / "int8", tmp_path / "g", f"--source={running / 'truth.json'}")
    assert not said["published"]


def test_a_file_that_does_not_load_is_refused_and_a_running_one_is_an_error(running, tmp_path, capsys):
    bad = spoiled(running, tmp_path / "bad", no_operator)
    said = gate(running, bad, tmp_path / "g", f"--canary={running / 'truth.json'}")
    assert "onnxruntime refuses" in said["reason"]
    given = [f"--candidate={running / 'package'}", f"--running={bad}", f"--output={tmp_path / 'h'}"]
    assert main(["gate", *given, f"--canary={running / 'truth.json'}"]) == 1
    assert main(["gate", *given, f"--replay={running / 'truth.json'}"]) == 1
    assert "--canary" in capsys.readouterr().err


def test_files_of_one_name_are_one_set(running, tmp_path):
    ground_truth = running / "truth.json"
    night, dusk = (json.loads((running / f"{name}.json").read_text()) for name in ("night", "dusk"))
    for image in dusk["images"]:
        image["recording"] = f"dusk {image['recording']}"
    for row in dusk["annotations"]:
        row["id"] += 1000
    joined = {key: [*night[key], *dusk[key]] for key in ("images", "annotations")}
    (running / "joined.json").write_text(json.dumps(night | joined))
    both = [f"night={running / 'night.json'}", f"night={running / 'dusk.json'}"]
    said = gate(running, running / "package", tmp_path / "g", "--source", str(ground_truth), "--replay", *both)
    one = gate(running, running / "package", tmp_path / "one", f"--source={running / 'joined.json'}")["sets"]["source"]
    night, alone = said["sets"]["night"], said["sets"]["source"]
    assert night["groups"] == 2 * alone["groups"]  # recordings of the same name in two files are two
    assert night["running_ap50"] == pytest.approx(one["running_ap50"], abs=1e-6)
    given = [f"--candidate={running / 'package'}", f"--running={running / 'package'}", f"--output={tmp_path / 'h'}"]
    assert main(["gate", *given, f"--source=night={ground_truth}", "--replay", f"night={ground_truth}"]) == 1


def test_a_class_of_few_objects_does_not_judge(running, tmp_path):
    ground_truth = running / "truth.json"
    document = json.loads(ground_truth.read_text())
    of_class = {
        c["name"]: [a for a in document["annotations"] if a["category_id"] == c["id"]] for c in document["categories"]
    }
    kept = [a for name, own in of_class.items() for a in (own[:4] if name == "bus" else own)]
    few = running / "few-buses.json"
    few.write_text(json.dumps(document | {"annotations": kept}))
    min_objects = min(len(own) for name, own in of_class.items() if name != "bus")
    said = gate(running, running / "package", tmp_path / "g", f"--source={few}", f"--min-objects={min_objects}")
    assert said["sets"]["source"]["too_few"] == ["bus"]
    assert list(said["sets"]["source"]["classes"]) == ["car", "person"]


def test_a_set_of_few_objects_is_left_out_of_replay_and_refused_as_source(running, tmp_path, capsys):
    ground_truth = running / "truth.json"
    few = json.loads((running / "night.json").read_text())
    few["annotations"] = few["annotations"][:3]
    (running / "few.json").write_text(json.dumps(few))
    said = gate(
        running,
        running / "package",
        tmp_path / "g",
        f"--source={ground_truth}",
        f"--replay=night={running / 'few.json'}",
    )
    assert said["unjudged"] == ["night"] and list(said["sets"]) == ["source"] and said["published"]
    given = [f"--candidate={running / 'package'}", f"--running={running / 'package'}", f"--output={tmp_path / 'h'}"]
    assert main(["gate", *given, f"--source={running / 'few.json'}"]) == 1
    assert "no class has 20 objects" in capsys.readouterr().err


def copied(running, name, suffix=".png", **changes):
    """The set `truth` under another name, with its images encoded again in files of other names."""
    document = json.loads((running / "truth.json").read_text())
    for image in document["images"]:
        pixels = cv2.imread(str(running / image["file_name"]))
        image["file_name"] = f"{name}-{image['file_name'][:-4]}{suffix}"
        cv2.imwrite(str(running / image["file_name"]), pixels)
        image |= changes
    (running / f"{name}.json").write_text(json.dumps(document))
    return running / f"{name}.json"


def twelve_times(running):
    """One file that lists each image of `truth` twelve times, in twelve recordings."""
    document = json.loads((running / "truth.json").read_text())
    images = [i | {"id": 100 * n + i["id"], "recording": f"{n}"} for n in range(12) for i in document["images"]]
    rows = [
        r | {"id": 10_000 * n + r["id"], "image_id": 100 * n + r["image_id"]}
        for n in range(12)
        for r in document["annotations"]
    ]
    for image in images:
        name = f"{image['id']:05d}.png"
        (running / name).write_bytes((running / image["file_name"]).read_bytes())
        image["file_name"] = name
    (running / "twelve.json").write_text(json.dumps(document | {"images": images, "annotations": rows}))
    return running / "twelve.json"


@pytest.mark.parametrize(
    "sets",
    [
        lambda root: ["--source", f"a={root / 'truth.json'}", f"b={root / 'truth.json'}"],
        lambda root: ["--source", f"a={root / 'truth.json'}", f"a={root / 'truth.json'}"],
        lambda root: [f"--source={root / 'truth.json'}", f"--canary={copied(root, 'copy')}"],
        lambda root: [f"--source={root / 'truth.json'}", f"--replay={copied(root, 'bitmap', '.bmp')}"],
        lambda root: [f"--source={twelve_times(root)}"],
    ],
    ids=["two names", "one name", "other file names", "another format", "twelve times in one file"],
)
def test_frames_that_count_twice_are_refused(running, tmp_path, capsys, sets):
    places = [f"--candidate={running / 'package'}", f"--running={running / 'package'}", f"--output={tmp_path / 'g'}"]
    assert main(["gate", *places, *sets(running)]) == 1
    assert "labelled frames are copies and would count more than once" in capsys.readouterr().err
    assert not (tmp_path / "g").exists()


def test_frames_without_objects_may_be_equal(running, tmp_path):
    document = json.loads((running / "truth.json").read_text())
    for number in (901, 902):
        cv2.imwrite(str(running / f"{number}.png"), np.zeros((64, 96, 3), np.uint8))
        document["images"].append(document["images"][0] | {"id": number, "file_name": f"{number}.png"})
    (running / "dark.json").write_text(json.dumps(document))
    gate(running, running / "package", tmp_path / "g", f"--source={running / 'dark.json'}")


@pytest.mark.parametrize(
    ("value", "said"), [("night=", "names no file"), ("=truth.json", "names no file"), ("", "a value is empty")]
)
def test_a_set_without_a_file_is_refused(running, tmp_path, capsys, value, said):
    places = [f"--candidate={running / 'package'}", f"--running={running / 'package'}", f"--output={tmp_path / 'g'}"]
    assert main(["gate", *places, "--source", value]) == 1
    assert said in capsys.readouterr().err


def test_a_gate_that_takes_too_long_decides_nothing(running, tmp_path, capsys):
    places = [f"--candidate={running / 'package'}", f"--running={running / 'package'}", f"--output={tmp_path / 'g'}"]
    assert main(["gate", *places, f"--source={running / 'truth.json'}", "--max-minutes=1e-6"]) == 1
    assert "did not end within 1e-06 minutes" in capsys.readouterr().err
    assert not (tmp_path / "g").exists()
