"""Records from a socket that anybody may write to: taken whole, or refused with a reason."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quayscope.profile import Frame, MalformedProfile
from quayscope.relay.parsing import parse
from quayscope.relay.records import (
    Counts,
    Frames,
    Hello,
    Hub,
    HubRow,
    Kept,
    Requests,
    Spans,
    Stacks,
    Stalls,
)

ABOUT = ["GET /a", "1" * 16, "2" * 32, "r", "p"]
GOOD: dict[str, dict[str, Any]] = {
    "hello": {"v": 1, "pid": 7, "role": "web", "service": "quay-app", "start": 1, "labels": {"az": "1"}},
    "frame": {"f": [[0, "f", "/a.py", 3], [1, "[other threads]", "[root]", 0]]},
    "stacks": {"t": 10**9, "s": [[5, 1, ABOUT, [0, 1]], [6, 2, None, [1]]]},
    "stalls": {"t": 10**9, "s": [[5, 1, None, "select ?", [0]]]},
    "hub": {"t": 10**9, "s": [[5, 1, ABOUT, 10, [0, 1]], [6, 2, None, 0, [1]]]},
    "requests": {"t": 10**9, "r": [["GET /a", 200, "", "", 1, 5, 4, 3, [1] + [0] * 14]]},
    "kept": {"r": [["GET /a", 500, "r", "p", 10**9, 5, 4, 3, "2" * 32, "", "failed"]]},
    "spans": {"scope": "flask", "s": [["1" * 32, "2" * 16, "", "n", 2, 1, 2, 0, {"a": 1, "b": "x"}]]},
    "counts": {"t": 10**9, "c": {"requests": 3}, "m": {"hz": 99}, "fault": "KeyError in f:3"},
}
KINDS: dict[str, type] = {
    "hello": Hello,
    "frame": Frames,
    "stacks": Stacks,
    "stalls": Stalls,
    "hub": Hub,
    "requests": Requests,
    "kept": Kept,
    "spans": Spans,
    "counts": Counts,
}


def packet(kind: str, **changed: Any) -> bytes:
    return json.dumps({"k": kind, **GOOD[kind], **changed}).encode()


@pytest.mark.parametrize("kind", GOOD)
def test_each_kind_is_read(kind: str) -> None:
    """A record as docs/wire.md has it becomes its value."""
    assert type(parse(packet(kind), 7)) is KINDS[kind]


def test_what_is_read_is_what_was_written() -> None:
    """Attributes carry the connection's pid and the slot; root frames have their kind."""
    stacks = parse(packet("stacks"), 7)
    assert isinstance(stacks, Stacks)
    assert stacks.rows[0][2] == (10**9, "GET /a", "r", "p", 7, "1" * 16, "2" * 32)
    assert stacks.rows[1] == (6, 2, None, (1,))
    frames = parse(packet("frame"), 7)
    assert isinstance(frames, Frames)
    assert frames.frames[0] == (0, Frame("f", "/a.py", 3, "python"))
    assert frames.frames[1] == (1, Frame("[other threads]", "", 0, "root"))
    hub = parse(packet("hub"), 7)
    assert isinstance(hub, Hub)
    assert hub.rows[0].about == stacks.rows[0][2]
    assert hub.rows[1] == HubRow(6, 2, None, 0, (1,))
    counts = parse(packet("counts"), 7)
    assert counts == Counts(10**9, {"requests": 3}, "KeyError in f:3", {"hz": 99})


def test_files_that_name_a_kind() -> None:
    """Native code, waits and roots have no file, but a kind of their own."""
    frames = parse(
        packet("frame", f=[[0, "c", "[native]", 0], [1, "Hub:cpu", "[wait]", 0], [2, "x", "[other]", 0]]), 7
    )
    assert isinstance(frames, Frames)
    assert [frame for _, frame in frames.frames] == [
        Frame("c", "", 0, "native"),
        Frame("Hub:cpu", "", 0, "wait"),
        Frame("x", "[other]", 0, "python"),
    ]


def test_requests_say_how_busy_and_how_stalled_each_was() -> None:
    """The bucket counts of both times may follow; a row without them stays valid."""
    plain = ["GET /a", 200, "", "", 2, 5, 4, 3, [2] + [0] * 14]
    full = [*plain, [1, 1] + [0] * 13, [0, 2] + [0] * 13]
    requests = parse(packet("requests", r=[plain, full]), 7)
    assert isinstance(requests, Requests)
    assert (requests.rows[0].busy_buckets, requests.rows[0].stalled_buckets) == ((), ())
    assert requests.rows[1].busy_buckets[:2] == (1, 1)
    assert requests.rows[1].stalled_buckets[:2] == (0, 2)


