"""The benchmark's command over stages that a stand-in carries out: what is run, what is skipped, what is said."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image

from cahqp.__main__ import main
from cahqp.benchmarks.adapt import graph
from cahqp.benchmarks.adapt.code_state import code_state
from cahqp.benchmarks.adapt.matches import write_matches
from cahqp.benchmarks.adapt.page import BEGIN, END, write_page
from cahqp.benchmarks.adapt.table import markdown
from cahqp.evaluation.bootstrap import Groups
from cahqp.evaluation.matching import ClassMatches, Matches
from cahqp.runs import executor
from cahqp.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
HITS = {"teacher": 3, "mean_teacher": 6, "ca_hqp": 7, "oracle": 10, "student": 2, "source_continued": 3}
HITS |= {"student of teacher": 3, "student of ca_hqp": 5, "student of ground_truth": 8}
HITS |= {
    "self_training of self_training of ca_hqp": 9,
    "self_training of mean_teacher": 7,
    "self_training of ca_hqp": 9,
    "student of self_training of ca_hqp": 6,
}
HITS |= {"start": 4, "self_training of source": 5, "source": 3, "student of self_training of mean_teacher": 8}
HITS |= {"student of source": 4, "self_training of start": 6}
RECORDINGS = 10
LOGS = {
    "ca_hqp": "step,align/gradient_share_dqfa,prompt/between_domains\n9,0.004,0.1\n14,,\n19,0.05,0.2\n29,0.03,0.25\n",
}


def matches(hits):
    """Ten recordings with one object each, the first `hits` of which were found."""
    count = np.ones(RECORDINGS, np.int64)
    found = np.arange(RECORDINGS) < hits
    scores = np.linspace(0.9, 0.5, RECORDINGS)
    return Matches(("car",), (ClassMatches(scores, found, np.arange(RECORDINGS), count),))


def fake(arguments):
    """Keep every promise about run directories, and measure what the arm's config says."""
    flags = dict(a[2:].split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
    output = Path(flags.pop("output"))
    command = arguments[0]
    run = RunDirectory(output, command, {"arguments": [a for a in arguments if "/" not in a]}, {}, int(flags["seed"]))
    assert run.begin()
    if command == "fit":
        configs = [Path(a.split("=", 1)[1]).stem for a in arguments if a.startswith("--config=")]
        whose = {"retrain": "student", "self_training": "self_training"}.get(configs[-1])
        pseudo = flags.get("data.pseudo") if whose else None
        learnt = (
            ("soft" if configs[-1] == "distil" else configs[-1])
            if pseudo is None
            else json.loads(Path(json.loads(pseudo)[0]).read_text())["of"]
        )
        (run.work / "model.safetensors").write_text(learnt if pseudo is None else f"{whose} of {learnt}")
        (run.work / "metrics.csv").write_text(LOGS.get(learnt, "epoch,step\n0,1\n"))
    elif command == "benchmark":
        measure(run.work, arguments, int(flags["seed"]))
    else:
        names = {"scenes": "annotations.json", "relabel": "labels.json", "calibrate": "calibration.json"}
        name = names[command]
        labeller = Path(flags["weights"]).read_text() if "weights" in flags else "ground_truth"
        (run.work / name).write_text(json.dumps({"images": [], "of": labeller}))
        (run.work / "soft").mkdir()
        (run.work / "soft" / "records").write_text(labeller)
    run.finish({})


def measure(work, arguments, seed):
    given = [a.split("=", 1) for a in arguments if "=" in a and not a.startswith("--")]
    models = {name: Path(path).read_text() for name, path in given if path.endswith("safetensors")}
    sets = [name for name, path in given if path.endswith("json")]
    hits = {name: HITS[said] - seed for name, said in models.items()}
    found = {name: {key: matches(count) for key in sets} for name, count in hits.items()}
    counts = {"objects": {"car": RECORDINGS, "tram": 2}, "counted": ["car"]}
    figures = counts | {"map": 0.1, "images": RECORDINGS, "precision": 0.5, "recall": 0.4, "f1": 0.45}
    told = {
        name: {key: {**figures, "ap50": count / 10, "per_class": {"car": count / 10}} for key in sets}
        for name, count in hits.items()
    }
    groups = Groups("recordings", np.arange(RECORDINGS), RECORDINGS)
    write_matches(work, found, dict.fromkeys(sets, groups))
    (work / "metrics.json").write_text(json.dumps({"models": told}))


NUMBERS = {"day": 0, "val": 2, "test": 4, "night": 20, "late": 23}
OVERLAPPING = {name: {"recordings": 4 if name == "night" else 1, "first_recording": n} for name, n in NUMBERS.items()}


@pytest.fixture
def plan():
    fit = {"trainer": {"max_epochs": 2}, "data": {"init_args": {"batches_per_epoch": 3, "batch_size": 4}}}
    Path("configs/overlays").mkdir(parents=True)
    for name in ("teacher", "adapt", "oracle", "self_training", "student", "retrain"):
        Path(f"configs/{name}.yaml").write_text(yaml.safe_dump(fit | {"name": name}))
    for name in ("mean_teacher", "ca_hqp"):
        Path(f"configs/overlays/{name}.yaml").write_text(yaml.safe_dump({"of": name}))
    day = {"recordings": 2, "frames": 5}
    night = {"recordings": 1, "frames": 5, "hour": [21, 22], "first_recording": 20}
    return {
        "name": "tiny",
        "about": "A stand-in.",
        "seeds": [0, 1],
        "arms": ["source-only", "mean-teacher", "ca-hqp", "oracle"],
        "students": ["source-only", "ca-hqp", "oracle"],
        "scenes": {
            "day": day,
            "val": day | {"first_recording": 9},
            "night": night,
            "test": night | {"frames": 6, "first_recording": 30},
        },
        "source": {"train": ["scenes:day"], "val": ["scenes:val"], "test": "scenes:val"},
        "target": {"train": ["scenes:night"], "test": "scenes:test"},
        "teacher": {
            "fit": ["configs/teacher.yaml"],
            "adapt": ["configs/adapt.yaml"],
            "oracle": ["configs/oracle.yaml"],
        },
        "student": {"fit": ["configs/student.yaml"], "retrain": ["configs/retrain.yaml"]},
        "epochs": 2,
        "batches": 3,
    }


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A working directory, and the list of the commands that were carried out there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # no power cut is expected here
    started = []

    def execute(command, log, watch):
        started.append(command[1:])
        fake(command[1:])
        return 0

    monkeypatch.setattr(executor, "PROGRAM", ("cahqp",))  # stages of cahqp itself are forked, not executed
    monkeypatch.setattr(executor.process, "execute", execute)
    return started


@pytest.fixture
def adapt(plan, capsys):
    """Run the command on the plan with changes and return the exit code and what was said."""

    def run(*more, **changes):
        Path("plan.yaml").write_text(yaml.safe_dump(plan | changes))
        code = main(["benchmark", "adapt", "--plan", "plan.yaml", *more])
        told = capsys.readouterr()
        return code, told.out + told.err

    return run


def results(name="tiny"):
    return json.loads(Path(f"runs/benchmark/{name}/results.json").read_text())


def test_the_table_holds_gains_gaps_and_intervals(adapt):
    code, said = adapt()
    assert code == 0
    found = results()["arms"]
    assert found["ca-hqp"]["target_ap50"]["each"] == [0.7, 0.6]
    assert found["ca-hqp"]["closed"]["value"] == pytest.approx(4 / 7, abs=0.03)
    closed = found["ca-hqp"]["student_closed"]
    assert closed["value"] == pytest.approx(3 / 6, abs=0.03)
    assert closed["low"] < closed["value"] < closed["high"]
    assert f"| {100 * closed['value']:.1f} [{100 * closed['low']:.1f}, {100 * closed['high']:.1f}] |" in said
    assert found["mean-teacher"]["images"] == 2 * 3 * (4 + 4)
    assert "| mean-teacher | 55.0 ± 7.1 |" in said
    assert "`ca-hqp` minus `mean-teacher`" in said
    assert "Arms keep their last step" in said
    assert "Target labels are read by the evaluation and the oracles only." in said
    columns, row, *_ = (line.split(" | ") for line in said.splitlines() if line.startswith(("| arm |", "| ca-hqp |")))
    assert row[columns.index("mAP source")].startswith(f"{100 * found['ca-hqp']['source_map']['mean']:.1f}")


def test_the_effect_of_each_term_is_told(adapt):
    said = adapt("--arms", "mean-teacher", "ca-hqp", students=[])[1]
    assert "| ca-hqp | 3.0 (0.4 to 5.0) | - | - | 25.0 |" in said
    assert results()["arms"]["ca-hqp"]["terms"]["between_domains"]["each"] == [0.25, 0.25]
    assert results()["arms"]["mean-teacher"]["terms"] is None


def test_an_arm_that_reads_target_labels_is_named(plan, adapt):
    arm = {"configs": ["configs/overlays/ca_hqp.yaml"], "ground_truth": "model.ground_truth"}
    said = adapt("--arms", "mean-teacher", "upper-bound", variants={"upper-bound": arm}, students=[])[1]
    assert "Target labels are read by the evaluation, the oracles and upper-bound only." in said


def test_a_table_names_its_commit_its_rules_and_its_weights(adapt, monkeypatch):
    monkeypatch.setattr("cahqp.benchmarks.adapt.results.code_state", lambda: {"commit": "1234567890", "dirty": True})
    said = adapt("--seeds", "0", margin=0.02)[1]
    assert "commit 1234567, with uncommitted changes of code or configs." in said
    assert "fewer than 10 target test objects in a seed: tram (up to 2)." in said
    assert "Seeds: 0, each with source weights of its own." in said
    assert "equivalent within ±2 points" in said
    assert results()["left_out"] == {"tram": 2}
    assert code_state()["commit"] is None or len(code_state()["commit"]) == 40


def test_arms_that_hardly_differ_are_equivalent(adapt):
    HITS["ca_hqp"], kept = HITS["mean_teacher"], HITS["ca_hqp"]
    said = adapt("--seeds", "0", "1", "2", students=[])[1]
    HITS["ca_hqp"] = kept
    assert "The CA-HQP terms are equivalent to none within ±1 points." in said
    row = next(line for line in said.splitlines() if line.startswith("| ca-hqp |"))
    assert "| +0.0 [+0.0, +0.0] ≈ |" in row and "▲ |" in row


def test_fewer_than_three_seeds_prove_nothing(adapt):
    assert "Fewer than 3 seeds: no evidence either way." in adapt("--arms", "mean-teacher")[1]
    assert not results()["arms"]["mean-teacher"]["gain"]["excludes_zero"]
    said = adapt("--arms", "mean-teacher", "--seeds", "0", "1", "2")[1]
    assert "Fewer than" not in said
    assert results()["arms"]["mean-teacher"]["gain"]["excludes_zero"]


def test_all_arms_of_a_seed_start_from_the_same_source_weights(adapt, workplace):
    adapt()
    seeds = {a.rpartition("=")[2] for command in workplace for a in command if a.startswith("--seed=")}
    assert seeds == {"0", "1"}
    for seed in seeds:
        trained = [c for c in workplace if c[0] == "fit" and c[-1] == f"--seed={seed}" and "/student" not in c[-2]]
        starts = {a for c in trained for a in c if a.startswith("--model.weights=")}
        assert len(trained) == 1 + 3
        assert len(starts) == 1


def test_seeds_may_share_source_weights_and_scenes_that_were_made_before(plan, adapt, workplace):
    Path("shared.safetensors").write_text("teacher")
    scenes = plan["scenes"] | {name: plan["scenes"][name] | {"seed": 7} for name in ("day", "val")}
    assert adapt(teacher=plan["teacher"] | {"weights": "shared.safetensors"}, scenes=scenes, students=[])[0] == 0
    starts = {a for c in workplace if c[0] == "fit" for a in c if a.startswith("--model.weights=")}
    assert starts == {"--model.weights=shared.safetensors"}
    made = sorted(c[-1] for c in workplace if c[0] == "scenes")
    assert made == ["--seed=0", "--seed=0", "--seed=1", "--seed=1", "--seed=7", "--seed=7"]


def test_the_converged_oracle_makes_as_many_steps_as_the_plan_says(adapt, workplace):
    assert adapt("--seeds", "0", arms=["source-only", "oracle-converged"], students=[], converged=2.5)[0] == 0
    assert [c for c in workplace if "--trainer.max_epochs=5" in c]


def test_a_self_training_round_follows_the_adaptation(plan, adapt, workplace):
    teacher = plan["teacher"] | {"self_training": ["configs/self_training.yaml"]}
    once = {"ca-hqp-once": {"configs": ["configs/overlays/ca_hqp.yaml"], "self_training": False}}
    arms = ["source-only", "mean-teacher", "ca-hqp", "alignment-only", "oracle"]
    Path("configs/overlays/alignment_only.yaml").write_text("{of: ca_hqp}")
    assert adapt("--seeds", "0", teacher=teacher, variants=once, arms=arms, students=["ca-hqp"])[0] == 0
    found = results()["arms"]
    ap50 = {arm: figures["target_ap50"]["each"] for arm, figures in found.items()}
    assert (ap50["mean-teacher"], ap50["ca-hqp"], ap50["ca-hqp-once"]) == ([0.7], [0.9], [0.7])
    assert (ap50["alignment-only"], ap50["oracle"]) == ([0.7], [1.0])
    assert found["ca-hqp"]["images"] == found["ca-hqp-once"]["images"] + 2 * 3 * 4
    assert "Steps: 6 of adaptation and 6 of self-training" in Path("runs/benchmark/tiny/table.md").read_text()
    rounds = [c for c in workplace if "--config=configs/self_training.yaml" in c]
    assert len(rounds) == 2
    assert all("/adapt-" in a for c in rounds for a in c if a.startswith("--model.weights="))
    assert all("/relabel-" in a for c in rounds for a in c if a.startswith("--data.pseudo="))
    on_labels = [c for c in workplace if any("/relabel-" in a for a in c if a.startswith("--data.pseudo="))]
    assert len(on_labels) > len(rounds)  # students, too
    assert all("--data.empty_pseudo=true" in c for c in on_labels)  # a teacher that finds nothing is measured


def test_each_self_training_round_relabels_first(plan, adapt, workplace):
    teacher = plan["teacher"] | {"self_training": ["configs/self_training.yaml"], "self_training_rounds": 2}
    assert adapt("--seeds", "0", teacher=teacher, arms=["source-only", "ca-hqp"], students=[])[0] == 0
    assert results()["arms"]["ca-hqp"]["images"] == 2 * 3 * (4 + 4) + 2 * (2 * 3 * 4)
    assert results()["self_training_steps"] == 12
    first, second = (c for c in workplace if "--config=configs/self_training.yaml" in c)
    assert f"--model.weights={first[-2].partition('=')[2]}/model.safetensors" in second
    assert "--trainer.max_epochs=6" not in " ".join(map(str, workplace))
    assert (
        "teacher.self_training_rounds must be greater than or equal to 1, got 0"
        in adapt(teacher=teacher | {"self_training_rounds": 0})[1]
    )
    assert "teacher.self_training is missing" in adapt(teacher=plan["teacher"] | {"self_training_rounds": 2})[1]
    assert (
        "student.self_training is not a known key"
        in adapt(student=plan["student"] | {"self_training": ["configs/self_training.yaml"]})[1]
    )


def test_bounds_train_on_as_many_images_as_adaptation_and_self_training(plan, adapt, workplace):
    teacher = plan["teacher"] | {"self_training": ["configs/self_training.yaml"], "self_training_rounds": 2}
    Path("configs/overlays/source_continued.yaml").write_text("{of: ca_hqp}")
    arms = ["source-only", "source-continued", "ca-hqp", "oracle"]
    code, said = adapt("--seeds", "0", teacher=teacher, arms=arms, students=[])
    assert code == 0
    long = [c for c in workplace if "--trainer.max_epochs=8" in c]  # 4 images a step: source or oracle alone
    assert {Path(c[-2].partition("=")[2]).name.split("-")[0] for c in long} == {"oracle", "adapt"}
    assert len(long) == 2
    images = {arm: results()["arms"][arm]["images"] for arm in arms}
    assert images == {"source-only": 0, "source-continued": 96, "ca-hqp": 96, "oracle": 96}
    assert "overstated" not in said


def test_images_are_those_of_an_arms_own_batches(adapt):
    wide = {"configs": ["configs/overlays/ca_hqp.yaml"], "set": {"data.batch_size": 8, "data.target_batch_size": 2}}
    adapt("--seeds", "0", variants={"wide": wide}, students=[])
    assert results()["arms"]["wide"]["images"] == 2 * 3 * (8 + 2)


@pytest.fixture
def published(plan):
    """Changes of the plan: teacher and student start from a published model, with an expert of another kind."""
    for name in ("start", "source", "expert"):
        Path(f"configs/{name}.yaml").write_bytes(Path("configs/adapt.yaml").read_bytes())
    Path("published").mkdir()
    Path("published/config.json").write_text("{}")
    start = {"start": ["configs/start.yaml"], "fit": ["configs/source.yaml"], "set": {"model.classes": ["car"]}}
    teacher = plan["teacher"] | start | {"self_training": ["configs/self_training.yaml"]}
    expert = {"fit": ["configs/expert.yaml"], "adapt": ["configs/overlays/ca_hqp.yaml"]}
    return {"teacher": teacher, "student": plan["student"] | start, "expert": expert}


def test_arms_start_from_a_published_model(adapt, published, workplace):
    arms = ["zero-shot", "source-only", "mean-teacher"]
    rounds = {"rounds": {"adaptation": False}, "early": {"adaptation": False, "begin": "start"}}
    students = ["source-only", "mean-teacher"]
    given = {"arms": arms, "variants": rounds, "students": students, **published}
    code, said = adapt("--seeds", "0", "--start", "published", **given)
    assert code == 0
    starts = [c for c in workplace if "--config=configs/start.yaml" in c]
    assert len(starts) == 1  # teacher and student share it
    assert {"--model.detector.init_args.model=published", "--trainer.max_epochs=0", '--model.classes=["car"]'} < set(
        starts[0]
    )
    source = [c for c in workplace if "--config=configs/source.yaml" in c]
    assert len(source) == 1
    assert f"--model.weights={starts[0][-2].partition('=')[2]}/model.safetensors" in source[0]
    found = {arm: figures["target_ap50"]["mean"] for arm, figures in results()["arms"].items()}
    assert found == {"zero-shot": 0.4, "source-only": 0.3, "mean-teacher": 0.7, "rounds": 0.5, "early": 0.6}
    assert results()["arms"]["zero-shot"]["gain"]["value"] == pytest.approx(0.1, abs=0.03)
    assert results()["arms"]["rounds"]["images"] == 2 * 3 * 4
    lead = results()["arms"]["mean-teacher"]["student_vs_zero_shot"]["value"]
    assert lead == pytest.approx(0.4, abs=0.03) and " vs zero-shot |" in said
    assert "--start=MODEL" in said
    assert "start: give --start FOLDER" in adapt(**given)[1]


def test_students_learn_from_hard_and_soft_targets_at_equal_steps(plan, adapt, workplace):
    Path("configs/distil.yaml").write_bytes(Path("configs/retrain.yaml").read_bytes())
    runs = {"hard-100": {"steps": 100}, "soft-100": {"targets": "soft", "steps": 100}}
    runs |= {"both-100": {"targets": "combined", "steps": 100}}
    student = plan["student"] | {"distil": ["configs/distil.yaml"], "runs": runs}
    HITS["soft"] = 4
    code, said = adapt("--seeds", "0", student=student)
    assert code == 0, said
    found = results()["arms"]
    assert found["source-only"]["student_runs"] == {}
    assert found["ca-hqp"]["student_runs"].keys() == runs.keys() and found["oracle"]["student_runs"].keys() == {
        "hard-100"
    }
    assert found["ca-hqp"]["student_runs"]["soft-100"]["closed"]["value"] == pytest.approx(2 / 6, abs=0.03)
    both, soft = (c for c in workplace if "--config=configs/distil.yaml" in c)
    assert "--data.batches_per_epoch=50" in soft and "--trainer.max_epochs=2" in soft
    labels = next(c for c in workplace if "--soft" in c)[-2].partition("=")[2]
    assert f"--data.store={labels}/soft" in soft and f"--data.store={labels}/soft" in both
    assert f"{labels}/labels.json" in " ".join(both) and f"{labels}/labels.json" not in " ".join(soft)
    assert "| ca-hqp | combined | 100 |" in said
    assert "student.distil is missing" in adapt(student=plan["student"] | {"runs": runs})[1]


def test_an_experts_boxes_are_fused_by_calibrated_scores(adapt, published, workplace):
    given = {"arms": ["source-only", "mean-teacher", "expert"], "students": ["expert"], **published}
    given["variants"] = {
        "tiles": {
            "configs": ["configs/overlays/mean_teacher.yaml"],
            "relabel": {"views": ["tiles:2x1"]},
            "calibrate": {"uncalibrated": ["bus"]},
        }
    }
    code, said = adapt("--seeds", "0", "--start", "published", **given)
    assert code == 0, said
    expert = next(c for c in workplace if "--config=configs/overlays/ca_hqp.yaml" in c)[-2].partition("=")[2]
    fused = [c for c in workplace if any(a.startswith("--teachers=") for a in c)]
    assert [c[0] for c in fused] == ["calibrate", "relabel", "calibrate", "relabel"]  # a round, and the student
    assert all(f"--teachers={expert}/model.safetensors" in c for c in fused)
    tiled = [c for c in workplace if "tiles:2x1" in c]
    assert [c[0] for c in tiled] == ["calibrate", "relabel"]
    assert (
        tiled[0][tiled[0].index("--uncalibrated") + 1] == "bus"
        and f"--calibration={tiled[0][-2].partition('=')[2]}/calibration.json" in tiled[1]
    )
    assert f"--calibration={fused[0][-2].partition('=')[2]}/calibration.json" in fused[1]
    assert results()["arms"]["expert"]["images"] == results()["arms"]["mean-teacher"]["images"]
    del given["expert"]
    assert "expert is missing" in adapt("--start", "published", **given)[1]


def test_a_training_that_does_not_say_its_steps_is_refused(plan, adapt, workplace):
    endless = {"trainer": {"max_epochs": 2}, "data": {"init_args": {"batches_per_epoch": None}}}
    Path("configs/self_training.yaml").write_text(yaml.safe_dump(endless))
    code, said = adapt(teacher=plan["teacher"] | {"self_training": ["configs/self_training.yaml"]})
    assert code == 1
    assert "configs/self_training.yaml: trainer.max_epochs is 2 and data.init_args.batches_per_epoch is None" in said
    assert workplace == []


def test_target_labels_are_read_by_the_oracle_and_the_evaluation_alone(adapt, workplace):
    adapt()
    test = next(
        c[-2].split("=")[1] for c in workplace if c[0] == "scenes" and "--frames=6" in c and c[-1] == "--seed=0"
    )
    readers = {c[0] for c in workplace if any(f"{test}/" in argument for argument in c)}
    assert readers == {"benchmark"}  # test recordings are never adapted on
    night = next(c[-2].split("=")[1] for c in workplace if "--hour=[21, 22]" in c and "--frames=5" in c)
    labelled = [c for c in workplace if any(a.startswith("--data.pseudo=") and f"{night}/" in a for a in c)]
    assert {Path(c[-2].split("=")[1]).name.split("-")[0] for c in labelled} == {"oracle", "student"}


def test_files_to_test_on_are_apart_from_what_is_trained_on(adapt, workplace):
    for name, recording in (("train", "a"), ("test", "b"), ("same", "a")):
        image = {"id": 1, "file_name": f"{name}.jpg", "width": 8, "height": 8, "recording": recording, "frame": 0}
        Path(f"{name}.json").write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
        Image.new("RGB", (8, 8), "green").save(f"{name}.jpg")
    code, said = adapt(target={"train": ["train.json"], "test": "same.json"})
    assert code == 1
    assert "both trained on and held out" in said
    assert workplace == []


def labelled(name, recording, category, boxes=1, frames=8, broken=0, **flags):
    """Write a COCO file of the frames of one recording, the first of which may be other than it says."""
    numbers = range(frames)
    images = [
        {"id": n, "file_name": f"{name}{n}.png", "width": 8, "height": 8, "recording": recording, "frame": n}
        for n in numbers
    ]
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0} | flags
    categories = [{"id": 3, "name": category}]
    document = {"images": images, "annotations": [box] * boxes, "categories": categories}
    Path(f"{name}.json").write_text(json.dumps(document))
    for n in numbers:
        colour = (len(name), ord(name[0]), n)
        Image.new("RGB", (9 if n < broken else 8, 8), colour).save(f"{name}{n}.png")
    return f"{name}.json"


