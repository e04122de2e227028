"""Every variable that the agent reads, one documented constant each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "AGENT",
    "COLLECTOR",
    "HZ",
    "MAX_HZ",
    "MAX_OVERHEAD",
    "MEMORY",
    "PROGRAMS",
    "PYROSCOPE",
    "ROLE",
    "SERVICE_NAME",
    "SLOW_MS",
    "SOCKET",
    "SQL_COMMENT",
    "STALL_MS",
    "TRACE_RATIO",
    "TRACING",
    "Settings",
    "read",
    "switched_off",
]

AGENT = "QUAYSCOPE_AGENT"
"""`off` (or 0, false, no): the agent does nothing at all."""
SOCKET = "QUAYSCOPE_SOCKET"
"""Path of the relay's Unix socket. Default: /run/quayscope/agent.sock; where a helper is asked for
(QUAYSCOPE_COLLECTOR, QUAYSCOPE_PYROSCOPE) and that folder cannot be, one of this user's own in /tmp."""
HZ = "QUAYSCOPE_HZ"
"""CPU samples a CPU second, 1 to 999. Default 100. The kernel's clock tick bounds it, often at 250."""
MAX_OVERHEAD = "QUAYSCOPE_MAX_OVERHEAD"
"""Percent of a worker's CPU that the agent may use; above it the rate falls. Default 1."""
STALL_MS = "QUAYSCOPE_STALL_MS"
"""Milliseconds from which a greenlet that keeps the others from running is recorded. Default 50."""
SLOW_MS = "QUAYSCOPE_SLOW_MS"
"""Milliseconds from which a request is kept by itself, with its trace id. Default 1000."""
SERVICE_NAME = "QUAYSCOPE_SERVICE_NAME"
"""The label `service_name`; else `OTEL_SERVICE_NAME`, else `quay-app`."""
ROLE = "QUAYSCOPE_ROLE"
"""The label `role`. Default: web, registry or secscan where gunicorn's application is called so, else web."""
TRACING = "QUAYSCOPE_TRACING"
"""`off`: no spans are made or read. Default auto: on where the application has opentelemetry-sdk."""
TRACE_RATIO = "QUAYSCOPE_TRACE_RATIO"
"""Share of requests traced that no caller decided on, 0 to 1, where the application has set up no tracing and
`OTEL_TRACES_SAMPLER` is not set. Default 0.001."""
SQL_COMMENT = "QUAYSCOPE_SQL_COMMENT"
"""`off`: statements go to the database unchanged. Default on."""
MEMORY = "QUAYSCOPE_MEMORY"
"""Where pyroscope-io (1.4 or newer, where the application has it) pushes memory profiles, an http address
such as the sidecar's http://127.0.0.1:4041. Default: none are taken."""
COLLECTOR = "QUAYSCOPE_COLLECTOR"
"""Address of a collector: where no sidecar listens, a helper process sends there."""
PYROSCOPE = "QUAYSCOPE_PYROSCOPE"
"""Address of a Pyroscope: likewise, profiles alone."""
PROGRAMS = "QUAYSCOPE_PROGRAMS"
"""Programs to start in beside gunicorn, which run gunicorn by another name: names or modules,
comma-separated."""

DEFAULT_SOCKET = "/run/quayscope/agent.sock"
DEFAULT_HZ = 100
MAX_HZ = 999
_OFF = frozenset(("off", "0", "false", "no"))


class Settings(NamedTuple):
    """What the variables say, with defaults filled in."""

    socket: str = DEFAULT_SOCKET
    hz: int = DEFAULT_HZ
    max_overhead: float = 0.01
    stall_ns: int = 50_000_000
    slow_ns: int = 1_000_000_000
    service_name: str = "quay-app"
    role: str = ""
    tracing: bool = True
    trace_ratio: float = 0.001
    sql_comment: bool = True
    memory: str = ""


def switched_off(environment: Mapping[str, str]) -> bool:
    """Whether the one variable that turns everything off does so."""
    return _off(environment, AGENT)


def read(environment: Mapping[str, str]) -> Settings:
    """Read the variables; a value that makes no sense counts as its default."""
    return Settings(
        socket=environment.get(SOCKET) or DEFAULT_SOCKET,
        hz=int(_number(environment, HZ, DEFAULT_HZ, 1, MAX_HZ)),
        max_overhead=_number(environment, MAX_OVERHEAD, 1, 0.01, 100) / 100,
        stall_ns=int(_number(environment, STALL_MS, 50, 5, 60_000) * 1e6),
        slow_ns=int(_number(environment, SLOW_MS, 1_000, 1, 3_600_000) * 1e6),
        service_name=environment.get(SERVICE_NAME) or environment.get("OTEL_SERVICE_NAME") or "quay-app",
        role=environment.get(ROLE, ""),
        tracing=not _off(environment, TRACING),
        trace_ratio=_number(environment, TRACE_RATIO, 0.001, 0, 1),
        sql_comment=not _off(environment, SQL_COMMENT),
        memory=environment.get(MEMORY, ""),
    )


def _number(environment: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    try:
        value = float(environment.get(name) or default)
    except ValueError:
        return default
    return min(max(value, least), most) if value == value else default


def _off(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").strip().lower() in _OFF
