"""Records as they come from a worker (docs/wire.md), read strictly: a packet is taken whole or not at all."""

from __future__ import annotations

import json
import re
from typing import Any, Callable, NamedTuple, Union

from quayscope.profile import Attributes, Frame, MalformedProfile, Stack
from quayscope.relay.otlp import Span

__all__ = [
    "BOUNDS",
    "Counts",
    "Frames",
    "Hello",
    "Record",
    "RequestRow",
    "Requests",
    "Spans",
    "Stacks",
    "Stalls",
    "parse",
]

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds in seconds of the request duration buckets (semantic conventions)."""
MAX_LABELS = 16
MAX_LABEL = 512
MAX_TEXT = 4096
_HEX = frozenset("0123456789abcdef")
_LABEL = re.compile("(?!__)[A-Za-z_][A-Za-z0-9_]{0,63}")
MAX_FRAME_ID = 1 << 20
MAX_DEPTH = 1024


class Hello(NamedTuple):
    """Who is on this connection."""

    pid: int
    role: str
    service: str
    labels: dict[str, str]


class Frames(NamedTuple):
    """Definitions: frame id to frame."""

    frames: list[tuple[int, Frame]]


class Stacks(NamedTuple):
    """CPU samples of one slot: (cpu ns, count, what it is about or None, frame ids root first)."""

    slot_ns: int
    rows: list[tuple[int, int, Attributes | None, tuple[int, ...]]]


class Stalls(NamedTuple):
    """Blocked time of one slot: (delay ns, count, about, statement, frame ids root first)."""

    slot_ns: int
    rows: list[tuple[int, int, Attributes | None, str, tuple[int, ...]]]


class RequestRow(NamedTuple):
    """Finished requests of one kind; times in nanoseconds, `buckets` one longer than `BOUNDS`."""

    endpoint: str
    status: int
    run: str
    phase: str
    sum_ns: int
    busy_ns: int
    stalled_ns: int
    buckets: tuple[int, ...]


class Requests(NamedTuple):
    """Finished requests of one slot."""

    slot_ns: int
    rows: list[RequestRow]


class Spans(NamedTuple):
    """Finished spans of one instrumentation scope."""

    scope: str
    spans: list[Span]


class Counts(NamedTuple):
    """The worker's own counters, as increments; `fault` is its first fault, said once."""

    time_ns: int
    counts: dict[str, int]
    fault: str = ""


Record = Union[Hello, Frames, Stacks, Stalls, Requests, Spans, Counts]


def parse(packet: bytes, pid: int) -> Record:
    """Read one packet of the worker `pid`; raises `MalformedProfile` with what is wrong with it."""
    try:
        record = json.loads(packet)
        kind = record["k"]
        reader = _READERS.get(kind)
        if reader is None:
            raise MalformedProfile(f"records of kind {str(kind)[:40]!r} are not known")
        return reader(record, pid)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise MalformedProfile(f"a malformed record: {type(error).__name__}: {str(error)[:200]}") from error


def _hello(record: dict[str, Any], _: int) -> Hello:
    labels = {
        _text(name)[:MAX_LABEL]: _text(value)[:MAX_LABEL] for name, value in record.get("labels", {}).items()
    }
    if len(labels) > MAX_LABELS or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(f"{len(labels)} labels, or one whose name is none")
    return Hello(
        _count(record["pid"]), _text(record["role"])[:MAX_LABEL], _text(record["service"])[:MAX_LABEL], labels
    )


def _frames(record: dict[str, Any], _: int) -> Frames:
    frames: list[tuple[int, Frame]] = []
    for frame_id, function, file, line in record["f"]:
        if not 0 <= _count(frame_id) < MAX_FRAME_ID:
            raise ValueError(f"frame id {frame_id}")
        kind = "root" if file == "[root]" else "python"
        frames.append(
            (frame_id, Frame(_text(function), "" if kind == "root" else _text(file), _count(line), kind))
        )
    return Frames(frames)


