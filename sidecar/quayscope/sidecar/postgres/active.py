"""Average active sessions: how many sessions, on average over a second, ran, queued for a CPU, or waited.

Whoever sees sessions (shared memory or the view) adds what it saw here, so that both give the same metrics:

- `postgresql.sessions.active` by `class`: the wait classes of Postgres; `none`, active without a wait event;
  and `cpu` and `run queue`, measured by the scheduler (/proc/PID/schedstat, proc(5)) for the processes that
  were active. A process on a CPU may still show its last wait event, so these two are not parts of `none`.
- `postgresql.connections` by `state` and `application`, at the end of the second.
- `postgresql.connections.opened`: those that were seen for the first time. One that opens and closes between
  two looks is not seen.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.postgres.activity import Poll
from quayscope.sidecar.targets import CLIENT_BACKEND
from quayscope.sidecar.windows import SECOND_NS

__all__ = ["NO_WAIT_EVENT", "ActiveSessions", "PolledSessions"]

NO_WAIT_EVENT = "none"
MAX_APPLICATIONS = 20
"""Applications that are told apart, those with the most connections; the others are `(others)`."""
_OTHERS = "(others)"
_MAX_CLOCKS = 16_384


class ActiveSessions:
    """Adds up one source's seconds; `source` says which: `shared memory` or `pg_stat_activity`."""

    def __init__(self, emit: Callable[[list[Reading]], None], source: str) -> None:
        self._emit = emit
        self._source = source
        self._spent: Counter[str] = Counter()
        self._ran: set[int] = set()
        self._clocks: dict[int, tuple[int, int]] = {}
        self.second = 0
        """The second of Unix time that the last report was in: another one is due when it has ended."""
        self._since_ns = 0
        self._shown: set[tuple[str, str]] = set()
        self._opened = 0

    def add(self, kind: str, pid: int, spent_ns: int) -> None:
        """Add an active session's time: its wait class (empty: none), its pid (0: no process of ours)."""
        self._spent[kind or NO_WAIT_EVENT] += spent_ns
        if pid:
            self._ran.add(pid)

    def opened(self, pid: int) -> None:
        """Count a new connection, and watch its process; `pid` 0: no process of ours."""
        self._opened += 1
        self.watch(pid)

    def watch(self, pid: int) -> None:
        """Note a process's clocks at its first sight: what it ran before is nobody's."""
        if pid and len(self._clocks) < _MAX_CLOCKS and (clocks := _schedstat(pid)) is not None:
            self._clocks[pid] = clocks

    def closed(self, pid: int) -> None:
        """Forget a process."""
        self._clocks.pop(pid, None)

    def report(self, now_ns: int, connections: Iterable[tuple[str, str]]) -> None:
        """Emit the time since the last report; `connections` are the state and application of each."""
        elapsed_ns = now_ns - self._since_ns
        # After a gap (or at first) nobody saw the time before.
        first = elapsed_ns > 2 * SECOND_NS
        self.second, self._since_ns = now_ns // SECOND_NS, now_ns
        self._add_clocks()
        spent, self._spent, self._ran = self._spent, Counter(), set()
        if first or elapsed_ns <= 0:
            return
        readings = [
            self._reading("postgresql.sessions.active", "gauge", spent_ns / elapsed_ns, {"class": kind})
            for kind, spent_ns in sorted(spent.items())
        ]
        counted = _counted(connections)
        # What no longer is shall not stay at its last value.
        for state, application in sorted(counted.keys() | self._shown):
            attributes = {"state": state, "application": application}
            value = counted.get((state, application), 0)
            readings.append(self._reading("postgresql.connections", "gauge", value, attributes))
        self._shown = set(counted)
        readings.append(self._reading("postgresql.connections.opened", "cumulative", self._opened, {}))
        self._emit(readings)

    def _reading(self, name: str, kind: str, value: float, attributes: Mapping[str, str]) -> Reading:
        labels = {**attributes, "source": self._source}
        return Reading(name, "gauge" if kind == "gauge" else "cumulative", value, "1", labels)

    def _add_clocks(self) -> None:
        self._spent["cpu"] += 0
        self._spent["run queue"] += 0
        for pid in self._ran:
            now = _schedstat(pid)
            before = self._clocks.get(pid)
            if now is None:
                self._clocks.pop(pid, None)
                continue
            if before is not None:
                self._spent["cpu"] += max(0, now[0] - before[0])
                self._spent["run queue"] += max(0, now[1] - before[1])
            if before is not None or len(self._clocks) < _MAX_CLOCKS:
                self._clocks[pid] = now


class PolledSessions:
    """The same metrics from polls of the view; a listener of `Activity`."""

    def __init__(self, emit: Callable[[list[Reading]], None]) -> None:
        self._active = ActiveSessions(emit, "pg_stat_activity")
        self._known: dict[int, int] = {}

    def seen(self, poll: Poll) -> None:
        """Charge the interval before this poll to what each session does."""
        weight_ns = min(poll.elapsed_ns, SECOND_NS)
        clients: dict[int, int] = {}
        for backend in poll.backends:
            pid = backend.pid if backend.local else 0
            if backend.active:
                self._active.add(backend.wait_type, pid, weight_ns)
            if backend.kind == CLIENT_BACKEND:
                clients[backend.pid] = pid
        for backend_pid in clients.keys() - self._known.keys():
            self._active.opened(clients[backend_pid])
        for backend_pid in self._known.keys() - clients.keys():
            self._active.closed(self._known[backend_pid])
        self._known = clients
        if poll.time_ns // SECOND_NS != self._active.second:
            self._active.report(
                poll.time_ns,
                [(one.state, one.application) for one in poll.backends if one.kind == CLIENT_BACKEND],
            )


def _counted(connections: Iterable[tuple[str, str]]) -> Counter[tuple[str, str]]:
    counted = Counter(connections)
    by_application: Counter[str] = Counter()
    for (_, application), count in counted.items():
        by_application[application] += count
    kept = {application for application, _ in by_application.most_common(MAX_APPLICATIONS)}
    folded: Counter[tuple[str, str]] = Counter()
    for (state, application), count in counted.items():
        folded[state, application if application in kept else _OTHERS] += count
    return folded


def _schedstat(pid: int) -> tuple[int, int] | None:
    """Return the nanoseconds that a process's main thread ran, and waited runnable; None when it is gone."""
    # Without a file object: it takes half as long, and a second has one of each active process.
    try:
        descriptor = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    clocks = None
    with contextlib.suppress(OSError, ValueError):
        ran, queued, _ = os.read(descriptor, 128).split()
        clocks = int(ran), int(queued)
    os.close(descriptor)
    return clocks
