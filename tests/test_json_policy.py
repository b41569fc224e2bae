import json

import pytest

from cahqp.coco.reader import read_coco, read_coco_frames
from cahqp.errors import CahqpError, RunError
from cahqp.files import read_json
from cahqp.json_policy import parse_json
from cahqp.records import parse_json as parse_limited

MARK = b"\xef\xbb\xbf"
READERS = [parse_json, parse_limited]


@pytest.mark.parametrize("parse", READERS)
def test_a_byte_order_mark_is_skipped_by_all_readers(tmp_path, parse):
    assert parse(MARK + b'{"a": [1]}') == {"a": [1]}
    (tmp_path / "a.json").write_bytes(MARK + b'{"a": [1]}')
    assert read_json(tmp_path / "a.json") == {"a": [1]}


@pytest.mark.parametrize("parse", READERS)
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a": 1, "a": 2}', "key 'a'"),
        ('{"x": {"y": [0, {"a": 1, "a": 1}]}}', "x.y[1]: key 'a'"),
        ('{"a": {"b": 1, "b": 2}, "a": 3}', "key 'a' occurs more than once; 1 more"),
    ],
)
def test_repeated_keys_are_refused_at_any_depth(tmp_path, parse, text, place):
    with pytest.raises(ValueError, match="occurs more than once") as caught:
        parse(text.encode())
    assert place in str(caught.value)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RunError, match="occurs more than once"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", "1e999", "[" * 200_000, "1" * 5000, "\xff", '["\\ud800"]', '{"\\uDFFF": 1}']
)
@pytest.mark.parametrize("parse", READERS)
def test_other_values_are_a_value_error(parse, text):
    with pytest.raises(ValueError, match=r".+"):
        parse(text.encode("latin-1"))


def test_whole_surrogate_pairs_are_characters():
    assert parse_json(b'["\\ud83d\\ude00"]') == ["\N{GRINNING FACE}"]


@pytest.mark.parametrize("read", [read_coco, read_coco_frames])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"images"', '"images": [], "images"'),
        ('"info"', '"info": {}, "info"'),
        ('"x": 1', '"x": 1, "x": 2'),
        ('"licenses": []', '"licenses": [{"id": 1, "id": 2}]'),
    ],
)
def test_repeated_keys_anywhere_in_a_coco_file_are_refused(tmp_path, read, old, new):
    image = {"id": 1, "file_name": "a.jpg", "width": 4, "height": 4, "attributes": {"x": 1}}
    document = {"info": {}, "licenses": [], "images": [image], "annotations": [], "categories": []}
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "a.json").write_text(json.dumps(document))
    read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps(document).replace(old, new, 1))
    with pytest.raises(CahqpError, match="occurs more than once"):
        read(tmp_path / "a.json")


def test_repeated_keys_in_source_json_are_refused(tmp_path):
    image = {"id": 1, "file_name": "a.jpg", "width": 4, "height": 4}
    (tmp_path / "a.json").write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(b"")
    (tmp_path / "source.json").write_text('{"root": "one", "root": "two"}')
    with pytest.raises(CahqpError, match=r"source\.json.*occurs more than once"):
        read_coco(tmp_path / "a.json")
