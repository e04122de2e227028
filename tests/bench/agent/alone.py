"""Each part of the agent measured alone, in a process without load: CPU of the thread it runs on.

Run as a program (`python -m bench.agent.alone`) by the benchmark; prints one JSON object of flat figures.
"""

from __future__ import annotations

from quayscope.agent import early  # noqa: F401 - as in a worker: before gevent patches

from gevent import monkey  # isort: skip

monkey.patch_all()

import argparse  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import greenlet  # noqa: E402
import psycopg2  # noqa: E402
from flask import Flask  # noqa: E402
from werkzeug.test import EnvironBuilder  # noqa: E402

from bench.agent import app as bench_app  # noqa: E402
from quayscope.agent import bootstrap, faults  # noqa: E402
from quayscope.agent.psycopg import patch_psycopg2  # noqa: E402
from quayscope.agent.settings import Settings  # noqa: E402
from quayscope.agent.worker import WorkerAgent  # noqa: E402

DEPTH = 40
"""Frames below the sample."""
_FAR_NS = 1 << 62
_PIECES = 3
"""Of the application's work between what is measured: some milliseconds, as between two samples."""


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True, help="where a relay reads")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    print(json.dumps(Alone(given.socket, given.rounds).all()))
    sys.stdout.flush()
    os._exit(0)


