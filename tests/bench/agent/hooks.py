"""gunicorn's configuration: each worker sets up tracing after the fork, as the application's own."""

from __future__ import annotations

from typing import Any

bind = "127.0.0.1:0"
keepalive = 600


def post_worker_init(_: Any) -> None:
    from bench.agent import app, switches

    switches.trace_requests()
    switches.turn(app.app, switches.OTEL, on=True)
