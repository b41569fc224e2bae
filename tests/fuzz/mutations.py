"""Seeded changes of valid files: JSON values, texts, bytes and file names."""

import copy
import json
import re
from pathlib import PurePosixPath

NUMBERS = (
    0, -1, 1, 2, 255, 256, 65_536, 2**31, -(2**31), 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1.0,
    1e-320, 1e308, -1e308, 3.4e38, 7.000001,
)  # fmt: skip
TEXTS = (
    "", " ", "x", "x" * 300, "é" * 200, "\x00", "\ud800", "\u202e", "..", ".", "/", "a/../b",
    "../../../../etc/hostname", "/etc/hostname", "C:\\x", "a\\b", "-", "--output", "NaN", "Infinity",
    "null", "0", "1e999", "car", "*", "%s", "{0}", "<b>", "\n", "file:///etc/hostname", "hf-hub:a/b",
)  # fmt: skip
SHAPES = (None, True, False, [], {}, [[]], [None], {"": None}, [0] * 2000, [[[[[[[[0]]]]]]]], {"a": {"b": {"c": {}}}})
DOCUMENTS = (
    "", " ", "null", "0", '"x"', "[]", "{}", "[" * 100_000, '{"a":' * 50_000, "[1,]", '{"a": 1, "a": 2}', "NaN",
    "[NaN]", "[1e999]", "1" * 5000, "\ufeff{}", "\ufeff[]", '"\\ud800"', "{'a': 1}", "[" * 40 + "]" * 40,
)  # fmt: skip
YAML_VALUES = (
    "!!python/object/apply:os.system ['touch {marker}']", "!!python/name:os.system", "&a [*a]", "*b", "!!binary AA==",
    "2001-01-01", "1_000", "0x10", "1:30", "~", "<<: *a", "!!set {{a}}", "? [a]", "|", ">", "% ", "@", "`", "- -", "[",
    "&a [x,x,x,x,x,x,x,x,x]\nz: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\ny: [*b,*b,*b,*b,*b,*b,*b,*b]",
)  # fmt: skip
STEMS = (
    b"a", b"frame 1", b"\xff\xfe", b"caf\xe9", "ü".encode() * 100, b"x" * 251, b"a\nb", b"-rf", b"a\\b", b"'\"",
    b".hidden", b"$(touch x)", b"%2e%2e", b"con", b"a:b", b"C:", b"\x7f", b"*", "\u202egnp".encode(), b"..x",
)  # fmt: skip
SUFFIXES = (b".png", b".jpg", b".PNG", b".json", b".mp4", b".avi", b".tar.gz", b"", b".", b".png ", b".gif")
INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


