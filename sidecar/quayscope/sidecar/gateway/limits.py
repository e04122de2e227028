"""What a pod's clients can make the gateway hold or do: one constant each, and the gates behind them."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator

from quayscope.sidecar.gateway.errors import NoRoom, TooMany

__all__ = [
    "HEADERS_S",
    "IDLE_S",
    "MAX_BODY",
    "MAX_BODY_BYTES",
    "MAX_CONNECTIONS",
    "MAX_DEPTH",
    "MAX_FIELDS",
    "MAX_FOLDED_FRAMES",
    "MAX_FOLDED_LINES",
    "MAX_HEADERS",
    "MAX_JSON",
    "MAX_JSON_PARTS",
    "MAX_LABELS",
    "MAX_LABEL_VALUE",
    "MAX_PROFILES",
    "MAX_PUSH_FIELDS",
    "MAX_REQUESTS",
    "MAX_UNPACKED",
    "RATE",
    "REQUEST_S",
    "Pace",
    "Room",
]

MAX_BODY = 4 << 20
"""Bytes of one request as sent. A stock exporter's batch of 512 spans is some 300 kB."""
MAX_UNPACKED = 16 << 20
"""Bytes of one request, and of one pprof in it, unpacked."""
MAX_BODY_BYTES = 32 << 20
"""Bytes of all bodies and messages under way together, of both listeners."""
MAX_HEADERS = 64
"""Header lines of a request; each is at most 64 kB (`http.server`)."""
MAX_CONNECTIONS = 128
"""Connections of one listener; a pod of Quay runs some 35 Python programs. Each has a thread."""
MAX_REQUESTS = 32
"""Requests being worked on, of both listeners; most of that time they wait for the disk."""
RATE = 200.0
"""Requests a second of one listener, on the average; twice as many may come at once."""
HEADERS_S = 5.0
"""From a request's first byte to the end of its headers."""
REQUEST_S = 30.0
"""From its headers to the end of its body."""
IDLE_S = 75.0
"""How long a connection may be kept without a request; stock exporters send each 5 to 60 s."""
MAX_LABELS = 30
"""Labels a series, as many as a Pyroscope and the collector take."""
MAX_LABEL_VALUE = 2048
"""Characters of a label's value, as many as they take."""
MAX_PROFILES = 1024
"""Profiles in one push."""
MAX_FIELDS = 500_000
"""Fields of one message, all levels together: 512 spans with ten attributes have 30,000."""
MAX_PUSH_FIELDS = 100_000
"""Fields of a push around its profiles, which are held one by one."""
MAX_JSON, MAX_JSON_PARTS = 4 << 20, 100_000
"""Bytes of a JSON document, unpacked, and objects and lists in it: read, each byte takes up to twenty."""
MAX_FOLDED_FRAMES, MAX_FOLDED_LINES = 500_000, 50_000
"""Of folded text. The sidecar's own profiles hold no more stacks."""
MAX_DEPTH = 64
"""Messages inside messages; protobuf's own readers take 100."""


class Pace:
    """A token bucket: `rate` a second on the average, twice that at once. `clock` gives seconds."""

    def __init__(self, rate: float = RATE, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._tokens = 2 * rate
        self._at = clock()
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Count one request; raises `TooMany` with the time to wait."""
        with self._lock:
            now = self._clock()
            self._tokens = min(2 * self._rate, self._tokens + (now - self._at) * self._rate)
            self._at = now
            if self._tokens < 1:
                wait_s = max(1, math.ceil((1 - self._tokens) / self._rate))
                raise TooMany(f"more than {self._rate:g} requests a second", retry_s=wait_s)
            self._tokens -= 1


class Room:
    """How much is worked on at once: requests and bytes. Nobody waits for room: the client does that."""

    def __init__(self, requests: int = MAX_REQUESTS, size: int = MAX_BODY_BYTES) -> None:
        self._requests = requests
        self._bytes = size
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def taken(self, size: int, requests: int = 1) -> Iterator[None]:
        """Hold places and `size` bytes while entered; raises `NoRoom`."""
        with self._lock:
            if self._requests < requests or self._bytes < size:
                raise NoRoom("too much is being received at once", retry_s=1)
            self._requests -= requests
            self._bytes -= size
        try:
            yield
        finally:
            with self._lock:
                self._requests += requests
                self._bytes += size
