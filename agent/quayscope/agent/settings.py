"""Every variable that the agent reads, one documented constant each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "AGENT",
    "HZ",
    "PROGRAMS",
    "ROLE",
    "SERVICE_NAME",
    "SOCKET",
    "SQL_COMMENT",
    "TRACING",
    "Settings",
    "read",
    "switched_off",
]

AGENT = "QUAYSCOPE_AGENT"
"""`off` (or 0, false, no): the agent does nothing at all."""
SOCKET = "QUAYSCOPE_SOCKET"
"""Path of the relay's Unix socket. Default: `DEFAULT_SOCKET`."""
HZ = "QUAYSCOPE_HZ"
"""CPU samples a CPU second, 1 to 999. Default 100."""
SERVICE_NAME = "QUAYSCOPE_SERVICE_NAME"
"""The label `service_name`; else `OTEL_SERVICE_NAME`, else `quay-app`."""
ROLE = "QUAYSCOPE_ROLE"
"""The label `role`: web, registry, secscan. Default web."""
TRACING = "QUAYSCOPE_TRACING"
"""`off`: no spans are made or read. Default auto: on where the application has opentelemetry-sdk."""
SQL_COMMENT = "QUAYSCOPE_SQL_COMMENT"
"""`off`: statements go to the database unchanged. Default on."""
PROGRAMS = "QUAYSCOPE_PROGRAMS"
"""Programs to start in beside gunicorn: names or modules, comma-separated."""

DEFAULT_SOCKET = "/run/quayscope/agent.sock"
DEFAULT_HZ = 100
MAX_HZ = 999
_OFF = frozenset(("off", "0", "false", "no"))


class Settings(NamedTuple):
    """What the variables say, with defaults filled in."""

    socket: str = DEFAULT_SOCKET
    hz: int = DEFAULT_HZ
    service_name: str = "quay-app"
    role: str = "web"
    tracing: bool = True
    sql_comment: bool = True


def switched_off(environment: Mapping[str, str]) -> bool:
    """Whether the one variable that turns everything off does so."""
    return _off(environment, AGENT)


def read(environment: Mapping[str, str]) -> Settings:
    """Read the variables; a value that makes no sense counts as its default."""
    hz = environment.get(HZ, "")
    return Settings(
        socket=environment.get(SOCKET) or DEFAULT_SOCKET,
        hz=min(max(int(hz), 1), MAX_HZ) if hz.isdecimal() and len(hz) < 10 else DEFAULT_HZ,
        service_name=environment.get(SERVICE_NAME) or environment.get("OTEL_SERVICE_NAME") or "quay-app",
        role=environment.get(ROLE) or "web",
        tracing=not _off(environment, TRACING),
        sql_comment=not _off(environment, SQL_COMMENT),
    )


def _off(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").strip().lower() in _OFF