def test_what_fixes_the_thresholds_is_not_tested_on(plan, adapt, workplace):
    val, night = labelled("val", "a", "car"), labelled("night", "a", "car")
    source = plan["source"] | {"val": [val], "test": val}
    code, said = adapt(source=source, target={"train": ["scenes:night"], "test": night})
    assert code == 1
    assert "both trained on and held out" in said
    assert workplace == []


@pytest.mark.parametrize(
    ("category", "boxes", "said"),
    [("Car", 1, "Car, which are not classes of the detector"), ("car", 0, "night.json has no object of car, bus")],
)
def test_objects_to_find_have_names_that_the_detector_knows(category, boxes, said, plan, adapt, workplace):
    night = labelled("night", "a", category, boxes)
    teacher = plan["teacher"] | {"set": {"model.detector.init_args.classes": ["car", "bus"]}}
    code, told = adapt(teacher=teacher, target={"train": ["scenes:night"], "test": night})
    assert code == 1
    assert said in told
    assert workplace == []
    night = labelled("night", "a", "car")
    assert adapt(teacher=teacher, target={"train": ["scenes:night"], "test": night})[0] == 0


CLASSES = {"set": {"model.detector.init_args.classes": ["car", "bus"]}}


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ({"frames": 7}, "one recording with too few frames"),
        ({"ignore": 1}, "night.json has no object of car, bus"),
        ({"broken": 2}, r"2 of 8 images are broken"),
    ],
)
def test_files_that_would_end_a_benchmark_later_end_it_at_once(test, said, plan, adapt, workplace):
    night = labelled("night", "a", "car", **test)
    code, told = adapt(teacher=plan["teacher"] | CLASSES, target={"train": ["scenes:night"], "test": night})
    assert code == 1
    assert said in told
    assert workplace == []


