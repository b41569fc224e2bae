"""Camera and time from file names, EXIF and file times, through the commands that read folders."""

import json
import os
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from clips import encode
from PIL import Image

from cahqp.__main__ import main
from cahqp.coco import naming as naming_module
from cahqp.coco.naming import Naming
from cahqp.data.frames import open_frames
from cahqp.edge.capture import read_frames
from cahqp.errors import ConfigError, DataError

PIXELS = Image.fromarray(np.full((8, 12, 3), 90, np.uint8))
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    naming_module._warn.cache_clear()
    monkeypatch.chdir(tmp_path)


def write(*names, **options):
    for name in names:
        Path("in", name).parent.mkdir(parents=True, exist_ok=True)
        PIXELS.save(Path("in", name), **options)
    return Path("in")


def frames(*names, pattern=None, **rule):
    """Return the frames of a folder with these names, and check that none is missing."""
    found = open_frames([write(*names)], naming=Naming(pattern=pattern, **rule)).frames
    assert sorted(frame.name for frame in found) == sorted(names)
    return found


def utc(*moment, zone="UTC", fold=0):
    return datetime(*moment, tzinfo=ZoneInfo(zone), fold=fold).timestamp()


PATTERNS = {
    "{camera}/{time:%Y%m%d_%H%M%S}_{index}.jpg": "gate/20260105_131500_7.jpg",
    "{camera}_{time:%Y%m%dT%H%M%S}": "gate_20260105T131500.jpg",
    "{time:%Y-%m-%d}/{time:%H}/{camera}/{time:%M.%S}.jpg": "2026-01-05/13/gate/15.00.jpg",
    "{camera}/{camera}-{time:%y%j%H%M%S}": "gate/gate-26005131500.png",
    "{recording}/{camera}_{}_{time:%d-%b-%Y %I.%M.%S %p}": "night/gate_x_05-Jan-2026 01.15.00 PM.jpg",
    "{camera}@{time:%Y-%m-%dT%H%M%S%z}": "gate@2026-01-05T141500+0100.jpg",
    "{camera}/{time:%s}": "gate/1767618900.jpg",
    "{camera}-{time:%s}.jpg": "a/b/gate-1767618900000.jpg",
    "{camera}_{time:%Y%m%d%H%M%S%f}": "gate_20260105131500000.jpg",
}


@pytest.mark.parametrize(("pattern", "name"), PATTERNS.items())
def test_a_pattern_gives_camera_and_time(pattern, name):
    (frame,) = frames(name, pattern=pattern)
    assert (frame.camera, frame.timestamp) == ("gate", utc(2026, 1, 5, 13, 15))
    assert frame.recording == ("night" if "recording" in pattern else "gate")


def test_times_without_an_offset_are_in_the_given_zone():
    found = frames(
        "a_20260105T1200.jpg", "a_20260705T1200.jpg", pattern="{camera}_{time:%Y%m%dT%H%M}", time_zone="Europe/Berlin"
    )
    assert [frame.timestamp for frame in found] == [utc(2026, 1, 5, 11), utc(2026, 7, 5, 10)]


def test_the_hour_that_the_end_of_summer_time_repeats_follows_the_order_of_the_frames(caplog):
    times = ["0130", "0230", "0259", "0205", "0230", "0301"]  # summer time ends at 03:00 on 25 October 2026
    names = [f"a_{number}_20261025T{time}.jpg" for number, time in enumerate(times)]
    found = frames(*names, pattern="{camera}_{index}_{time:%Y%m%dT%H%M}", time_zone="Europe/Berlin")
    minutes = [(frame.timestamp - found[0].timestamp) / 60 for frame in found]
    assert minutes == [0, 60, 89, 95, 120, 151]
    assert "4 times lie in the hour that the end of summer time repeats" in caplog.text


def test_an_hour_that_does_not_exist_is_reported(caplog):
    frames("a_20260329T0230.jpg", pattern="{camera}_{time:%Y%m%dT%H%M}", time_zone="Europe/Berlin")
    assert "1 times do not exist in this zone" in caplog.text


def test_a_clock_that_restarts_or_stalls_loses_no_frame_and_is_reported(caplog):
    times = [0, 10, 20, 0, 10, 20]
    names = [f"a_{number}_2026010500{time:02d}00.jpg" for number, time in enumerate(times)]
    found = frames(*names, pattern="{camera}_{index}_{time:%Y%m%d%H%M%S}")
    assert [frame.timestamp - found[0].timestamp for frame in found] == [0, 600, 1200, 1800, 2400, 3000]
    assert "in, a: the clock goes back at 1 frames" in caplog.text
    stalled = [f"b/{letter}_20260105000000.jpg" for letter in "xyz"]
    times = [
        f.timestamp
        for f in open_frames([write(*stalled) / "b"], naming=Naming(pattern="{}_{time:%Y%m%d%H%M%S}")).frames
    ]
    assert len(set(times)) == 3
    assert "2 frames have a time that does not fit" in caplog.text


def test_times_that_cannot_be_right_are_counted(caplog):
    frames("a_19700101.jpg", "b_20990101.jpg", "c_20260101.jpg", pattern="{camera}_{time:%Y%m%d}")
    assert "2 times are before 1990 or in the future" in caplog.text


