import logging

import pytest
import torch

from cahqp.adaptation import TrackBank
from cahqp.structures import Frame

BOX = [10.0, 10.0, 30.0, 30.0]


def see(bank, time, value, box=BOX, label=0, recording="monday", commit=True):
    frame = Frame(0, "a.jpg", (64, 96), "north", recording, 0, time)
    values = torch.tensor([[value]], requires_grad=True)
    result = bank.blend(frame, torch.tensor([box]), torch.tensor([label]), values)
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
    assert [bank.knows_neighbour(frame) for frame in frames] == [False, True, True, False, None]


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
