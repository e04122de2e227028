"""The agent of one worker: starts after the fork, writes each second, stops before the interpreter ends."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Callable

from quayscope.agent import faults
from quayscope.agent.context import Border, Request
from quayscope.agent.cpu import BETWEEN_SAMPLES, OTHER_THREADS, About, CpuSampler, Endpoint
from quayscope.agent.frames import FrameTable, Key, Stacker
from quayscope.agent.records import RecordWriter, encode, packets
from quayscope.agent.requests import RequestCounter
from quayscope.agent.settings import Settings
from quayscope.agent.stalls import StallTimer
from quayscope.agent.tracing import SpanKeeper, span_rows, start_tracing

if TYPE_CHECKING:
    import threading

__all__ = ["WorkerAgent"]

VERSION = 1
PAUSE_S = 0.002
"""Between two packets: the application's greenlets go first."""
LAST_WORDS_S = 0.2
"""How long the end of a worker may be held up for its last records."""
STACKS_A_PACKET = 25
SLICE_NS = 1_000_000
"""How long stacks are named in one go: other greenlets wait meanwhile."""
REFUSED_TRIES = 5


class WorkerAgent:
    """Everything of the agent in one worker process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stacker = Stacker()
        self._frames = FrameTable(self._stacker)
        self.stalls = StallTimer(self._stacker, comment=settings.sql_comment)
        self._requests = RequestCounter()
        self._cpu = CpuSampler(self._stacker, settings.hz)
        self.border = Border(self._cpu.begin, self._finished)
        self._spans: SpanKeeper | None = None
        self._writer: RecordWriter | None = None
        self._writing: Iterator[bool] = iter(())
        self._thread: threading.Thread | None = None
        self._known_connections = 0
        self._stopped = False
        self._fault_said = False
        self.pid = 0

    def start(self) -> None:
        """Begin in this process, which must be the worker: after the fork, on the main thread."""
        self.pid = os.getpid()
        hello = {
            "k": "hello",
            "v": VERSION,
            "pid": self.pid,
            "role": self._settings.role,
            "service": self._settings.service_name,
            "start": time.time_ns(),
            "labels": {},
        }
        self._writer = RecordWriter(self._settings.socket, hello)
        self.stalls.running = True
        os.register_at_fork(after_in_child=self._leave)
        self._guard(self._cpu.start)
        self._guard(self._start_writing)

    def serve(self, application: Callable[..., Any]) -> None:
        """Follow greenlets and make spans: the application is loaded, and about to serve."""
        self._guard(self._cpu.follow)
        if self._settings.tracing:
            self._guard(lambda: self._start_tracing(application))

    def _start_tracing(self, application: Callable[..., Any]) -> None:
        self._spans = start_tracing(application)

    def _leave(self) -> None:
        """In a child of the worker gather nothing: nobody writes there. It inherits no timer."""
        self.stalls.running = self._cpu.running = False
        for slots in (self.stalls.stalls, self._cpu.samples, self._requests.rows):
            slots.clear()

    def _finished(self, request: Request) -> None:
        self._cpu.end(request)
        self._requests.finished(request)

    def stop(self) -> None:
        """Disarm the timer and write the last records, within a bounded time. May be called twice."""
        if self._stopped or os.getpid() != self.pid:
            return
        self._stopped = True
        self._guard(self._end)

    def _end(self) -> None:
        self._cpu.flush(everything=True)
        self._cpu.stop()
        self.stalls.running = False
        deadline = time.monotonic() + LAST_WORDS_S
        if self._thread is not None:
            self._thread.join(LAST_WORDS_S / 2)
        # What the writer had begun with comes first.
        for accepted in chain(self._writing, self._write(everything=True)):
            if time.monotonic() > deadline:
                break
            if not accepted:
                select.select([], [], [], PAUSE_S)
        if self._writer is not None:
            self._writer.close()

    def _guard(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the border to somebody else's process
            faults.fault(error)

    # Writing: a greenlet where the hub is gevent's, else a thread.

    def _start_writing(self) -> None:
        monkey = sys.modules.get("gevent.monkey")
        if monkey is not None and monkey.is_module_patched("time"):
            gevent = sys.modules["gevent"]
            gevent.spawn(self._keep_writing, gevent.sleep)
            return
        import threading

        self._thread = threading.Thread(target=self._write_in_thread, name="quayscope", daemon=True)
        self._thread.start()

    def _write_in_thread(self) -> None:
        # The timer's signal is for the main thread. Where that waits, the kernel gives it to a working one.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
        self._keep_writing(self._sleep_in_thread)

    def _sleep_in_thread(self, seconds: float) -> None:
        import threading

        if self._cpu.waits():
            main = threading.main_thread().ident
            if main is not None:
                signal.pthread_kill(main, signal.SIGPROF)
        time.sleep(seconds)

    def _keep_writing(self, sleep: Callable[[float], None]) -> None:
        while not self._stopped and os.getpid() == self.pid:
            # A little after the second has begun, so that the one before is complete.
            sleep(1.05 - time.time() % 1.0)
            if self._stopped:
                return
            try:
                self._write_paced(sleep)
            except Exception as error:  # noqa: BLE001 - the border to somebody else's process
                faults.fault(error)

    def _write_paced(self, sleep: Callable[[float], None]) -> None:
        began = time.thread_time_ns()
        self._writing = self._write(everything=False)
        for _ in self._writing:
            faults.add("cpu_ns", time.thread_time_ns() - began)
            sleep(PAUSE_S)
            if self._stopped:
                return
            began = time.thread_time_ns()
        faults.add("cpu_ns", time.thread_time_ns() - began)

    def _write(self, *, everything: bool) -> Iterator[bool]:
        """Write what is over, one packet a step; yields whether the packet was accepted."""
        writer = self._writer
        assert writer is not None
        if not everything:
            self._cpu.flush(everything=False)
        slots = self._cpu.samples.take(everything=everything)
        stalls = self.stalls.stalls.take(everything=everything)
        rows = self._requests.rows.take(everything=everything)
        spans = self._spans.take() if self._spans is not None else {}
        steps = [
            *((len(t), self._write_stacks("stacks", s, self._cpu_rows(t))) for s, t in slots),
            *((len(t), self._write_stacks("stalls", s, self._stall_rows(t))) for s, t in stalls),
            *(
                (len(t), self._write_rows({"k": "requests", "t": s * 10**9}, "r", _request_rows(t)))
                for s, t in rows
            ),
            *(
                (len(ended), self._write_rows({"k": "spans", "scope": scope}, "s", span_rows(ended)))
                for scope, ended in spans.items()
            ),
        ]
        left = sum(count for count, _ in steps)
        if not writer.connect():
            faults.add("records_dropped", left)
            return
        if writer.connections != self._known_connections:
            self._known_connections = writer.connections
            self._frames.forget_reader()
        try:
            for count, step in steps:
                yield from step
                left -= count
            yield self._write_counts()
        except OSError:
            # The reader went away in the middle: what was taken is lost, and said.
            faults.add("packets_dropped")
            faults.add("records_dropped", left)
        if not everything:
            unwritten = [key for _, key in self._cpu.samples.waiting()]
            self._frames.forget_if_large(unwritten + [key for _, _, key in self.stalls.stalls.waiting()])

    def _cpu_rows(
        self, samples: Mapping[tuple[About, Key], list[int]]
    ) -> Iterator[tuple[list[Any], list[int]]]:
        for (about, key), (spent, count) in samples.items():
            name = _WITHOUT_STACK.get(key)
            ids = self._frames.resolve(key) if name is None else [self._frames.root(name)]
            yield [spent, count, _about(about)], ids

    def _stall_rows(
        self, blocked: Mapping[tuple[Request | None, str, Key], list[int]]
    ) -> Iterator[tuple[list[Any], list[int]]]:
        for (request, statement, key), (spent, count) in blocked.items():
            yield [spent, count, _about(request), statement], self._frames.resolve(key)

    def _write_stacks(
        self, kind: str, second: int, rows: Iterator[tuple[list[Any], list[int]]]
    ) -> Iterator[bool]:
        """Write stacks in small groups, each behind the definitions of its new frames."""
        head = {"k": kind, "t": second * 10**9}
        group: list[list[Any]] = []
        began = time.perf_counter_ns()
        for row, ids in rows:
            group.append([*row, ids])
            # New functions take time to name: a group of many ends early.
            if len(group) >= STACKS_A_PACKET or time.perf_counter_ns() - began > SLICE_NS:
                yield from self._write_group(head, group)
                group = []
                began = time.perf_counter_ns()
        if group:
            yield from self._write_group(head, group)

    def _write_group(self, head: dict[str, Any], group: list[list[Any]]) -> Iterator[bool]:
        for packet, count in packets(
            {"k": "frame"}, "f", iter([list(row) for row in self._frames.undefined()])
        ):
            accepted = yield from self._deliver(packet)
            if not accepted:
                # Without their frames these stacks mean nothing.
                faults.add("records_dropped", len(group))
                return
            self._frames.defined(count)
        yield from self._write_rows(head, "s", iter(group))

    def _write_rows(self, head: dict[str, Any], name: str, rows: Iterator[list[Any]]) -> Iterator[bool]:
        for packet, _ in packets(head, name, rows):
            yield from self._deliver(packet)

    def _deliver(self, packet: bytes) -> Generator[bool, None, bool]:
        """Try a packet a few times with pauses between, then drop and count it; returns whether it went."""
        assert self._writer is not None
        for _ in range(REFUSED_TRIES):
            if self._writer.send(packet):
                yield True
                return True
            yield False
        faults.add("packets_dropped")
        return False

    def _write_counts(self) -> bool:
        assert self._writer is not None
        record: dict[str, Any] = {"k": "counts", "t": time.time_ns(), "c": faults.take()}
        if faults.first_fault() and not self._fault_said:
            self._fault_said = True
            record["fault"] = faults.first_fault()
        accepted = False
        try:
            accepted = self._writer.send(encode(record))
        finally:
            if not accepted:
                for name, count in record["c"].items():
                    faults.add(name, count)
        return accepted


_WITHOUT_STACK = {OTHER_THREADS: "[other threads]", BETWEEN_SAMPLES: "[between samples]"}


def _about(about: About) -> list[str] | None:
    if about is None:
        return None
    if isinstance(about, Endpoint):
        return [about.endpoint, "", "", about.run, about.phase]
    return [about.endpoint, about.span_id, about.trace_id, about.run, about.phase]


def _request_rows(table: Mapping[tuple[str, int, str, str], list[int]]) -> Iterator[list[Any]]:
    for key, row in table.items():
        yield [*key, *row[:4], row[4:]]
