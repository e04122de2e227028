"""The request that is running: a mutable object in a context variable, set while its worker handles it.

It does not depend on OpenTelemetry or on what a trace's sampling decided. Its endpoint is unknown when
it begins; samples point to the object, and the endpoint is read when records are written.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any, Callable
from urllib.parse import unquote

from quayscope.agent.faults import fault

__all__ = ["CURRENT", "Border", "Request"]

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
        "thread_ns",
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
        self.thread_ns = 0
        self.started_ns = time.perf_counter_ns()

    @property
    def endpoint(self) -> str:
        """Return METHOD, space, route template: never a raw path, which could hold anything."""
        return f"{self.method} {self.rule or NO_ROUTE}"


CURRENT: ContextVar[Request | None] = ContextVar("quayscope_request", default=None)
"""The request that the running greenlet or thread works on."""


class Border:
    """Stands around a worker's handling of a request, and around the application's WSGI callable inside it.

    The worker's side begins and ends the request, so that parsing its environment and sending its answer
    belong to it; the application's side learns who it is. Neither touches the answer itself.
    """

    def __init__(self, began: Callable[[Request], None], finished: Callable[[Request], None]) -> None:
        self._began = began
        self._finished = finished

    def around_worker(self, handle: Callable[..., Any]) -> Callable[..., Any]:
        """Return a worker class's `handle_request` with a request around it."""

        def handle_request(*arguments: Any, **named: Any) -> Any:
            request = self._begin()
            try:
                return handle(*arguments, **named)
            finally:
                if request is not None:
                    self._end(request)

        return handle_request

    def around_application(self, application: Callable[..., Any]) -> Callable[..., Any]:
        """Return the application's WSGI callable, telling the request in the context what it is."""
        return _Application(application)

    def _begin(self) -> Request | None:
        try:
            request = Request()
            self._began(request)
            CURRENT.set(request)
        except Exception as error:  # noqa: BLE001 - the border to somebody else's process
            fault(error)
            return None
        return request

    def _end(self, request: Request) -> None:
        try:
            CURRENT.set(None)
            if request.method:  # else the worker refused it before the application saw it
                self._finished(request)
        except Exception as error:  # noqa: BLE001 - the border to somebody else's process
            fault(error)


class _Application:
    """The application's callable; whoever asks it for an attribute gets the application's."""

    def __init__(self, application: Callable[..., Any]) -> None:
        self._application = application

    def __getattr__(self, name: str) -> Any:
        return getattr(self._application, name)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        request = CURRENT.get()
        if request is None:
            return self._application(environ, start_response)
        try:
            _describe(request, environ)
        except Exception as error:  # noqa: BLE001 - the border to somebody else's process
            fault(error)

        def started(status: Any, *arguments: Any, **named: Any) -> Any:
            try:
                request.status = int(status[:3])  # servers take bytes too
            except Exception as error:  # noqa: BLE001 - what an odd status means is the server's to say
                fault(error)
            return start_response(status, *arguments, **named)

        try:
            return self._application(environ, started)
        except BaseException:
            request.status = request.status or 500
            raise


def _describe(request: Request, environ: dict[str, Any]) -> None:
    """Note what the WSGI environment and the W3C headers in it say."""
    method = str(environ.get("REQUEST_METHOD", ""))[:16]
    request.method = method if method.isalpha() else "?"
    parent = environ.get("HTTP_TRACEPARENT", "")
    if _valid(parent):
        request.trace_id = parent[3:35]
    for member in environ.get("HTTP_BAGGAGE", "")[:1024].split(","):
        key, _, value = member.partition("=")
        key = key.strip()
        if key == "run":
            request.run = unquote(value.partition(";")[0].strip())[:64]
        elif key == "phase":
            request.phase = unquote(value.partition(";")[0].strip())[:64]


def _valid(parent: str) -> bool:
    """Whether this is a traceparent, of any version but ff (W3C Trace Context, section 3.2)."""
    return (
        (len(parent) == 55 or (len(parent) > 55 and parent[:2] != "00" and parent[55] == "-"))
        and parent[2] == parent[35] == parent[52] == "-"
        and _HEX.issuperset(parent[:2] + parent[3:35] + parent[36:52])
        and parent[:2] != "ff"
        and parent[3:35].strip("0") != ""
    )
