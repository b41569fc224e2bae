"""Every file in configs/ is read and run: trainings for two batches, plans without starting anything."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from cahqp.__main__ import main
from cahqp.benchmarks.adapt.plan import ARMS
from cahqp.detectors import HuggingFaceDetector
from cahqp.detectors.model_file import load
from cahqp.scenes import CLASSES

ROOT = Path(__file__).parents[1]
FILES = {path.relative_to(ROOT).as_posix(): yaml.safe_load(path.read_text()) for path in ROOT.glob("configs/**/*.yaml")}
BENCHMARKS = [name for name, config in FILES.items() if "seeds" in config]
ROUNDS = [name for name, config in FILES.items() if "rounds" in config]
PLANS = [n for n, config in FILES.items() if "source" in config and n not in BENCHMARKS and n not in ROUNDS]
# For GPUs; they are only read here.
LARGE = [name for name, config in FILES.items() if ("bellevue" in name or "/public" in name) and "model" in config]
# Classes in the files of a benchmark on real frames, by the folder of its files.
REAL = {"cameras": "vehicle"} | dict.fromkeys(("daynight", "acdc", "bdd100k", "foggy-cityscapes", "sim10k"), "car")
REAL |= {"ua-detrac": "car"}
# What an overlay is laid over; the last one is laid over all of them.
OVERLAYS = {
    "configs/benchmark/overlays/source_student.yaml": "configs/student/demo.yaml",
    "configs/benchmark/overlays/retrain.yaml": "configs/student/demo_retrain.yaml",
    "configs/benchmark/overlays/real_teacher.yaml": "configs/teacher/resnet18.yaml",
    "configs/benchmark/overlays/real_source.yaml": "configs/teacher/resnet18.yaml",
    "configs/benchmark/overlays/real_adapt.yaml": "configs/teacher/demo_adapt.yaml",
    "configs/benchmark/overlays/real_self_training.yaml": "configs/teacher/demo_self_training.yaml",
    "configs/benchmark/overlays/real_oracle.yaml": "configs/benchmark/overlays/oracle.yaml",
    "configs/benchmark/overlays/coco_start.yaml": "configs/benchmark/overlays/coco_start.yaml",
    "configs/benchmark/overlays/coco_source.yaml": "configs/teacher/resnet18.yaml",
    "configs/benchmark/overlays/coco_rates.yaml": "configs/teacher/demo_adapt.yaml",
    "configs/benchmark/overlays/coco_self_training.yaml": "configs/teacher/demo_self_training.yaml",
    "configs/benchmark/overlays/coco_retrain.yaml": "configs/student/demo_retrain.yaml",
    "configs/benchmark/overlays/true_boxes.yaml": "configs/teacher/demo_adapt.yaml",
    "configs/overlays/alignment_only.yaml": "configs/teacher/demo_adapt.yaml",
    "configs/overlays/ca_hqp.yaml": "configs/teacher/demo_adapt.yaml",
    "configs/overlays/source_continued.yaml": "configs/teacher/demo_adapt.yaml",
    "configs/overlays/restyle_only.yaml": "configs/teacher/demo_adapt.yaml",
    "configs/overlays/mean_teacher.yaml": "configs/teacher/demo_adapt.yaml",
    "configs/overlays/oracle.yaml": "configs/teacher/demo.yaml",
    "configs/overlays/demo_short_adapt.yaml": "configs/teacher/demo_adapt.yaml",
    "configs/overlays/demo_short_retrain.yaml": "configs/student/demo_retrain.yaml",
    "configs/overlays/year_adapt.yaml": "configs/teacher/demo_adapt.yaml",
    "configs/overlays/year_retrain.yaml": "configs/student/demo_retrain.yaml",
    "configs/overlays/real_backbone.yaml": "configs/teacher/resnet18.yaml",
    "configs/overlays/real_cameras.yaml": "configs/student/demo.yaml",
    "configs/overlays/real_daynight.yaml": "configs/student/demo.yaml",
    "configs/overlays/real_round.yaml": "configs/teacher/demo_adapt.yaml",
    "configs/overlays/later_block.yaml": "configs/student/demo_retrain.yaml",
    "configs/overlays/tiny.yaml": None,
}
TRAININGS = [
    n for n, config in FILES.items() if "class_path" in config.get("model", {}) and n not in (*LARGE, *OVERLAYS)
]


@pytest.fixture
def fit(recordings, teacher, student, tmp_path, monkeypatch):
    """Run configs on tiny data, with the flags that a cycle's stages give."""
    monkeypatch.chdir(ROOT)

    def run(*names, weights=None):
        model = FILES[names[0]]["model"]
        roles, start = {
            "SupervisedTraining": ({"train": "day"}, weights),
            "TeacherAdaptation": ({"source": "day", "target": "night"}, teacher),
            "StudentTraining": ({"source": "day", "pseudo": "night"}, student),
        }[model["class_path"]]
        distils = FILES[names[0]]["data"]["class_path"] == "DistillationData"
        roles = {"source": "day", "frames": "night"} if distils else roles
        frames = {role: recordings[name] for role, name in {**roles, "val": "val"}.items()}
        given = [f"--config={name}" for name in [*names, "configs/overlays/tiny.yaml"]]
        given += [f"--data.{role}={json.dumps([str(path)])}" for role, path in frames.items()]
        given += [] if start is None else [f"--model.weights={start}"]
        given += [f"--model.teacher={teacher}"] if distils else []
        ceiling = any(name.endswith("true_boxes.yaml") for name in names)
        given += [f"--model.ground_truth={json.dumps([str(recordings['night'])])}"] if ceiling else []
        known = model["init_args"].get("detector", {}).get("init_args", {}).get("classes", CLASSES)
        given += [f"--data.ignore_categories={json.dumps(sorted(set(CLASSES) - set(known)))}"]
        assert main(["fit", *given, "--data.batch_size=2", f"--output={tmp_path / 'run'}"]) == 0
        assert (tmp_path / "run" / "model.safetensors").is_file()

    return run


