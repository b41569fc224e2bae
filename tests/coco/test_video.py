"""Frames and times of all kinds of videos: those of ffprobe, which are those that the clips were made with."""

import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from clips import edit_list, encode

from cahqp.coco import video as video_module
from cahqp.coco.time_stamps import SteadyClock
from cahqp.coco.video import Video
from cahqp.data.videos import VideoFrames
from cahqp.edge.capture import read_frames
from cahqp.errors import DataError

REGULAR = [100 * number for number in range(30)]
VARIABLE = [0, 100, 300, 800, 900, 1100, 2000, 5000, 5040, 5080]


def twice(path, first, second):
    path.write_bytes(first.read_bytes() + second.read_bytes())
    return path


def restarted(folder, **second):
    parts = encode(folder / "1.ts", "libx264", REGULAR), encode(folder / "2.ts", "libx264", REGULAR, **second)
    return twice(folder / "restart.ts", *parts)


def cut_off(folder):
    path = encode(folder / "cut.mp4", "libx264", REGULAR, faststart=True)
    path.write_bytes(path.read_bytes()[:-300])
    return path


def edited(folder, **change):
    return edit_list(encode(folder / "a.mp4", "libx264", REGULAR), **change)


DOUBLED = [100 * number for number in range(60)]
CLIPS = {
    "H.264 with B-frames": (lambda d: encode(d / "a.mp4", "libx264", REGULAR), REGULAR, ""),
    "B-frames at the end": (lambda d: encode(d / "a.mp4", "libx264", REGULAR[:27]), REGULAR[:27], ""),
    "H.264 in MKV": (lambda d: encode(d / "a.mkv", "libx264", REGULAR), REGULAR, ""),
    "MPEG-TS": (lambda d: encode(d / "a.ts", "libx264", REGULAR), REGULAR, ""),
    "HEVC": (lambda d: encode(d / "a.mp4", "libx265", REGULAR), REGULAR, ""),
    "AV1": (lambda d: encode(d / "a.mp4", "libsvtav1", REGULAR), REGULAR, ""),
    "VP9": (lambda d: encode(d / "a.webm", "libvpx-vp9", REGULAR), REGULAR, ""),
    "MJPEG": (lambda d: encode(d / "a.avi", "mjpeg", REGULAR), REGULAR, ""),
    "MPEG-4 in AVI": (lambda d: encode(d / "a.avi", "mpeg4", REGULAR), REGULAR, ""),
    "variable rate": (lambda d: encode(d / "a.mp4", "libx264", VARIABLE), VARIABLE, ""),
    "variable rate, VP9": (lambda d: encode(d / "a.webm", "libvpx-vp9", VARIABLE), VARIABLE, ""),
    "later edit": (lambda d: edited(d, skip=16000), REGULAR[:20], "20 frames decode of 30"),
    "shorter edit": (lambda d: edited(d, duration=1500), REGULAR[:15], "15 frames decode of 30"),
    "clock restart": (restarted, DOUBLED, "the clock goes back at 1 frames"),
    "size change": (lambda d: restarted(d, size=(96, 64)), DOUBLED, "the size changes 1 times"),
    "cut off": (cut_off, None, "packets cannot be decoded"),
}  # fmt: skip


def ffprobe_times(path):
    command = ["ffprobe", "-v", "quiet", "-select_streams", "v:0", "-show_entries", "frame=best_effort_timestamp_time"]
    text = subprocess.run([*command, "-of", "csv=p=0", str(path)], capture_output=True, text=True, check=True).stdout
    times = [float(line.strip(",")) for line in text.split()]
    return [time - times[0] for time in times]


@pytest.fixture(params=CLIPS)
def clip(request, tmp_path):
    video_module._warn_once.cache_clear()
    build, milliseconds, report = CLIPS[request.param]
    return build(tmp_path), milliseconds, report


def test_frames_and_times_are_those_of_the_clip_and_of_ffprobe(clip, caplog):
    path, milliseconds, report = clip
    with Video(path) as video:
        times = [frame.seconds for frame in video]
    if milliseconds is not None:
        assert times == pytest.approx([time / 1000 for time in milliseconds], abs=0.001)
    assert (report in caplog.text) if report else not caplog.records
    assert [frame.timestamp for frame in read_frames(str(path))] == pytest.approx(times, abs=1e-6)
    if shutil.which("ffprobe"):
        probed = ffprobe_times(path)
        assert len(probed) == len(times)
        assert "clock goes back" in caplog.text or probed == pytest.approx(times, abs=0.001)


def test_every_frame_is_the_same_in_any_order(clip):
    path, _, _ = clip
    with Video(path) as video:
        expected = [frame.pixels("rgb24") for frame in video]
    source = VideoFrames(path)
    for position in [len(expected) - 1, 0, *np.random.default_rng(0).permutation(len(expected)), 1, 1, 2]:
        assert np.array_equal(source.read(int(position)), expected[position])


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_a_rotation_is_applied_as_players_do(tmp_path, rotation):
    path = encode(tmp_path / "a.mp4", "libx264", REGULAR[:3], size=(96, 48), rotation=rotation)
    pixels = next(iter(Video(path))).pixels("rgb24")
    upright = np.zeros((48, 96), bool)
    upright[4:20, 4:44] = True
    expected = np.rot90(upright, rotation // 90 % 4)
    assert pixels.shape[:2] == expected.shape
    assert pixels[expected][:, 0].min() > 200


def test_a_frame_keeps_its_own_size(tmp_path):
    path = restarted(tmp_path, size=(96, 64))
    assert [VideoFrames(path).read(position).shape[:2] for position in (0, 45)] == [(48, 64), (64, 96)]


def test_a_playlist_under_the_name_of_a_video_reads_no_other_file(tmp_path):
    encode(tmp_path / "secret.ts", "libx264", REGULAR)
    (tmp_path / "a.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'secret.ts'}\n")
    with pytest.raises(DataError, match=r"a\.mp4 cannot be opened"):
        Video(tmp_path / "a.mp4")


def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "a.mp4", "mpeg4", REGULAR[:3]).rename("12:30:00.mp4")
    assert len(VideoFrames(Path("12:30:00.mp4"))) == 3


def corrected(times):
    clock = SteadyClock(0.1)
    return [clock.correct(*pair) for pair in zip(times, [*times[1:], None], strict=True)], clock


@pytest.mark.parametrize("wrong", [-5.0, 0.0, 0.1, 0.35, 9.0, 1e6])
def test_a_single_wrong_time_becomes_the_mean_of_its_neighbours(wrong):
    times, clock = corrected([0.0, 0.1, wrong, 0.3, 0.4])
    assert times == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert (clock.wrong, clock.restarts, clock.jumps) == (1, 0, 0)


def test_missing_times_continue_at_the_usual_step():
    times, clock = corrected([0.0, 0.1, None, None, 0.4])
    assert times == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert clock.problems() == ["2 frames have no time stamp; they are 100 ms apart"]


def test_a_jump_ahead_is_kept_and_reported_and_a_pause_is_not_one():
    times, clock = corrected([0.0, 0.1, 5.0, 5.1, 7205.0, 7205.1])
    assert times == [0.0, 0.1, 5.0, 5.1, 7205.0, 7205.1]
    assert clock.problems() == ["the clock jumps ahead 1 times, by up to 7200 s; the times are kept"]


def test_a_clock_that_stalls_gives_increasing_times():
    times, clock = corrected([0.0, 0.1, 0.1, 0.1, 0.1, 0.5])
    assert all(b > a for a, b in itertools.pairwise(times))
    assert clock.wrong == 3
