"""One endpoint through all tiers: below each statement a worker waited for, what the database did meanwhile.

Pure functions over trees. Nothing is added that was not measured: the workers' CPU and waits are the whole,
and the database's time for a statement is shown within the time that workers waited for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from quayscope.collector.query.tree import FlameNode

__all__ = ["ALONE", "IDLE", "StatementTime", "Stitched", "stitch"]

ALONE = "[in the database alone]"
"""Holds statements of the endpoint that no worker was seen to wait for."""
IDLE = "idle in transaction"
"""The database's name for time in which it waits for the worker: no part of a statement's."""
_Key = tuple[str, str, str]


class StatementTime(NamedTuple):
    """One statement, in nanoseconds.

    `stalled` is what workers waited, `cpu` and `waiting` what the database spent on it, `shown` the part of
    that which fits into what was waited. More was spent than waited where parallel workers helped, or by the
    error of two samplers.
    """

    statement: str
    stalled: int
    cpu: int
    waiting: int
    shown: int


class Stitched(NamedTuple):
    """The tree, its parts in nanoseconds, and the statements by what workers waited for them, falling.

    `root`'s value is `cpu + stalled + alone`.
    """

    root: FlameNode
    cpu: int
    stalled: int
    alone: int
    idle: int
    statements: list[StatementTime]


class _Node:
    """A call while the tree is being built: `own` is what ended here."""

    __slots__ = ("children", "key", "line", "own", "value")

    def __init__(self, key: _Key, line: int = 0) -> None:
        self.key = key
        self.line = line
        self.own = 0
        self.value = 0
        self.children: dict[_Key, _Node] = {}

    def child(self, key: _Key, line: int) -> _Node:
        found = self.children.get(key)
        if found is None:
            found = self.children[key] = _Node(key, line)
        return found


def stitch(cpu: FlameNode, stalls: FlameNode, database_cpu: FlameNode, database_waits: FlameNode) -> Stitched:
    """Stitch four trees of one endpoint; the workers' stalls end in the frame of their statement."""
    root = _Node((str(stalls["name"]), "", "root"))
    _add(root, [cpu, stalls])
    places = _statements(root)
    done, idle = _by_statement(database_cpu, database_waits)
    _total(root)
    alone = 0
    rows = []
    for statement in sorted(places.keys() | done.keys()):
        waited = sum(place.value for place in places.get(statement, ()))
        spent = done.get(statement, _Spent())
        if waited:
            shown = min(waited, spent.total)
            _graft(places[statement], waited, spent.tree, shown)
        elif spent.total:
            shown = spent.total
            alone += shown
            top = root.child((ALONE, "", "root"), 0)
            _graft([top.child((statement, "", "sql"), 0)], 0, spent.tree, shown)
        else:
            shown = 0
        rows.append(StatementTime(statement, waited, spent.cpu, spent.waiting, shown))
    _total(root)
    rows.sort(key=lambda row: (-row.stalled, -row.shown, row.statement))
    return Stitched(_flame(root), int(cpu["value"]), int(stalls["value"]), alone, idle, rows)


class _Spent:
    """What the database did for one statement: `tree` holds it below the statement's frame."""

    def __init__(self) -> None:
        self.tree = _Node(("", "", "root"))
        self.cpu = 0
        self.waiting = 0

    @property
    def total(self) -> int:
        return self.cpu + self.waiting


def _add(root: _Node, trees: Iterable[FlameNode]) -> None:
    """Merge trees into one whose root is `root`; their own roots fall together."""
    pending = [(tree, root) for tree in trees]
    while pending:
        tree, into = pending.pop()
        into.own += int(tree["self"])
        for child in tree["children"]:
            key = (child["name"], child["file"], child["kind"])
            pending.append((child, into.child(key, int(child["line"]))))


def _walk(root: _Node) -> Iterator[_Node]:
    """Yield every node, parents before their children."""
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(node.children.values())


def _total(root: _Node) -> None:
    for node in reversed(list(_walk(root))):
        node.value = node.own + sum(child.value for child in node.children.values())


def _statements(root: _Node) -> dict[str, list[_Node]]:
    """Return where each statement's frame stands: the outermost, where a function's hide inside another's."""
    found: dict[str, list[_Node]] = defaultdict(list)
    pending = [root]
    while pending:
        node = pending.pop()
        if node.key[2] == "sql":
            found[node.key[0]].append(node)
        else:
            pending.extend(node.children.values())
    return found


def _by_statement(cpu: FlameNode, waits: FlameNode) -> tuple[dict[str, _Spent], int]:
    """Return what was spent on each statement, and how long backends sat idle in a transaction."""
    spent: dict[str, _Spent] = defaultdict(_Spent)
    idle = 0
    for tree, of_cpu in ((cpu, True), (waits, False)):
        pending = [tree]
        while pending:
            node = pending.pop()
            if node["kind"] == "root" and node["name"] == IDLE:
                idle += int(node["value"])
            elif node["kind"] == "sql":
                one = spent[node["name"]]
                _add(one.tree, [node])
                if of_cpu:
                    one.cpu += int(node["value"])
                else:
                    one.waiting += int(node["value"])
            else:
                pending.extend(node["children"])
    return dict(spent), idle


def _graft(places: list[_Node], waited: int, tree: _Node, shown: int) -> None:
    """Put `shown` nanoseconds of `tree` below the places, each its part of what was `waited` in it.

    Which of the places the database worked for is not known: each has the same mixture.
    """
    upto, given = 0, 0
    for place in places:
        upto += place.value
        part = shown * upto // waited - given if waited else shown
        given += part
        taken = _copy(tree, place, part)
        place.own -= taken if waited else 0


def _copy(tree: _Node, place: _Node, part: int) -> int:
    """Add `tree` scaled to a total of `part` below `place`, to the nanosecond; returns what it added."""
    nodes = [(tree, place)]
    leaves: list[tuple[_Node, int]] = []
    for node, into in nodes:
        if node.own and node is not tree:
            leaves.append((into, node.own))
        nodes.extend((child, into.child(child.key, child.line)) for child in node.children.values())
    # What the database saw without a stack is the statement's own time, like what it did not see.
    weight = sum(own for _, own in leaves) + tree.own
    seen = given = 0
    for into, own in leaves:
        seen += own
        share = part * seen // weight - given
        into.own += share
        given += share
    if not place.value:
        place.own += part - given
    return given


def _flame(root: _Node) -> FlameNode:
    made: FlameNode = {}
    pending: list[tuple[_Node, list[dict[str, Any]] | None]] = [(root, None)]
    while pending:
        node, siblings = pending.pop()
        name, file, kind = node.key
        children = sorted(node.children.values(), key=lambda child: (-child.value, child.key))
        flame: FlameNode = {
            "name": name,
            "kind": kind,
            "file": file,
            "line": node.line,
            "value": node.value,
            "self": node.own,
            "children": [],
        }
        if siblings is None:
            made = flame
        else:
            siblings.append(flame)
        pending.extend((child, flame["children"]) for child in reversed(children) if child.value)
    return made