def test_a_kept_request_may_lack_ids() -> None:
    """A request outside of any trace is kept as well."""
    kept = parse(packet("kept", r=[["GET /a", 200, "", "", 10**9, 5, 4, 3, "", "", "slow"]]), 7)
    assert isinstance(kept, Kept)
    assert (kept.rows[0].trace_id, kept.rows[0].why) == ("", "slow")


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"k":"nothing"}',
        b'{"k":["hello"]}',
        packet("hello", pid=-1),
        packet("hello", pid=True),
        packet("hello", labels={"__name__": "other"}),
        packet("hello", labels={str(n): "" for n in range(20)}),
        packet("hello", role=None),
        packet("frame", f=[[1 << 40, "f", "a", 1]]),
        packet("frame", f=[[0, "f", "a"]]),
        packet("stacks", t=-5),
        packet("stacks", s=[[-1, 1, None, [0]]]),
        packet("stacks", s=[[1.5, 1, None, [0]]]),
        packet("stacks", s=[[1, 1, ["GET /", "xyz", "", "", ""], [0]]]),
        packet("stacks", s=[[1, 1, None, list(range(5000))]]),
        packet("stacks", s=[[1 << 70, 1, None, [0]]]),
        packet("requests", r=[["GET /a", 200, "", "", 2, 5, 4, 3, [1] + [0] * 14]]),
        packet("requests", r=[["GET /a", 200, "", "", 1, 5, 4, 3, [1]]]),
        packet("frame", f=[[0, "f", ["[wait]"], 1]]),
        packet("hub", s=[[5, 1, None, -1, [0]]]),
        packet("hub", s=[[5, 1, None, [0]]]),
        packet("hub", s=[[5, 1, ["GET /", "", "z" * 32, "", ""], 1, [0]]]),
        packet("requests", r=[["GET /a", 200, "", "", 1, 5, 4, 3, [1] + [0] * 14, [1] + [0] * 14]]),
        packet("requests", r=[["GET /a", 200, "", "", 1, 5, 4, 3, *([[1] + [0] * 14] * 2), [0] * 15]]),
        packet("requests", r=[["GET /a", 200, "", "", 1, 5, 4, 3, *([[1] + [0] * 14] * 3), 1]]),
        packet("requests", r=[["GET /a", 200, "", "", 1 << 66, 5, 4, 3, [1 << 62] * 15]]),
        packet("kept", r=[["GET /a", 500, "r", "p", 10**9, 5, 4, 3, "2" * 30, "", "failed"]]),
        packet("kept", r=[["GET /a", 500, "r", "p", 10**9, 5, 4, 3, "2" * 32, None, "failed"]]),
        packet("kept", r=[["GET /a", 500, "r", "p", 10**9, 5, 4, 3, "2" * 32, "", "liked"]]),
        packet("kept", r=[["GET /a", 500, "r", "p", 10**9, 5, 4, "2" * 32, "", "slow"]]),
        packet("kept", r=[["GET /a", 500, "r", "p", 10**9, -5, 4, 3, "2" * 32, "", "slow"]]),
        packet("counts", m={str(n): 1 for n in range(65)}),
        packet("counts", m={"hz": 0.5}),
        packet("counts", m=None),
        packet("spans", s=[["1" * 30, "2" * 16, "", "n", 2, 1, 2, 0, {}]]),
        packet("spans", s=[["1" * 32, "2" * 16, "", "n", 2, 1, 2, 0, {"a": [1]}]]),
        packet("counts", c={str(n): 1 for n in range(100)}),
        packet("counts", c={"x": "1"}),
    ],
)
def test_what_is_wrong_is_refused(bad: bytes) -> None:
    """Anything else is refused as malformed, whatever is wrong with it."""
    with pytest.raises(MalformedProfile):
        parse(bad, 7)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(sorted(GOOD)),
    key=st.sampled_from(["t", "s", "f", "r", "c", "m", "pid", "labels"]),
    value=JSON,
)
def test_nothing_else_is_ever_raised(kind: str, key: str, value: Any) -> None:
    """Hostile values in any place give a record or `MalformedProfile`, nothing else."""
    with contextlib.suppress(MalformedProfile):
        parse(packet(kind, **{key: value}), 7)


def test_long_texts_are_cut() -> None:
    """Names and texts are cut, so that a record cannot hold more than its size says."""
    hello = parse(packet("hello", role="x" * 9_000), 7)
    assert isinstance(hello, Hello)
    assert len(hello.role) == 512
