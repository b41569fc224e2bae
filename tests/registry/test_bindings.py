"""Evidence of one run that is given for another run, and files that say more than they may."""

import json
import runpy
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from cahqp.__main__ import main
from cahqp.edge.onnx_scan import find_forbidden
from cahqp.edge.options import KeygenOptions
from cahqp.edge.package import MANIFEST, MODEL, read_package, write_manifest
from cahqp.edge.pointer import RUNNING
from cahqp.edge.signing import keygen, private_fingerprint, public_fingerprint, sign
from cahqp.errors import CahqpError, RunError, WeightsError
from cahqp.files import sha256, write_json
from cahqp.registry.registry import PromotionRequest, Registry

made = runpy.run_path(str(Path(__file__).with_name("fixed_packages.py")))
make_package, promote, decision_for = made["make_package"], made["promote"], made["decision_for"]


class Run:
    """Models, packages, frames, metrics, decision and registry of one run."""

    def __init__(self, root, number):
        self.root, self.registry = root, root / "registry"
        root.mkdir()
        for role, seed in (("old", 2 * number), ("new", 2 * number + 1)):
            (root / f"{role}.safetensors").write_text(str(seed))
            make_package(root / role, seed)
        (root / "frames.json").write_text(json.dumps({"run": number}))
        weights = {f"student-{role}": sha256(root / f"{role}.safetensors") for role in ("old", "new")}
        inputs = {"weights": weights, "frames": {"target-test": sha256(root / "frames.json")}}
        models = {
            name: {"target-test": {"ap50": value}} for name, value in (("student-old", 0.5), ("student-new", 0.6))
        }
        write_json(root / "metrics.json", {"models": models, "inputs": inputs})
        packages = {
            role: {"package": read_package(root / name).digest}
            for role, name in (("candidate", "new"), ("running", "old"))
        }
        write_json(root / "decision.json", {"published": True, "reason": "better", **packages})
        Registry(self.registry).promote(root / "old", PromotionRequest())


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs of one kind."""
    monkeypatch.setattr("cahqp.cycle.apply_decision.model_hash", lambda path: f"weights-{path.read_text()}")
    return Run(tmp_path / "a", 1), Run(tmp_path / "b", 2)


def publish(run, output, **exchanged):
    paths = {"candidate": "new.safetensors", "running": "old.safetensors", "metrics": "metrics.json"}
    paths = {k: run.root / v for k, v in paths.items()} | {"labelled": run.root / "frames.json"} | exchanged
    return main(["publish", *(f"--{k}={v}" for k, v in paths.items() if k != "labelled"), "--labelled",
                 str(paths["labelled"]), f"--output={output}"])  # fmt: skip


def apply(run, output, **exchanged):
    paths = {
        "decision": "decision.json", "candidate": "new.safetensors", "running": "old.safetensors",
        "candidate_package": "new", "running_package": "old", "registry": "registry",
    }  # fmt: skip
    paths = {k: run.root / v for k, v in paths.items()} | exchanged
    return main(["apply-decision", *(f"--{k.replace('_', '-')}={v}" for k, v in paths.items()), f"--output={output}"])


def registry_promote(run, **exchanged):
    paths = {"package": run.root / "new", "decision": run.root / "decision.json", "registry": run.registry} | exchanged
    return main(["registry", "promote", *(f"--{k.replace('_', '-')}={v}" for k, v in paths.items())])


def test_any_exchange_between_two_runs_is_refused(runs, tmp_path, capsys):
    a, b = runs
    exchanges = {
        publish: {"candidate": "new.safetensors", "running": "old.safetensors", "metrics": "metrics.json",
                  "labelled": "frames.json"},
        apply: {"decision": "decision.json", "candidate": "new.safetensors", "running": "old.safetensors",
                "candidate_package": "new", "running_package": "old", "registry": "registry"},
    }  # fmt: skip
    for command, parts in exchanges.items():
        for part, name in parts.items():
            assert command(a, tmp_path / "x", **{part: b.root / name}) == 1, (command, part)
            assert not (tmp_path / "x").exists()
    for part, name in {"package": "new", "decision": "decision.json", "registry": "registry"}.items():
        assert registry_promote(a, **{part: b.root / name}) == 1, part
    assert "Traceback" not in capsys.readouterr().err
    for run in runs:
        assert Registry(run.registry).pointer.generation == 1
    assert publish(a, tmp_path / "published") == 0
    assert apply(a, tmp_path / "applied") == 0
    assert registry_promote(b) == 0


def test_a_rollback_to_a_version_of_another_registry_is_refused(runs, capsys):
    a, b = runs
    assert registry_promote(a) == 0
    first = Registry(b.registry).pointer.version
    (b.registry / "versions" / first).rename(a.registry / "versions" / first)
    assert main(["registry", "rollback", f"--registry={a.registry}", f"--to={first}"]) == 1
    assert "never ran in" in capsys.readouterr().err
    own = Registry(a.registry).pointer.before[0]
    assert main(["registry", "rollback", f"--registry={a.registry}", f"--to={own}"]) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"published": "false"}, {"published": 1}, {"candidate": None}, {"running": {"package": 3}},
        {"mean_difference": 7}, {"sets": {"s": {"candidate_ap50": 7, "running_ap50": 0.1, "difference": 0}}},
    ],
)  # fmt: skip
def test_a_decision_with_other_types_or_ranges_is_refused(runs, tmp_path, change, capsys):
    path = runs[0].root / "decision.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert apply(runs[0], tmp_path / "x") == 1
    assert registry_promote(runs[0]) == 1
    assert capsys.readouterr().err.count("invalid entries") == 2


@pytest.mark.parametrize("value", ["7", "-0.1", '"0.6"', "true", "NaN", "1e999"])
def test_an_ap50_outside_its_range_is_refused(runs, tmp_path, value):
    path = runs[0].root / "metrics.json"
    path.write_text(path.read_text().replace("0.6", value))
    assert publish(runs[0], tmp_path / "x") == 1


def test_metrics_or_decisions_put_beside_the_manifest_of_another_run_are_refused(runs, tmp_path, capsys):
    for name in ("metrics.json", "decision.json"):
        manifest = {"version": "1", "seed": 0, "settings": {}, "inputs": {}, "metrics": {}}
        manifest |= {"command": {"metrics.json": "evaluate"}.get(name, "gate"), "outputs": {name: "0" * 64}}
        write_json(runs[0].root / "manifest.json", manifest)
        command = publish if name == "metrics.json" else apply
        assert command(runs[0], tmp_path / "x") == 1
        assert "is not the file that" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50 + "1" + "}" * 50,
        '{"format": 1, "format": 1}',
        "1" * 5000,
        "\ufeff{}",
        "[]",
        '"\\ud800"',
    ],
)
@pytest.mark.parametrize("name", ["package.json", "decision.json", "metrics.json", RUNNING, "version.json"])
def test_unexpected_json_ends_in_a_message(runs, tmp_path, name, text, capsys):
    run = runs[0]
    version = run.registry / "versions" / Registry(run.registry).pointer.version
    places = {"package.json": run.root / "new", RUNNING: run.registry, "version.json": version}
    (places.get(name, run.root) / name).write_text(text)
    command = publish if name == "metrics.json" else apply
    assert command(run, tmp_path / "x") == 1
    registry_promote(run)
    main(["registry", "verify", f"--registry={run.registry}"])
    assert "Traceback" not in capsys.readouterr().err


def external(path, place):
    """Replace a package's model by one with a tensor in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    model = onnx.load(path / MODEL)
    graph, node = model.graph, model.graph.node[0]
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    if place == "initializer":
        graph.initializer.append(tensor)
    elif place == "attribute":
        graph.node.append(constant)
    elif place == "subgraph":
        body = helper.make_graph([constant], "body", [], [])
        node.attribute.append(helper.make_attribute("body", body))
    elif place == "function":
        function = helper.make_function("d", "f", [], ["w"], [constant], [helper.make_opsetid("", 17)])
        model.functions.append(function)
    elif place == "sparse":
        graph.sparse_initializer.add().values.CopyFrom(tensor)
    elif place == "training":
        model.training_info.add().algorithm.initializer.append(tensor)
    else:
        graph.node.append(helper.make_node("EPContext", [], ["w"], domain="com.microsoft"))
    (path / MODEL).write_bytes(model.SerializeToString())
    (path / "weights.bin").write_bytes(np.ones(1, np.float32).tobytes())
    content = json.loads((path / MANIFEST).read_text())
    return write_manifest(path, {k: v for k, v in content.items() if k not in ("format", "files")})


