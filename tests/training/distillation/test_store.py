import errno
import json
import os

import numpy as np
import pytest

from cahqp.errors import DataError, RunError, WeightsError
from cahqp.frame import Frame, View
from cahqp.training.distillation.records import RecordLayout, SoftView, pack, unpack
from cahqp.training.distillation.store import SoftLabelStore, SoftLabelWriter, StoreKey

CLASSES = tuple("abcdef")
FRAMES = [Frame(n, f"{n}.png", (0, 0), recording="one", index=n) for n in range(5)]


def layout(queries=4, kept=2, precision="packed", classes=6):
    return RecordLayout(queries, kept, classes, precision)


def key(**changed):
    given = {"teacher": "t" * 64, "prompt": None, "views": 3, "seed": 0, "augmentation": "strong", "layout": layout()}
    return StoreKey(classes=CLASSES, **{**given, **changed})


def soft(seed=0, queries=10, classes=6):
    rng = np.random.default_rng(seed)
    probs = rng.random((queries, classes), np.float32) ** 3
    return SoftView(View(3, 5, 90, 60, bool(seed % 2)), 2**62 + seed, probs, rng.random((queries, 4), np.float32))


@pytest.fixture
def store(tmp_path):
    fill(tmp_path / "soft")
    return tmp_path / "soft"


def fill(folder, skip=(), **changed):
    writer = SoftLabelWriter(folder, key(**changed), "../images", FRAMES)
    for frame in range(5):
        for view in range(3):
            if (frame, view) not in skip:
                writer.write(frame, view, soft(3 * frame + view))
    return writer.finish()


def test_all_in_float32_comes_back_to_the_bit():
    given, whole = soft(1), layout(10, 6, "float32")
    found = unpack(pack(given, whole), whole)
    assert (found.view, found.seed) == (given.view, given.seed)
    assert np.array_equal(found.probs, given.probs)
    assert np.array_equal(found.boxes, given.boxes)


def test_packed_shares_are_wrong_by_half_a_step_at_most():
    whole = layout(10, 6)
    found = unpack(pack(soft(1), whole), whole)
    assert np.abs(found.probs - soft(1).probs).max() <= 0.51 / 65535
    assert np.abs(found.boxes - soft(1).boxes).max() <= 0.51 / 65535


def test_the_surest_queries_are_kept_in_the_teachers_order():
    found = unpack(pack(soft(1), layout(4, 6, "float32")), layout(4, 6, "float32"))
    surest = np.sort(np.argsort(-soft(1).probs.max(1))[:4])
    assert np.array_equal(found.boxes, soft(1).boxes[surest])


def test_the_mean_of_what_was_left_out_stands_for_it():
    sparse = layout(10, 2, "float32")
    found, given = unpack(pack(soft(1), sparse), sparse), soft(1).probs
    assert np.allclose(found.probs.sum(1), given.sum(1), atol=1e-6)
    assert np.array_equal(found.probs.argmax(1), given.argmax(1))
    left_out = np.sort(given, 1)[:, :4].mean(1)
    assert np.allclose(np.sort(found.probs, 1)[:, 0], np.minimum(left_out, np.sort(given, 1)[:, 4]), atol=1e-6)
    assert (np.sort(unpack(pack(soft(1), sparse), sparse, "drop").probs, 1)[:, :4] == 0).all()


@pytest.mark.parametrize("classes", [6, 91, 256])
def test_a_view_of_a_hundred_queries_and_three_classes_takes_two_kilobytes_at_most(classes):
    assert layout(100, 3, classes=classes).dtype.itemsize == 1921


def test_a_file_has_the_size_of_its_records_and_a_header(store):
    assert (store / "shard-00000.bin").stat().st_size == 64 + 15 * layout().dtype.itemsize


def test_what_is_written_is_read(store):
    found = SoftLabelStore(store)
    assert [frame.recording for frame in found.frames] == ["one"] * 5
    expected = unpack(pack(soft(3 * 4 + 1), layout()), layout())
    assert np.array_equal(found.read(4, 1).probs, expected.probs)
    assert found.read(4, 1).view == soft(13).view


