"""The one connection out: everything that was gathered, to a collector, a Pyroscope or an OTLP backend.

Handing over never waits: profiles are encoded and sent by one thread, from what waits in memory and on disk
(`outbox`). A profile carries an identity of its own, so that one sent twice is stored once.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
import threading
import uuid
from collections import deque
from typing import Callable

from quayscope.profile import Profile, PushFailed
from quayscope.profile.clock import ClockEstimate
from quayscope.profile.push import encode_push, series_of
from quayscope.profile.pyroscope import pyroscope_series
from quayscope.relay.backoff import Backoff
from quayscope.relay.destination import COLLECTOR, OTLP, PYROSCOPE, Destination
from quayscope.relay.errors import BadDestination
from quayscope.relay.outbox import Item, Outbox
from quayscope.relay.spool import Spool

__all__ = ["Uplink"]

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0
_SAMPLE_BYTES = 256
"""What a sample of a profile that is not encoded yet is counted as."""
_BROKEN = 500
_MAX_BROKEN = 5
"""Attempts at a message that a receiver fails over (status 500) while it takes others."""
_MAX_REMEMBERED = 64
"""Messages, by their hash, that a receiver failed over."""
_COUNTS = ("pushed", "refused", "dropped", "retried", "unsent")
_SPOOL_COUNTS = ("spooled", "torn", "spool_failed")
_PATHS = {"spans": "/v1/traces", "metrics": "/v1/metrics"}


class Uplink:
    """Sends to one destination; implements `quayscope.relay`'s Emit. All methods are thread-safe.

    To a Pyroscope only profiles go, to an OTLP backend only spans and metrics. With a spool, what cannot be
    sent for long, or is left at the end, is written there and sent by the next process. Raises
    `BadDestination` for one that cannot be sent to.
    """

    def __init__(self, destination: Destination, spool: Spool | None = None) -> None:
        self._destination = destination
        self._client = destination.client()
        self._outbox = Outbox(spool, self._encode)
        names = _COUNTS if spool is None else _COUNTS + _SPOOL_COUNTS
        self._none = dict.fromkeys(names, 0)
        self._counts = dict(self._none)
        self._counting = threading.Lock()
        self._successes = 0
        self._broken: dict[bytes, tuple[int, int]] = {}
        self._failing = False
        self._clock: Callable[[], ClockEstimate | None] = _unknown
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self.faults = 0

    def start(self) -> None:
        """Begin sending."""
        self._outbox.open()
        self._thread.start()

    def tell_clock(self, clock: Callable[[], ClockEstimate | None]) -> None:
        """Tell a collector with all that is sent how far our clock is from its own; None: not known."""
        if self._destination.kind == COLLECTOR:
            self._clock = clock

    def takes(self, kind: str) -> bool:
        """Whether `profiles`, `spans` or `metrics` go to this destination."""
        refused = {PYROSCOPE: ("spans", "metrics"), OTLP: ("profiles",)}
        return kind not in refused.get(self._destination.kind, ())

    def profiles(self, profiles: list[Profile]) -> None:
        """Queue profiles. They must not be changed afterwards."""
        for profile in profiles:
            if profile.samples or any(vars(profile.losses).values()):
                size = _SAMPLE_BYTES * (4 + len(profile.samples))
                self._put(Item("profiles", size, profile=profile))

    def spans(self, request: bytes) -> None:
        """Queue an encoded ExportTraceServiceRequest."""
        self._put(Item("spans", len(request), body=request))

    def metrics(self, request: bytes) -> None:
        """Queue an encoded ExportMetricsServiceRequest."""
        self._put(Item("metrics", len(request), body=request))

    def hold(self, kind: str, body: bytes) -> bool:
        """Take an encoded message (`profiles`: a push.v1.PushRequest whose samples have IDs) for good.

        With a spool it is on disk when this returns. False where there is no room for it: its sender keeps
        it and tries again.
        """
        return self._outbox.hold(kind, body)

    def take_counts(self) -> dict[str, int]:
        """Return what happened since the last call.

        Items `pushed`, `refused` by the receiver for good, `dropped` for want of room, and `unsent`, which
        this destination does not take; attempts `retried`. With a spool: items `spooled`, `torn` and
        `spool_failed` (see `Outbox`).
        """
        with self._counting:
            counts, self._counts = self._counts, dict(self._none)
        for name, count in self._outbox.take_counts().items():
            counts[name] = counts.get(name, 0) + count
        return counts

    def close(self, timeout_s: float) -> int:
        """Send what is queued within the time, then stop; returns how many items were left behind.

        What a spool takes is not left behind.
        """
        patience = self._outbox.ask_close(timeout_s)
        if self._thread.ident is not None:
            self._thread.join(patience + 0.1)
        left = self._outbox.leave()
        if left:
            log.warning("left unsent", extra={"items": left})
        return left

    def _put(self, item: Item) -> None:
        if self.takes(item.kind):
            self._outbox.put(item)
        else:
            self._count("unsent", 1)

    def _run(self) -> None:
        backoff = Backoff(_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S)
        while (group := self._outbox.next()) is not None:
            # The one border of this thread: an item that cannot be sent must not keep the others from it.
            try:
                left, failure = self._send([item for item in group.items if item.body or self._encode(item)])
            except Exception:
                self.faults += 1
                self._count("dropped", len(group.items))
                self._outbox.done(group, [])
                log.exception("uplink fault", extra={"faults": self.faults})
                continue
            # What the receiver failed over was not stored: with others it may go otherwise.
            broken = failure is not None and failure.status == _BROKEN
            self._outbox.done(group, left, regroup=broken)
            self._note_failing(failure)
            if failure is None:
                backoff.reset()
                continue
            self._count("retried", 1)
            if not self._outbox.pause(backoff.pause()):
                return

    def _encode(self, item: Item) -> bool:
        """Encode an item's profile; one that cannot be is dropped alone, counted and reported."""
        profile = item.profile
        if profile is None:
            return True  # an empty message
        try:
            if self._destination.kind == PYROSCOPE:
                body = encode_push(pyroscope_series(profile))
            else:
                body = encode_push([series_of(profile, uuid.uuid4().hex)])
        except (ValueError, TypeError, OverflowError) as error:
            self._count("dropped", 1)
            log.warning("profile not encoded", extra={"type": profile.type.name, "error": str(error)})
            return False
        item.profile, item.body, item.size = None, body, _SAMPLE_BYTES + len(body)
        return True

    def _send(self, batch: list[Item]) -> tuple[list[Item], PushFailed | None]:
        """Send a batch; returns what is worth another attempt (its end), and why it did not go."""
        pending = deque([batch] if batch else [])
        doubtful: list[Item] = []
        doubt: PushFailed | None = None

        def unsent(*group: Item) -> list[Item]:
            return [*doubtful, *group, *(item for rest in pending for item in rest)]

        while pending:
            group = pending.popleft()
            try:
                self._post(group)
            except PushFailed as failure:
                if self._renewed(failure) or (failure.retryable and failure.status != _BROKEN):
                    return unsent(*group), failure
                if len(group) > 1:
                    # One bad item must not take its neighbours along.
                    pending.extendleft([item] for item in reversed(group))
                elif failure.status != _BROKEN or self._fails_over(group[0], others_pass=True):
                    self._refused(group[0], failure)
                elif self._fails_over(group[0], others_pass=False):
                    # Perhaps it fails over this one alone: the next one tells.
                    doubtful.append(group[0])
                    doubt = failure
                else:
                    self._note_broken(group[0])
                    return unsent(*group), failure
            else:
                self._successes += 1
                # The receiver may have become well between the two, so each is tried once more.
                while doubtful:
                    unknown = self._send_last_time(doubtful[0])
                    if unknown is not None:
                        # Left is the end of the batch: what passed goes again rather than what did not.
                        return unsent(*group), unknown
                    del doubtful[0]
                self._count("pushed", len(group))
        return unsent(), doubt if doubtful else None

    def _send_last_time(self, item: Item) -> PushFailed | None:
        """Send what the receiver failed over until now; returns why it cannot be told yet."""
        try:
            self._post([item])
        except PushFailed as failure:
            if self._renewed(failure) or (failure.retryable and failure.status != _BROKEN):
                return failure
            self._refused(item, failure)
        else:
            self._count("pushed", 1)
        return None

    def _note_broken(self, item: Item) -> None:
        if len(self._broken) >= _MAX_REMEMBERED:
            self._broken.clear()
        count, since = self._broken.get(_key(item), (0, self._successes))
        self._broken[_key(item)] = (count + 1, since)

    def _fails_over(self, item: Item, *, others_pass: bool) -> bool:
        """Whether the receiver failed over this message too often, and took another one meanwhile."""
        count, since = self._broken.get(_key(item), (0, self._successes))
        return count >= _MAX_BROKEN and (not others_pass or self._successes > since)

    def _refused(self, item: Item, failure: PushFailed) -> None:
        self._count("refused", 1)
        log.warning("refused", extra={"kind": item.kind, "status": failure.status, "error": str(failure)})

    def _post(self, group: list[Item]) -> None:
        kind = group[0].kind
        # Protobuf messages concatenated are one message: the repeated fields add up.
        body = b"".join(item.body for item in group)
        if kind == "profiles":
            self._client.push(body, self._clock())
        else:
            self._client.post(_PATHS[kind], body, "application/x-protobuf", clock=self._clock())

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
        with self._counting:
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
        self._outbox.note_away(self._failing)


def _unknown() -> ClockEstimate | None:
    return None


def _key(item: Item) -> bytes:
    # Read from the spool again a message is another object with the same bytes.
    return hashlib.blake2b(item.body, digest_size=16).digest()