@pytest.mark.parametrize(
    "place", ["initializer", "attribute", "subgraph", "function", "sparse", "training", "operator"]
)
def test_weights_outside_the_hash_are_refused(tmp_path, place, capsys):
    keygen(KeygenOptions(output=tmp_path / "keys"))
    path = make_package(tmp_path / "p", 1)
    sign(path, external(path, place), tmp_path / "keys" / "private.pem")
    with pytest.raises(WeightsError, match="another file"):
        read_package(path)
    trusted = f"--trusted={tmp_path / 'keys' / 'public.pem'}"
    assert promote(tmp_path, "p", trusted) == 1
    assert main(["detect", f"--weights={path}", f"--frames={tmp_path}", f"--output={tmp_path / 'o'}", trusted]) == 1
    assert capsys.readouterr().err.count("another file") == 2


def endless(path, kind):
    """Replace a package's model by one that may run or grow without a limit."""
    model = onnx.load(path / MODEL)
    if kind == "functions":
        node = helper.make_node("f", [], ["w"], domain="d")
        model.functions.append(helper.make_function("d", "f", [], ["w"], [node], [helper.make_opsetid("", 17)]))
    else:
        model.graph.node.append(helper.make_node(kind, ["n"], ["w"], body=helper.make_graph([], "body", [], [])))
    (path / MODEL).write_bytes(model.SerializeToString())
    content = json.loads((path / MANIFEST).read_text())
    write_manifest(path, {k: v for k, v in content.items() if k not in ("format", "files")})


