"""Runs that are quicker made again than mended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from cahqp.errors import CahqpError
from cahqp.runs import locks
from cahqp.runs.directory import RunDirectory


@contextmanager
def whole_or_nothing(run: RunDirectory) -> Iterator[None]:
    """Remove what a run has begun where it ends with an error, so that a corrected command may use the same output.

    Args:
        run: Begun, and holding nothing that is worth going on from.
    """
    try:
        yield
    except CahqpError:
        shutil.rmtree(run.work)
        locks.release(run.output)
        raise