def test_broken_images_are_put_up_with_where_the_plan_says_so(plan, adapt, workplace):
    night = labelled("night", "a", "car", broken=2)
    given = {"teacher": plan["teacher"] | CLASSES, "target": {"train": ["scenes:night"], "test": night}}
    assert adapt(**given, set={"data.max_invalid_share": 0.3})[0] == 0
    told = [command for command in workplace if command[0] in ("relabel", "benchmark", "fit")]
    assert all(
        any(a in ("--max-invalid-share=0.3", "--data.max_invalid_share=0.3") for a in command) for command in told
    )


@pytest.mark.parametrize("wrong", [{"boxes": 0}, {"category": "Car"}])
def test_an_oracle_needs_the_targets_labels(wrong, plan, adapt, workplace):
    dusk = labelled("dusk", "b", **{"category": "car"} | wrong)
    night = labelled("night", "a", "car")
    given = {"teacher": plan["teacher"] | CLASSES, "target": {"train": [dusk], "test": night}}
    code, told = adapt(**given)
    assert code == 1
    assert "Learning from these labels: oracle. Without them: --arms source-only mean-teacher ca-hqp." in told
    assert workplace == []
    assert adapt("--arms", "source-only", "mean-teacher", "ca-hqp", **given)[0] == 0


@pytest.mark.parametrize("other", ["full.json", "scenes:day"])
def test_one_file_of_several_may_be_empty_roads(other, plan, adapt):
    labelled("full", "c", "car")
    source = plan["source"] | {"train": [other, labelled("empty", "d", "car", boxes=0)]}
    assert adapt(teacher=plan["teacher"] | CLASSES, source=source)[0] == 0