@pytest.mark.parametrize("kind", ["Loop", "Scan", "SequenceMap", "functions"])
def test_models_that_may_run_for_ever_are_refused(tmp_path, kind):
    path = make_package(tmp_path / "p", 1)
    read_package(path)
    endless(path, kind)
    with pytest.raises(WeightsError, match=f"contains .*{kind}"):
        read_package(path)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("output", {"max_detections": 60_000}, "max_detections"),
        ("output", {"max_detections": 9_000, "nms_iou": 0.5}, "with nms_iou"),
        ("input", {"batch": 4096, "height": 32768, "width": 32768}, "pixels"),
    ],
)
def test_packages_that_need_too_much_memory_are_refused(tmp_path, section, values, words):
    path = make_package(tmp_path / "p", 1)
    content = json.loads((path / MANIFEST).read_text())
    content[section] |= values
    write_manifest(path, {k: v for k, v in content.items() if k not in ("format", "files")})
    with pytest.raises(WeightsError, match=words):
        read_package(path)


def test_one_operator_gets_no_more_memory_than_all_models_may_have(tmp_path, capsys):
    package = make_package(tmp_path / "package", 1)
    model = onnx.load(package / MODEL)
    count = helper.make_tensor("count", TensorProto.INT64, [1], [10**10])
    boxes = model.graph.node.pop()
    huge = [
        helper.make_node("Constant", [], ["count"], value=count),
        helper.make_node("ReduceMax", ["images"], ["start"], keepdims=0),
        helper.make_node("Expand", ["start", "count"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["zero"], keepdims=0),
        helper.make_node("Constant", [], ["fixed"], value=boxes.attribute[0].t),
        helper.make_node("Add", ["fixed", "zero"], list(boxes.output)),
    ]
    model.graph.node.extend(huge)
    onnx.save(model, package / MODEL)
    described = {k: v for k, v in read_manifest(package).items() if k not in ("format", "files")}
    write_manifest(package, described)
    (tmp_path / "frames").mkdir()
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / "frames" / "0.png")
    given = [f"--weights={package}", f"--frames={tmp_path / 'frames'}", f"--output={tmp_path / 'out'}"]
    assert main(["detect", *given]) == 1
    assert "memory" in capsys.readouterr().err


