"""Half-precision copy of a model file for distribution: `python -m cahqp.detectors.shrink IN OUT`."""

from __future__ import annotations

import sys
from pathlib import Path

from cahqp.detectors.model_file import load, save


def shrink(source: Path, destination: Path) -> str:
    """Write the same detector with float16 weights, half the size, and return the new content hash.

    Args:
        source: A model file.
        destination: The smaller file; its provenance contains the hash of `source`.
    """
    detector = load(source)
    origin = {**detector.provenance, "shrunk_from": detector.provenance["hash"]}
    del origin["hash"]
    return save(destination, detector, origin, half=True)


if __name__ == "__main__":
    print(shrink(Path(sys.argv[1]), Path(sys.argv[2])))
