from collections import namedtuple

import pytest

from cahqp.data import shared_memory
from cahqp.data.loaders import Loader
from cahqp.errors import ConfigError


def test_workers_without_shared_memory_are_refused_at_once(monkeypatch):
    usage = namedtuple("usage", "total used free")(256 * 1024, 0, 256 * 1024)
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"/dev/shm has 0\.2 MiB free, but 2 worker processes"):
        Loader([], [], list, quarantines=[], workers=2)
    Loader([], [], list, quarantines=[], workers=0)