class Mutator:
    """Changes of file contents.

    Args:
        random: `random.Random` that makes all choices.
        root: Folder of the target; `outside/` in it must not be read or written, and content that is executed would
            create `outside/marker`.
        url: Address of the listener.
        files: Bytes of the valid files by name.
        thorough: Call all readers of a target, not two of them.
    """

    def __init__(self, random, root, url, files, thorough):
        self.random, self.root, self.files, self._thorough = random, root, files, thorough
        marker, secret = root / "outside" / "marker", root / "outside" / "secret.txt"
        strange = (str(marker), url, str(secret), "../outside/secret.txt", f"{url}/w.safetensors")
        self.texts = TEXTS + strange
        self.yaml = tuple(text.format(marker=marker) if "{" in text else text for text in YAML_VALUES)

    def choose(self, readers):
        """Return two of the readers, or all of them."""
        return readers if self._thorough else self.random.sample(readers, min(2, len(readers)))

    def change(self, name, data):
        """Return the changed bytes of a file; its suffix decides how."""
        kind = {".json": self.json, ".xml": self.text, ".txt": self.text, ".yaml": self.text, ".jsonl": self.text}
        return kind.get(PurePosixPath(name).suffix, self.bytes)(data)

    def json(self, data):
        """Return a document with one to three changed values, or another text."""
        if self.random.random() < 0.08:
            return self.random.choice(DOCUMENTS).encode("utf-8", "surrogatepass")
        if self.random.random() < 0.06:
            return self.bytes(data)
        text = json.dumps(self.value(json.loads(data)))
        if self.random.random() < 0.08:
            text = re.sub(r'"(\w+)": ', r'"\1": 0, "\1": ', text, count=1)
        return text.encode()

    def value(self, value, times=None):
        """Return a copy of a JSON value with one to three changes."""
        value = copy.deepcopy(value)
        for _ in range(times or self.random.choice((1, 1, 1, 2, 3))):
            places = list(_places(value))
            if not places:
                return self.strange()
            # A list of a hundred rows would get all changes otherwise.
            depth = self.random.choice(sorted({depth for depth, _, _ in places}))
            _, parent, key = self.random.choice([place for place in places if place[0] == depth])
            self._edit(parent, key, places)
        return value

    def strange(self):
        """Return a hostile JSON value."""
        return copy.deepcopy(self.random.choice(self.random.choice((NUMBERS, self.texts, SHAPES))))

    def _edit(self, parent, key, places):
        old, action = parent[key], self.random.randrange(10)
        if action < 5:
            parent[key] = self.strange()
        elif action == 5:
            del parent[key]
        elif action == 6:
            parent[key] = copy.deepcopy(self.random.choice([owner[name] for _, owner, name in places]))
        elif action == 7 and isinstance(parent, dict):
            parent[self.random.choice((f"{key}x", "checkpoint_path", "auto_map", "url", "", "__class__"))] = (
                self.strange()
            )
        elif action == 7:
            parent.insert(key, copy.deepcopy(old))
        elif action == 8 and isinstance(old, int | float) and abs(old) < 1e300:
            parent[key] = self.random.choice((old + 1, old - 1, -old, old * 1000, old / 3, str(old), float(old)))
        elif action == 8 and isinstance(old, str):
            parent[key] = self.random.choice((old + "/../x", old.upper(), old * 9, old[:-1], f"../{old}", [old]))
        else:
            parent[key] = [old] if self.random.random() < 0.5 else {"a": old}

    def text(self, data):
        """Return a text with changed words, numbers or lines, or changed bytes."""
        if self.random.random() < 0.15:
            return self.bytes(data)
        lines = data.decode("utf-8", "surrogateescape").splitlines()
        for _ in range(self.random.choice((1, 1, 2, 3))):
            row = self.random.randrange(len(lines)) if lines else 0
            lines[row : row + 1] = self._line(lines[row] if lines else "")
        return "\n".join([*lines, ""]).encode("utf-8", "surrogatepass")

    def _line(self, line):
        action, words = self.random.randrange(8), list(re.finditer(r"[\w./:-]+", line))
        if action == 0:
            return []
        if action == 1:
            return [line] * self.random.choice((2, 3, 50))
        if action == 2:
            return [" " * self.random.randrange(4) + line]
        if action == 3 or not words:
            return [self.random.choice(self.yaml + self.texts)]
        word = self.random.choice(words)
        numbers = ("nan", "inf", "-inf", "1e999", "-1", "9" * 5000, "0x1", "1e308", "0.0", "1_0", "٣")
        new = self.random.choice(numbers + self.texts if action < 7 else self.yaml)
        return [line[: word.start()] + new + line[word.end() :]]

    def bytes(self, data):
        """Return bytes with flipped bits, extreme integers, or moved, repeated and missing parts."""
        data = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 4, 16))):
            size = len(data)
            action, place = self.random.randrange(8), self._place(size)
            length = min(size - place, self.random.choice((1, 2, 4, 8, 64, 4096)))
            if action < 2 and size:
                data[place % size] ^= 1 << self.random.randrange(8)
            elif action < 5:
                width, order = self.random.choice((1, 2, 4, 8)), self.random.choice(("little", "big"))
                number = self.random.choice(INTEGERS) & ((1 << 8 * width) - 1)
                data[place : place + width] = number.to_bytes(width, order)
            elif action == 5:
                del data[place : place + length]
            elif action == 6:
                target = self._place(size)
                data[target:target] = data[place : place + length]
            elif self.random.random() < 0.3:
                del data[place:]
        return bytes(data)

    def _place(self, size):
        """Return a position, often near the start, where formats keep their headers."""
        return self.random.randrange(min(size, 256) if self.random.random() < 0.5 else size) if size else 0

    def name(self):
        """Return a file name as another program may write it, as bytes."""
        parts = [self.random.choice(STEMS)[:200] for _ in range(self.random.choice((0, 0, 1, 2)))]
        return b"/".join([*parts, (self.random.choice(STEMS) + self.random.choice(SUFFIXES))[:255]])


def _places(value, depth=0):
    """Yield depth, parent and key of every value in a document."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield depth, value, key
            yield from _places(value[key], depth + 1)
