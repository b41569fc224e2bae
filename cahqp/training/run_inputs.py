"""What makes two fits the same: their settings, and the content of the files these name."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cahqp.errors import DataError

# Settings that name files. One that is not there must not pass for a plain setting, or the run directory would be
# claimed under a name that changes once the file exists.
PATHS = ("weights", "backbone_weights", "train", "val", "test", "source", "target", "pseudo")


def split_inputs(config: str, left_out: Collection[str]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Split a configuration into settings and the files it names.

    Args:
        config: The configuration as JSON.
        left_out: Keys, at any depth, that do not decide the result.

    Returns:
        The settings, with `input` in the place of every existing path, and the paths by their key.

    Raises:
        DataError: Files are missing; all are told together.
    """
    inputs: dict[str, Path] = {}

    missing: list[str] = []

    def walk(value: Any, role: str) -> Any:
        if isinstance(value, dict):
            return {k: walk(v, f"{role}.{k}" if role else k) for k, v in value.items() if k not in left_out}
        if isinstance(value, list):
            return [walk(v, f"{role}.{i}") for i, v in enumerate(value)]
        names_files = any(part in PATHS for part in role.split("."))
        if isinstance(value, str) and _exists(value) and (names_files or _looks_like_a_path(value)):
            inputs[role] = Path(value)
            return "input"
        if isinstance(value, str) and names_files:
            missing.append(f"  {role.replace('init_args.', '')}: {value} does not exist.")
        return value

    settings: dict[str, Any] = walk(json.loads(config), "")
    if missing:
        raise DataError("\n".join(["Files are missing:", *missing, "A relative path starts where the command is run."]))
    return settings, inputs


def _looks_like_a_path(value: str) -> bool:
    return "/" in value or bool(Path(value).suffix)


def _exists(value: str) -> bool:
    return len(value) < 4096 and Path(value).exists()
