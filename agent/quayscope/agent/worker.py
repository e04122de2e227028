"""The agent of one worker: starts after the fork, writes each second, stops before the interpreter ends."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Callable

from quayscope.agent import faults
from quayscope.agent.context import Border, Request
from quayscope.agent.cpu import CpuSampler
from quayscope.agent.frames import Stacker
from quayscope.agent.records import RecordWriter
from quayscope.agent.requests import RequestCounter
from quayscope.agent.settings import Settings
from quayscope.agent.stalls import StallTimer
from quayscope.agent.tracing import start_tracing
from quayscope.agent.writing import RecordStream

if TYPE_CHECKING:
    import threading

__all__ = ["WorkerAgent"]

VERSION = 1
PAUSE_S = 0.002
"""Between two packets: the application's greenlets go first."""
LAST_WORDS_S = 0.2
"""How long the end of a worker may be held up for its last records."""


class WorkerAgent:
    """Everything of the agent in one worker process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stacker = Stacker()
        self.stalls = StallTimer(self._stacker, comment=settings.sql_comment)
        self._requests = RequestCounter()
        self._cpu = CpuSampler(self._stacker, settings.hz)
        self.border = Border(self._cpu.begin, self._finished)
        self._writer: RecordWriter | None = None
        self._stream: RecordStream | None = None
        self._writing: Iterator[bool] = iter(())
        self._thread: threading.Thread | None = None
        self._wake: threading.Event | None = None
        self._stopped = False
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
        self._stream = RecordStream(self._stacker, self._cpu, self.stalls, self._requests, self._writer)
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
        if self._stream is not None:
            self._stream.spans = start_tracing(application)

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
        if self._thread is not None and self._wake is not None:
            self._wake.set()
            self._thread.join(LAST_WORDS_S / 2)
        if self._stream is None or self._writer is None:
            return
        # What the writer had begun with comes first.
        for accepted in chain(self._writing, self._stream.write(everything=True)):
            if time.monotonic() > deadline:
                break
            if not accepted:
                select.select([], [], [], PAUSE_S)
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

        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._write_in_thread, name="quayscope", daemon=True)
        self._thread.start()

    def _write_in_thread(self) -> None:
        # The timer's signal is for the main thread. Where that waits, the kernel gives it to a working one.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
        self._keep_writing(self._sleep_in_thread)

    def _sleep_in_thread(self, seconds: float) -> None:
        import threading

        main = threading.main_thread().ident
        if main is not None and self._cpu.waits():
            signal.pthread_kill(main, signal.SIGPROF)
        if self._wake is not None:
            self._wake.wait(seconds)

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
        assert self._stream is not None
        began = time.thread_time_ns()
        self._writing = self._stream.write(everything=False)
        for _ in self._writing:
            faults.add("cpu_ns", time.thread_time_ns() - began)
            sleep(PAUSE_S)
            if self._stopped:
                return
            began = time.thread_time_ns()
        faults.add("cpu_ns", time.thread_time_ns() - began)
