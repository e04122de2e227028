"""Where requests begin and end: around a worker's handling of each, and around the application inside it.

The worker's side begins and ends the request, so that parsing its environment and sending its answer
belong to it; the application's side learns who it is. Neither touches the answer itself.
"""

from __future__ import annotations

import time
from typing import Any, Callable

from quayscope.agent.context import CURRENT, Request, describe
from quayscope.agent.faults import fault, guarded, own
from quayscope.agent.turns import Turns

__all__ = ["Border"]

_REQUESTS_A_TIMING = 8
"""What a request costs us is measured each so many: the clock of CPU time costs half a microsecond."""


class Border:
    """Wraps what gunicorn calls. While not `running`, calls pass as they came."""

    def __init__(
        self, began: Callable[[Request], None], finished: Callable[[Request], None], turns: Turns
    ) -> None:
        self._began = began
        self._finished = finished
        self._turns = turns
        self._until_timing = _REQUESTS_A_TIMING
        self.running = False

    def around_worker(self, handle: Callable[..., Any]) -> Callable[..., Any]:
        """Return a worker class's `handle_request` with a request around it."""

        def handle_request(*arguments: Any, **named: Any) -> Any:
            request = guarded(self.begin) if self.running else None
            try:
                return handle(*arguments, **named)
            finally:
                if request is not None:
                    guarded(self.end, request)

        return handle_request

    def around_application(self, application: Callable[..., Any]) -> Callable[..., Any]:
        """Return the application's WSGI callable, telling the request in the context what it is."""
        return _Application(application, self)

    def begin(self) -> Request:
        """Begin a request on this greenlet or thread."""
        request = Request()
        self._turns.request_began(request)
        self._began(request)
        CURRENT.set(request)
        return request

    def end(self, request: Request) -> None:
        """End it."""
        self._until_timing -= 1
        began = 0 if self._until_timing > 0 else time.thread_time_ns()
        CURRENT.set(None)
        request.ended = True
        self._turns.request_ended()
        self._finished(request)
        if began:
            self._until_timing = _REQUESTS_A_TIMING
            # The begin costs about half of what the end does.
            own(_REQUESTS_A_TIMING * (time.thread_time_ns() - began) * 3 // 2)


class _Application:
    """The application's callable; whoever asks it for an attribute gets the application's."""

    def __init__(self, application: Callable[..., Any], border: Border) -> None:
        self._application = application
        self._border = border

    def __getattr__(self, name: str) -> Any:
        return getattr(self._application, name)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if not self._border.running:
            return self._application(environ, start_response)
        request, own = CURRENT.get(), False
        if request is None:
            # A worker class that has no `handle_request` of the kind we know: its call is all we see.
            request, own = guarded(self._border.begin), True
            if request is None:
                return self._application(environ, start_response)
        guarded(describe, request, environ)
        running = request

        def started(status: Any, *arguments: Any, **named: Any) -> Any:
            try:
                running.status = int(status[:3])  # servers take bytes too
            except Exception as error:  # noqa: BLE001 - what an odd status means is the server's to say
                guarded(fault, error)
            return start_response(status, *arguments, **named)

        try:
            return self._application(environ, started)
        except BaseException:
            running.status = running.status or 500
            raise
        finally:
            if own:
                guarded(self._border.end, running)
