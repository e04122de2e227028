"""What the sidecar is permitted to do: each entry was tried, and carries what the system answered."""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

__all__ = ["Capabilities", "Capability"]

log = logging.getLogger(__name__)


class Capability(NamedTuple):
    """One thing tried. `detail` is what the system answered, `remedy` what it would take (empty: nothing)."""

    name: str
    permitted: bool
    detail: str
    remedy: str = ""


class Capabilities:
    """The last answer for each thing tried; thread-safe. Each change is logged once."""

    def __init__(self) -> None:
        self._held: dict[str, Capability] = {}
        self._changes = 0
        self._lock = threading.Lock()

    def note(self, capability: Capability) -> None:
        """Keep the answer; say so when it is another one than before."""
        with self._lock:
            before = self._held.get(capability.name)
            self._held[capability.name] = capability
            if before == capability:
                return
            self._changes += 1
        if capability.permitted:
            log.info("permitted", extra={"capability": capability.name, "detail": capability.detail})
        elif before is None or before.permitted or before.detail != capability.detail:
            log.warning(
                "missing",
                extra={
                    "capability": capability.name,
                    "detail": capability.detail,
                    "remedy": capability.remedy,
                },
            )

    @property
    def changes(self) -> int:
        """How often an answer was another one than before."""
        with self._lock:
            return self._changes

    def permitted(self, name: str) -> bool:
        """Whether `name` was tried and worked."""
        with self._lock:
            held = self._held.get(name)
        return held is not None and held.permitted

    def all(self) -> list[Capability]:
        """Return the last answer for each thing, by name."""
        with self._lock:
            return sorted(self._held.values())
