"""Report of a plan with rounds, as text and in a browser."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from cahqp.reports.cycle import report as write_report
from cahqp.reports.options import ReportOptions

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>alert('fog')</script>\"&"


def report(run, **options):
    return write_report(ReportOptions(run=run, **options))


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def figures(day, night):
    return {"source-val": {"ap50": day}, HOSTILE: {"ap50": night}}


def turn(run, number, old, new, published):
    folder = run / f"round-{number:02d}"
    models = {"student-old": figures(*old), "student-new": figures(*new), "teacher-adapted": figures(0.9, 0.8)}
    write(folder / "evaluate/metrics.json", {"models": models})
    write(folder / "published/decision.json", {"published": published, "reason": f"Reason {number}."})
    look = {"features": {"distance": 0.1 * number, "p": 0.01, "limit": 0.05}}
    windows = [{"references": {"source": look}, "fault": None}, {"references": {}, "fault": "black"}]
    camera = {"windows": windows, "verdict": "drift", "fault": None, "nearest": "source", "frames": 48}
    write(folder / "drift/drift.json", {"cameras": {"north": camera}, "silent": ["south"]})
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 12], "score": 0.8}
    image = {"id": 1, "file_name": "1.jpg", "width": 64, "height": 48}
    labels = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": HOSTILE}]}
    write(folder / "relabel/labels.json", labels)
    write(folder / "relabel/source.json", {"root": "images"})
    (folder / "relabel/images").mkdir()
    cv2.imwrite(str(folder / "relabel/images/1.jpg"), np.full((48, 64, 3), 90, np.uint8))


@pytest.fixture
def rounds(tmp_path):
    run = tmp_path / "year"
    write(run / "cycle.json", {"name": "year", "rounds": True})
    turn(run, 1, (0.5, 0.2), (0.52, 0.4), True)
    turn(run, 2, (0.52, 0.4), (0.6, 0.1), False)
    return run


def test_the_running_student_is_shown_round_by_round(rounds):
    page = report(rounds).read_text()
    assert "2 rounds measured, 1 published." in page
    assert "round-02 (kept)" in page
    rows = page.split("round-02 (kept)")[1].split("</tr>")[0]
    assert "52.0" in rows
    assert "40.0" in rows
    assert "46.0" in rows  # the mean
    assert "Reason 1." in page


def test_the_largest_drop_is_shown(rounds):
    turn(rounds, 3, (0.52, 0.4), (0.47, 0.45), True)
    row = report(rounds).read_text().split("largest drop below its best")[1].split("</tr>")[0]
    assert "5.0" in row
    assert "0.0" in row


def test_labels_that_collapse_between_rounds(rounds):
    path = rounds / "round-01/relabel/labels.json"
    document = json.loads(path.read_text())
    boxes = [document["annotations"][0] | {"id": n, "bbox": [n, 5, 9, 9]} for n in range(1, 31)]
    write(path, document | {"annotations": boxes})
    assert "collapse from 30 to 1 from round-01 to round-02" in report(rounds).read_text()


def test_names_cannot_break_the_page(rounds):
    page = report(rounds).read_text()
    assert "<script" not in page
    assert "south" in page


def test_a_cycle_without_measured_rounds(tmp_path):
    write(tmp_path / "cycle.json", {"name": "year", "rounds": True})
    assert "No round has been measured yet" in report(tmp_path).read_text()


def opened(path: Path):
    """Open a page offline in Chromium; return console messages, requests, visible text, overflow and broken images."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            context = browser.new_context(offline=True)
            page = context.new_page()
            said, asked = [], []
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(path.absolute().as_uri())
            text = page.inner_text("main")
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).length")
        finally:
            browser.close()
    return said, asked, text, wide, broken


@pytest.mark.slow
@pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium here; CI installs one (apt-get install chromium)"
)
def test_a_browser_opens_it_without_errors(rounds):
    pytest.importorskip("playwright", reason="the extra dev brings it")
    said, asked, text, wide, broken = opened(report(rounds))
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert "Accuracy of the running student" in text
    assert (wide, broken) == (0, 0)
