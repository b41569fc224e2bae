"""Synthetic traffic: reproducible frames, exact boxes, light by the time of day, readable files."""

import json
import time
from itertools import pairwise

import cv2
import numpy as np
import pytest

from cahqp.errors import ConfigError
from cahqp.scenes import CLASSES, Conditions, Recording
from cahqp.scenes.geometry import Camera, Path, in_front, rectangle
from cahqp.scenes.layout import build_layout
from cahqp.scenes.options import ScenesOptions
from cahqp.scenes.road_users import build
from cahqp.scenes.traffic import FIRST_PARKED, RoadUser, Stops, Traffic
from cahqp.scenes.write import scenes

SIZE = (96, 160)


@pytest.fixture(scope="module")
def noon():
    return Recording(3, 1, Conditions(12), SIZE)


def described(objects):
    return [(o.label, o.track_id, *o.box.tolist()) for o in objects]


def same(first, second):
    return np.array_equal(first[0], second[0]) and described(first[1]) == described(second[1])


@pytest.mark.parametrize(
    "conditions", [Conditions(12), Conditions(21.5, rain=0.7), Conditions(19, fog=0.5, overexposure=0.5)]
)
def test_same_seed_same_frames(conditions):
    first, second = Recording(3, 1, conditions, SIZE), Recording(3, 1, conditions, SIZE)
    assert same(first.frame(4), second.frame(4))


def test_frames_do_not_depend_on_the_order_of_rendering(noon):
    forwards = [noon.frame(i) for i in range(4)]
    other = Recording(3, 1, Conditions(12), SIZE)
    backwards = [other.frame(i) for i in (3, 2, 1, 0)][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_frames_do_not_depend_on_the_opencv_threads(noon):
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        single = noon.frame(2)
        cv2.setNumThreads(4)
        assert same(single, noon.frame(2))
    finally:
        cv2.setNumThreads(threads)


@pytest.mark.parametrize("other", [(4, 1, Conditions(12)), (3, 2, Conditions(12)), (3, 1, Conditions(15))])
def test_another_seed_camera_or_hour_gives_other_frames(noon, other):
    assert not np.array_equal(noon.frame(0)[0], Recording(*other, SIZE).frame(0)[0])


def test_frames_differ_in_time(noon):
    assert described(noon.frame(0)[1]) != described(noon.frame(1)[1])


def test_a_camera_keeps_its_place_at_every_hour(noon):
    night = Recording(3, 1, Conditions(22, rain=1), SIZE)
    assert night.layout == noon.layout
    assert night.camera_name == noon.camera_name
    assert night.name != noon.name


def test_cameras_differ():
    assert build_layout(0, 0, SIZE).camera != build_layout(0, 1, SIZE).camera


def test_image_and_boxes_have_the_promised_form(noon):
    image, objects = noon.frame(0)
    assert (image.shape, image.dtype) == ((*SIZE, 3), np.uint8)
    boxes = np.array([o.box for f in range(10) for o in noon.frame(f)[1]])
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= (SIZE[1], SIZE[0])).all()
    assert all(0 <= o.label < len(CLASSES) for o in objects)


@pytest.mark.parametrize("hour", [12, 21.5])
@pytest.mark.parametrize("index", range(3))
def test_boxes_are_tight_on_the_visible_pixels(index, hour):
    recording = Recording(5, index, Conditions(hour))
    for frame in range(6):
        _, objects, owner = recording.frame_with_owners(frame)
        seen = [mask_bounds(owner == k) for k in np.unique(owner) if k > 0]
        for o in objects:
            assert min(np.abs(np.array(box) - o.box).max() for box in seen) <= 1.6


