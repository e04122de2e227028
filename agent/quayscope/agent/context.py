"""The request that is running: a mutable object in a context variable, set around the WSGI call.

It does not depend on OpenTelemetry or on what a trace's sampling decided. Its endpoint is unknown when
it begins; samples point to the object, and the endpoint is read when records are written.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any, Callable
from urllib.parse import unquote

from quayscope.agent.faults import fault

__all__ = ["CURRENT", "Request", "WsgiBorder"]

NO_ROUTE = "(no route)"
_HEX = frozenset("0123456789abcdef")


class Request:
    """One request: who it is, and what it cost so far (nanoseconds)."""

    __slots__ = (
        "busy_ns",
        "method",
        "phase",
        "rule",
        "run",
        "span_id",
        "stalled_ns",
        "started_ns",
        "status",
        "trace_id",
    )

    def __init__(self, method: str) -> None:
        self.method = method
        self.rule = ""
        self.trace_id = ""
        self.span_id = ""
        self.run = ""
        self.phase = ""
        self.status = 0
        self.busy_ns = 0
        self.stalled_ns = 0
        self.started_ns = time.perf_counter_ns()

    @property
    def endpoint(self) -> str:
        """Return METHOD, space, route template: never a raw path, which could hold anything."""
        return f"{self.method} {self.rule or NO_ROUTE}"


CURRENT: ContextVar[Request | None] = ContextVar("quayscope_request", default=None)
"""The request that the running greenlet or thread works on."""


def begin(environ: dict[str, Any]) -> Request:
    """Return a request for a WSGI environment, with what the W3C headers say."""
    method = str(environ.get("REQUEST_METHOD", ""))[:16]
    request = Request(method if method.isalpha() else "?")
    parent = environ.get("HTTP_TRACEPARENT", "")
    if len(parent) >= 55 and parent[2] == parent[35] == "-" and _HEX.issuperset(parent[3:35] + parent[36:52]):
        request.trace_id = parent[3:35]
    for member in environ.get("HTTP_BAGGAGE", "")[:1024].split(","):
        key, _, value = member.partition("=")
        key = key.strip()
        if key == "run":
            request.run = unquote(value.partition(";")[0].strip())[:64]
        elif key == "phase":
            request.phase = unquote(value.partition(";")[0].strip())[:64]
    return request


class WsgiBorder:
    """Stands around an application's WSGI callable and says when a request begins and ends."""

    def __init__(self, application: Callable[..., Any], finished: Callable[[Request], None]) -> None:
        self._application = application
        self._finished = finished

    def __getattr__(self, name: str) -> Any:
        """Look like the application to whoever asks it for an attribute."""
        return getattr(self._application, name)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Call the application with the request in the context; its errors pass through untouched."""
        try:
            request = begin(environ)
            CURRENT.set(request)
        except Exception as error:  # noqa: BLE001 - the border to somebody else's process
            fault(error)
            return self._application(environ, start_response)

        def started(status: str, *arguments: Any, **named: Any) -> Any:
            request.status = int(status[:3]) if status[:3].isdecimal() else 0
            return start_response(status, *arguments, **named)

        try:
            body = self._application(environ, started)
        except BaseException:
            request.status = request.status or 500
            self._end(request)
            raise
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper):
            # The server sends such a body by sendfile if it recognises its class: leave it alone.
            self._end(request)
            return body
        return _Body(body, request, self._end)

    def _end(self, request: Request) -> None:
        try:
            if CURRENT.get() is request:
                CURRENT.set(None)
            self._finished(request)
        except Exception as error:  # noqa: BLE001 - the border to somebody else's process
            fault(error)


class _Body:
    """A response body that says when it is closed; iteration is the body's own."""

    def __init__(self, body: Any, request: Request, end: Callable[[Request], None]) -> None:
        self._body = body
        self._request: Request | None = request
        self._end = end

    def __iter__(self) -> Any:
        return iter(self._body)

    def close(self) -> None:
        """Close the body, then end the request, once."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            request, self._request = self._request, None
            if request is not None:
                self._end(request)
