"""The memory of places that are always taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cahqp.adaptation.stationary_memory import StationaryMemory
from cahqp.frame import Frame, View

LAMP, PASSING = [10.0, 10, 20, 20], [0.0, 50, 20, 60]


def frame(number: int, view: View | None = None, recording: str = "night") -> Frame:
    return Frame(number, f"{number}.jpg", (100, 200), "camera", recording, number, view=view)


def boxes(number: int) -> torch.Tensor:
    passing = torch.tensor(PASSING) + torch.tensor([30.0, 0, 30, 0]) * number
    return torch.stack([torch.tensor(LAMP), passing])


def watched(frames: int, **given: float) -> StationaryMemory:
    memory = StationaryMemory(**given)  # type: ignore[arg-type]
    for number in range(frames):
        memory.note(frame(number), boxes(number))
    memory.commit()
    return memory


def test_what_stands_counts_less_and_what_passes_counts_fully():
    assert watched(7, stationary_weight=0.25).factors(frame(7), boxes(7)).tolist() == [0.25, 1.0]


def test_a_frame_does_not_speak_for_itself():
    assert watched(5).factors(frame(0), boxes(0)).tolist() == [1.0, 1.0]  # four others are too few
    assert watched(6).factors(frame(0), boxes(0)).tolist() == [0.5, 1.0]


def test_nothing_is_known_before_the_commit_or_of_another_recording():
    memory = watched(8)
    assert memory.factors(frame(9, recording="day"), boxes(9)).tolist() == [1.0, 1.0]
    fresh = StationaryMemory()
    for number in range(8):
        fresh.note(frame(number), boxes(number))
    assert fresh.factors(frame(9), boxes(9)).tolist() == [1.0, 1.0]


def test_frames_whose_view_leaves_a_place_out_say_nothing_of_it():
    memory = watched(6)
    for number in range(6, 30):
        memory.note(frame(number, View(100, 0, 200, 100)), torch.zeros(0, 4))
    memory.commit()
    assert memory.factors(frame(40), boxes(40))[0] == 0.5


def test_half_of_the_frames_counts_in_between():
    memory = StationaryMemory(stationary_weight=0.0)
    for number in range(10):
        memory.note(frame(number), boxes(number)[number % 2 :])
    memory.commit()
    assert memory.factors(frame(20), boxes(20))[0] == pytest.approx(0.25)  # half way from 0.2 to 0.6 and a quarter more


def test_frames_without_origin_are_left_as_they_are():
    memory, nowhere = StationaryMemory(), Frame(0, "a.jpg", (100, 200))
    for _ in range(9):
        memory.note(nowhere, boxes(0))
    memory.commit()
    assert len(memory) == 0
    assert memory.factors(nowhere, boxes(0)).tolist() == [1.0, 1.0]


def test_the_oldest_frames_are_forgotten():
    memory = watched(6, max_frames=3)
    assert len(memory) == 3


def test_a_restored_memory_knows_as_much():
    memory, restored = watched(7), StationaryMemory()
    restored.load_state_dict(memory.state_dict())
    assert restored.factors(frame(7), boxes(7)).equal(memory.factors(frame(7), boxes(7)))
    assert len(restored) == 7


def test_no_boxes_at_all():
    assert watched(7).factors(frame(8), torch.zeros(0, 4)).shape == (0,)


def test_a_restored_memory_forgets_in_the_same_order():
    memory, restored = watched(4, max_frames=4), StationaryMemory(max_frames=4)
    restored.load_state_dict(memory.state_dict())
    for one in (memory, restored):
        one.note(frame(0), boxes(0))  # seen again: frame 1 is now the oldest
        one.commit()
        one.note(frame(9), boxes(9))
        one.commit()
        assert list(one.get_extra_state()["camera/night/(100, 200)"]["ids"]) == [2, 3, 0, 9]


def test_frames_of_another_size_have_other_places():
    memory = watched(8)
    assert memory.factors(replace(frame(9), size=(200, 400)), boxes(9)).tolist() == [1.0, 1.0]


def test_recordings_not_seen_for_longest_are_forgotten_first():
    memory = StationaryMemory(max_total=4)
    for recording in ("one", "two", "one"):
        for number in range(2):
            memory.note(frame(number + (recording == "one"), recording=recording), boxes(number))
        memory.commit()
    memory.note(frame(0, recording="three"), boxes(0))
    memory.commit()
    assert list(memory.get_extra_state()) == ["camera/one/(100, 200)", "camera/three/(100, 200)"]


def test_frames_that_name_no_place_are_told_of_once(caplog: pytest.LogCaptureFixture):
    memory = StationaryMemory()
    for number in range(6):
        memory.note(Frame(number, f"{number}.jpg", (100, 200), "", "", number), boxes(number))
    memory.commit()
    assert len(memory) == 0
    assert [record.message[:37] for record in caplog.records] == ["'0.jpg' has no camera and no recordin"]
