import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from cahqp.errors import RunError
from cahqp.reports.cycle import report as write_report
from cahqp.reports.first_labels import write_first_labels
from cahqp.reports.labels import read_labels, used_boxes
from cahqp.reports.options import ReportOptions
from cahqp.runs.manifest import read_manifest

HOSTILE = "<script>alert('car')</script>\"&"


def report(run, **options):
    return write_report(ReportOptions(run=run, **options))


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def labels(shift, name="car"):
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5 + shift, 5, 20, 12], "score": 0.8, "area": 240}
    images = [
        {"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48, "camera": HOSTILE, "recording": "r"}
        for n in (1, 2)
    ]
    return {"images": images, "annotations": [box], "categories": [{"id": 3, "name": name}]}


def figures(ap50):
    entry = {"ap50": ap50, "map": ap50 / 2, "images": 7, "per_class": {"car": ap50, HOSTILE: None}}
    return {"target-test": entry, "source-val": entry}


@pytest.fixture
def cycle(tmp_path):
    run = tmp_path / "demo"
    models = {name: figures(ap50) for name, ap50 in (("teacher-source", 0.4), ("teacher-adapted", 0.523))}
    gain = {"model": "teacher-adapted", "baseline": "teacher-source", "frames": "target-test"}
    write(run / "evaluate/metrics.json", {"models": models, "differences": [gain | {"low": 0.02, "high": 0.2}]})
    write(run / "published/decision.json", {"published": True, "reason": "Published it."})
    for stage, shift in (("relabel-before", 0), ("relabel", 9)):
        write(run / stage / "labels.json", labels(shift))
        write(run / stage / "source.json", {"root": str(tmp_path / "target")})
    write(run / "relabel/rejected.json", {"annotations": [{"reason": "below threshold"}]})
    write(run / "teacher-adapt/metrics.csv", "epoch,step,train/loss,val/ap50\n0,1,2.5,\n0,2,nan,\n0,2,,0.4\n")
    write(run / "teacher-adapt/manifest.json", {"command": "fit", "seed": 5, "settings": {"rate": 0.25}})
    write(run / "cycle.json", {"name": "demo", "seed": 5, "command": "cahqp cycle run --plan=p.yaml --output=o"})
    (tmp_path / "target/images").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "target/images/1.jpg"), np.full((48, 64, 3), 90, np.uint8))
    return run


def page(run, **how):
    return report(run, **how).read_text()


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.names, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.links += [value for key, value in attributes if key in ("href", "src", "xlink:href", "action", "data")]


def test_the_table_has_every_model_and_its_gain(cycle):
    text = page(cycle)
    assert "Teacher, source only" in text
    assert "52.3" in text
    assert "+12.3" in text
    assert "[+2.0, +20.0]" in text


def intervals(run, low, high):
    entry = {"model": "teacher-adapted", "baseline": "teacher-source", "frames": "target-test"}
    metrics = json.loads((run / "evaluate/metrics.json").read_text())
    write(run / "evaluate/metrics.json", metrics | {"differences": [entry | {"low": low, "high": high}]})


@pytest.mark.parametrize(
    ("low", "high", "direction"),
    [(0.02, 0.2, "up"), (-0.01, 0.2, "chance"), (0.0, 0.2, "chance"), (-0.2, -0.1, "down"), (None, None, "unknown")],
)
def test_a_gain_is_green_only_if_its_interval_is_above_zero(cycle, low, high, direction):
    intervals(cycle, low, high)
    text = page(cycle)
    assert f'<span class="{direction}">+12.3</span>' in text
    assert (" within chance</span>" in text) == (direction == "chance")


def counted(run, stage, count):
    box = labels(0)["annotations"][0]
    boxes = [box | {"id": n, "bbox": [n, 5, 9, 9]} for n in range(1, count + 1)]
    write(run / stage / "labels.json", labels(0) | {"annotations": boxes})


@pytest.mark.parametrize(("before", "after", "warned"), [(40, 7, True), (40, 8, False), (19, 1, False)])
def test_labels_of_a_class_that_collapse(cycle, before, after, warned):
    counted(cycle, "relabel-before", before)
    counted(cycle, "relabel", after)
    assert (f"Labels of car collapse from {before} to {after}" in page(cycle)) == warned


def test_a_label_file_without_labels(cycle):
    counted(cycle, "relabel", 0)
    assert "The label file contains no labels." in page(cycle)