def test_what_is_adapted_to_is_apart_from_what_fixes_the_thresholds(plan, adapt, workplace):
    val, dusk = labelled("val", "a", "car"), labelled("dusk", "a", "car")
    given = {"source": plan["source"] | {"val": [val]}, "target": {"train": [dusk], "test": "scenes:test"}}
    code, said = adapt(teacher=plan["teacher"] | CLASSES, **given)
    assert code == 1
    assert "both trained on and held out" in said
    assert workplace == []


def test_a_file_may_be_a_link_and_begin_with_a_mark(plan, adapt):
    night = Path(labelled("night", "a", "car"))
    Path("raw").mkdir()
    Path("raw/x.json").write_bytes(b"\xef\xbb\xbf" + night.read_bytes())
    night.unlink()
    night.symlink_to("raw/x.json")
    assert adapt(teacher=plan["teacher"] | CLASSES, target={"train": ["scenes:night"], "test": "night.json"})[0] == 0


def test_a_config_may_put_up_with_broken_images(plan, adapt):
    dusk = labelled("dusk", "b", "car", broken=2)
    config = yaml.safe_load(Path("configs/adapt.yaml").read_text())
    config["data"]["init_args"]["max_invalid_share"] = 0.5
    Path("configs/adapt.yaml").write_text(yaml.safe_dump(config))
    given = {"teacher": plan["teacher"] | CLASSES, "target": {"train": [dusk], "test": "scenes:test"}, "students": []}
    assert adapt(**given)[0] == 0
    code, said = adapt(**given, set={"data.max_invalid_share": None})
    assert code == 1
    assert "data.max_invalid_share must be a share in 0..1, got None" in said


