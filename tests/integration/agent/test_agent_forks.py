"""Samples come from every worker and from nobody else, however workers begin and end, on each interpreter."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from integration.agent.serving import Gunicorn, Kept, at_once, left_behind, until
from interpreters import VERSIONS, prepared
from quayscope.relay import Relay

CONFIGURATION = Path(__file__).with_name("forking_conf.py")
WAYS = ("fork", "multiprocessing", "subprocess")
MAX_REQUESTS = 12
BURN_MS = 15
UNCLEAN = re.compile(
    r"Profiling timer expired|Traceback|CRITICAL|WORKER TIMEOUT|SIGABRT|SIGKILL|SIGSEGV|SIGPROF"
    r"|terminated due to signal (?!15)|was sent SIG(?!TERM)|exited with code|failed to boot|did not exit"
)
"""What gunicorn, of any version, or the interpreter says where something went wrong.

A second SIGTERM of the master's that meets an interpreter which has taken its handlers down is no such thing.
"""


class Cell(NamedTuple):
    """One way to run workers."""

    preload: bool
    recycle: bool
    reload: bool

    def __str__(self) -> str:
        return " ".join(f"{name}={'on' if value else 'off'}" for name, value in self._asdict().items())


class Running:
    """A gunicorn with two workers, and what was asked of it."""

    def __init__(self, gunicorn: Gunicorn, worker_class: str, notes: Path) -> None:
        self.gunicorn = gunicorn
        self._notes = notes
        self._worker_class = worker_class
        self.burned: Counter[int] = Counter()
        """CPU nanoseconds that requests used, by worker."""
        self._lock = threading.Lock()

    def ask(self, times: int) -> None:
        """Have CPU burned by two clients at once, so that both workers serve."""

        def burn() -> None:
            for _ in range(times // 2):
                answer = self._get(f"/burn/{BURN_MS}")
                with self._lock:
                    self.burned[answer["pid"]] += answer["cpu"]

        at_once(burn, burn)

    def ask_for_helpers(self, *ways: str) -> None:
        """Have a worker run a helper in each of these ways; each must end in order."""
        for how in ways:
            answer = self._get(f"/helper/{how}")
            assert answer["helper"] not in (0, answer["pid"])
            # Forked in a thread of a pool, multiprocessing's child ends by joining itself, which fails.
            assert answer["code"] == 0 or (how, self._worker_class) == ("multiprocessing", "gthread"), answer

    def _get(self, path: str) -> dict[str, int]:
        def answer() -> dict[str, int] | None:
            # A worker that ends may close a connection it had not begun to serve; gunicorn's, not ours.
            with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
                found: dict[str, int] = self.gunicorn.json(path)
                return found
            return None

        return dict(until(answer, path))

    def noted(self, what: str) -> dict[int, str]:
        """Return what workers wrote down (`ready`, `ended`), by pid."""
        return {int(path.stem): path.read_text() for path in self._notes.glob(f"*.{what}")}

    def settled(self) -> bool:
        """Whether there are two workers that serve, and none is about to be recycled.

        gunicorn loses a signal that meets a worker which has not begun to serve.
        """
        going = re.findall(r"\[(\d+)\] \[INFO\] Autorestarting", self.gunicorn.log())
        workers = set(self.gunicorn.workers())
        return len(workers & set(self.noted("ready"))) == len(workers - set(map(int, going))) == 2

    def descendants(self) -> Iterator[tuple[int, str]]:
        """Yield pid and state of everything below the master."""
        todo = self.gunicorn.workers()
        while todo:
            pid = todo.pop()
            with contextlib.suppress(OSError):
                yield pid, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                todo += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    def zombies(self) -> list[int]:
        """Return those that have ended and were not waited for."""
        return [pid for pid, state in self.descendants() if state == "Z"]


def run_cell(cell: Cell, version: str, worker_class: str, bundle: Path, directory: Path, dsn: str) -> None:
    """Run one gunicorn from its start to its end, and hold what the relay got against the truth."""
    notes = directory / "notes"
    notes.mkdir(parents=True)
    socket, kept = str(directory / "s"), Kept()
    relay = Relay(socket, kept, window_s=1)
    relay.start()
    arguments = ["--workers=2", f"--config={CONFIGURATION}"]
    arguments += ["--threads=2"] if worker_class == "gthread" else []
    arguments += ["--preload"] if cell.preload else []
    arguments += [f"--max-requests={MAX_REQUESTS}"] if cell.recycle else []
    try:
        gunicorn = Gunicorn(
            directory,
            *arguments,
            environment={
                "QUAYSCOPE_SOCKET": socket,
                "AGENT_TEST_DSN": dsn,
                "AGENT_TEST_NOTES": str(notes),
                "HOME": str(directory),  # newer gunicorns keep a socket there
                # With gevent and preload as in Quay, traces as well.
                "QUAYSCOPE_TRACING": "auto" if worker_class == "gevent" and cell.preload else "off",
            },
            application="integration.agent.forking_app:app",
            worker_class=worker_class,
            inject=bundle,
            python=prepared(version),
        )
        try:
            running = Running(gunicorn, worker_class, notes)
            serve_through(running, cell)
            assert gunicorn.stop(signal.SIGTERM) == 0
        finally:
            gunicorn.kill()
    finally:
        relay.close(5.0)
    log = gunicorn.log()
    assert not UNCLEAN.search(log), log
    assert left_behind(socket) == []
    booted = set(map(int, re.findall(r"Booting worker with pid: (\d+)", log)))
    ended = {pid: int(cpu_ns) for pid, cpu_ns in running.noted("ended").items()}
    assert set(ended) == booted, "a worker did not end in order"
    assert len(booted) >= (4 if cell.reload or cell.recycle else 2)
    compare(running, kept, ended)


def serve_through(running: Running, cell: Cell) -> None:
    """Serve, with helpers, through recycling and a reload where the cell has them."""
    first = set(running.gunicorn.workers())
    running.ask(2 * MAX_REQUESTS)

    def recycled() -> bool:
        # Which worker takes a request is chance: the slower one may need some more.
        running.ask(4)
        return not first & set(running.gunicorn.workers())

    if cell.recycle:
        until(recycled, "both workers are recycled")
        until(running.settled, "their successors serve")
    running.ask_for_helpers(*WAYS)
    if cell.reload:
        before = set(running.gunicorn.workers())
        running.gunicorn.process.send_signal(signal.SIGHUP)
        until(lambda: not before & set(running.gunicorn.workers()), "new workers take over")
        until(running.settled, "both serve")
        running.ask(MAX_REQUESTS)
        running.ask_for_helpers("fork")
    until(running.settled, "both serve to the end")
    until(lambda: not running.zombies(), "everybody was waited for")


def compare(running: Running, kept: Kept, ended: dict[int, int]) -> None:
    """Hold the profiles against what requests and whole workers used."""
    sampled = {attributes.pid for _, attributes, _ in kept.samples("process_cpu")}
    assert sampled <= set(ended), "the master or a helper was profiled"
    for pid, burned in running.burned.items():
        profiled = sum(kept.cpu(pid).values())
        # A helper's CPU would be 100 ms more than the worker has used; its last words come after the note.
        assert profiled <= ended[pid] * 1.03 + 50e6, (pid, profiled, ended[pid], kept.counts())
        assert profiled >= burned * 0.9 - 10e6, (pid, profiled, burned, kept.counts())
    assert kept.counts().get("faults", 0) == 0
    assert kept.counts("quayscope.relay.").get("malformed", 0) == 0


@pytest.mark.parametrize("worker_class", ["gevent", "gthread", "sync"])
@pytest.mark.parametrize("version", VERSIONS)
def test_samples_come_from_workers_alone(
    version: str, worker_class: str, bundle: Path, tmp_path: Path, dsn: str, full: bool
) -> None:
    """Preloaded or not, recycled and reloaded: each worker is profiled, ends in order, and nobody else is."""
    prepared(version)
    switches = (True, False)
    cells = [
        Cell(preload, recycle, reload)
        for preload, recycle, reload in itertools.product(switches, switches, switches)
        if full or (recycle and reload)
    ]
    failures = []

    def guarded(cell: Cell) -> None:
        try:
            run_cell(cell, version, worker_class, bundle, tmp_path / str(cells.index(cell)), dsn)
        except Exception as error:  # noqa: BLE001 - every cell's is shown below
            failures.append(f"{cell}: {error!r}")

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(guarded, cells))
    assert not failures, "\n\n".join(failures)
