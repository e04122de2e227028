"""Merging samples into a tree of functions, by sums over arrays; flame graphs from it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quayscope.collector.query.select import Sums
from quayscope.collector.store.tries import Tries

__all__ = ["Calls", "FlameNode", "dump_tree", "flame_tree", "fold", "merge", "sum_by"]

Int64 = npt.NDArray[np.int64]
FlameNode = dict[str, Any]


class Calls(NamedTuple):
    """A merged tree. Arrays are aligned and sorted by call id: a parent stands before its children.

    `ids` are the calls of `Tries` (functions, lines apart merged), `total` includes children's
    values, `own` does not, `line` is the line of the function that most of `total` passed through,
    `recursive` calls have the same function above them.
    """

    ids: Int64
    parent: Int64
    function: Int64
    total: Int64
    own: Int64
    line: Int64
    recursive: npt.NDArray[np.bool_]


def sum_by(keys: Int64, values: Int64) -> tuple[Int64, Int64]:
    """Return the distinct keys, sorted, and the exact integer sum of the values of each."""
    if not len(keys):
        return keys, values
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return ordered[starts], np.add.reduceat(values[order], starts)


def _totals(tries: Tries, sums: Sums) -> tuple[Int64, Int64]:
    """Return every node on the way of the summed ones, and its total: one sweep, deepest level first."""
    parents, depths = tries.node_parent.array(), tries.node_depth.array()
    depth = depths[sums.nodes]
    order = np.argsort(depth, kind="stable")
    nodes, values, depth = sums.nodes[order], sums.values[order], depth[order]
    deepest = int(depth[-1]) if len(depth) else 0
    borders = np.searchsorted(depth, np.arange(deepest + 2))
    found_nodes, found_totals = [], []
    carried = np.zeros(0, dtype=np.int64)
    carried_totals = carried
    for level in range(deepest, -1, -1):
        here = slice(borders[level], borders[level + 1])
        level_nodes, level_totals = sum_by(
            np.concatenate((nodes[here], carried)), np.concatenate((values[here], carried_totals))
        )
        found_nodes.append(level_nodes)
        found_totals.append(level_totals)
        carried, carried_totals = parents[level_nodes].astype(np.int64), level_totals
    return np.concatenate(found_nodes), np.concatenate(found_totals)


def merge(tries: Tries, sums: Sums) -> Calls:
    """Merge sums per node into a tree of functions."""
    if not len(sums.nodes):
        sums = Sums(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
    nodes, node_totals = _totals(tries, sums)
    node_call, node_frame = tries.node_call.array(), tries.node_frame.array()
    ids, total = sum_by(node_call[nodes].astype(np.int64), node_totals)
    own = np.zeros(len(ids), dtype=np.int64)
    own_ids, own_values = sum_by(node_call[sums.nodes].astype(np.int64), sums.values)
    own[np.searchsorted(ids, own_ids)] = own_values
    # Among the nodes of one call the one with the largest total gives the line: written last, it stays.
    order = np.argsort(node_totals, kind="stable")
    heaviest = np.zeros(len(ids), dtype=np.int64)
    heaviest[np.searchsorted(ids, node_call[nodes[order]])] = node_frame[nodes[order]]
    frames = tries.frames
    line = np.array([frames[frame].line for frame in heaviest.tolist()], dtype=np.int64)
    return Calls(
        ids,
        tries.call_parent.array()[ids].astype(np.int64),
        tries.call_function.array()[ids].astype(np.int64),
        total,
        own,
        line,
        tries.call_recursive.array()[ids].astype(bool),
    )


def flame_tree(tries: Tries, calls: Calls, max_nodes: int) -> tuple[FlameNode, int]:
    """Return the tree as nested dictionaries, children by falling value, and how many calls were folded.

    The `max_nodes` largest calls stay, which are a tree again: no child is larger than its parent,
    and of equals the parent has the smaller id. Below each, "(other)" holds what was folded there.
    """
    order = np.lexsort((calls.ids, -calls.total))
    kept = np.sort(order[:max_nodes])
    folded = order[max_nodes:]
    place = {int(calls.ids[index]): node for node, index in enumerate(kept.tolist())}
    functions = tries.functions
    nodes: list[FlameNode] = []
    for index in kept.tolist():
        name, file, kind = functions[calls.function[index]]
        node = _node(name, kind, file, calls.line[index], calls.total[index], calls.own[index])
        nodes.append(node)
        parent = int(calls.parent[index])
        if parent >= 0:
            nodes[place[parent]]["children"].append(node)
    others, values = sum_by(calls.parent[folded], calls.total[folded])
    for parent, value in zip(others.tolist(), values.tolist(), strict=True):
        # Folded calls below folded ones are within their parent's value already.
        if parent in place:
            nodes[place[parent]]["children"].append(_node("(other)", "root", "", 0, value, value))
    for node in nodes:
        node["children"].sort(key=lambda child: (-child["value"], child["name"]))
    return nodes[0], len(folded)


def fold(root: FlameNode, max_nodes: int) -> tuple[FlameNode, int]:
    """Return a tree of its `max_nodes` largest nodes, the rest folded as `flame_tree` does, and how many."""
    nodes = [root]
    for node in nodes:
        nodes.extend(node["children"])
    if len(nodes) <= max_nodes:
        return root, 0
    # In this order a parent stands before its children, and before them among equals.
    order = sorted(range(len(nodes)), key=lambda place: -nodes[place]["value"])
    kept = {id(nodes[place]) for place in order[:max_nodes]}
    for node in nodes:
        if id(node) in kept:
            stay = [child for child in node["children"] if id(child) in kept]
            value = sum(child["value"] for child in node["children"] if id(child) not in kept)
            if value:
                stay.append(_node("(other)", "root", "", 0, value, value))
            node["children"] = sorted(stay, key=lambda child: (-child["value"], child["name"]))
    return root, len(nodes) - max_nodes


def _node(name: str, kind: str, file: str, line: int, value: int, own: int) -> FlameNode:
    return {
        "name": name,
        "kind": kind,
        "file": file,
        "line": int(line),
        "value": int(value),
        "self": int(own),
        "children": [],
    }


def dump_tree(root: FlameNode) -> str:
    """Return the tree as JSON. The standard encoder recurses and fails on stacks some 490 frames deep."""
    parts: list[str] = []
    stack: list[FlameNode | str] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            parts.append(item)
            continue
        head = json.dumps({name: value for name, value in item.items() if name != "children"})
        parts.append(head[:-1] + ', "children": [')
        stack.append("]}")
        for position, child in enumerate(reversed(item["children"])):
            if position:
                stack.append(", ")
            stack.append(child)
    return "".join(parts)
