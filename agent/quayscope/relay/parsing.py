"""Reads packets of a worker strictly: each is taken whole or not at all."""

from __future__ import annotations

import json
import re
from typing import Any, Callable

from quayscope.profile import Attributes, Frame, MalformedProfile, Stack
from quayscope.relay.otlp import Span
from quayscope.relay.records import (
    BOUNDS,
    WHYS,
    Counts,
    Frames,
    Hello,
    Hub,
    HubRow,
    Kept,
    KeptRow,
    Record,
    RequestRow,
    Requests,
    Spans,
    Stacks,
    Stalls,
)

__all__ = ["parse", "resolve"]

MAX_LABELS = 16
MAX_LABEL = 512
MAX_TEXT = 4096
_HEX = frozenset("0123456789abcdef")
_LABEL = re.compile("(?!__)[A-Za-z_][A-Za-z0-9_]{0,63}")
MAX_FRAME_ID = 1 << 20
MAX_DEPTH = 1024
MAX_NAMES = 64
"""Counters, and levels, of one record."""
FRAME_KINDS = {"[root]": "root", "[native]": "native", "[wait]": "wait"}
"""Files that stand for a kind; every other one is Python's."""


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
        kind = FRAME_KINDS.get(_text(file), "python")
        frames.append(
            (frame_id, Frame(_text(function), _text(file) if kind == "python" else "", _count(line), kind))
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


def _hub(record: dict[str, Any], pid: int) -> Hub:
    slot = _count(record["t"])
    return Hub(
        slot,
        [
            HubRow(_count(delay), _count(count), _about(request, slot, pid), _count(waiting), _ids(ids))
            for delay, count, request, waiting, ids in record["s"]
        ],
    )


def _requests(record: dict[str, Any], _: int) -> Requests:
    rows: list[RequestRow] = []
    for endpoint, status, run, phase, count, total, busy, stalled, buckets, *more in record["r"]:
        if len(more) not in (0, 2):
            raise ValueError(f"a row of requests with {9 + len(more)} elements")
        rows.append(
            RequestRow(
                _text(endpoint)[:MAX_LABEL],
                _count(status),
                _text(run)[:MAX_LABEL],
                _text(phase)[:MAX_LABEL],
                _count(total),
                _count(busy),
                _count(stalled),
                _buckets(buckets, count),
                *(_buckets(held, count) for held in more),
            )
        )
    return Requests(_count(record["t"]), rows)


def _buckets(buckets: Any, count: Any) -> tuple[int, ...]:
    if len(buckets) != len(BOUNDS) + 1 or sum(map(_count, buckets)) != _count(count):
        raise ValueError(f"{len(buckets)} buckets do not hold {count} requests")
    return tuple(buckets)


def _kept(record: dict[str, Any], _: int) -> Kept:
    rows: list[KeptRow] = []
    for endpoint, status, run, phase, *times, trace_id, span_id, why in record["r"]:
        start, duration, busy, stalled = map(_count, times)
        if why not in WHYS:
            raise ValueError(f"a request is kept for one of {', '.join(WHYS)}")
        rows.append(
            KeptRow(
                _text(endpoint)[:MAX_LABEL],
                _count(status),
                _text(run)[:MAX_LABEL],
                _text(phase)[:MAX_LABEL],
                start,
                duration,
                busy,
                stalled,
                _hex(trace_id, 32),
                _hex(span_id, 16),
                why,
            )
        )
    return Kept(rows)


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
    return Counts(
        _count(record["t"]),
        _named(record["c"]),
        _text(record.get("fault", ""))[:200],
        _named(record.get("m", {})),
    )


def _named(numbers: Any) -> dict[str, int]:
    if len(numbers) > MAX_NAMES:
        raise ValueError(f"{len(numbers)} counters or levels")
    return {_text(name): _count(number) for name, number in numbers.items()}


_READERS: dict[str, Callable[[dict[str, Any], int], Record]] = {
    "hello": _hello,
    "frame": _frames,
    "stacks": _stacks,
    "stalls": _stalls,
    "hub": _hub,
    "requests": _requests,
    "kept": _kept,
    "spans": _spans,
    "counts": _counts,
}


def _about(request: Any, slot_ns: int, pid: int) -> Attributes | None:
    if request is None:
        return None
    endpoint, span_id, trace_id, run, phase = request
    return Attributes(
        slot_ns,
        _text(endpoint)[:MAX_LABEL],
        _text(run)[:MAX_LABEL],
        _text(phase)[:MAX_LABEL],
        pid,
        _hex(span_id, 16),
        _hex(trace_id, 32),
    )


def _hex(value: Any, digits: int) -> str:
    """Return an id, or "" where it is not known."""
    if _text(value) and (len(value) != digits or not _HEX.issuperset(value)):
        raise ValueError(f"an id is not {digits} digits of hex")
    return str(value)


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