def test_shards_follow_one_another(tmp_path, monkeypatch):
    monkeypatch.setattr("cahqp.training.distillation.store._SHARD", 4 * layout().dtype.itemsize)
    fill(tmp_path / "soft")
    assert len(list((tmp_path / "soft").glob("shard-*.bin"))) == 4
    assert SoftLabelStore(tmp_path / "soft").read(4, 2).seed == soft(14).seed


def test_a_killed_writer_goes_on_and_leaves_the_same_bytes(store, tmp_path, contents):
    again = SoftLabelWriter(tmp_path / "again", key(), "../images", FRAMES)
    again.write(0, 0, soft(0))
    again.write(0, 1, soft(1))
    shard = tmp_path / "again" / "shard-00000.bin"
    torn = bytearray(shard.read_bytes())
    torn[64 + 2 * layout().dtype.itemsize - 3] ^= 1  # the second record was not written to its end
    shard.write_bytes(torn)
    again = SoftLabelWriter(tmp_path / "again", key(), "../images", FRAMES)
    assert again.done().sum() == 1
    assert again.done()[0, 0]
    fill(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(store)


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_and_the_same_command_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", no_room, raising=False)
        with pytest.raises(RunError, match="No space left on device"):
            fill(tmp_path / "soft")
    assert [path.name for path in (tmp_path / "soft").iterdir()] == ["store.json"]
    assert fill(tmp_path / "soft") == 5


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="only where files can be given their room")
def test_shards_have_their_room_before_anything_is_written(tmp_path, monkeypatch):
    shard = tmp_path / "soft" / "shard-00000.bin"
    SoftLabelWriter(tmp_path / "soft", key(views=3000), "..", FRAMES).done()
    assert shard.stat().st_blocks * 512 >= shard.stat().st_size > 2**20


@pytest.mark.parametrize("name", ["probs", "boxes"])
@pytest.mark.parametrize("precision", ["packed", "float32"])
def test_answers_that_are_no_numbers_are_refused(name, precision):
    given = soft()
    getattr(given, name)[3] = np.nan
    with pytest.raises(RunError, match="NaN or infinite"):
        pack(given, layout(precision=precision))


def test_a_frame_that_misses_a_view_is_left_out(tmp_path):
    assert fill(tmp_path / "soft", skip=[(1, 2)]) == 4
    found = SoftLabelStore(tmp_path / "soft")
    assert [frame.name for frame in found.frames] == ["0.png", "2.png", "3.png", "4.png"]
    assert found.read(1, 0).seed == soft(6).seed


def test_an_unfinished_store_is_refused(tmp_path):
    SoftLabelWriter(tmp_path / "soft", key(), "../images", FRAMES)
    with pytest.raises(RunError, match="not finished"):
        SoftLabelStore(tmp_path / "soft")


def test_another_teacher_cannot_go_on_in_it(store):
    with pytest.raises(RunError, match="another teacher"):
        SoftLabelWriter(store, key(teacher="u" * 64), "../images", FRAMES)


def test_a_store_of_another_teacher_is_refused(store):
    SoftLabelStore(store).check_teacher("t" * 64)
    with pytest.raises(WeightsError, match="not of uuu"):
        SoftLabelStore(store).check_teacher("u" * 64)


@pytest.mark.parametrize("part", ["teacher", "prompt", "seed"])
def test_a_shard_of_another_store_is_refused(store, part):
    document = json.loads((store / "store.json").read_text())
    document["key"][part] = {"teacher": "u" * 64, "prompt": "p", "seed": 1}[part]
    (store / "store.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="another store"):
        SoftLabelStore(store).read(0, 0)


def test_a_damaged_record_is_refused(store):
    data = bytearray((store / "shard-00000.bin").read_bytes())
    data[64 + 20] ^= 255
    (store / "shard-00000.bin").write_bytes(data)
    with pytest.raises(DataError, match=r"view 0 of 0\.png is damaged"):
        SoftLabelStore(store).read(0, 0)
    assert SoftLabelStore(store).read(0, 1).seed == soft(1).seed


def test_a_shard_that_was_cut_short_is_refused(store):
    (store / "shard-00000.bin").write_bytes((store / "shard-00000.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match="has not the expected"):
        SoftLabelStore(store).read(0, 0)
