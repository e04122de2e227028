"""Folded stacks in and out."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quayscope.profile import BLOCK, PROCESS_CPU, Attributes, Frame, MalformedProfile, Profile
from quayscope.profile.folded import parse, render


def test_stacks_are_summed_over_attributes_and_sorted() -> None:
    """One line a stack, root first, the last column unless another is asked for, no zeros."""
    profile = Profile(BLOCK, {}, 0, 0)
    stack = (Frame("b"), Frame("leaf", "x.py", 3, "python"))
    profile.add(stack, Attributes(pid=1), (1, 10))
    profile.add(stack, Attributes(pid=2), (1, 5))
    profile.add((Frame("a"),), Attributes(), (7, 0))
    profile.add((), Attributes(), (1, 2))
    assert render(profile) == "[empty] 2\nb;leaf 15\n"
    assert render(profile, 0) == "[empty] 1\na 7\nb;leaf 2\n"


def test_a_name_cannot_break_its_line() -> None:
    """Separators inside a name are replaced, so that a statement stays one frame."""
    profile = Profile(PROCESS_CPU, {}, 0, 0)
    profile.add((Frame("root"), Frame("select ?;\n select ?", kind="sql"), Frame("")), Attributes(), (1, 3))
    text = render(profile)
    assert text == "root;select ?: select ?;[unknown] 3\n"
    ((stack, _),) = parse(text).samples
    assert [frame.function for frame in stack] == ["root", "select ?: select ?", "[unknown]"]


def test_text_becomes_a_profile() -> None:
    """Labels, times and the column are the caller's; equal stacks are summed."""
    profile = parse(
        "main;work 3\r\n\nmain;work 4\nmain;two words 5\n",
        {"service_name": "x"},
        kind=BLOCK,
        column=0,
        start_ns=9,
        duration_ns=8,
        period=7,
    )
    assert (profile.type, profile.labels, profile.start_ns, profile.duration_ns, profile.period) == (
        BLOCK,
        {"service_name": "x"},
        9,
        8,
        7,
    )
    assert profile.samples == {
        ((Frame("main"), Frame("work")), Attributes()): (7, 0),
        ((Frame("main"), Frame("two words")), Attributes()): (5, 0),
    }


@pytest.mark.parametrize(
    "line", ["main", "main;work", "main x", "main -1", "main 1.5", "5", "main ²", "main " + "9" * 19]
)
def test_other_lines_are_malformed(line: str) -> None:
    """A line without a whole number that fits 64 bits is refused with its number."""
    with pytest.raises(MalformedProfile, match="line 2"):
        parse(f"main 1\n{line}\n")


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers(1, 9))))
def test_folded_text_survives_the_round_trip(rows: list[tuple[list[str], int]]) -> None:
    """What is rendered parses to the same stacks and sums."""
    profile = Profile(PROCESS_CPU, {}, 0, 0)
    for names, value in rows:
        profile.add(tuple(map(Frame, names)), Attributes(), (0, value))
    assert parse(render(profile)) == profile


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_read_or_malformed(text: str) -> None:
    """No text raises anything but `MalformedProfile`."""
    with contextlib.suppress(MalformedProfile):
        parse(text)
