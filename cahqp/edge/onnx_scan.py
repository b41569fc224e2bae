"""Search of an ONNX model for references to other files and for endless loops, on the bytes alone.

The hash and the signature of a package cover the bytes of its model. A tensor in another file would be outside both.
The reader follows the wire format of protobuf and needs no ONNX library. It walks every occurrence of every field, so a
repeated field cannot hide a tensor from it, and it refuses bytes that it cannot read.
"""

from __future__ import annotations

from collections.abc import Iterator

_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Messages of onnx.proto that can contain a tensor: type of the child by field number."""

_FUNCTION_NODE = 7
_EXTERNAL_DATA, _DATA_LOCATION, _OPERATOR = 13, 14, 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_OPERATORS = {
    b"EPContext": "which reads another file",  # its attribute names a file with a compiled model
    **dict.fromkeys((b"Loop", b"Scan", b"SequenceMap"), "whose number of iterations has no limit"),
}
_MAX_DEPTH = 64


def find_forbidden(model: bytes) -> str | None:
    """Return the reason why a model may read another file or run for ever; `None` if it cannot.

    Args:
        model: Bytes of `model.onnx`.
    """
    if model[4:8] == b"ORTM":
        return "is in the format of onnxruntime, not in ONNX"
    calls = False
    pending = [("model", 0, len(model), 0)]
    try:
        while pending:
            kind, start, end, depth = pending.pop()
            if depth > _MAX_DEPTH:
                return "is nested too deeply"
            for number, wire, first, last in _fields(model, start, end):
                if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and last != 0)):
                    return "keeps weights in another file (ONNX external data)"
                if kind == "node" and number == _OPERATOR and wire == _BYTES and model[first:last] in _OPERATORS:
                    return f"contains the operator {model[first:last].decode()}, {_OPERATORS[model[first:last]]}"
                calls |= kind == "function" and number == _FUNCTION_NODE
                child = _MESSAGES[kind].get(number)
                if child is not None and wire == _BYTES:
                    pending.append((child, first, last, depth + 1))
    except ValueError as error:
        return f"is not a readable ONNX model ({error})"
    # Functions that call functions can expand to any size.
    return "contains functions instead of operators" if calls else None


def _fields(data: bytes, place: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, start and end of each field. The end of a number is its value."""
    while place < end:
        tag, place = _varint(data, place, end, 5)
        number, wire = tag >> 3, tag & 7
        if number == 0 or tag >> 32:
            message = f"invalid field at byte {place}"
            raise ValueError(message)
        if wire == _VARINT:
            value, after = _varint(data, place, end, 10)
            yield number, wire, place, value
        elif wire in (_FIXED64, _FIXED32):
            after = place + (8 if wire == _FIXED64 else 4)
            yield number, wire, place, after
        elif wire == _BYTES:
            size, place = _varint(data, place, end, 10)
            after = place + size
            if after <= end:
                yield number, wire, place, after
        else:
            message = f"unsupported field at byte {place}"
            raise ValueError(message)
        if after > end:
            message = f"a field ends after byte {end}"
            raise ValueError(message)
        place = after


def _varint(data: bytes, place: int, end: int, size: int) -> tuple[int, int]:
    value = 0
    for count in range(size):
        if place >= end:
            break
        byte = data[place]
        place += 1
        value |= (byte & 127) << 7 * count
        if byte < 128:
            return value, place
    message = f"invalid number at byte {place}"
    raise ValueError(message)
