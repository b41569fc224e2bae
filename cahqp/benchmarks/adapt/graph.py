"""Graph of a benchmark's stages: equal commands on equal inputs are one stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from cahqp.coco.reader import read_coco_frames
from cahqp.runs.directory import content_hash
from cahqp.runs.state import Stage
from cahqp.yaml_policy import read_yaml

STAGES = "stages"


class StageGraph:
    """Stages of any number of plans in one directory.

    A stage's name ends with a hash of its arguments, configs and input files, including the scenes. So arms that two
    plans have in common run once, and a changed config never overwrites a finished arm.

    Args:
        root: Directory of all stages.

    Attributes:
        stages: By name; each stage follows the stages that it reads.
        seconds: Estimated duration of each stage, by name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages: dict[str, Stage] = {}
        self.seconds: dict[str, float] = {}
        self._digests: dict[Path, str] = {}
        self._by_recipe: dict[str, Stage] = {}

    def stages_of(self, outputs: Iterable[Path]) -> list[Stage]:
        """Return the stages that outputs depend on, in order."""
        required = set(outputs)
        for stage in reversed(self.stages.values()):
            if stage.output in required:
                required |= {folder for path in stage.inputs for folder in path.parents}
        return [stage for stage in self.stages.values() if stage.output in required]

    def add(self, kind: str, arguments: Sequence[str], inputs: Sequence[Path], seed: int, seconds: float) -> Stage:
        """Return the stage of a command line without output and seed; add it if it is new.

        Inputs that are outputs of other stages enter the hash by the hashes of those stages.
        """
        movable = list(arguments)
        for number, path in enumerate(inputs):
            movable = [argument.replace(str(path), f"{{{number}}}") for argument in movable]
        recipe = json.dumps([movable, seed, [self._digest(path) for path in inputs]])
        digest = hashlib.sha256(recipe.encode()).hexdigest()
        if digest not in self._by_recipe:
            name = f"{STAGES}/{kind}-seed{seed}-{digest[:10]}"
            output = self.root / name
            command = (*arguments, f"--output={output}", f"--seed={seed}")
            self._by_recipe[digest] = self.stages[name] = Stage(name, command, tuple(inputs), output)
            self.seconds[name] = seconds
            self._digests[output] = digest
        return self._by_recipe[digest]

    def _digest(self, path: Path) -> str:
        for folder in (path, *path.parents):
            if folder in self._digests:
                return f"{self._digests[folder]}/{path.relative_to(folder)}"
        return _content_digest(path.absolute())


@lru_cache(maxsize=1024)
def _content_digest(path: Path) -> str:
    if path.suffix in (".yaml", ".yml"):  # parsed: a comment changes nothing
        return json.dumps(read_yaml(path), sort_keys=True, default=str)
    digest = content_hash(path)
    if path.suffix == ".json":  # a new export with the same names has images of other sizes
        digest += json.dumps([file.stat().st_size for file in read_coco_frames(path).files if file.is_file()])
    return digest