class Alone:
    """One agent, started as in a worker, its records written when it is told to. Figures are medians."""

    def __init__(self, socket: str, rounds: int) -> None:
        self._rounds = rounds
        self._plain_connection = self._connect()
        self._plain_dispatch: Any = Flask.full_dispatch_request
        self._environ = EnvironBuilder(path="/agent").get_environ()
        self._threads = set(_threads())
        self.agent = WorkerAgent(Settings(socket=socket, tracing=False, max_overhead=1.0), "web")
        patch_psycopg2(psycopg2, self.agent.stalls)
        bootstrap._patch_flask(sys.modules["flask.app"])
        self._dispatch: Any = Flask.full_dispatch_request
        self._timed_connection = self._connect()
        self.agent._start_writing = self._write_when_told  # type: ignore[method-assign]
        self.agent.start()
        self.agent.serve(bench_app.app)
        self._quiet()

    def _connect(self) -> Any:
        connection = psycopg2.connect(os.environ[bench_app.DSN])
        connection.autocommit = True
        return connection

    def _write_when_told(self) -> None:
        self.agent._greenlet = self.agent._usage.counts_slices = True

    def _quiet(self) -> None:
        # No signal of the timer may fall into what is measured: they are measured by themselves.
        signal.setitimer(signal.ITIMER_PROF, 0.0)

    def all(self) -> dict[str, float]:
        """Return all figures, in microseconds of CPU unless they say otherwise."""
        sample, hot, early_tick = self.samples()
        found = {
            "us_per_sample": sample,
            "us_per_sample_hot": hot,
            "us_per_early_signal": early_tick,
            "us_per_turn": self.turn(),
            "us_per_border": self.border(),
            "us_per_statement": self.statement(),
        }
        found.update(self.seconds())
        return found

    def samples(self) -> tuple[float, float, float]:
        """Return the cost of a sample, of one right after another (all of it still in the caches), and of a
        signal that comes before a sample is due: delivery, handler and all."""
        sampler = self.agent._cpu
        took: tuple[list[int], list[int], list[int]] = ([], [], [])

        nothing = min(_thread_ns(_nothing) for _ in range(20))

        def take(number: int) -> None:
            for table, due, pieces in zip(took, (0, 0, _FAR_NS), (_PIECES, 0, _PIECES), strict=True):
                self._quiet()  # each signal sets the timer for the next
                _work(number, pieces)
                sampler._due_ns = due or time.process_time_ns()
                table.append(_thread_ns(_signal) - nothing)

        with self._request():
            # The stack is made anew each time: who walks one for the first time makes its frame objects.
            for number in range(self._rounds * 12):
                _at_depth(DEPTH - _depth(), take, number)
        self._quiet()
        sample, hot, early_signal = (statistics.median(table) / 1e3 for table in took)
        return sample, hot, early_signal

    def turn(self) -> float:
        """Return what a switch between greenlets costs more with the agent."""
        parent = greenlet.getcurrent()

        def other() -> None:
            while True:
                parent.switch()

        child = greenlet.greenlet(other)

        def follow(wanted: bool) -> Callable[[], None]:
            def switch() -> None:
                if wanted:
                    self.agent._cpu.resume()
                    self._quiet()
                else:
                    self.agent._cpu.pause()

            return switch

        with self._request():
            found = self._dearer(child.switch, child.switch, follow(False), follow(True))
        self._quiet()
        return found / 2  # there and back

    def border(self) -> float:
        """Return what a request costs more around Flask: both borders, the rule, the count."""

        def handle(application: Any) -> Callable[[], None]:
            def handle_request() -> None:
                for _ in application(dict(self._environ), lambda *_: None):
                    pass

            return handle_request

        def dispatch(method: Any) -> Callable[[], None]:
            return lambda: setattr(Flask, "full_dispatch_request", method)

        wrapped = self.agent.border.around_worker(handle(self.agent.border.around_application(bench_app.app)))
        return self._dearer(
            handle(bench_app.app), wrapped, dispatch(self._plain_dispatch), dispatch(self._dispatch)
        )

    def statement(self) -> float:
        """Return what a statement costs more: its cursor, its name, the comment, the time, now and then the
        stack."""
        numbers = itertools.count()

        def ask(connection: Any) -> Callable[[], None]:
            def statement() -> None:
                number = next(numbers)
                with connection.cursor() as cursor:
                    bench_app.QUERIES[number // 2 % len(bench_app.QUERIES)](cursor, number // 2 % 50)

            return statement

        found: list[float] = []
        plain, timed = ask(self._plain_connection), ask(self._timed_connection)
        with self._request():
            _at_depth(
                DEPTH - _depth(),
                lambda: found.append(self._dearer(plain, timed, _nothing, _nothing, times=4)),
            )
        return found[0]

    def _dearer(
        self,
        plain: Callable[[], object],
        timed: Callable[[], object],
        before_plain: Callable[[], None],
        before_timed: Callable[[], None],
        times: int = 1,
    ) -> float:
        """Return how many microseconds of CPU the second call takes more than the first.

        They take turns, each on a stack made anew, and before each the application works for a while, as it
        does in a worker.
        """
        took: tuple[list[int], list[int]] = ([], [])
        ways = ((plain, before_plain, took[0]), (timed, before_timed, took[1]))

        def take(
            call: Callable[[], object], before: Callable[[], None], table: list[int], number: int
        ) -> None:
            before()
            _work(number, _PIECES)
            table.append(_thread_ns(call))

        for number in range(self._rounds * 20 * times):
            for way in ways if number % 2 else ways[::-1]:
                _at_depth(DEPTH - _depth(), take, *way, number)
        # One statement of some thirty takes a stack and belongs to it; a few of a hundred met something else.
        without, with_it = (statistics.fmean(sorted(table)[: -1 - len(table) // 20]) for table in took)
        return (with_it - without) / 1e3

    @contextmanager
    def _request(self) -> Iterator[None]:
        request = self.agent.border.begin()
        request.method, request.rule = "GET", "/api/v1/repository/<int:repository>"
        yield
        self.agent.border.end(request)

    def seconds(self) -> dict[str, float]:
        """Return what a second of a busy worker costs beside: writing it, and the agent's own thread."""
        ours = [thread for thread in _threads() if thread not in self._threads]
        wrapped = self.agent.border.around_application(bench_app.app)
        handle = self.agent.border.around_worker(lambda environ: list(wrapped(environ, lambda *_: None)))
        bench_app._connections[:] = [self._timed_connection]
        writes: list[int] = []
        threads: list[float] = []
        early_signals: list[float] = []
        faults.take()
        rows = 0
        for _ in range(max(2, self._rounds // 2)):
            self.agent._cpu.arm()
            began, before = time.perf_counter_ns(), _threads_ns(ours)
            while time.perf_counter_ns() - began < 1_000_000_000:
                for number in range(50):
                    handle(EnvironBuilder(path=f"/api/v1/repository/{number}").get_environ())
                    if time.perf_counter_ns() - began > 1_000_000_000:
                        break
            passed = (time.perf_counter_ns() - began) / 1e9
            threads.append((_threads_ns(ours) - before) / passed)
            self._quiet()
            counted = faults.take()
            early_signals.append(counted.get("early_signals", 0) / passed)
            for name, count in counted.items():
                faults.add(name, count)
            gevent.sleep(1.05 - time.time() % 1.0)
            writes.append(_thread_ns(self._write))
            rows = max(rows, self.agent._writer.connections)
        idle_s = max(1.0, self._rounds / 5)
        before = _threads_ns(ours)
        gevent.sleep(idle_s)
        idle = (_threads_ns(ours) - before) / idle_s
        if not rows:
            raise RuntimeError("nobody read what was written")
        return {
            "us_per_write": statistics.median(writes[1:]) / 1e3,
            "us_first_write": writes[0] / 1e3,
            "us_own_thread_busy_second": statistics.median(threads) / 1e3,
            "us_own_thread_idle_second": idle / 1e3,
            "early_signals_a_second": statistics.median(early_signals),
        }

    def _write(self) -> None:
        usage = self.agent._usage
        usage.slice(self.agent._keep_house)
        self.agent._writing = self.agent._stream.write(everything=False)
        while usage.slice(self.agent._write_slice):
            pass


def _signal() -> None:
    signal.raise_signal(signal.SIGPROF)


def _nothing() -> None:
    pass


def _work(number: int, pieces: int) -> None:
    for seed in range(pieces):
        bench_app.piece(number + seed)


def _thread_ns(call: Callable[[], Any]) -> int:
    began = time.thread_time_ns()
    call()
    return time.thread_time_ns() - began


def _depth() -> int:
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


def _at_depth(frames: int, call: Callable[..., Any], *arguments: Any) -> None:
    if frames > 0:
        _at_depth(frames - 1, call, *arguments)
    else:
        call(*arguments)


def _threads() -> list[int]:
    return [int(entry.name) for entry in Path("/proc/self/task").iterdir()]


def _threads_ns(threads: list[int]) -> int:
    return sum(time.clock_gettime_ns((~thread << 3) | 6) for thread in threads)


if __name__ == "__main__":
    main()
