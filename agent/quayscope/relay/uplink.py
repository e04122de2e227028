"""The one connection out: everything that was gathered, to a collector or a Pyroscope.

Handing over never waits: profiles are encoded and sent by one thread, from a queue bounded in bytes. While
the receiver is away the oldest go first, and are counted. A profile carries an identity of its own, so that
one sent twice is stored once.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from quayscope.profile import Profile, PushFailed
from quayscope.profile.push import PushSeries, encode_push, series_of
from quayscope.profile.pyroscope import pyroscope_series
from quayscope.relay.backoff import Backoff
from quayscope.relay.destination import PYROSCOPE, Destination
from quayscope.relay.errors import BadDestination

__all__ = ["Uplink"]

log = logging.getLogger(__name__)

MAX_QUEUE_BYTES = 32 << 20
MAX_BATCH_BYTES = 1 << 20
_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0
_SAMPLE_BYTES = 256
"""What a sample of a profile that is not encoded yet is counted as."""
_COUNTS = ("pushed", "refused", "dropped", "retried", "unsent")
_PATHS = {"spans": "/v1/traces", "metrics": "/v1/metrics"}


@dataclass(eq=False)
class _Item:
    """One thing to send: a profile (`series` once it is encoded), or an encoded OTLP request."""

    kind: str
    size: int
    profile: Profile | None = None
    series: Sequence[PushSeries] = ()
    body: bytes = b""


class Uplink:
    """Sends to one destination; implements `quayscope.relay`'s Emit. All methods are thread-safe.

    To a Pyroscope only profiles go. Raises `BadDestination` for one that cannot be sent to.
    """

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._client = destination.client()
        self._queue: deque[_Item] = deque()
        self._bytes = 0
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._changed = threading.Condition()
        self._closing_at: float | None = None
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self.faults = 0

    def start(self) -> None:
        """Begin sending."""
        self._thread.start()

    def profiles(self, profiles: list[Profile]) -> None:
        """Queue profiles. They must not be changed afterwards."""
        for profile in profiles:
            if profile.samples or any(vars(profile.losses).values()):
                self._put(_Item("profiles", _SAMPLE_BYTES * (4 + len(profile.samples)), profile=profile))

    def spans(self, request: bytes) -> None:
        """Queue an encoded ExportTraceServiceRequest."""
        self._put_otlp("spans", request)

    def metrics(self, request: bytes) -> None:
        """Queue an encoded ExportMetricsServiceRequest."""
        self._put_otlp("metrics", request)

    def take_counts(self) -> dict[str, int]:
        """Return what happened since the last call.

        Items `pushed`, `refused` by the receiver for good, `dropped` for want of room, and `unsent`, which
        a Pyroscope does not take; attempts `retried`.
        """
        with self._changed:
            counts, self._counts = self._counts, dict.fromkeys(_COUNTS, 0)
        return counts

    def close(self, timeout_s: float) -> int:
        """Send what is queued within the time, then stop; returns how many items were left behind."""
        with self._changed:
            self._closing_at = time.monotonic() + timeout_s
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s + 0.1)
        with self._changed:
            left = len(self._queue)
        if left:
            log.warning("left unsent", extra={"items": left})
        return left

    def _put_otlp(self, kind: str, body: bytes) -> None:
        if self._destination.kind == PYROSCOPE:
            self._count("unsent", 1)
        else:
            self._put(_Item(kind, len(body), body=body))

    def _put(self, item: _Item) -> None:
        with self._changed:
            self._queue.append(item)
            self._bytes += item.size
            self._shrink()
            self._changed.notify_all()

    def _shrink(self) -> None:
        while self._bytes > MAX_QUEUE_BYTES and self._queue:
            self._bytes -= self._queue.popleft().size
            self._counts["dropped"] += 1

    def _run(self) -> None:
        backoff = Backoff(_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S)
        while (batch := self._next()) is not None:
            # The one border of this thread: an item that cannot be sent must not keep the others from it.
            try:
                left, failure = self._send(self._encoded(batch))
            except Exception:
                self.faults += 1
                self._count("dropped", len(batch))
                log.exception("uplink fault", extra={"faults": self.faults})
                continue
            self._note_failing(failure)
            if failure is None:
                backoff.reset()
                continue
            self._back(left)
            if not self._pause(backoff.pause()):
                return

    def _next(self) -> list[_Item] | None:
        """Return items of one kind to send together; None when closing and done."""
        with self._changed:
            while not self._queue:
                if self._closing_at is not None:
                    return None
                self._changed.wait()
            if self._closing_at is not None and time.monotonic() > self._closing_at:
                return None
            kind, size = self._queue[0].kind, 0
            batch: list[_Item] = []
            while self._queue and self._queue[0].kind == kind and (not batch or size < MAX_BATCH_BYTES):
                item = self._queue.popleft()
                self._bytes -= item.size
                size += item.size
                batch.append(item)
            return batch

    def _back(self, batch: list[_Item]) -> None:
        with self._changed:
            self._queue.extendleft(reversed(batch))
            self._bytes += sum(item.size for item in batch)
            self._counts["retried"] += 1
            self._shrink()

    def _pause(self, seconds: float) -> bool:
        """Wait before the next attempt; False when there is no time for one."""
        until = time.monotonic() + seconds
        with self._changed:
            while (left := until - time.monotonic()) > 0:
                if self._closing_at is not None:
                    # One more attempt soon, then none: closing must end in time.
                    until = min(until, self._closing_at, time.monotonic() + 0.2)
                    if time.monotonic() >= self._closing_at:
                        return False
                    left = until - time.monotonic()
                self._changed.wait(max(left, 0.001))
        return True

    def _encoded(self, batch: list[_Item]) -> list[_Item]:
        """Encode the profiles of a batch; one that cannot be is dropped alone, counted and reported."""
        ready = []
        for item in batch:
            if item.profile is not None:
                try:
                    item.series = self._series(item.profile)
                except (ValueError, TypeError, OverflowError) as error:
                    self._count("dropped", 1)
                    log.warning(
                        "profile not encoded", extra={"type": item.profile.type.name, "error": str(error)}
                    )
                    continue
                item.profile = None
                item.size = _SAMPLE_BYTES + sum(
                    len(data) for series in item.series for _, data in series.samples
                )
            ready.append(item)
        return ready

    def _series(self, profile: Profile) -> Sequence[PushSeries]:
        if self._destination.kind == PYROSCOPE:
            return pyroscope_series(profile)
        return [series_of(profile, uuid.uuid4().hex)]

    def _send(self, batch: list[_Item]) -> tuple[list[_Item], PushFailed | None]:
        """Send a batch; returns what is worth another attempt, and why it did not go."""
        pending = deque([batch] if batch else [])
        while pending:
            group = pending.popleft()
            try:
                self._post(group)
            except PushFailed as failure:
                if self._renewed(failure) or failure.retryable:
                    return [item for rest in (group, *pending) for item in rest], failure
                if len(group) > 1:
                    # One bad item must not take its neighbours along.
                    pending.extendleft([item] for item in reversed(group))
                    continue
                self._count("refused", 1)
                log.warning(
                    "refused", extra={"kind": group[0].kind, "status": failure.status, "error": str(failure)}
                )
            else:
                self._count("pushed", len(group))
        return [], None

    def _post(self, group: list[_Item]) -> None:
        kind = group[0].kind
        if kind == "profiles":
            self._client.push(encode_push(series for item in group for series in item.series))
        else:
            # Protobuf messages concatenated are one message: the repeated fields add up.
            self._client.post(_PATHS[kind], b"".join(item.body for item in group), "application/x-protobuf")

    def _renewed(self, failure: PushFailed) -> bool:
        """Read the files again after a 401, or where TLS failed; returns whether that may have helped.

        Tokens of service accounts, passwords and certificates are all rotated in place.
        """
        denied = failure.status == 401 and self._destination.has_secret
        if not denied and not isinstance(failure.__cause__, ssl.SSLError):
            return False
        try:
            client = self._destination.client()
        except BadDestination as error:
            log.warning("credentials not read", extra={"error": str(error)})
            return True
        self._client.close()
        self._client = client
        return True

    def _count(self, name: str, count: int) -> None:
        with self._changed:
            self._counts[name] += count

    def _note_failing(self, failure: PushFailed | None) -> None:
        if failure is not None and not self._failing:
            log.warning(
                "%s not reached, keeping what fits",
                self._destination.kind,
                extra={
                    "url": self._destination.url,
                    "error": str(failure),
                    **({"next_step": failure.next_step} if failure.next_step else {}),
                },
            )
        elif failure is None and self._failing:
            log.info("%s reached again", self._destination.kind, extra={"url": self._destination.url})
        self._failing = failure is not None
