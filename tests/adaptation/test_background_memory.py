import numpy as np
import torch

from cahqp.adaptation.background_memory import BackgroundMemory
from cahqp.frame import Frame, View

SIZE = (64, 128)


def frame(number, view=None, recording="night"):
    return Frame(number, f"{number}.jpg", SIZE, "camera", recording, number, view=view)


def image(left, view=None):
    """A grey road with a bright car at columns `left` to `left + 20`, as the view shows it at twice its size."""
    pixels = torch.full((3, *SIZE), 90, dtype=torch.uint8)
    pixels[:, 20:30, left : left + 20] = 200
    if view is not None:
        pixels = pixels[:, view.top : view.bottom, view.left : view.right]
        pixels = pixels.flip(2) if view.mirrored else pixels
    return pixels.repeat_interleave(2, 1).repeat_interleave(2, 2)


def watched(memory, frames=7):
    for number in range(frames):
        view = View(10, 5, 120, 60, mirrored=True) if number % 2 else None
        memory.motion(frame(number, view), image(12 * number, view))
    memory.commit()
    return memory


def test_a_car_moves_in_any_view():
    memory = watched(BackgroundMemory())
    for view in (None, View(30, 5, 120, 60, mirrored=True)):
        motion = memory.motion(frame(9, view), image(90, view))
        boxes = np.array([[90, 20, 110, 30], [60, 20, 80, 30]])
        assert motion.moving(boxes).tolist() == [True, False]


def test_nothing_is_known_before_the_commit_or_of_another_recording_or_without_a_name():
    memory = BackgroundMemory()
    assert all(memory.motion(frame(number), image(9 * number)) is None for number in range(8))
    memory.commit()
    assert memory.motion(frame(9), image(0)) is not None
    assert memory.motion(frame(9, recording="day"), image(0)) is None
    assert memory.motion(Frame(0, "a.jpg", SIZE), image(0)) is None


def test_a_restored_memory_is_the_same():
    memory, restored = watched(BackgroundMemory()), BackgroundMemory()
    restored.load_state_dict(memory.state_dict())
    masks = [one.motion(frame(9), image(90)).mask for one in (memory, restored)]
    assert (masks[0] == masks[1]).all()
    assert len(restored) == 7


def test_frames_and_recordings_not_seen_for_longest_are_dropped():
    memory = watched(BackgroundMemory(max_frames=5, max_total=6))
    assert len(memory) == 5
    for number in range(3):
        memory.motion(frame(number, recording="other"), image(0))
    memory.commit()
    assert list(memory.get_extra_state()) == ["camera/other/(64, 128)"]
