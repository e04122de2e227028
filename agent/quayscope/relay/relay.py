"""The relay: one thread that reads workers' records and emits profiles, spans and metrics."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Callable, Protocol

from quayscope.profile import BLOCK, PROCESS_CPU, Attributes, Frame, MalformedProfile, Profile, Stack
from quayscope.relay.listener import Listener
from quayscope.relay.otlp import trace_request
from quayscope.relay.records import (
    Counts,
    Frames,
    Hello,
    Record,
    Requests,
    Spans,
    Stacks,
    Stalls,
    parse,
    resolve,
)
from quayscope.relay.requests import RequestMetrics
from quayscope.relay.windows import Windows

__all__ = ["Emit", "Relay"]

log = logging.getLogger(__name__)

TICK_S = 0.5
MAX_STACK_MEMO = 20_000
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


class _Worker:
    """What is known of one connection: who it is, and the frames it defined."""

    def __init__(self) -> None:
        self.pid = 0
        self.labels: dict[str, str] = {}
        self.frames: dict[int, Frame] = {}
        self.stacks: dict[tuple[int, ...], Stack] = {}
        self.malformed = 0

    def stack(self, ids: tuple[int, ...]) -> Stack:
        """Return the frames behind ids; raises `MalformedProfile`."""
        found = self.stacks.get(ids)
        if found is None:
            if len(self.stacks) >= MAX_STACK_MEMO:
                self.stacks.clear()
            found = self.stacks[ids] = resolve(ids, self.frames)
        return found


class Relay:
    """Listens on `path` and emits until closed.

    `labels` are added to every series (namespace, pod, ...); `window_s` is the length of a profile's
    window; `clock` gives Unix nanoseconds. `start` raises `RelayError` when it cannot listen.
    """

    def __init__(
        self,
        path: str,
        emit: Emit,
        *,
        labels: Mapping[str, str] | None = None,
        window_s: int = 10,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._emit = emit
        self._labels = dict(labels or {})
        self._clock = clock
        self._listener = Listener(path)
        self._windows = Windows(window_s)
        self._metrics = RequestMetrics()
        self._workers: dict[int, _Worker] = {}
        self._counts: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        """Listen and begin to read."""
        self._listener.open()
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Read what has arrived, emit everything held, and stop; waits at most `timeout_s`."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        flushed = time.monotonic()
        try:
            while not self._stop.is_set():
                self._poll(TICK_S)
                if time.monotonic() - flushed >= TICK_S:
                    flushed = time.monotonic()
                    self._flush(everything=False)
            # What workers wrote before the end still lies in the sockets.
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline and self._poll(0.0):
                pass
            self._flush(everything=True)
        finally:
            self._listener.close()

    def _poll(self, timeout_s: float) -> int:
        return self._listener.poll(timeout_s, self._packet, self._closed)

    def _closed(self, connection: int) -> None:
        self._workers.pop(connection, None)

    def _packet(self, connection: int, packet: bytes, truncated: bool) -> bool:
        """Take one packet; returns whether the connection is worth keeping."""
        worker = self._workers.setdefault(connection, _Worker())
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
        return True

    def _take(self, worker: _Worker, record: Record) -> None:
        if isinstance(record, Hello):
            worker.pid = record.pid
            worker.labels = {
                **self._labels,
                **record.labels,
                "service_name": record.service,
                "role": record.role,
            }
            worker.frames.clear()
            worker.stacks.clear()
            log.info("worker", extra={"pid": record.pid, "role": record.role, "service": record.service})
        elif not worker.labels:
            raise MalformedProfile("a record before the hello")
        elif isinstance(record, Frames):
            if any(frame_id in worker.frames for frame_id, _ in record.frames):
                worker.stacks.clear()  # the worker started its table anew
            worker.frames.update(record.frames)
        elif isinstance(record, Stacks):
            self._stacks(worker, record)
        elif isinstance(record, Stalls):
            self._stalls(worker, record)
        elif isinstance(record, Requests):
            self._metrics.requests(worker.labels, record.slot_ns, record.rows)
        elif isinstance(record, Spans):
            self._emit_spans(worker, record)
        else:
            self._metrics.counts(worker.labels, "quayscope.agent.", record, worker.pid)

    def _stacks(self, worker: _Worker, record: Stacks) -> None:
        resolved = [(cpu, count, about, worker.stack(ids)) for cpu, count, about, ids in record.rows]
        labels, now = {**worker.labels, "sampler": "agent"}, self._clock()
        nobody = Attributes(record.slot_ns, pid=worker.pid)
        for cpu, count, about, stack in resolved:
            late = self._windows.add(PROCESS_CPU, labels, 0, stack, about or nobody, (count, cpu), now)
            self._counts["late"] += late

    def _stalls(self, worker: _Worker, record: Stalls) -> None:
        resolved = [
            (delay, count, about, (*worker.stack(ids), Frame(statement, "", 0, "sql")))
            for delay, count, about, statement, ids in record.rows
        ]
        labels, now = {**worker.labels, "sampler": "agent"}, self._clock()
        nobody = Attributes(record.slot_ns, pid=worker.pid)
        for delay, count, about, stack in resolved:
            late = self._windows.add(BLOCK, labels, 0, stack, about or nobody, (count, delay), now)
            self._counts["late"] += late

    def _emit_spans(self, worker: _Worker, record: Spans) -> None:
        labels = dict(worker.labels)
        service = labels.pop("service_name")
        resource = {f"quayscope.{name}": value for name, value in labels.items()}
        request = trace_request(
            {"service.name": service, "process.pid": worker.pid, **resource},
            record.scope,
            record.spans,
        )
        self._guard(lambda: self._emit.spans(request))

    def _flush(self, *, everything: bool) -> None:
        profiles = self._windows.take(self._clock(), everything=everything)
        if profiles:
            self._guard(lambda: self._emit.profiles(profiles))
        if self._counts:
            own = Counts(self._clock(), dict(self._counts))
            self._counts.clear()
            self._metrics.counts(
                {**self._labels, "service_name": "quayscope-relay"}, "quayscope.relay.", own, 0
            )
        for request in self._metrics.take():
            self._guard(lambda request=request: self._emit.metrics(request))  # type: ignore[misc]

    def _guard(self, step: Callable[[], None]) -> None:
        # The relay's one border: what the receiver raises must not end the thread that reads workers.
        try:
            step()
        except Exception:
            self._counts["faults"] += 1
            log.warning("emit failed", exc_info=True)