def test_every_config_is_run_here():
    assert sorted([*PLANS, *ROUNDS, *BENCHMARKS, *TRAININGS, *LARGE, *OVERLAYS]) == sorted(FILES)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_runs(name, fit):
    fit(name)


def test_the_mean_teacher_runs(fit):
    fit("configs/teacher/demo_adapt.yaml", "configs/overlays/mean_teacher.yaml")


def test_restyled_source_frames_train_alone(fit):
    fit("configs/teacher/demo_adapt.yaml", "configs/overlays/restyle_only.yaml")


def test_the_start_of_a_benchmark_is_the_published_model(recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = FILES["configs/student/huggingface.yaml"]["model"]["init_args"]["detector"]["init_args"]["config"]
    published = HuggingFaceDetector(["truck", "person", "car"], config=config, size=(64, 64)).eval()
    published.model.save_pretrained(tmp_path / "published")
    detector = ["classes=[car, person]", "class_from={car: [car, truck]}", f"model={tmp_path / 'published'}"]
    given = [f"--model.detector.init_args.{setting}" for setting in [*detector, "size=[64, 64]"]]
    given += [
        f"--data.train={json.dumps([str(recordings['day'])])}",
        f"--data.val={json.dumps([str(recordings['val'])])}",
    ]
    given += ["--data.ignore_categories=[bus, truck, motorcycle]", f"--output={tmp_path / 'run'}"]
    assert main(["fit", "--config=configs/benchmark/overlays/coco_start.yaml", *given]) == 0
    start = load(tmp_path / "run" / "model.safetensors")
    assert start.thresholds.keys() == {"car", "person"}
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        truck, person, car = published(images).pred_logits.unbind(-1)
        expected = torch.stack([torch.maximum(car, truck), person], -1)
        torch.testing.assert_close(start(images).pred_logits, expected, atol=1e-5, rtol=0)


def test_the_oracle_runs(fit, teacher):
    fit("configs/teacher/demo.yaml", "configs/overlays/oracle.yaml", weights=teacher)


@pytest.mark.parametrize("name", LARGE)
def test_a_large_training_names_known_settings(name):
    assert main(["fit", f"--config={name}", "--print-config=skip_null", "--output=unused"]) == 0


def classes_of(plan):
    """Return the classes of a plan's teacher."""
    settings = [yaml.safe_load((ROOT / config).read_text()) for config in plan["teacher"].get("fit", [])]
    chosen = [one["model"]["init_args"].get("detector") or {} for one in settings if "model" in one]
    named = [one["init_args"]["classes"] for one in chosen if "classes" in one.get("init_args", {})]
    return named[-1] if named else ["car", "bus", "truck", "motorcycle", "person"]


@pytest.mark.parametrize("name", ROUNDS)
def test_a_plan_of_rounds_is_whole(name, tmp_path, monkeypatch, capsys):
    for folder in ("configs", "weights"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    source = FILES[name]["source"]
    categories = [{"id": n, "name": kind} for n, kind in enumerate(classes_of(FILES[name]))]
    box = {"id": 1, "image_id": 1, "category_id": 0, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0}
    image = {"id": 1, "file_name": "a.jpg", "width": 640, "height": 360}
    document = {"images": [image], "annotations": [box], "categories": categories}
    frames = [path for one in FILES[name]["rounds"] for path in one.get("train", [])]
    for entry in [*source["train"], *source["val"], *FILES[name]["tests"].values(), *frames]:
        if not entry.startswith("scenes:"):  # what the reader brings
            Path(entry).parent.mkdir(parents=True, exist_ok=True)
            Path(entry).write_text(json.dumps(document))
            Image.new("RGB", (640, 360)).save(Path(entry).parent / "a.jpg")
    assert main(["cycle", "run", f"--plan={name}", "--dry-run"]) == 0
    told = capsys.readouterr().out
    for command in ("features", "drift", "fit", "relabel", "replay", "evaluate", "export", "gate", "apply-decision"):
        assert f"cahqp {command} " in told


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_whole(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["cycle", "run", f"--plan={name}", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert all(f"cahqp {command} " in told for command in ("fit", "relabel", "evaluate", "publish", "report"))


def _real_frames(folder):
    """Write the COCO files of a benchmark on real frames, eight frames of a recording of its own each."""
    folder.mkdir()
    categories = [{"id": 0, "name": REAL[folder.name]}]
    for role in ("source_train", "source_val", "source_test", "target_train", "target_test"):
        images = [
            {"id": n, "file_name": f"{role}{n}.png", "width": 9, "height": 8, "recording": role} for n in range(8)
        ]
        for n, image in enumerate(images):
            colour = (sum(map(ord, role)) % 256, len(role), n)
            Image.new("RGB", (9, 8), colour).save(folder / image["file_name"])
        box = {"id": 0, "image_id": 0, "category_id": 0, "bbox": [1, 1, 4, 4]}
        document = {"images": images, "annotations": [box], "categories": categories}
        (folder / f"{role}.json").write_text(json.dumps(document))


@pytest.mark.parametrize("names", [*([name] for name in BENCHMARKS), sorted(ROOT.glob("configs/benchmark/*.yaml"))])
def test_a_benchmark_is_whole(names, recordings, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    for folder in REAL:
        _real_frames(tmp_path / folder)
    given = [
        f"--output={tmp_path / 'runs'}",
        f"--data={tmp_path}",
        f"--backbone={recordings['day']}",
        f"--start={tmp_path}",
    ]
    assert main(["benchmark", "adapt", "--plan", *map(str, names), *given, "--dry-run"]) == 0
    assert "All together: " in capsys.readouterr().out


@pytest.mark.parametrize("name", [n for n in OVERLAYS if "benchmark/" in n or "real_" in n or "later" in n])
def test_an_overlay_names_known_settings(name):
    both = ["fit", f"--config={OVERLAYS[name]}", f"--config={name}", "--print-config=skip_null"]
    assert main([*both, "--output=unused"]) == 0


def test_the_ceiling_of_a_benchmark_runs(fit):
    fit("configs/teacher/demo_adapt.yaml", "configs/benchmark/overlays/true_boxes.yaml")


def test_mean_teacher_and_ca_hqp_differ_in_the_switches_of_the_three_terms_alone():
    def keys(config, prefix=""):
        for name, value in config.items():
            yield from keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]

    switches = ["prompt.enabled", "alignment.dqfa", "alignment.tiafa"]
    for arm in ("mean_teacher", "ca_hqp"):
        assert list(keys(FILES[f"configs/overlays/{arm}.yaml"])) == [f"model.init_args.{key}" for key in switches]
    assert {**ARMS["mean-teacher"].__dict__, "configs": []} == {**ARMS["ca-hqp"].__dict__, "configs": []}
    assert ARMS["mean-teacher"].configs == ["configs/overlays/mean_teacher.yaml"]
    assert ARMS["ca-hqp"].configs == ["configs/overlays/ca_hqp.yaml"]


def test_the_oracle_trains_as_the_adaptation_does():
    adapt, oracle = FILES["configs/teacher/demo_adapt.yaml"], FILES["configs/benchmark/overlays/oracle.yaml"]
    assert oracle["model"]["init_args"]["optimizer"] == adapt["model"]["init_args"]["optimizer"]
    assert (oracle["trainer"], oracle["ema"]) == (adapt["trainer"], adapt["ema"])
    one, two = (config["data"]["init_args"] for config in (adapt, oracle))
    assert two["batch_size"] == one["batch_size"] + one["target_batch_size"]
    assert two["batch_size"] * two["pseudo_share"] == one["target_batch_size"]
