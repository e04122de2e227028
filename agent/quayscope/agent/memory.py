"""Memory profiles by pyroscope-io, where the application has it: the one profiler that is not ours.

A process holds one session of it. Quay starts its own in gunicorn's master (`PROFILING_TYPE: Pyroscope`),
where no worker's samples are: after the fork none is left, and ours can be. A session that the application
starts in a worker is its own: then ours is not started, and what it sends is not sent twice.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from quayscope.agent.faults import add, guarded
from quayscope.agent.hooks import after_import
from quayscope.profile.headers import PID_HEADER

__all__ = ["start_memory", "watch_sessions"]

_sessions: list[int] = []
"""Pids in which the application started a session."""


def watch_sessions() -> None:
    """Note where the application starts a session of its own: to be called in the master."""
    after_import("pyroscope", _patch)


def _patch(module: ModuleType) -> None:
    plain: Any = module.configure

    def configure(*arguments: Any, **named: Any) -> Any:
        guarded(_note)
        return plain(*arguments, **named)

    configure.plain = plain  # type: ignore[attr-defined]
    module.configure = configure  # type: ignore[attr-defined]


def _note() -> None:
    _sessions.append(os.getpid())


def start_memory(address: str, service_name: str, tags: dict[str, str]) -> None:
    """Start a session for memory where `address` is given. Counters say once whose there is."""
    if os.getpid() in _sessions:
        add("pyroscope_of_the_application")
        return
    if _sessions:
        add("pyroscope_in_the_master")
    if not address:
        return
    try:
        import pyroscope
    except ImportError:
        add("pyroscope_missing")
        return
    configure: Any = pyroscope.configure
    try:
        getattr(configure, "plain", configure)(
            application_name=service_name,
            server_address=address,
            cpu_enabled=False,
            mem_enabled=True,
            tags=tags,
            http_headers={PID_HEADER: str(os.getpid())},
        )
    except TypeError:
        add("pyroscope_too_old")  # before 1.4 there are no memory profiles
