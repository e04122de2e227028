"""The relay: one thread that reads workers' records and emits profiles, spans and metrics."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Callable, NamedTuple, Protocol

from quayscope.profile import BLOCK, PROCESS_CPU, Attributes, Frame, MalformedProfile, Profile, ProfileType
from quayscope.relay.backchannel import BackChannel, WorkerSettings
from quayscope.relay.connection import Connection, Room
from quayscope.relay.listener import SOCKET_MODE, Listener
from quayscope.relay.metrics import WorkerMetrics
from quayscope.relay.otlp import trace_request
from quayscope.relay.parsing import parse
from quayscope.relay.records import (
    Counts,
    Frames,
    Hello,
    Hub,
    Kept,
    Record,
    Requests,
    Spans,
    Stacks,
    Stalls,
)
from quayscope.relay.spans import HeldSpans
from quayscope.relay.windows import Sample, Windows

__all__ = ["ConnectedWorker", "Emit", "Relay", "Tap"]

log = logging.getLogger(__name__)

TICK_S = 0.5
FLUSH_S = 1.0
MAX_SPANS = 2_000
MAX_POINTS = 20_000
"""Spans and metric rows held at most before they are emitted."""
SLOT_BEFORE_NS, SLOT_AFTER_NS = 600_000_000_000, 60_000_000_000
"""How far from now a slot may lie: workers share our clock."""
MAX_MALFORMED = 100
"""A connection that sends so many malformed records speaks something else, and is ended."""


class Emit(Protocol):
    """Takes what the relay made. Called from the relay's thread; must not block for long."""

    def profiles(self, profiles: list[Profile]) -> None:
        """Take finished profiles."""

    def spans(self, request: bytes) -> None:
        """Take an encoded OTLP ExportTraceServiceRequest."""

    def metrics(self, request: bytes) -> None:
        """Take an encoded OTLP ExportMetricsServiceRequest."""


Tap = Callable[[ProfileType, Mapping[str, str], int, Sequence[Sample]], None]
"""Takes the samples of one slot, beside the windows: profile type, series labels, the slot's start in ns."""


class ConnectedWorker(NamedTuple):
    """A worker that said hello and is still there."""

    pid: int
    role: str
    service: str