def read_manifest(package):
    return json.loads((package / MANIFEST).read_text())


def test_damaged_models_are_scanned_without_an_exception(tmp_path):
    data = (make_package(tmp_path / "p", 1) / MODEL).read_bytes()
    random = np.random.default_rng(0)
    assert find_forbidden(data) is None
    for _ in range(3000):
        changed = bytearray(data)
        for place in random.integers(0, len(data), 4):
            changed[place] = random.integers(0, 256)
        find_forbidden(bytes(changed[: random.integers(1, len(data))]))


def test_a_registry_with_a_key_runs_signed_versions_only(tmp_path, capsys):
    for name in ("ours", "theirs"):
        keygen(KeygenOptions(output=tmp_path / name))
    ours, theirs = (f"--trusted={tmp_path / name / 'public.pem'}" for name in ("ours", "theirs"))
    make_package(tmp_path / "plain", 1)
    for seed in (2, 3):
        make_package(tmp_path / f"signed{seed}", seed, key=tmp_path / "ours" / "private.pem")
    assert promote(tmp_path, "plain") == 0
    for seed in (2, 3):
        assert promote(tmp_path, f"signed{seed}", "--reason=x", ours) == 0
    registry = Registry(tmp_path / "registry")
    plain, signed = registry.pointer.before
    rollback = ["registry", "rollback", f"--registry={registry.root}"]
    for given in ([], [theirs], [f"--to={plain}"], [f"--to={plain}", ours]):
        assert main([*rollback, *given]) == 1
    push = ["registry", "push", f"--registry={registry.root}", f"--to={tmp_path / 'out'}"]
    assert main(push) == 1
    with pytest.raises(WeightsError, match="runs only versions signed"):
        read_package(registry.root)
    assert registry.pointer.generation == 3
    assert main([*rollback, ours]) == 0
    assert registry.pointer.version == signed
    assert main([*push, ours]) == 0


def test_detections_on_request_of_one_package_only(tmp_path, capsys):
    path = make_package(tmp_path / "p", 1)
    given = [f"--weights={path}", f"--frames={tmp_path}", f"--output={tmp_path / 'o'}", f"--expect={'0' * 64}"]
    assert main(["detect", *given]) == 1
    assert "--expect" in capsys.readouterr().err


