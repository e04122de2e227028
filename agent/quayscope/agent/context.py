"""The request that is running: a mutable object in a context variable, set while its worker handles it.

It does not depend on OpenTelemetry or on what a trace's sampling decided. Its endpoint is unknown when
it begins; samples point to the object, and the endpoint is read when records are written.
"""

from __future__ import annotations

import os
import time
from contextvars import ContextVar
from typing import Any, NamedTuple, Union
from urllib.parse import unquote

from quayscope.agent.frames import Stack

__all__ = ["CURRENT", "About", "Endpoint", "Request", "current", "describe"]

NO_ROUTE = "(no route)"
MAX_WORD = 64
"""Characters of a run or a phase."""
_HEX = frozenset("0123456789abcdef")


class Endpoint(NamedTuple):
    """What several requests have in common, where something is no one request's."""

    endpoint: str
    run: str
    phase: str


class Request:
    """One request: who it is, and what it cost so far (nanoseconds).

    `unsampled_ns` is CPU for which no sample has come yet; `stack` the last sample's. `ended`: what still
    runs in its context is nobody's. `shared` is what `about` returned once the route was known, `comments`
    what stands in front of its statements, without and with parameters.
    """

    __slots__ = (
        "busy_ns",
        "comments",
        "ended",
        "method",
        "phase",
        "rule",
        "run",
        "shared",
        "span_id",
        "stack",
        "stalled_ns",
        "started_ns",
        "status",
        "trace_id",
        "unsampled_ns",
    )

    def __init__(self) -> None:
        self.method = ""
        self.rule = ""
        self.trace_id = ""
        self.span_id = ""
        self.run = ""
        self.phase = ""
        self.status = 0
        self.busy_ns = 0
        self.stalled_ns = 0
        self.unsampled_ns = 0
        self.stack: Stack | None = None
        self.comments: tuple[str, str] | None = None
        self.ended = False
        self.shared: Endpoint | None = None
        self.started_ns = time.perf_counter_ns()

    @property
    def endpoint(self) -> str:
        """Return METHOD, space, route template: never a raw path, which could hold anything."""
        return f"{self.method} {self.rule or NO_ROUTE}"

    def about(self) -> Endpoint:
        """Return what this request shares with others of its endpoint, run and phase."""
        if self.shared is not None:
            return self.shared
        found = Endpoint(self.endpoint, self.run, self.phase)
        if self.rule:  # else the route may come yet
            self.shared = found
        return found

    def trace(self) -> str:
        """Return the trace id; one of our own where neither the caller nor OpenTelemetry gave one."""
        if not self.trace_id:
            self.trace_id = os.urandom(16).hex()
        return self.trace_id


About = Union[Request, Endpoint, None]

CURRENT: ContextVar[Request | None] = ContextVar("quayscope_request", default=None)
"""The request that the running greenlet or thread works on."""


def current() -> Request | None:
    """Return the running request, None where there is none or it has ended."""
    request = CURRENT.get()
    return None if request is None or request.ended else request


def describe(request: Request, environ: dict[str, Any]) -> None:
    """Note what the WSGI environment and the W3C headers in it say."""
    method = str(environ.get("REQUEST_METHOD", ""))[:16]
    request.method = method if method.isalpha() else "?"
    parent = environ.get("HTTP_TRACEPARENT", "")
    if parent and _valid(parent):
        request.trace_id = parent[3:35]
    baggage = environ.get("HTTP_BAGGAGE", "")
    if not baggage:
        return
    for member in baggage[:1024].split(","):
        key, _, value = member.partition("=")
        key = key.strip()
        if key == "run":
            request.run = unquote(value.partition(";")[0].strip())[:MAX_WORD]
        elif key == "phase":
            request.phase = unquote(value.partition(";")[0].strip())[:MAX_WORD]


def _valid(parent: str) -> bool:
    """Whether this is a traceparent, of any version but ff (W3C Trace Context, section 3.2)."""
    return (
        (len(parent) == 55 or (len(parent) > 55 and parent[:2] != "00" and parent[55] == "-"))
        and parent[2] == parent[35] == parent[52] == "-"
        and _HEX.issuperset(parent[:2] + parent[3:35] + parent[36:52])
        and parent[:2] != "ff"
        and parent[3:35].strip("0") != ""
    )