class Relay:
    """Listens on `path` and emits until closed.

    `labels` are added to every series (namespace, pod, ...); `window_s` is the length of a profile's
    window; `mode` is the socket's (see `listener.SOCKET_MODE`); `clock` gives Unix nanoseconds. `start`
    raises `RelayError` when it cannot listen.
    """

    def __init__(
        self,
        path: str,
        emit: Emit,
        *,
        labels: Mapping[str, str] | None = None,
        window_s: int = 10,
        mode: int = SOCKET_MODE,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._emit = emit
        self._labels = dict(labels or {})
        self._clock = clock
        self._listener = Listener(path, mode)
        self._windows = Windows(window_s)
        self._metrics = WorkerMetrics()
        self._room = Room()
        self._workers: dict[int, Connection] = {}
        self._connected: tuple[ConnectedWorker, ...] = ()
        self._channel = BackChannel()
        self._taps: tuple[Tap, ...] = ()
        self._tap_lock = threading.Lock()
        self._spans = HeldSpans()
        self._counts: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        """Listen and begin to read."""
        self._listener.open()
        self._thread.start()

    def alive(self) -> bool:
        """Whether it reads: it was started, and neither closed nor ended by a fault."""
        return self._thread.is_alive()

    def workers(self) -> list[ConnectedWorker]:
        """Return the workers that are connected now. Thread-safe."""
        return list(self._connected)

    def tell(self, settings: WorkerSettings, pid: int | None = None) -> None:
        """Have all workers, also those that come later, or the one of that pid follow `settings`.

        Thread-safe; they hear of it within half a second, the newest word last, or when they read again.
        Raises ValueError for numbers out of range.
        """
        self._channel.tell(settings, pid)

    def tap(self, tap: Tap) -> None:
        """Have `tap` called with all samples from now on, on the relay's thread: it must not block."""
        with self._tap_lock:
            self._taps = (*self._taps, tap)

    def untap(self, tap: Tap) -> None:
        """Call it no longer."""
        with self._tap_lock:
            self._taps = tuple(one for one in self._taps if one != tap)

    def close(self, timeout_s: float) -> None:
        """Read what has arrived, emit everything held, and stop; waits at most `timeout_s`."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        emitted = time.monotonic()
        try:
            while not self._stop.is_set():
                self._poll(TICK_S)
                self._tell_workers()
                self._emit_profiles(everything=False)
                if time.monotonic() - emitted >= FLUSH_S or self._much_held():
                    emitted = time.monotonic()
                    self._emit_rest()
            # What workers wrote before the end still lies in the sockets.
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline and self._poll(0.0):
                pass
            self._emit_profiles(everything=True)
            self._emit_rest()
        finally:
            self._listener.close()

    def _poll(self, timeout_s: float) -> int:
        return self._listener.poll(timeout_s, self._packet, self._closed)

    def _closed(self, connection: int) -> None:
        worker = self._workers.pop(connection, None)
        if worker is not None:
            worker.release()
            self._note_connected()

    def _note_connected(self) -> None:
        # Made anew and swapped: other threads read it while this one goes on.
        self._connected = tuple(
            ConnectedWorker(worker.pid, worker.labels["role"], worker.labels["service_name"])
            for worker in self._workers.values()
            if worker.labels
        )

    def _tell_workers(self) -> None:
        now = self._clock()
        for connection, worker in self._workers.items():
            if not worker.labels:
                continue
            wanted = self._channel.wanted(worker.pid, now)
            # A full queue is tried again at the next tick, with what is wanted then.
            if wanted != worker.told and self._listener.send(connection, wanted.encode()):
                worker.told = wanted

    def _much_held(self) -> bool:
        return self._spans.count >= MAX_SPANS or self._metrics.points() >= MAX_POINTS

    def _packet(self, connection: int, packet: bytes, truncated: bool) -> bool:
        """Take one packet; returns whether the connection is worth keeping."""
        worker = self._workers.get(connection)
        if worker is None:
            worker = self._workers[connection] = Connection(self._room)
        self._counts["packets"] += 1
        if truncated:
            self._counts["truncated"] += 1
            return True
        try:
            self._take(worker, parse(packet, worker.pid))
        except MalformedProfile as error:
            self._counts["malformed"] += 1
            worker.malformed += 1
            if worker.malformed == 1:
                log.warning("malformed record", extra={"pid": worker.pid, "reason": str(error)})
            return worker.malformed < MAX_MALFORMED
        except Exception:
            # A border of the relay: one packet must not end the thread that reads all workers.
            self._counts["faults"] += 1
            log.warning("relay fault", exc_info=True)
        return True

    def _take(self, worker: Connection, record: Record) -> None:
        if isinstance(record, Hello):
            worker.hello(record, self._labels)
            self._note_connected()
            log.info("worker", extra={"pid": record.pid, "role": record.role, "service": record.service})
        elif not worker.labels:
            raise MalformedProfile("a record before the hello")
        elif isinstance(record, Frames):
            worker.define(record)
        elif isinstance(record, Stacks):
            self._stacks(worker, record)
        elif isinstance(record, Stalls):
            self._stalls(worker, record)
        elif isinstance(record, Hub):
            self._hub(worker, record)
        elif isinstance(record, Requests):
            self._check(record.slot_ns)
            self._metrics.requests(worker.labels, record.slot_ns, record.rows)
        elif isinstance(record, Kept):
            for row in record.rows:
                self._check(row.start_ns + row.duration_ns)
            self._metrics.kept(worker.labels, record.rows)
        elif isinstance(record, Spans):
            self._spans.add(worker.labels, worker.pid, record)
        else:
            self._check(record.time_ns)
            if record.fault:
                log.warning("agent fault", extra={"pid": worker.pid, "fault": record.fault})
            self._metrics.counts(worker.labels, "quayscope.agent.", record, worker.pid)

    def _check(self, slot_ns: int) -> None:
        now = self._clock()
        if not now - SLOT_BEFORE_NS <= slot_ns <= now + SLOT_AFTER_NS:
            raise MalformedProfile(f"a time that is {(slot_ns - now) / 1e9:.0f} s from now")

    def _stacks(self, worker: Connection, record: Stacks) -> None:
        self._check(record.slot_ns)
        nobody = Attributes(record.slot_ns, pid=worker.pid)
        samples = [
            (worker.stack(ids), about or nobody, (count, cpu)) for cpu, count, about, ids in record.rows
        ]
        self._sampled(PROCESS_CPU, worker, record.slot_ns, samples)

    def _stalls(self, worker: Connection, record: Stalls) -> None:
        self._check(record.slot_ns)
        nobody = Attributes(record.slot_ns, pid=worker.pid)
        samples = [
            ((*worker.stack(ids), Frame(statement, "", 0, "sql")), about or nobody, (count, delay))
            for delay, count, about, statement, ids in record.rows
        ]
        self._sampled(BLOCK, worker, record.slot_ns, samples)

    def _hub(self, worker: Connection, record: Hub) -> None:
        self._check(record.slot_ns)
        nobody = Attributes(record.slot_ns, pid=worker.pid)
        samples = [
            (worker.stack(row.ids), row.about or nobody, (row.times, row.delay_ns)) for row in record.rows
        ]
        if not all(stack and stack[-1].kind == "wait" for stack, _, _ in samples):
            raise MalformedProfile("what a hub was kept by ends in no frame of kind wait")
        self._sampled(BLOCK, worker, record.slot_ns, samples)
        self._metrics.hub(worker.labels, record.slot_ns, record.rows)

    def _sampled(
        self, kind: ProfileType, worker: Connection, slot_ns: int, samples: Sequence[Sample]
    ) -> None:
        for tap in self._taps:
            self._guard(partial(tap, kind, worker.labels, slot_ns, samples))
        self._counts["late"] += self._windows.add(kind, worker.series, slot_ns, samples, self._clock())

    def _emit_profiles(self, *, everything: bool) -> None:
        profiles = self._windows.take(self._clock(), everything=everything)
        if profiles:
            self._guard(lambda: self._emit.profiles(profiles))

    def _emit_rest(self) -> None:
        for held in self._spans.take():
            self._guard(lambda held=held: self._emit.spans(trace_request(*held)))  # type: ignore[misc]
        self._count_losses()
        for request in self._metrics.take():
            self._guard(lambda request=request: self._emit.metrics(request))  # type: ignore[misc]

    def _count_losses(self) -> None:
        self._counts["lost"] += self._windows.lost
        self._counts["refused"] += self._listener.refused
        self._windows.lost = self._listener.refused = 0
        for worker in self._workers.values():
            self._counts["refused"] += worker.refused
            worker.refused = 0
        counts = {name: count for name, count in self._counts.items() if count}
        self._counts.clear()
        if counts:
            labels = {**self._labels, "service_name": "quayscope-relay"}
            self._metrics.counts(labels, "quayscope.relay.", Counts(self._clock(), counts), 0)

    def _guard(self, step: Callable[[], None]) -> None:
        # The relay's one border: what the receiver raises must not end the thread that reads workers.
        try:
            step()
        except Exception:
            self._counts["faults"] += 1
            log.warning("emit failed", exc_info=True)