def _stacks(record: dict[str, Any], pid: int) -> Stacks:
    slot = _count(record["t"])
    return Stacks(
        slot,
        [
            (_count(cpu), _count(count), _about(request, slot, pid), _ids(ids))
            for cpu, count, request, ids in record["s"]
        ],
    )


def _stalls(record: dict[str, Any], pid: int) -> Stalls:
    slot = _count(record["t"])
    return Stalls(
        slot,
        [
            (_count(delay), _count(count), _about(request, slot, pid), _text(statement), _ids(ids))
            for delay, count, request, statement, ids in record["s"]
        ],
    )


def _requests(record: dict[str, Any], _: int) -> Requests:
    rows: list[RequestRow] = []
    for endpoint, status, run, phase, count, total, busy, stalled, buckets in record["r"]:
        if len(buckets) != len(BOUNDS) + 1 or sum(map(_count, buckets)) != count:
            raise ValueError(f"{len(buckets)} buckets do not hold {count} requests")
        rows.append(
            RequestRow(
                _text(endpoint)[:MAX_LABEL],
                _count(status),
                _text(run)[:MAX_LABEL],
                _text(phase)[:MAX_LABEL],
                _count(total),
                _count(busy),
                _count(stalled),
                tuple(buckets),
            )
        )
    return Requests(_count(record["t"]), rows)


def _spans(record: dict[str, Any], _: int) -> Spans:
    spans: list[Span] = []
    for trace_id, span_id, parent_id, name, kind, start, end, status, attributes in record["s"]:
        if len(bytes.fromhex(trace_id)) != 16 or len(bytes.fromhex(span_id)) != 8:
            raise ValueError("a span's ids are not 16 and 8 bytes of hex")
        if parent_id and len(bytes.fromhex(parent_id)) != 8:
            raise ValueError("a span's parent is not 8 bytes of hex")
        for value in attributes.values():
            if not isinstance(value, (str, int, float, bool)):
                raise TypeError("a span attribute is no plain value")
        spans.append(
            Span(
                trace_id,
                span_id,
                parent_id,
                _text(name),
                _count(kind),
                _count(start),
                _count(end),
                _count(status),
                {_text(key): value for key, value in attributes.items()},
            )
        )
    return Spans(_text(record["scope"]), spans)


def _counts(record: dict[str, Any], _: int) -> Counts:
    counts = {_text(name): _count(count) for name, count in record["c"].items()}
    if len(counts) > 64:
        raise ValueError(f"{len(counts)} counters")
    return Counts(_count(record["t"]), counts, _text(record.get("fault", ""))[:200])


_READERS: dict[str, Callable[[dict[str, Any], int], Record]] = {
    "hello": _hello,
    "frame": _frames,
    "stacks": _stacks,
    "stalls": _stalls,
    "requests": _requests,
    "spans": _spans,
    "counts": _counts,
}


def _about(request: Any, slot_ns: int, pid: int) -> Attributes | None:
    if request is None:
        return None
    endpoint, span_id, trace_id, run, phase = request
    for name, digits in ((span_id, 16), (trace_id, 32)):
        if name and (len(_text(name)) != digits or not _HEX.issuperset(name)):
            raise ValueError(f"an id is not {digits} digits of hex")
    return Attributes(
        slot_ns,
        _text(endpoint)[:MAX_LABEL],
        _text(run)[:MAX_LABEL],
        _text(phase)[:MAX_LABEL],
        pid,
        span_id,
        trace_id,
    )


def _ids(ids: Any) -> tuple[int, ...]:
    if len(ids) > MAX_DEPTH:
        raise ValueError(f"a stack of {len(ids)} frames")
    return tuple(ids)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value if len(value) <= MAX_TEXT else value[:MAX_TEXT]


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise TypeError("a number from 0 expected")
    return value


def resolve(ids: tuple[int, ...], table: dict[int, Frame]) -> Stack:
    """Return the frames behind ids; raises `MalformedProfile` for one that was never defined."""
    try:
        return tuple([table[frame_id] for frame_id in ids])
    except (KeyError, TypeError):
        raise MalformedProfile("a stack names a frame that was not defined") from None
