"""Seeds that are a function of names, not of the order of calls."""

from __future__ import annotations

from hashlib import blake2b


def seed_of(*parts: int | str) -> int:
    """Return a 63-bit seed that depends only on the parts, not on the process, the worker or the order of calls.

    Args:
        parts: For example the run's seed, the pass over the data and the name of an image.
    """
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1