@pytest.mark.parametrize("text", ["{}", "[]", '{"images": 3}'])
def test_a_file_that_is_no_coco_is_told_and_starts_nothing(text, adapt, workplace):
    Path("night.json").write_text(text)
    code, told = adapt(target={"train": ["scenes:night"], "test": "night.json"})
    assert code == 1
    assert "night.json" in told
    assert "Traceback" not in told
    assert workplace == []


def test_what_is_done_is_not_done_again(adapt, workplace):
    adapt()
    count = len(workplace)
    adapt("--arms", "source-only", "mean-teacher")
    assert len(workplace) == count
    assert results()["order"] == ["source-only", "mean-teacher"]


def test_arms_of_several_states_of_the_code_are_told(adapt, monkeypatch):
    assert "versions of the code" not in adapt("--arms", "mean-teacher")[1]
    monkeypatch.setattr("cahqp.runs.state.code_hash", lambda: "another")
    assert "The arms were trained by 2 versions of the code" in adapt("--arms", "mean-teacher", "ca-hqp")[1]
    assert "versions of the code" not in adapt("--arms", "ca-hqp")[1]


def test_gains_are_over_source_only_which_is_measured_too(adapt):
    assert adapt("--arms", "mean-teacher", "ca-hqp")[0] == 0
    assert results()["order"] == ["source-only", "mean-teacher", "ca-hqp"]


