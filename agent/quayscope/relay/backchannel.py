"""What workers are told: their settings, over the connection that they write their records to."""

from __future__ import annotations

import json
import threading
from typing import NamedTuple

__all__ = ["OWN", "BackChannel", "WorkerSettings"]

MAX_HZ = 999
SLOTS_MS = (250, 1000)
MAX_PIDS = 512
"""Workers that are told something of their own; the first told are forgotten first."""


class WorkerSettings(NamedTuple):
    """What workers are to do. None: what the worker's own settings say.

    `on`: whether it samples; `hz`: CPU samples a CPU second, 1 to 999; `slot_ms`: 1000 or 250;
    `until_ns`: Unix time after which the worker returns to its own settings by itself (0: never).
    """

    on: bool | None = None
    hz: int | None = None
    slot_ms: int | None = None
    until_ns: int = 0

    def encode(self) -> bytes:
        """Return the packet; raises ValueError for numbers out of range."""
        if self.hz is not None and not 1 <= self.hz <= MAX_HZ:
            raise ValueError(f"{self.hz} Hz is not within 1 to {MAX_HZ}")
        if self.slot_ms is not None and self.slot_ms not in SLOTS_MS:
            raise ValueError(f"a slot of {self.slot_ms} ms is none of {SLOTS_MS}")
        if not 0 <= self.until_ns < 1 << 63:
            raise ValueError(f"{self.until_ns} is no time")
        said = {"on": self.on, "hz": self.hz, "slot_ms": self.slot_ms, "until": self.until_ns or None}
        record = {"k": "settings", **{name: value for name, value in said.items() if value is not None}}
        return json.dumps(record, separators=(",", ":")).encode()


OWN = WorkerSettings()
"""Nothing is asked for."""


class BackChannel:
    """Holds what each worker is to be told last. All methods are thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all = OWN
        self._by_pid: dict[int, WorkerSettings] = {}

    def tell(self, settings: WorkerSettings, pid: int | None) -> None:
        """Remember what one worker, or every one from now on, is told; raises ValueError."""
        settings.encode()
        with self._lock:
            if pid is None:
                self._all = settings
                self._by_pid.clear()
                return
            self._by_pid.pop(pid, None)
            self._by_pid[pid] = settings
            if len(self._by_pid) > MAX_PIDS:
                del self._by_pid[next(iter(self._by_pid))]

    def wanted(self, pid: int, now_ns: int) -> WorkerSettings:
        """Return what the worker is to do now; what has run out counts as nothing asked for."""
        with self._lock:
            for settings in (self._by_pid.get(pid, self._all), self._all):
                if not 0 < settings.until_ns <= now_ns:
                    return settings
        return OWN