@pytest.mark.parametrize("names", [["x.jpg", "y.jpg"], ["a_20260101.jpg", "b_20261301.jpg", "sub/y.jpg"]])
def test_names_that_do_not_match_are_one_message_with_count_and_examples(names, capsys):
    write(*names)
    assert main(["fetch", "in", "one", "--name-pattern", "{camera}_{time:%Y%m%d}"]) == 1
    error = capsys.readouterr().err
    assert f"2 of {len(names)} names do not match --name-pattern '{{camera}}_{{time:%Y%m%d}}'" in error
    assert "y.jpg" in error and error.count("--name-pattern") == 1
    assert not Path("one").exists()
    assert main(["fetch", "in", "one"]) == 0  # a corrected command may use the output


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"pattern": "{kamera}"}, "contains {kamera}. Allowed are"),
        ({"pattern": "{time:%Q}"}, "contains %Q"),
        ({"pattern": "a.jpg"}, "without fields"),
        ({"pattern": "{camera}", "time_zone": "Mars/Base"}, "IANA name of a time zone"),
        ({"pattern": "{camera}", "time_zone": "../x"}, "IANA name of a time zone"),
        ({"pattern": "{time:%Y}", "time_from": "exif"}, "two sources of the time"),
    ],
)
def test_invalid_rules_are_refused(rule, message):
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
        Naming(**rule)


def exif(text, offset=None, fraction=None):
    data = Image.Exif()
    tags = {0x9003: text, 0x9011: offset, 0x9291: fraction}
    data.get_ifd(0x8769).update({tag: value for tag, value in tags.items() if value})
    return data


def test_exif_gives_the_time_with_its_offset_or_in_the_zone():
    write("a/1.jpg", exif=exif("2026:01:05 13:15:00", "+02:00", "25"))
    write("b/1.jpg", exif=exif("2026:01:05 13:15:00"))
    rule = Naming(pattern="{camera}/{index}", time_from="exif", time_zone="Europe/Berlin")
    found = open_frames([Path("in")], naming=rule).frames
    assert [frame.timestamp for frame in found] == [utc(2026, 1, 5, 11, 15) + 0.25, utc(2026, 1, 5, 12, 15)]
    write("c/1.jpg")
    with pytest.raises(DataError, match=r"in: 1 of 3 files have no EXIF time, such as 1\.jpg"):
        open_frames([Path("in")], naming=rule)


def test_the_time_of_a_file_is_its_last_change():
    write("a.jpg", "b.jpg")
    for name, moment in (("a.jpg", 1_760_000_000), ("b.jpg", 1_760_000_060)):
        os.utime(Path("in", name), (moment, moment))
    found = open_frames([Path("in")], naming=Naming(time_from="modified")).frames
    assert [frame.timestamp for frame in found] == [1_760_000_000, 1_760_000_060]
    assert main(["fetch", "in", "one", "--time-from", "modified"]) == 0
    assert [image["timestamp"] for image in images("one")] == [1_760_000_000, 1_760_000_060]


def images(folder):
    return json.loads(Path(folder, "frames.json").read_text())["images"]


def test_clips_of_a_recorder_with_dates_above_the_camera_get_camera_and_time():
    for name in ("2026-01-05/13/gate/00.10", "2026-01-05/13/yard/59.50"):
        Path("in", name).parent.mkdir(parents=True, exist_ok=True)
        encode(Path("in", f"{name}.mp4"), "mpeg4", [0, 100])
    pattern = "{time:%Y-%m-%d}/{time:%H}/{camera}/{time:%M.%S}"
    assert main(["fetch", "in", "one", "--name-pattern", pattern, "--time-zone", "Europe/Berlin"]) == 0
    assert [image["camera"] for image in images("one")] == ["gate", "gate", "yard", "yard"]
    start = utc(2026, 1, 5, 13, 0, 10, zone="Europe/Berlin")
    times = [image["timestamp"] - start for image in images("one")]
    assert times == pytest.approx([0, 0.1, 3580, 3580.1], abs=0.001)
    clip = Path("in/2026-01-05/13/gate/00.10.mp4")
    rule = Naming(pattern=pattern, time_zone="Europe/Berlin")
    assert [f.timestamp - start for f in open_frames([clip], naming=rule).frames] == pytest.approx([0, 0.1], abs=0.001)
    assert [f.timestamp - start for f in read_frames(str(clip), naming=rule)] == pytest.approx([0, 0.1], abs=0.001)


def test_inspect_groups_by_camera_and_hour():
    write("gate_20260105T130000.jpg", "yard_20260105T140000.jpg")
    assert main(["inspect", "in", "--output", "one", "--name-pattern", "{camera}_{time:%Y%m%dT%H%M%S}"]) == 0
    assert set(json.loads(Path("one/inspect.json").read_text())["data"]["in"]["cameras"]) == {"gate", "yard"}


def test_names_that_look_like_times_are_hinted_at(caplog):
    open_frames([write("gate_20260105T130000.jpg", "gate_20260105T130001.jpg")])
    assert "seem to contain times. --name-pattern reads them" in caplog.text