def test_a_private_key_is_never_readable_by_others(tmp_path, monkeypatch):

    modes, rename = [], Path.rename

    def watched(path, target):
        modes.append((path / "private.pem").stat().st_mode & 0o077)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    (tmp_path / "keys").mkdir()
    keygen(KeygenOptions(output=tmp_path / "keys"))
    assert modes == [0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys"]
    monkeypatch.setattr("cahqp.edge.signing._cryptography", lambda original=made: (_ for _ in ()).throw(RunError("")))
    with pytest.raises(CahqpError, match="not empty"):
        keygen(KeygenOptions(output=tmp_path / "keys"))


@pytest.fixture
def signed(tmp_path):
    """Two registries, each with a key pair of its own, two versions and the second one running."""
    sites = []
    for number, name in enumerate(("a", "b")):
        root = tmp_path / name
        root.mkdir()
        keygen(KeygenOptions(output=root / "keys"))
        for version in (1, 2):
            package = make_package(root / f"p{version}", 10 * number + version, key=root / "keys" / "private.pem")
            Registry(root / "registry").promote(package, PromotionRequest(reason="x"), root / "keys" / "public.pem")
        sites.append(root)
    return sites


def run_detect(root, output, package="p2", trusted="keys/public.pem"):
    Image.new("RGB", (12, 8)).save(root.parent / "frame.png")
    paths = {
        "weights": root / package,
        "trusted": root / trusted,
        "frames": root.parent / "frame.png",
        "output": output,
    }
    return main(["detect", *(f"--{k}={v}" for k, v in paths.items()), "--threshold=0"])


@pytest.mark.parametrize("part", ["model.onnx", "package.json", "package.sig", "keys/public.pem"])
@pytest.mark.parametrize("place", ["p2", "registry"])
def test_detect_refuses_any_part_of_another_run(signed, tmp_path, place, part, capsys):
    a, b = signed
    assert run_detect(a, tmp_path / "before", place) == 0
    folders = [root / "p2" for root in (a, b)]
    if place == "registry":
        folders = [root / place / "versions" / Registry(root / place).pointer.version for root in (a, b)]
    source, target = (root / part for root in (b, a)) if part.startswith("keys") else (f / part for f in folders[::-1])
    target.write_bytes(source.read_bytes())
    assert run_detect(a, tmp_path / "after", place) == 1
    assert not (tmp_path / "after").exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("part", ["running.json", "versions"])
def test_detect_and_rollback_refuse_the_registry_of_another_run(signed, tmp_path, part):
    a, b = (root / "registry" for root in signed)
    if part == "versions":
        shutil.rmtree(a / part)
        shutil.copytree(b / part, a / part)
    else:
        shutil.copy(b / part, a / part)
    trusted = f"--trusted={signed[0] / 'keys' / 'public.pem'}"
    assert run_detect(signed[0], tmp_path / "out", "registry") == 1
    assert main(["registry", "rollback", f"--registry={a}", trusted]) == 1
    assert main(["registry", "rollback", f"--registry={b}", trusted]) == 1  # with the key of the other run
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["model.onnx", "package.json", "package.sig", "version.json"])
def test_rollback_refuses_any_part_of_another_run(signed, part, capsys):
    a, b = (root / "registry" for root in signed)
    (target,), (source,) = (
        [root / "versions" / name for name in Registry(root).pointer.before] for root in (a, b)
    )  # fmt: skip
    (target / part).write_bytes((source / part).read_bytes())
    trusted = f"--trusted={signed[0] / 'keys' / 'public.pem'}"
    assert main(["registry", "rollback", f"--registry={a}", trusted]) == 1
    assert Registry(a).pointer.generation == 2
    assert "Traceback" not in capsys.readouterr().err


def test_finished_detections_do_not_skip_the_check_of_the_signature(signed, tmp_path):
    a, b = signed
    output = tmp_path / "out"
    assert run_detect(a, output) == 0
    assert run_detect(a, output) == 0  # finished already, after the check
    assert run_detect(a, output, trusted=b / "keys" / "public.pem") == 1
    unsigned = make_package(tmp_path / "unsigned", 12)
    assert run_detect(a, output, unsigned) == 1
    (a / "p2" / "package.sig").unlink()
    assert run_detect(a, output) == 1


def test_parallel_key_generation_mixes_no_pairs(tmp_path):
    def make(_):
        try:
            keygen(KeygenOptions(output=tmp_path / "keys"))
        except CahqpError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(make, range(16))) == 1
    private, public = (tmp_path / "keys" / f"{name}.pem" for name in ("private", "public"))
    assert private_fingerprint(private) == public_fingerprint(public)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys"]
