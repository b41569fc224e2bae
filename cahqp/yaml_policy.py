"""YAML policy for plans and configs, which others may have written: limits on size, and on what aliases expand to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cahqp.files import read_limited

_MAX_BYTES = 4 << 20
_MAX_VALUES = 200_000  # a class list of a large data set has some 10,000


def read_yaml(path: Path) -> Any:
    """Return the value in a YAML file.

    Raises:
        OSError: The file cannot be read, is not a regular file, or has more than 4 MB.
        UnicodeDecodeError: The file is not UTF-8.
        yaml.YAMLError: It is not YAML, is nested too deeply, or its aliases expand to more than 200,000 values.
    """
    loader = yaml.SafeLoader(read_limited(path, _MAX_BYTES).decode("utf-8-sig"))
    try:
        node = loader.get_single_node()
        # Counted before the values are built, because `<<` copies what its aliases contain.
        if node is not None and _count(node, {}, frozenset()) > _MAX_VALUES:
            message = f"it has, with its aliases expanded, more than {_MAX_VALUES:,} values"
            raise yaml.YAMLError(message)
        return None if node is None else loader.construct_document(node)
    except (RecursionError, ValueError) as error:  # such as a date with month 13
        message = f"it cannot be parsed ({error})"
        raise yaml.YAMLError(message) from error
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[yaml.Node, int], above: frozenset[yaml.Node]) -> int:
    """Return the number of values in a node with each alias expanded.

    Args:
        node: Node of a document.
        known: Counts of the nodes that were visited.
        above: Nodes that contain this one.

    Raises:
        ValueError: A node contains itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if node in above:
        message = "a value contains itself"
        raise ValueError(message)
    if node not in known:
        children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[node] = 1 + sum(_count(child, known, above | {node}) for child in children)
    return known[node]
