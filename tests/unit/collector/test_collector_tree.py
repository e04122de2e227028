"""Merging sums into trees, against a plain recursive merge."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest

from quayscope.collector.query.select import Sums
from quayscope.collector.query.top import top_rows
from quayscope.collector.query.tree import FlameNode, dump_tree, flame_tree, merge, sum_by
from quayscope.collector.store.tries import Tries
from quayscope.profile import Frame, Stack

Samples = dict[Stack, int]


def random_samples(seed: int, stacks: int = 200) -> Samples:
    """Stacks over few functions with several lines each: much is shared, much recurses."""
    dice = random.Random(seed)
    frames = [
        Frame(f"f{n % 7}", "a.py", n, dice.choice(["python", "sql"]) if n % 7 == 3 else "python")
        for n in range(30)
    ]
    samples: Samples = {}
    for _ in range(stacks):
        stack = tuple(dice.choices(frames, k=dice.randrange(12)))
        samples[stack] = dice.randrange(1, 1 << 50)
    return samples


def summed(tries: Tries, samples: Samples) -> Sums:
    """The samples as the store would answer them."""
    nodes = [tries.node_of(stack, {}) for stack in samples]
    return Sums(np.array(nodes, dtype=np.int64), np.array(list(samples.values()), dtype=np.int64))


def key(frame: Frame) -> tuple[str, str, str]:
    return frame.function, frame.file, frame.kind


def paths(
    node: FlameNode, above: tuple[tuple[str, str, str], ...] = ()
) -> dict[tuple[tuple[str, str, str], ...], tuple[int, int]]:
    """Every path of a tree with its value and own value."""
    found = {above: (node["value"], node["self"])}
    for child in node["children"]:
        found.update(paths(child, (*above, (child["name"], child["file"], child["kind"]))))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_merge_equals_the_plain_one(seed: int) -> None:
    """Every prefix has the exact sum of its stacks, lines apart merged."""
    samples = random_samples(seed)
    value: Counter[tuple[tuple[str, str, str], ...]] = Counter()
    own: Counter[tuple[tuple[str, str, str], ...]] = Counter()
    for stack, count in samples.items():
        names = tuple(key(frame) for frame in stack)
        own[names] += count
        for depth in range(len(names) + 1):
            value[names[:depth]] += count
    tries = Tries()
    root, pruned = flame_tree(tries, merge(tries, summed(tries, samples)), 10**6)
    assert pruned == 0
    assert paths(root) == {path: (total, own[path]) for path, total in value.items()}


@pytest.mark.parametrize("seed", range(5))
def test_top_equals_the_plain_one(seed: int) -> None:
    """Own values are exact, and a function's total counts each stack once however often it recurs."""
    samples = random_samples(seed)
    own: Counter[tuple[str, str, str]] = Counter()
    total: Counter[tuple[str, str, str]] = Counter()
    for stack, count in samples.items():
        if stack:
            own[key(stack[-1])] += count
        for name in {key(frame) for frame in stack}:
            total[name] += count
    tries = Tries()
    rows = top_rows(tries, merge(tries, summed(tries, samples)), 1000)
    found = {(row["function"], row["file"], row["kind"]): (row["self"], row["total"]) for row in rows}
    found.pop(("all", "", "root"), None)
    assert found == {name: (own[name], total[name]) for name in total}


@pytest.mark.parametrize("max_nodes", [1, 2, 5, 50, 200])
def test_folding_keeps_every_value(max_nodes: int) -> None:
    """At most `max_nodes` calls stay, and own values with "(other)" still sum to the total."""
    samples = random_samples(9)
    tries = Tries()
    calls = merge(tries, summed(tries, samples))
    root, pruned = flame_tree(tries, calls, max_nodes)

    def count(node: FlameNode) -> tuple[int, int]:
        below = [count(child) for child in node["children"]]
        kept = (0 if node["name"] == "(other)" else 1) + sum(number for number, _ in below)
        assert node["value"] == node["self"] + sum(child["value"] for child in node["children"])
        values = [child["value"] for child in node["children"]]
        assert values == sorted(values, reverse=True)
        return kept, node["self"] + sum(own for _, own in below)

    kept, own = count(root)
    assert (kept, pruned) == (min(max_nodes, len(calls.ids)), max(0, len(calls.ids) - max_nodes))
    assert own == root["value"] == sum(samples.values())


def test_the_heaviest_line_is_shown() -> None:
    """A function called at several lines has the line of most of its value."""
    tries = Tries()
    light, heavy = Frame("f", "a.py", 10, "python"), Frame("f", "a.py", 20, "python")
    samples = {(light,): 3, (heavy,): 5, (heavy, Frame("g")): 2}
    root, _ = flame_tree(tries, merge(tries, summed(tries, samples)), 100)
    (node,) = root["children"]
    assert (node["line"], node["value"], node["self"]) == (20, 10, 8)


def test_nothing_selected_is_an_empty_tree() -> None:
    """No samples give a root of zero, not an error."""
    tries = Tries()
    nothing = np.zeros(0, dtype=np.int64)
    root, pruned = flame_tree(tries, merge(tries, Sums(nothing, nothing)), 10)
    assert (root["value"], root["children"], pruned) == (0, [], 0)
    assert top_rows(tries, merge(tries, Sums(nothing, nothing)), 10) == []


def test_sums_are_exact_beyond_doubles() -> None:
    """Integers past 2**53 are summed as integers."""
    keys = np.array([1, 2, 1], dtype=np.int64)
    values = np.array([2**60 + 1, 5, 2**60 + 2], dtype=np.int64)
    found, sums = sum_by(keys, values)
    assert (found.tolist(), sums.tolist()) == ([1, 2], [2**61 + 3, 5])


def test_dump_equals_the_json_of_the_same_tree() -> None:
    """The text reads back as the tree, quotes and all."""
    tries = Tries()
    samples = {(Frame('a"<b>', "x\n.py", 1, "python"), Frame("ü")): 4, (Frame("z"),): 4}
    root, _ = flame_tree(tries, merge(tries, summed(tries, samples)), 10)
    assert json.loads(dump_tree(root)) == root


def test_tries_load_as_they_were_saved() -> None:
    """New rows fed back give the same ids, parents and nearest statements."""
    tries = Tries()
    sums = summed(tries, random_samples(3))
    frames = [frame for _, frame in tries.new_frames]
    rows = tries.new_nodes
    again = Tries()
    again.load(frames, np.array([row[1] for row in rows]), np.array([row[2] for row in rows]))
    assert again.new_frames == []
    assert again.new_nodes == []
    assert summed(again, random_samples(3)).nodes.tolist() == sums.nodes.tolist()
    for name in ("node_parent", "node_frame", "node_sql", "node_call", "call_recursive"):
        assert getattr(again, name).array().tolist() == getattr(tries, name).array().tolist()
