"""Classes that are unions of a published model's classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from cahqp.errors import ConfigError


class ClassUnions:
    """Rows of a class head for each class. As in `ClassHead`, the logit of a union is the largest of its members'.

    Args:
        classes: Class names in the order of their indices.
        class_from: Published classes that make up a class; the others keep their own name.

    Attributes:
        rows: Published name of each row of the class heads.

    Raises:
        ConfigError: `class_from` names a class that is not in `classes`, or gives it no published class or one twice.
    """

    def __init__(self, classes: Sequence[str], class_from: Mapping[str, Sequence[str]] | None) -> None:
        unions = class_from or {}
        for name, parts in unions.items():
            if name not in classes:
                message = f"class_from.{name} is none of the classes {', '.join(classes)}. Add it to classes."
                raise ConfigError(message)
            if not parts or len(set(parts)) < len(parts):
                message = f"class_from.{name} must name one or more different classes of the model, got {list(parts)}."
                raise ConfigError(message)
        self._classes, self._unions = classes, unions
        self._parts = [list(unions.get(name, [name])) for name in classes]
        self.rows = [part for parts in self._parts for part in parts]

    def untrained(self, missing: Collection[str]) -> tuple[str, ...]:
        """Return the classes without published weights.

        Args:
            missing: Names in `rows` that the published model lacks.

        Raises:
            ConfigError: A part of a union is missing.
        """
        unknown = [part for name in self._unions for part in self._unions[name] if part in missing]
        if unknown:
            message = f"class_from names {', '.join(unknown)}, which the model does not have. Use its own class names."
            raise ConfigError(message)
        return tuple(name for name in self._classes if name in missing and name not in self._unions)

    def join(self, logits: Tensor) -> Tensor:
        """Return (..., classes) logits for (..., rows)."""
        if len(self.rows) == len(self._classes):
            return logits
        members = [len(parts) for parts in self._parts]
        return torch.stack([own.amax(-1) for own in torch.split(logits, members, -1)], -1)

    def first_rows(self, labels: Tensor) -> Tensor:
        """Return the first row of each class index; the index of an empty slot becomes the number of rows."""
        starts = [0]
        for parts in self._parts:
            starts.append(starts[-1] + len(parts))
        return labels.new_tensor(starts)[labels]
