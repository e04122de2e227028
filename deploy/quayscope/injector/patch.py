"""The difference of two JSON documents as a JSON Patch (RFC 6902): short, and the same each time."""

from __future__ import annotations

from typing import Any

__all__ = ["difference"]

Operation = dict[str, Any]


def difference(before: Any, after: Any, path: str = "") -> list[Operation]:
    """Return the operations that make `after` of `before`, which are JSON values of any depth."""
    if isinstance(before, dict) and isinstance(after, dict):
        return _of_objects(before, after, path)
    if isinstance(before, list) and isinstance(after, list):
        return _of_lists(before, after, path)
    # True equals 1 in Python, and is another value in JSON.
    if before == after and type(before) is type(after):
        return []
    return [{"op": "replace", "path": path, "value": after}]


def _of_objects(before: dict[str, Any], after: dict[str, Any], path: str) -> list[Operation]:
    operations: list[Operation] = []
    for key in sorted(before.keys() - after.keys()):
        operations.append({"op": "remove", "path": f"{path}/{_escaped(key)}"})
    for key in sorted(after):
        place = f"{path}/{_escaped(key)}"
        if key not in before:
            operations.append({"op": "add", "path": place, "value": after[key]})
        else:
            operations += difference(before[key], after[key], place)
    return operations


def _of_lists(before: list[Any], after: list[Any], path: str) -> list[Operation]:
    """Keep what begins and ends alike; of the middle, change what pairs up, then add or remove the rest."""
    start = 0
    while start < min(len(before), len(after)) and _same(before[start], after[start]):
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and _same(before[-1 - end], after[-1 - end]):
        end += 1
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    pairs = min(len(old), len(new))
    operations: list[Operation] = []
    for i in range(pairs):
        operations += difference(old[i], new[i], f"{path}/{start + i}")
    for i in range(pairs, len(new)):
        operations.append({"op": "add", "path": f"{path}/{start + i}", "value": new[i]})
    for i in range(len(old) - 1, pairs - 1, -1):
        operations.append({"op": "remove", "path": f"{path}/{start + i}"})
    return operations


def _same(left: Any, right: Any) -> bool:
    return not difference(left, right)


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