def mask_bounds(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def test_boxes_hold_what_changed_in_the_picture():
    # Without noise, shadows or lamps, what differs from the empty scene lies inside of the boxes of all drawn.
    recording = Recording(5, 0, Conditions(12))
    _, objects, owner = recording.frame_with_owners(3)
    inside = np.zeros(owner.shape, bool)
    for o in objects:
        left, top, right, bottom = np.floor(o.box).astype(int)
        inside[top : bottom + 2, left : right + 2] = True
    assert objects
    assert (owner[~inside] > 0).mean() < 0.01


@pytest.mark.parametrize(("x", "seen"), [(2.0, []), (4.5, []), (7.0, ["car"])])  # 0, 14 and 68 % of the car
def test_objects_hidden_for_the_most_part_are_not_annotated(monkeypatch, x, seen):
    recording = Recording(0, 0, Conditions(12))
    monkeypatch.setattr(recording.traffic, "at", lambda _: [user("bus", 0.0, 16.0), user("car", x, 19.0)])
    assert [CLASSES[o.label] for o in recording.frame(0)[1]] == [*seen, "bus"]


def user(name, x, y):
    label = CLASSES.index(name)
    return RoadUser(label, 1, x, y, np.pi / 2, build(label, (0, label)))


def test_a_track_keeps_its_class_and_moves_on():
    recording = Recording(2, 0, Conditions(12), interval=0.1)
    tracks = {}
    for frame in range(20):
        for o in recording.frame(frame)[1]:
            tracks.setdefault(o.track_id, []).append((o.label, o.box))
    assert all(len({label for label, _ in track}) == 1 for track in tracks.values())
    longest = max(tracks.values(), key=len)
    steps = [np.abs(b[1] - a[1]).max() for a, b in pairwise(longest)]
    assert len(longest) > 5
    assert 0 < np.median(steps) < 30


def test_a_track_id_belongs_to_one_object_of_a_frame(noon):
    for frame in range(10):
        ids = [o.track_id for o in noon.frame(frame)[1]]
        assert len(set(ids)) == len(ids)


def test_traffic_does_not_depend_on_the_times_asked_before():
    layout = build_layout(1, 0, SIZE)
    traffic = Traffic(1, (0, 0), layout)
    traffic.at(50.0)
    late = [(u.track_id, u.x, u.y) for u in traffic.at(7.0)]
    assert late == [(u.track_id, u.x, u.y) for u in Traffic(1, (0, 0), layout).at(7.0)]


def positions(traffic, times):
    """Positions of each vehicle by its track, at the times at which it is in or near the view."""
    found = {}
    for moment in times:
        for user in traffic.at(moment):
            if CLASSES[user.label] != "person":
                found.setdefault(user.track_id, []).append((round(user.x, 6), round(user.y, 6)))
    return found


def test_waiting_vehicles_stand_for_their_share_of_the_time_and_keep_their_tracks():
    layout, times = build_layout(1, 2, (192, 320)), np.arange(0, 48, 0.5)

    def standing(waiting):
        tracks = positions(Traffic(1, (2,), layout, Stops(waiting=waiting)), times)
        steps = [first == second for own in tracks.values() for first, second in pairwise(own)]
        return sum(steps) / len(steps)

    assert standing(0.0) == 0
    assert 0.3 < standing(0.5) < 0.8
    alone = [u.track_id for u in Traffic(1, (2,), layout).at(0.0)]
    assert [u.track_id for u in Traffic(1, (2,), layout, Stops(waiting=0.5)).at(0.0)] == alone


def test_parked_vehicles_stand_unlit_with_one_track_in_every_frame():
    recording = Recording(1, 3, Conditions(21.5), stops=Stops(parked=4))
    parked = [{o.track_id for o in recording.frame(index)[1] if o.track_id >= FIRST_PARKED} for index in range(4)]
    assert set.intersection(*parked)
    places = [{(u.track_id, u.x, u.y) for u in recording.traffic.at(t) if u.track_id >= FIRST_PARKED} for t in (0, 9)]
    assert places[0] == places[1]
    assert not [user for user in recording.traffic.at(0.0) if user.track_id >= FIRST_PARKED and user.model.lamps]


def test_without_stops_frames_are_those_of_before(noon):
    assert same(noon.frame(3), Recording(3, 1, Conditions(12), SIZE, stops=Stops()).frame(3))


def test_brightness_falls_towards_night():
    frames = [Recording(1, 2, Conditions(hour)).frame(0)[0].mean() for hour in (15, 18, 19.2, 20, 21.5)]
    assert frames == sorted(frames, reverse=True)
    assert frames[-1] < 0.5 * frames[0]


def test_light_never_grows_from_noon_to_midnight():
    light = [Conditions(hour).ambient + Conditions(hour).sunlight for hour in np.arange(12, 24.1, 0.25)]
    assert (np.diff([rgb.sum() for rgb in light]) <= 1e-6).all()


def test_noise_grows_at_night():
    def roughness(hour):
        recording = Recording(1, 2, Conditions(hour))
        difference = recording.frame(0)[0].astype(float) - recording.frame(1)[0]
        return np.median(np.abs(difference))

    assert roughness(21.5) > 2 * roughness(13)


@pytest.mark.parametrize("hour", [12, 19, 24])
def test_daylight_and_darkness_make_one(hour):
    conditions = Conditions(hour)
    assert conditions.daylight + conditions.darkness == pytest.approx(1)
    assert 0 <= conditions.headlights <= 1


def test_fog_hides_contrast_and_overexposure_burns():
    def frame(**weather):
        return Recording(1, 2, Conditions(13, **weather)).frame(0)[0].astype(float)

    def contrast(image):
        return np.abs(np.diff(cv2.GaussianBlur(image, (0, 0), 2), axis=1)).mean()

    assert contrast(frame(fog=1.0)) < 0.6 * contrast(frame())
    assert (frame(overexposure=1.0) == 255).mean() > 0.2 + (frame() == 255).mean()
    assert frame(rain=1.0).mean() < frame().mean()


def test_headlights_shine_at_night():
    night = Recording(1, 2, Conditions(21.5))
    bright = [(night.frame(f)[0].min(2) > 200).sum() for f in range(8)]
    assert max(bright) > 20


def test_all_classes_are_frequent_and_frames_not_crowded():
    counts, frames = np.zeros(len(CLASSES)), 0
    for index in range(12):
        recording = Recording(0, index, Conditions(13), SIZE)
        for frame in range(0, 30, 5):
            frames += 1
            for o in recording.frame(frame)[1]:
                counts[o.label] += 1
    assert counts.argmax() == CLASSES.index("car")
    assert (counts / counts.sum()).min() > 0.06
    assert 4 < counts.sum() / frames < 10


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_models_stand_on_the_ground_and_face_outwards(label):
    model = build(label, (0, 1, 2))
    assert model.vertices[:, 2].min() >= -0.02
    for first, last, _, start, end in model.parts:
        middle = model.vertices[start:end].mean(0)
        outward = ((model.centres[first:last] - middle) * model.normals[first:last]).sum(1)
        assert (outward > 0).all()


def test_path_finds_back():
    path = Path(2.0, 18.0, 0.4, -4e-3)
    x, y, _ = path.at(np.array([-20, 0, 35.0]), np.array([3, -2, 5.0]))
    along, offset = path.locate(x, y)
    assert along == pytest.approx([-20, 0, 35], abs=1e-2)
    assert offset == pytest.approx([3, -2, 5], abs=1e-2)


def test_ground_and_projection_agree():
    camera = Camera(height=6, pitch=0.3, roll=0.05, heading=0, focal=1.1, size=SIZE)
    x, y, distance = camera.ground()
    pixels, _ = camera.project(np.array([[x[80, 40], y[80, 40], 0]]))
    assert pixels[0] == pytest.approx([40.5, 80.5], abs=1e-2)
    assert distance[80, 40] == pytest.approx(np.sqrt(x[80, 40] ** 2 + y[80, 40] ** 2 + 36), rel=1e-4)


def test_the_nearer_footprint_hides_the_farther_even_if_long():
    bus = rectangle(0, 20, np.pi / 2, 5, 1.3)
    beyond, before = rectangle(4, 24, np.pi / 2, 2, 1), rectangle(-4, 16, np.pi / 2, 2, 1)
    assert in_front(bus, beyond)
    assert not in_front(beyond, bus)
    assert in_front(before, bus)
    assert not in_front(bus, before)


def test_fast_enough():
    recording = Recording(0, 0, Conditions(21.5))
    recording.frame(0)
    before = time.process_time()  # seconds of this process alone, whatever else the machine does
    for frame in range(1, 31):
        recording.frame(frame)
    assert 30 / (time.process_time() - before) > 25


def written(folder, **arguments):
    settings = {"recordings": 2, "frames": 3, "width": 160, "height": 96, **arguments}
    scenes(ScenesOptions(output=folder, **settings))
    return json.loads((folder / "annotations.json").read_text())


def test_command_writes_images_annotations_and_manifest(tmp_path):
    coco = written(tmp_path / "day", hour=[12, 18])
    assert [c["name"] for c in coco["categories"]] == list(CLASSES)
    assert len(coco["images"]) == 6
    for image in coco["images"]:
        pixels = cv2.imread(str(tmp_path / "day" / "images" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        assert image["recording"].startswith(image["camera"])
    assert [i["timestamp"] for i in coco["images"]] == [0, 1, 2] * 2
    assert (tmp_path / "day" / "manifest.json").exists()


def test_annotations_load_in_pycocotools(tmp_path):
    written(tmp_path / "day")
    coco = pytest.importorskip("pycocotools.coco").COCO(tmp_path / "day" / "annotations.json")
    assert all(a["area"] > 0 and a["track_id"] > 0 for a in coco.loadAnns(coco.getAnnIds()))
    assert {a["image_id"] for a in coco.anns.values()} <= set(coco.getImgIds())


def test_same_command_writes_the_same_files(tmp_path):
    for name in "ab":
        written(tmp_path / name, seed=4, image_format="png")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) >= 8
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_first_recording_gives_other_cameras(tmp_path):
    train = written(tmp_path / "train")
    held_out = written(tmp_path / "held_out", first_recording=2)
    assert not {i["camera"] for i in train["images"]} & {i["camera"] for i in held_out["images"]}


def test_killed_and_started_again_gives_the_same(tmp_path, monkeypatch):
    whole = written(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("cahqp.scenes.write.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert written(tmp_path / "again") == whole


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rain": 1.5}, "--rain must be between 0 and 1, got 1.5"),
        ({"fog": float("nan")}, "--fog must be between 0 and 1, got nan"),
        ({"frames": 0}, "--frames"),
        ({"seed": -1}, "--seed"),
        ({"hour": [11, 13]}, "--hour"),
        ({"hour": [15, 13]}, "--hour"),
        ({"hour": [15]}, "--hour"),
        ({"width": 10}, "--width"),
        ({"image_format": "bmp"}, "--image-format must be jpg or png, got bmp"),
    ],
)
def test_invalid_options_are_named_and_nothing_is_written(tmp_path, arguments, words):
    with pytest.raises(ConfigError, match=words):
        scenes(ScenesOptions(output=tmp_path / "out", **arguments))
    assert not list(tmp_path.iterdir())


def test_all_problems_come_together(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)--recordings.*--rain.*--hour"):
        scenes(ScenesOptions(output=tmp_path / "out", rain=2, recordings=0, hour=(1, 2)))


@pytest.mark.parametrize("bad", [{"hour": 25}, {"hour": float("nan")}, {"rain": -0.1}, {"overexposure": 2}])
def test_conditions_refuse_values_out_of_range(bad):
    with pytest.raises(ConfigError, match=f"{next(iter(bad))} must be between"):
        Conditions(**bad)
