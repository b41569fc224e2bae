import logging

import pytest
import torch

from cahqp.adaptation.track_bank import TrackBank
from cahqp.frame import Frame, View

BOX = [10.0, 10.0, 30.0, 30.0]


def see(bank, time, value, box=BOX, label=0, recording="monday", commit=True, view=None):
    frame = Frame(0, "a.jpg", (64, 96), "north", recording, 0, time, view)
    values = torch.tensor([[value]] if box else []).reshape(-1, 1).requires_grad_()
    boxes, labels = torch.tensor([box] if box else []).reshape(-1, 4), torch.tensor([label] if box else []).long()
    result = bank.blend(frame, boxes, labels, values)
    if commit:
        bank.commit()
    return result, values


def test_momentum_is_the_share_of_the_past_and_only_the_present_has_a_gradient():
    bank = TrackBank(momentum=0.75)
    see(bank, 0.0, 8.0)
    blended, values = see(bank, 1.0, 4.0)
    blended.sum().backward()
    assert blended.item() == pytest.approx(7.0)
    assert values.grad.item() == pytest.approx(0.25)
    assert see(bank, 2.0, 0.0)[0].item() == pytest.approx(0.75 * 7.0)
    assert len(bank) == 1


@pytest.mark.parametrize(
    "change", [{"label": 1}, {"recording": "tuesday"}, {"box": [60.0, 40.0, 80.0, 60.0]}, {"time": 9.0}]
)
def test_another_class_recording_place_or_time_is_another_track(change):
    bank = TrackBank(max_gap=2.0)
    see(bank, 0.0, 8.0)
    blended, _ = see(bank, **({"time": 1.0, "value": 4.0} | change))
    assert blended.item() == 4.0
    assert len(bank) == 2


def test_neighbours_are_found_before_and_after_whatever_the_order():
    bank = TrackBank(momentum=0.5, max_gap=1.0)
    see(bank, 5.0, 8.0)
    assert see(bank, 4.5, 0.0)[0].item() == 4.0
    assert see(bank, 3.6, 0.0)[0].item() == 2.0


@pytest.mark.parametrize("empty", [[1.0], [1.0, 0.8], [1.0, 0.8, 1.2]])
def test_what_a_frame_did_not_show_is_looked_for_in_its_neighbours(empty):
    bank = TrackBank(momentum=0.5, max_gap=2.0)
    see(bank, 0.5, 8.0)
    for time in empty:
        see(bank, time, 0.0, box=None)
    assert see(bank, 1.0, 0.0)[0].item() == 4.0
    assert len(bank) == 1


def test_two_instances_never_share_a_track():
    bank = TrackBank(momentum=0.5, max_gap=2.0)
    see(bank, 0.0, 8.0)
    see(bank, 1.0, 4.0)  # the same track, a little further on
    frame = Frame(0, "a.jpg", (64, 96), "north", "monday", 0, 1.0)
    boxes = torch.tensor([BOX, [14.0, 10.0, 34.0, 30.0]])
    found = bank.blend(frame, boxes, torch.tensor([0, 0]), torch.zeros(2, 1))
    assert found.flatten().tolist() == [3.0, 0.0]


def test_what_a_view_does_not_show_stays_remembered():
    bank = TrackBank(momentum=0.5, max_gap=0.1)
    see(bank, 0.0, 8.0)
    see(bank, 0.0, 0.0, box=None, view=View(40, 0, 96, 64))
    assert see(bank, 0.0, 0.0)[0].item() == 4.0
    see(bank, 0.0, 0.0, box=None, view=View(0, 0, 40, 64))  # shown, and gone
    assert see(bank, 0.0, 1.0)[0].item() == 1.0


def test_what_a_step_writes_does_not_depend_on_the_order_in_its_batch():
    banks = TrackBank(), TrackBank()
    for bank, order in zip(banks, ([0, 1, 2], [2, 0, 1]), strict=True):
        results = {n: see(bank, n * 0.5, float(n), commit=False)[0].item() for n in order}
        assert results == {0: 0.0, 1: 1.0, 2: 2.0}
        bank.commit()
    assert see(banks[0], 1.5, 0.0)[0].item() == see(banks[1], 1.5, 0.0)[0].item() != 0


@pytest.mark.parametrize(("time", "recording"), [(None, "monday"), (0.0, "")])
def test_frames_without_time_or_recording_pass_and_are_told_once(time, recording, caplog):
    bank = TrackBank()
    with caplog.at_level(logging.WARNING):
        results = [see(bank, time, value, recording=recording)[0].item() for value in (8.0, 4.0)]
    assert results == [8.0, 4.0]
    assert len(bank) == 0
    assert [r.message.count("without the bank of tracks") for r in caplog.records] == [1]


def test_frames_not_seen_for_longest_are_forgotten_with_their_tracks():
    bank = TrackBank(max_frames=2)
    for time in (0.0, 10.0, 0.0, 20.0):
        see(bank, time, 1.0)
    assert len(bank) == 2
    assert see(bank, 0.5, 0.0)[0].item() == 0.5
    assert see(bank, 10.5, 0.0)[0].item() == 0.0


def test_thousands_of_frames_are_remembered_unless_told_otherwise():
    bank = TrackBank()
    for time in range(0, 9000, 3):
        see(bank, float(time), 8.0)
    assert len(bank) == 3000
    assert see(bank, 1.0, 0.0)[0].item() == 4.0


def test_a_track_lives_as_long_as_a_frame_that_shows_it():
    bank = TrackBank(momentum=0.5, max_frames=2)
    for time in (0.0, 1.0, 1.0, 50.0):
        see(bank, time, 8.0)
    assert len(bank) == 2
    see(bank, 51.0, 8.0)
    assert len(bank) == 1


def test_another_frame_near_in_time_is_a_neighbour():
    bank = TrackBank(max_gap=2.0)
    see(bank, 5.0, 8.0)
    frames = [Frame(0, "a.jpg", (64, 96), "north", "monday", 0, time) for time in (5.0, 6.5, 3.0, 7.5, None)]
    assert [bank.has_neighbour(frame) for frame in frames] == [False, True, True, False, None]


def test_a_frame_without_instances_is_fine():
    bank = TrackBank()
    see(bank, 0.0, 1.0)
    frame = Frame(0, "a.jpg", (64, 96), "north", "monday", 0, 0.5)
    assert bank.blend(frame, torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0, 3)).shape == (0, 3)
    bank.commit()


def test_state_survives_a_weights_only_checkpoint(tmp_path):
    bank, restored = TrackBank(max_frames=2), TrackBank(max_frames=2)
    restored.load_state_dict(bank.state_dict())
    assert len(restored) == 0
    for time in (7.0, 9.5, 0.0):
        see(bank, time, 8.0)
    torch.save(bank.state_dict(), tmp_path / "bank.ckpt")
    restored.load_state_dict(torch.load(tmp_path / "bank.ckpt", weights_only=True))
    assert see(restored, 1.0, 4.0)[0].item() == see(bank, 1.0, 4.0)[0].item() == 6.0
    one, two = bank.state_dict(), restored.state_dict()
    assert all(torch.equal(one[k], two[k]) if torch.is_tensor(one[k]) else one[k] == two[k] for k in one)


def test_frames_of_all_processes_are_written(monkeypatch):
    here, there = TrackBank(momentum=0.5), TrackBank()
    see(there, 0.0, 8.0, commit=False)

    def all_gather(gathered, mine):
        gathered[:] = [mine, there._pending]

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", all_gather)
    here.commit()
    assert see(here, 1.0, 4.0, commit=False)[0].item() == 6.0