def test_a_class_of_the_source_without_labels(cycle):
    for stage in ("relabel-before", "relabel"):
        other = labels(0)
        write(cycle / stage / "labels.json", other | {"categories": [*other["categories"], {"id": 4, "name": "bus"}]})
    entry = figures(0.4)["source-val"] | {"objects": {"car": 90, "bus": 30}}
    write(cycle / "evaluate/metrics.json", {"models": {"student-old": {"source-val": entry}}})
    assert "bus has 30 objects in source validation and no label" in page(cycle)


def test_a_model_that_detects_next_to_nothing(cycle):
    write(cycle / "evaluate/metrics.json", {"models": {"student-old": figures(0.3), "student-new": figures(0.001)}})
    text = page(cycle)
    assert "Student, retrained detects next to nothing on target-test: AP50 0.1 %." in text
    assert "Student, before detects next to nothing" not in text


def test_curves_name_their_data_set(cycle):
    text = page(cycle)
    assert "val/ap50 (source validation)" in text
    assert "train/loss (training frames)" in text


def test_the_decision_comes_first(cycle):
    text = page(cycle)
    assert text.index("Published it.") < text.index("Accuracy of the models")


def test_labels_are_drawn_before_and_after(cycle):
    text = page(cycle)
    assert text.index("Before adaptation: 1 label<") < text.index("After adaptation: 1 label<")
    assert 'rect x="5.0"' in text
    assert 'rect x="14.0"' in text
    assert text.count("data:image/jpeg;base64,") == 1


def test_a_missing_frame_is_reported(cycle):
    write(cycle / "relabel-before/labels.json", labels(0) | {"annotations": []})
    moved = labels(0)
    moved["annotations"][0]["image_id"] = 2
    write(cycle / "relabel/labels.json", moved)
    assert "2.jpg could not be shown. 2.jpg is not in" in page(cycle)


def test_an_unknown_folder_is_reported(cycle):
    (cycle / "relabel/source.json").unlink()
    (cycle / "relabel-before/source.json").unlink()
    assert "No source.json names the folder of the frames" in page(cycle)


def test_a_name_outside_its_folder_is_not_opened(cycle):
    cv2.imwrite(str(cycle / "secret.jpg"), np.zeros((48, 64, 3), np.uint8))
    away = labels(0)
    away["images"][0]["file_name"] = "../../demo/secret.jpg"
    write(cycle / "relabel/labels.json", away)
    text = page(cycle)
    assert "secret.jpg could not be shown" in text
    assert "data:image" not in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cycle.json", []),
        ("cycle.json", {"seed": "many"}),
        ("state.json", {"relabel": {"key": "k", "seconds": "long"}}),
        ("evaluate/metrics.json", {"models": 7}),
        ("evaluate/metrics.json", {"models": {"teacher-source": {"target-test": {"ap50": 7}}}}),
        ("evaluate/metrics.json", {"models": {}, "differences": [{"model": "a"}]}),
        ("published/decision.json", {"published": "false", "reason": "r"}),
        ("teacher-adapt/manifest.json", "manifest"),
        ("relabel/source.json", {"root": 7}),
        ("relabel/rejected.json", {"annotations": {"reason": "r"}}),
    ],
)
def test_files_of_another_kind_are_a_message(cycle, name, content):
    write(cycle / name, content)
    with pytest.raises(RunError, match=Path(name).name):
        page(cycle)


def test_the_first_labels_are_one_picture(cycle, tmp_path):
    cv2.imwrite(str(tmp_path / "target/images/2.jpg"), np.full((48, 64, 3), 90, np.uint8))
    assert write_first_labels(cycle / "relabel", tmp_path / "first.png") == 1
    picture = cv2.imread(str(tmp_path / "first.png"))
    assert picture.shape == (480, 1280, 3)
    coloured = np.ptp(picture.astype(int), axis=2) > 60  # the frame itself is grey
    left, top = (round(value * 640 / 64) for value in (14, 5))  # the box begins 9 pixels further right than 5
    assert coloured[top, left] and coloured[:, :640].sum() > 1000 and not coloured[:, 640:].any()


def test_a_relative_root_starts_at_its_file(cycle):
    write(cycle / "relabel/source.json", {"root": "../../target"})
    assert "data:image/jpeg;base64," in page(cycle)


def test_several_roots(cycle):
    write(cycle / "relabel/source.json", {"root": ["elsewhere", "../../target"]})
    assert "data:image/jpeg;base64," in page(cycle)


