"""Random generators identified by names, so that results do not depend on the order of draws."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, *names: int | str) -> np.random.Generator:
    """Return a generator that is a pure function of the seed and the names.

    Args:
        seed: Zero or more.
        names: Words, and whole numbers of either sign.
    """
    keys = [zlib.crc32(name.encode()) if isinstance(name, str) else int(name) % 2**63 for name in names]
    return np.random.default_rng([seed, *keys])


def choose_one(rng: np.random.Generator, shares: dict[str, float]) -> str:
    """Draw one key with a probability proportional to its value."""
    values = np.array(list(shares.values()))
    return list(shares)[int(rng.choice(len(values), p=values / values.sum()))]
