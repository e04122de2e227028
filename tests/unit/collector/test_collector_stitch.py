"""Trees of four tiers stitched into one: totals to the nanosecond, whatever they hold."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from quayscope.collector.query.stitch import ALONE, IDLE, stitch
from quayscope.collector.query.tree import FlameNode, fold

Path = tuple[tuple[str, str], ...]
LOOKUP, COUNT = ("select a where b = ?", "sql"), ("select count(*)", "sql")


def tree(stacks: dict[Path, int], root: str = "root") -> FlameNode:
    """A flame graph of these stacks; a frame is (name, kind)."""
    top: dict[str, Any] = {
        "name": root,
        "kind": "root",
        "file": "",
        "line": 0,
        "value": 0,
        "self": 0,
        "children": [],
    }
    for path, value in stacks.items():
        node = top
        node["value"] += value
        for name, kind in path:
            found = [one for one in node["children"] if (one["name"], one["kind"]) == (name, kind)]
            if not found:
                found = [{**top, "name": name, "kind": kind, "value": 0, "self": 0, "children": []}]
                node["children"] += found
            node = found[0]
            node["value"] += value
        node["self"] += value
    return top


def paths(node: FlameNode) -> Counter[Path]:
    """Own values by path; every value checked to be the sum of what is below and its own."""
    found: Counter[Path] = Counter()
    pending: list[tuple[FlameNode, Path]] = [(node, ())]
    while pending:
        one, above = pending.pop()
        assert one["value"] == one["self"] + sum(child["value"] for child in one["children"])
        assert one["self"] >= 0
        if one["self"]:
            found[above] += one["self"]
        pending += [(child, (*above, (child["name"], child["kind"]))) for child in one["children"]]
    return found


VIEW = (("app", "root"), ("view", "python"))
EMPTY = tree({})


def test_the_databases_time_stands_below_the_statement_that_was_waited_for() -> None:
    """CPU by native stack and waits by event, within the worker's wait; the rest is the statement's own."""
    found = stitch(
        tree({VIEW: 100, (*VIEW, ("render", "python")): 50}),
        tree({(*VIEW, LOOKUP): 1000, (*VIEW, ("sleep", "python")): 70}),
        tree({(("db", "root"), LOOKUP, ("ExecScan", "native")): 300, (("db", "root"), LOOKUP): 40}),
        tree({(("db", "root"), LOOKUP, ("IO:DataFileRead", "wait")): 200}),
    )
    assert paths(found.root) == {
        VIEW: 100,
        (*VIEW, ("render", "python")): 50,
        (*VIEW, ("sleep", "python")): 70,
        (*VIEW, LOOKUP): 500,
        (*VIEW, LOOKUP, ("ExecScan", "native")): 300,
        (*VIEW, LOOKUP, ("IO:DataFileRead", "wait")): 200,
    }
    assert (found.cpu, found.stalled, found.alone, found.root["value"]) == (150, 1070, 0, 1220)
    assert found.statements[0] == (LOOKUP[0], 1000, 340, 200, 540)


def test_a_statement_of_two_lines_shares_what_was_spent_on_it() -> None:
    """Each place has its part of the wait, and the same mixture."""
    other = (("app", "root"), ("other", "python"), LOOKUP)
    found = stitch(
        EMPTY,
        tree({(*VIEW, LOOKUP): 300, other: 100}),
        tree(
            {(("db", "root"), LOOKUP, ("f", "native")): 100, (("db", "root"), LOOKUP, ("g", "native")): 100}
        ),
        EMPTY,
    )
    assert paths(found.root) == {
        (*VIEW, LOOKUP): 150,
        (*VIEW, LOOKUP, ("f", "native")): 75,
        (*VIEW, LOOKUP, ("g", "native")): 75,
        other: 50,
        (*other, ("f", "native")): 25,
        (*other, ("g", "native")): 25,
    }


def test_more_spent_than_waited_is_shown_to_the_measure_of_the_wait() -> None:
    """Parallel workers, or two samplers' error: the table has both figures, the tree does not overflow."""
    found = stitch(
        EMPTY,
        tree({(*VIEW, COUNT): 100}),
        tree({(("db", "root"), COUNT, ("f", "native")): 300}),
        tree({(("db", "root"), COUNT, ("IPC:X", "wait")): 100}),
    )
    assert found.root["value"] == 100
    assert found.statements == [(COUNT[0], 100, 300, 100, 100)]
    assert paths(found.root)[(*VIEW, COUNT, ("f", "native"))] == 75


def test_what_no_worker_waited_for_stands_apart() -> None:
    """A statement of the database alone is under a frame that says so; idle time is neither."""
    found = stitch(
        tree({VIEW: 5}),
        EMPTY,
        tree({(("db", "root"), COUNT, ("f", "native")): 30, (("db", "root"), COUNT): 3}),
        tree({(("db", "root"), (IDLE, "root"), COUNT, ("Client:ClientRead", "wait")): 1000}),
    )
    top = (ALONE, "root")
    assert paths(found.root) == {VIEW: 5, (top, COUNT, ("f", "native")): 30, (top, COUNT): 3}
    assert (found.alone, found.idle, found.root["value"]) == (33, 1000, 38)


@pytest.mark.parametrize("seed", range(20))
def test_totals_hold_for_any_trees(seed: int) -> None:
    """No nanosecond is added or lost, with any mixture of statements, places and amounts."""
    dice = random.Random(seed)
    statements = [(f"select {n}", "sql") for n in range(5)]

    def place() -> Path:
        return tuple((f"f{dice.randrange(4)}", "python") for _ in range(dice.randrange(4)))

    def below() -> Path:
        return tuple((f"n{dice.randrange(3)}", "native") for _ in range(dice.randrange(3)))

    def amount() -> int:
        return dice.randrange(1, 10**12)

    cpu = tree({place(): amount() for _ in range(10)})
    stalls = tree({(*place(), dice.choice(statements)): amount() for _ in range(12)})
    spent = tree({(("db", "root"), dice.choice(statements), *below()): amount() for _ in range(12)})
    waits = tree({(("db", "root"), dice.choice(statements), ("IO:X", "wait")): amount() for _ in range(4)})
    found = stitch(cpu, stalls, spent, waits)
    paths(found.root)
    assert found.root["value"] == cpu["value"] + stalls["value"] + found.alone
    assert sum(row.stalled for row in found.statements) == stalls["value"]
    assert sum(row.cpu + row.waiting for row in found.statements) == spent["value"] + waits["value"]
    assert all(row.shown <= (row.stalled or row.shown) for row in found.statements)
    folded, count = fold(found.root, 7)
    assert folded["value"] == found.root["value"]
    assert sum(paths(folded).values()) == found.root["value"]
    assert count > 0