def test_a_video_frame_is_found_by_its_time(cycle, tmp_path):
    video = cv2.VideoWriter(str(tmp_path / "target/a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(5):
        video.write(np.zeros((48, 64, 3), np.uint8))
    video.release()
    filmed = labels(0)
    filmed["images"][0]["file_name"] = "a.avi@0.200s"
    write(cycle / "relabel/labels.json", filmed)
    assert "data:image/jpeg;base64," in page(cycle)


def test_names_are_escaped_everywhere(cycle):
    for stage in ("relabel-before", "relabel"):
        write(cycle / stage / "labels.json", labels(0, HOSTILE))
    write(cycle / HOSTILE.replace("/", "") / "metrics.csv", f"step,{HOSTILE}\n1,2\n")
    write(cycle / "cycle.json", {"name": HOSTILE, "command": HOSTILE})
    text = page(cycle)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 6


def test_the_page_is_self_contained(cycle):
    tags = Tags(page(cycle))
    assert not {"script", "link", "iframe", "img", "object"} & set(tags.names)
    assert all(link.startswith(("data:image/jpeg", "#")) for link in tags.links)
    assert "url(" not in page(cycle)
    assert "default-src 'none'" in page(cycle)


def test_every_element_is_closed(cycle):
    text = re.sub(r"<style>.*?</style>", "", page(cycle), flags=re.DOTALL)
    opened = re.findall(r"<([a-z0-9]+)[^<>]*?(?<!/)>", text)
    assert sorted(opened) == sorted(re.findall(r"</([a-z0-9]+)>", text))


def test_the_command_that_adds_missing_arms(cycle):
    assert "cahqp cycle run --plan=p.yaml --output=o --arms mean-teacher,oracle" in page(cycle)


def test_the_command_names_the_given_plan(cycle, tmp_path):
    assert "--plan &#39;my plan.yaml&#39; --arms" in page(cycle, plan="my plan.yaml")


@pytest.mark.parametrize("names", [("mean-teacher", "oracle"), ("teacher-mean-teacher", "teacher-oracle")])
def test_nothing_is_missing_with_all_arms(cycle, names):
    write(cycle / "evaluate/metrics.json", {"models": {name: figures(0.5) for name in names}})
    assert "--arms" not in page(cycle)
    assert "Teacher, oracle (target labels)" in page(cycle)


def test_curves_of_a_sparse_log(cycle):
    text = page(cycle)
    assert "last 2.5, 1 not finite" in text
    assert "last 0.4" in text


def test_counts_before_and_after(cycle):
    write(cycle / "relabel-before/labels.json", labels(0) | {"annotations": []})
    assert '<th scope="row">car</th><td>0</td><td>1</td>' in page(cycle)


def test_settings_and_seed(cycle):
    text = page(cycle)
    assert "&#34;rate&#34;: 0.25" in text
    assert '<th scope="row">seed</th><td>5</td>' in text


def test_unfinished_parts_are_left_out(cycle):
    (cycle / "published/decision.json").unlink()
    (cycle / "evaluate/metrics.json").unlink()
    text = page(cycle)
    assert "No decision yet." in text
    assert "Accuracy of the models" not in text


def test_a_directory_without_a_cycle_is_refused(tmp_path):
    with pytest.raises(RunError, match="has no cycle"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_as_a_stage_it_writes_a_run_directory(cycle):
    made = report(cycle, output=cycle / "report")
    assert made == cycle / "report/report.html"
    assert read_manifest(cycle / "report")["seed"] == 5
    assert not (cycle / "report.html").exists()


def test_a_finished_stage_is_unchanged(cycle):
    made = report(cycle, output=cycle / "report")
    before = made.stat().st_mtime_ns
    assert report(cycle, output=cycle / "report").stat().st_mtime_ns == before


def test_a_stage_of_other_figures_is_not_overwritten(cycle):
    report(cycle, output=cycle / "report")
    write(cycle / "evaluate/metrics.json", {"models": {"student-new": figures(0.1)}})
    with pytest.raises(RunError, match=r"inputs\.evaluate is a different file"):
        report(cycle, output=cycle / "report")


def test_without_an_output_the_report_is_replaced(cycle):
    page(cycle)
    write(cycle / "published/decision.json", {"published": False, "reason": "Kept it."})
    assert "Kept it." in page(cycle)


def test_torch_is_not_imported():
    code = "import sys, cahqp.reports.cycle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_doubtful_boxes_are_not_labels(cycle):
    doubtful = labels(9)["annotations"][0] | {"id": 2, "iscrowd": 1, "reason": "place is taken in other frames"}
    write(cycle / "relabel/labels.json", labels(9) | {"annotations": [*labels(9)["annotations"], doubtful]})
    found = read_labels(cycle / "relabel")
    assert (found.kept, found.ignored) == ({"car": 1}, {"place is taken in other frames": 1})
    assert [(box.bbox, box.ignored) for box in used_boxes(found.images[1])] == [((14, 5, 20, 12), False)]
