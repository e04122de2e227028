"""A question as it stands in a URL: type, time range, matchers; wrong ones get a clear 400."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

from werkzeug.datastructures import MultiDict

from quayscope.collector.errors import BadRequest
from quayscope.profile import Attributes, ProfileType, UnknownProfileType, split_type_id

__all__ = [
    "ATTRIBUTES",
    "Column",
    "Matcher",
    "TimeRange",
    "read_column",
    "read_count",
    "read_matchers",
    "read_range",
]

ATTRIBUTES = Attributes._fields[1:]
"""The sample attributes that can be matched and broken down by: all but the slot, which is time."""

_DEFAULT_RANGE_S = 3600.0
_MAX_TIME_S = 4e9
_MAX_MATCHERS = 50
_MATCH = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)(!?=)(.*)", re.DOTALL)
_HEX = {"span_id": re.compile(r"[0-9a-f]{16}"), "trace_id": re.compile(r"[0-9a-f]{32}")}


class TimeRange(NamedTuple):
    """Unix nanoseconds, the end excluded."""

    start_ns: int
    end_ns: int


class Column(NamedTuple):
    """One column of a profile type: the type, and which of its values."""

    type: ProfileType
    at: int

    @property
    def id(self) -> str:
        """The full profile type id."""
        return self.type.ids()[self.at]

    @property
    def unit(self) -> str:
        """The unit of the values."""
        return self.type.values[self.at].unit


class Matcher(NamedTuple):
    """NAME=VALUE, or NAME!=VALUE where `negated`. A missing label has the value ""."""

    name: str
    value: str
    negated: bool

    def accepts(self, value: str) -> bool:
        """Whether a label's value passes."""
        return (value == self.value) != self.negated


def read_range(query: MultiDict[str, str], now_s: float | None = None) -> TimeRange:
    """Read `from` and `to`, Unix seconds; raises `BadRequest`."""
    # The newest samples lie in the running second.
    end = _seconds(query, "to", (time.time() if now_s is None else now_s) + 1)
    start = _seconds(query, "from", max(0.0, end - _DEFAULT_RANGE_S))
    if start >= end:
        raise BadRequest(f"from ({start:.3f}) is not before to ({end:.3f})", next_step="swap them")
    return TimeRange(round(start * 1e9), round(end * 1e9))


def _seconds(query: MultiDict[str, str], name: str, default: float) -> float:
    text = query.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MAX_TIME_S:
        raise BadRequest(
            f"{name}={text[:40]!r} is not a Unix time in seconds", next_step=f"try {name}=1767225600"
        )
    return value


def read_column(query: MultiDict[str, str]) -> Column:
    """Read `type`; raises `BadRequest`."""
    text = query.get("type", "")
    if not text:
        raise BadRequest("type is missing", next_step="GET /api/v1/types lists those that have data")
    try:
        return Column(*split_type_id(text))
    except UnknownProfileType as error:
        raise BadRequest(str(error)[:300], next_step=error.next_step) from error


def read_matchers(query: MultiDict[str, str]) -> list[Matcher]:
    """Read every `match`; raises `BadRequest`."""
    texts: Sequence[str] = query.getlist("match")
    if len(texts) > _MAX_MATCHERS:
        raise BadRequest(f"{len(texts)} matchers, more than {_MAX_MATCHERS}")
    return [_matcher(text) for text in texts]


def _matcher(text: str) -> Matcher:
    found = _MATCH.fullmatch(text)
    if not found:
        raise BadRequest(
            f"match={text[:80]!r} is not NAME=VALUE or NAME!=VALUE",
            next_step="try match=service_name=quay-app",
        )
    name, operator, value = found.groups()
    if name in _HEX:
        value = value.lower()
        if value and not _HEX[name].fullmatch(value):
            digits = 16 if name == "span_id" else 32
            raise BadRequest(f"{name}={value[:40]!r} is not {digits} hexadecimal digits")
    if name == "pid" and value and not (value.isascii() and value.isdecimal() and len(value) <= 10):
        raise BadRequest(f"pid={value[:40]!r} is not a number")
    return Matcher(name, value, operator == "!=")


def read_count(query: MultiDict[str, str], name: str, default: int, most: int) -> int:
    """Read a positive number of at most `most`; raises `BadRequest`."""
    text = query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= most):
        raise BadRequest(f"{name}={text[:40]!r} is not a number between 1 and {most}")
    return int(text)
