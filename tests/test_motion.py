import numpy as np
import pytest

from cahqp.motion import Motion, median_background, thumbnail_size

SIZE = (64, 128)
CAR = [40.0, 20, 60, 30]


def frame(left=None):
    """A noisy road, with a bright car 20 pixels wide."""
    image = np.random.default_rng(int(left or 0)).integers(90, 96, (*SIZE, 3)).astype(np.uint8)
    if left is not None:
        image[20:30, left : left + 20] = 200
    return image


@pytest.fixture(scope="module")
def background():
    return median_background([frame(left) for left in range(0, 100, 10)])


def test_thumbnails_have_one_longest_side():
    assert thumbnail_size(1080, 1920) == (72, 128)
    assert thumbnail_size(192, 108) == (128, 72)


def test_a_car_moves_and_the_road_does_not(background):
    motion = Motion(frame(40), background, SIZE)
    assert motion.moving(np.array([CAR, [40, 40, 60, 50], [0, 0, 0, 0]])).tolist() == [True, False, False]
    assert motion.mask.mean() < 0.05


def test_regions_are_in_pixels_of_the_frame_and_spare_labels(background):
    motion = Motion(frame(40), background, (640, 1280))
    (region,) = motion.regions(np.zeros((0, 4)))
    assert region == pytest.approx([400, 200, 600, 300], abs=10)
    assert len(motion.regions(region[None])) == 0


def test_nothing_moves_if_all_of_the_frame_changes(background):
    assert not Motion(frame(40) + np.uint8(40), background, SIZE).mask.any()


def test_few_frames_have_no_background():
    assert median_background([frame()] * 4) is None


def test_pixels_that_few_views_show_are_unknown():
    images, half = [frame(left) for left in range(0, 60, 10)], np.ones(SIZE, bool)
    half[:, 64:] = False
    background = median_background(images, [half] * 5 + [np.ones(SIZE, bool)])
    assert np.isfinite(background[:, :64]).all()
    assert np.isnan(background[:, 64:]).all()
    assert not Motion(frame(90), background, SIZE).mask[:, 64:].any()
