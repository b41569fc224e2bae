"""Seeds that are a function of names, not of the order in which things happen."""

from __future__ import annotations

from hashlib import blake2b


def seed_of(*parts: int | str) -> int:
    """Return 63 bits that depend on all the parts and on nothing else: not on the process, the worker or the order.

    Args:
        parts: Such as the run's seed, the pass over the data and the name of an image.
    """
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1