def test_two_at_a_time_give_the_same_figures(adapt, workplace, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # and back again
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    adapt("--output=one")
    code, _ = adapt("--output=two", "--jobs=2")
    assert code == 0
    one, two = (json.loads(Path(f"{name}/tiny/results.json").read_text())["arms"] for name in ("one", "two"))
    assert {k: v["target_ap50"] for k, v in one.items()} == {k: v["target_ap50"] for k, v in two.items()}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_failed_stage_is_told_and_the_others_are_kept(jobs, adapt, workplace, monkeypatch):
    def execute(command, log, watch):
        if "--config=configs/oracle.yaml" in command:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("the lamp is broken\n")
            return 3
        return carry_on(command, log, watch)

    carry_on = executor.process.execute
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    with monkeypatch.context() as broken:
        broken.setattr(executor.process, "execute", execute)
        code, said = adapt(f"--jobs={jobs}")
    assert code == 1
    assert "the lamp is broken" in said
    done = len(workplace)
    assert adapt(f"--jobs={jobs}")[0] == 0
    assert not {tuple(command) for command in workplace[:done]} & {tuple(command) for command in workplace[done:]}


def test_other_pictures_below_the_same_names_are_another_data_set(plan, adapt, workplace):
    night = labelled("night", "a", "car")
    given = {"teacher": plan["teacher"] | CLASSES, "target": {"train": ["scenes:night"], "test": night}}
    assert adapt(**given)[0] == 0
    count = len(workplace)
    Image.new("RGBA", (8, 8), (9, 8, 7, 255)).save("night0.png")
    graph._content_digest.cache_clear()  # another process
    assert adapt(**given)[0] == 0
    again = workplace[count:]
    assert [command[:2] for command in again] == [["benchmark", "measure"]] * 8  # four arms, two seeds


def test_a_changed_overlay_makes_its_own_arm_again_and_no_other(adapt, workplace):
    adapt(students=[])
    count = len(workplace)
    Path("configs/overlays/ca_hqp.yaml").write_text("of: another\n")
    graph._content_digest.cache_clear()
    adapt(students=[])
    assert [command[0] for command in workplace[count:]] == ["fit", "benchmark"] * 2


def test_plans_share_what_they_have_in_common(adapt, workplace):
    adapt(students=[])
    count = len(workplace)
    variant = {"double": {"configs": ["configs/overlays/ca_hqp.yaml"], "steps": 2.0, "set": {"model.x": 1}}}
    adapt(name="other", students=[], variants=variant)
    added = workplace[count:]
    assert [command[0] for command in added] == ["fit", "benchmark"] * 2
    assert "--trainer.max_epochs=4" in added[0]
    assert "--model.x=1" in added[0]


def test_a_variant_may_make_its_labels_in_another_way_from_the_same_teacher(adapt, workplace):
    adapt(students=["ca-hqp"])
    count = len(workplace)
    plain = {"configs": ["configs/overlays/ca_hqp.yaml"], "relabel": {"threshold": 0.3, "temporal": False}}
    adapt(students=["ca-hqp", "plain"], variants={"plain": plain})
    added = workplace[count:]
    assert [command[0] for command in added] == ["relabel", "fit", "benchmark"] * 2
    assert "--threshold=0.3" in added[0]
    assert "--temporal" not in added[0]


def test_teachers_alone_are_compared_where_asked(adapt, workplace):
    assert adapt("--no-students")[0] == 0
    assert not [command for command in workplace if "student" in " ".join(command)]
    assert "--no-students" in results()["command"]


def test_a_dry_run_estimates_and_starts_nothing(adapt, workplace):
    code, said = adapt("--dry-run", "--seeds", "3", cost={"adapt": 60.0, "start": 0.0})
    assert code == 0
    assert workplace == []
    assert "  6.0 min  cahqp fit --config=configs/adapt.yaml" in said
    assert "All together: " in said


def test_a_page_that_is_not_there_is_told_before_anything_starts(adapt, workplace):
    code, said = adapt("--docs", "nowhere.md")
    assert code == 1
    assert "nowhere.md does not exist" in said
    assert workplace == []


def test_the_docs_get_a_page_a_plot_and_a_row_of_the_overview(adapt, capsys):
    Path("docs").mkdir()
    Path("docs/results.md").write_text("# Results\n\nOwn words.\n")
    assert "must contain <!-- benchmarks -->" in adapt("--docs", "docs/results.md")[1]
    Path("docs/results.md").write_text(f"# Results\n\nOwn words.\n\n{BEGIN}\n{END}\n\nMore words.\n")
    adapt("--docs", "docs/results.md")
    first = Path("docs/results.md").read_text()
    assert first.startswith("# Results\n\nOwn words.\n") and first.endswith("\n\nMore words.\n")
    assert "| [tiny](benchmark/tiny.md) | 2 |" in first
    figures = json.loads(Path("docs/benchmark/tiny.json").read_text())
    assert Path("docs/benchmark/tiny.md").read_text() == markdown(figures)
    drawn = ElementTree.fromstring(Path("docs/benchmark/tiny.svg").read_text())
    assert len(drawn.findall(".//{*}circle")) == 2 * 4  # seeds and arms
    Path("docs/benchmark/tiny.svg").unlink()
    assert main(["benchmark", "page", "--docs", "docs/results.md"]) == 0
    assert Path("docs/benchmark/tiny.svg").is_file() and Path("docs/results.md").read_text() == first


def test_our_pages_are_what_their_figures_say(monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/results.md", tmp_path / "docs")
    shutil.copytree(ROOT / "docs/benchmark", tmp_path / "docs/benchmark")
    write_page(tmp_path / "docs/results.md")
    for path in [tmp_path / "docs/results.md", *(tmp_path / "docs/benchmark").iterdir()]:
        assert path.read_text() == (ROOT / path.relative_to(tmp_path)).read_text()


def test_the_overview_leaves_out_tables_with_a_note_and_takes_no_bound_for_an_adaptation():
    overview = (ROOT / "docs/results.md").read_text().split(BEGIN)[1]
    table, _, older = overview.partition("Older tables")
    assert "controls" not in table and "[controls](benchmark/controls.md)" in older
    coco = next(line for line in table.splitlines() if line.startswith("| [daynight-coco]"))
    assert "80.9 ± 0.7 (self-training)" in coco


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": ["mean-teacher"]}, "arms must name source-only"),
        ({"arms": ["source-only", "magic"]}, "magic is not a known arm"),
        ({"shift": "other"}, "shift: other is not a known value"),
        ({"students": ["nobody"]}, "nobody is not a known arm"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"target": {"train": ["data:a.json"], "test": "scenes:test"}}, "give --data FOLDER"),
        ({"target": {"train": ["scenes:test"], "test": "scenes:test"}}, "is also trained on"),
        (
            {"target": {"train": ["scenes:night"], "test": "scenes:late"}, "scenes": OVERLAPPING},
            "also trained on, in scen",
        ),
        ({"target": {"train": ["scenes:night"], "test": "scenes:val"}}, "has recordings of source.val, scenes:val"),
        ({"target": {"train": ["scenes:tset"], "test": "scenes:test"}}, "scenes:tset is not a known recording"),
        ({"converged": 0.0}, "converged must be greater than 0"),
        ({"teacher": {"fit": [], "adapt": [], "weights": "none.safetensors"}}, "none.safetensors does not exist"),
        ({"colour": "red"}, "colour is not a known key"),
        ({"variants": {"x": {"relabel": {"threshold": 3.0}}}}, "variants.x.relabel.threshold must lie in 0..1"),
    ],
)
def test_a_plan_that_cannot_be_right_starts_nothing(changes, said, adapt, workplace):
    code, told = adapt(**changes)
    assert code == 1
    assert said in told
    assert workplace == []
