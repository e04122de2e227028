"""The watch over one Postgres: finds it, takes what it permits, and finds it again after it was gone."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg.rows import TupleRow

from quayscope.profile import Profile
from quayscope.sidecar import doctor
from quayscope.sidecar.capabilities import Capabilities, Capability
from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.native import report
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.postgres.active import PolledSessions
from quayscope.sidecar.postgres.activity import Activity, Listener, Poll
from quayscope.sidecar.postgres.cpu import ActivityCpu
from quayscope.sidecar.postgres.locks import LockHolders
from quayscope.sidecar.postgres.memory import BackendMemory
from quayscope.sidecar.postgres.oids import OidNames
from quayscope.sidecar.postgres.sampling import PostgresSampling
from quayscope.sidecar.postgres.sessions import Sessions
from quayscope.sidecar.postgres.statistics import ServerStatistics
from quayscope.sidecar.postgres.waits import Waits
from quayscope.sidecar.statements import StatementSource
from quayscope.sidecar.targets import BackendPids, Postmaster, find_postmasters, postmaster_at
from quayscope.sidecar.windows import SECOND_NS, Windows, WindowsTap

__all__ = ["Database", "DatabaseOptions"]

log = logging.getLogger(__name__)

_CONNECT_PATIENCE_S = 2.0
_STOP_PATIENCE_S = 0.5


@dataclass(frozen=True)
class DatabaseOptions:
    """`wanted` is a pid, `auto` or `off`; `dsn` empty: no connection. `labels` go on every series."""

    wanted: str
    dsn: str
    service: str
    labels: dict[str, str]
    hz: int
    window_s: int


class Database:
    """Watches one server. `tick` is to be called each second; it never raises for what the server does.

    Without a `sampler` to share it has one of its own.
    """

    def __init__(
        self,
        options: DatabaseOptions,
        capabilities: Capabilities,
        profiles: Callable[[list[Profile]], None],
        readings: Callable[[list[Reading]], None],
        sampler: Sampler | None = None,
    ) -> None:
        self._options = options
        self._owns_perf = sampler is None
        self._perf = sampler or Sampler(profiles, hz=options.hz, window_s=options.window_s)
        self._capabilities = capabilities
        self.server: Postmaster | None = None
        self._pids: BackendPids | None = None
        self._directory = ""
        self._sampler: PostgresSampling | None = None
        self._memory: BackendMemory | None = None
        self._texts: BackendMemory | None = None
        self._past = Counter[str]()
        self._seen = self._windows("activity", profiles, 0)
        self._swept = self._windows("sessions", profiles, 0)
        self._readings = readings
        self._names = OidNames()
        self._sessions: Sessions | None = None
        self._locks = LockHolders(self._lock_waiters)
        self._cpu = ActivityCpu(self._seen, options.service)
        self._statistics = ServerStatistics(readings, capabilities)
        self._activity: Activity | None = None
        if options.dsn:
            polled: list[Listener] = [Waits(self._seen, options.service), PolledSessions(readings)]
            listeners: list[Listener] = [self._cpu, *(_StandIn(one, self._is_swept) for one in polled)]
            self._activity = Activity(options.dsn, capabilities, listeners, self._query, self._resolve)

    def _windows(self, sampler: str, emit: Callable[[list[Profile]], None], period_ns: int) -> Windows:
        labels = {**self._options.labels, "service_name": self._options.service, "sampler": sampler}
        return Windows(labels, self._options.window_s, emit, period_ns=period_ns)

    def _is_swept(self) -> bool:
        sessions = self._sessions
        return sessions is not None and sessions.reading

    def _query(self, connection: psycopg.Connection[TupleRow]) -> None:
        self._statistics.read(connection)
        self._names.learn(connection)
        self._locks.learn(connection)

    def _lock_waiters(self) -> frozenset[int]:
        sessions = self._sessions
        return frozenset() if sessions is None else sessions.lock_waiters

    def _resolve(self, own_pid: int) -> int | None:
        pids = self._pids
        return None if pids is None else pids.resolve(own_pid)

    def start(self) -> None:
        """Look for the server and begin with what is permitted."""
        if self._owns_perf:
            self._perf.start()
        if self._activity is not None:
            self._activity.start()
            self._activity.wait_tried(_CONNECT_PATIENCE_S)
        elif self._options.wanted != "off":
            self._capabilities.note(
                Capability("pg_stat_activity", False, "no connection string was given", "--postgres-dsn DSN")
            )
        self._find()

    def tap(self, tap: WindowsTap) -> None:
        """Have `tap` called with what its sessions are seen to do, from several threads."""
        for windows in (self._seen, self._swept):
            windows.tap(tap)

    def untap(self, tap: WindowsTap) -> None:
        """Call it no longer."""
        for windows in (self._seen, self._swept):
            windows.untap(tap)

    def counts(self) -> dict[str, int]:
        """Return what went wrong so far: reads of a statement that was none or changed, faults."""
        counts = Counter(self._past)
        for name, count in self._current().items():
            counts[name] += count
        counts["faults"] += self._activity.faults if self._activity is not None else 0
        if self._owns_perf:
            counts.update(self._perf.counts())
        return counts

    def _current(self) -> dict[str, int]:
        sampler, sessions = self._sampler, self._sessions
        memories = [memory for memory in (self._memory, self._texts) if memory is not None]
        swept = sessions.counts() if sessions is not None else {}
        return {
            **swept,
            "statements_torn": sum(memory.torn for memory in memories),
            "statements_invalid": sum(memory.invalid for memory in memories),
            "statements_unnoted": sampler.unnoted if sampler is not None else 0,
            "requests_inherited": swept.get("requests_inherited", 0)
            + (sampler.inherited if sampler is not None else 0),
            "faults": (sampler.faults if sampler is not None else 0)
            + (sessions.faults if sessions is not None else 0),
        }

    def tick(self) -> None:
        """Notice the server's end or return, and send finished windows."""
        if self.server is not None and not self.server.alive():
            log.warning("postgres is gone", extra={"pid": self.server.pid})
            self._stop_sampling()
            self.server = self._pids = None
        if self.server is None:
            self._find()
        elif self._sampler is not None:
            self._note_refused(self._sampler)
        now_ns = time.time_ns()
        if self._owns_perf:
            self._perf.flush(now_ns)
        self._seen.flush(now_ns - SECOND_NS // 2)
        self._swept.flush(now_ns - SECOND_NS // 2)

    def close(self) -> None:
        """Stop, and send everything held."""
        if self._activity is not None:
            self._activity.close(_STOP_PATIENCE_S)
        self._stop_sampling()
        if self._owns_perf:
            self._perf.close(_STOP_PATIENCE_S)
        self._seen.flush()
        self._swept.flush()

    def _find(self) -> None:
        if self._options.wanted == "off":
            return
        servers = self._candidates()
        if not servers:
            self._capabilities.note(doctor.not_found(f"--postgres {self._options.wanted}"))
            return
        server = servers[0]
        self._capabilities.note(doctor.found(server, len(servers) - 1))
        self.server = server
        self._directory = server.data_directory or self._directory
        self._pids = BackendPids(server)
        self._sample(server)

    def _candidates(self) -> list[Postmaster]:
        """Return the servers to watch, the best first; one watched before is known by its data."""
        if not self._directory and self._options.wanted != "auto":
            server = postmaster_at(int(self._options.wanted))
            return [] if server is None else [server]
        servers = find_postmasters()
        same = [server for server in servers if self._directory and server.data_directory == self._directory]
        return same or ([] if self._options.wanted != "auto" else servers)

    def _sample(self, server: Postmaster) -> None:
        user, kernel = doctor.try_perf(server.pid, self._options.hz)
        readable, self._memory = doctor.try_memory(server)
        for capability in (user, kernel, readable):
            self._capabilities.note(capability)
        # Each thread that reads statements has a memory of its own.
        self._texts = self._memory.another() if self._memory is not None else None
        self._sweep(server)
        if user.permitted or kernel.permitted:
            self._start_sampler(server, self._memory or self._activity, user)
        # One sampler a second of CPU: the polls' coarse view stands in only where this one may not.
        self._cpu.enabled = self._sampler is None

    def _sweep(self, server: Postmaster) -> None:
        sessions = Sessions(
            server,
            self._capabilities,
            self._swept,
            self._readings,
            service=self._options.service,
            hz=self._options.hz,
            names=self._names,
            texts=self._texts,
            held_by=self._locks.of,
        )
        sessions.start()
        self._sessions = sessions

    def _start_sampler(
        self, server: Postmaster, statements: StatementSource | None, user: Capability
    ) -> None:
        try:
            sampler = PostgresSampling(
                self._perf,
                server,
                statements,
                service=self._options.service,
                labels=self._options.labels,
                backends=lambda: sessions.reader if (sessions := self._sessions) is not None else None,
            )
        except OSError as error:
            log.warning("perf events failed", extra={"error": error.strerror or str(error)})
            self._capabilities.note(
                user._replace(
                    permitted=False,
                    detail=f"perf events on postmaster {server.pid}: {error.strerror}",
                    remedy="a higher RLIMIT_NOFILE and RLIMIT_MEMLOCK, or kernel.perf_event_mlock_kb",
                )
            )
            return
        self._capabilities.note(doctor.priority(sampler.realtime))
        self._sampler = sampler

    def _note_refused(self, sampler: PostgresSampling) -> None:
        self._capabilities.note(doctor.coverage(sampler.alive, list(sampler.refused.values())))
        if self._owns_perf:
            for capability in report.capabilities(self._perf.targets):
                self._capabilities.note(capability)

    def _stop_sampling(self) -> None:
        if self._sampler is not None:
            self._sampler.close(_STOP_PATIENCE_S)
        if self._sessions is not None:
            self._sessions.close(_STOP_PATIENCE_S)
        for name, count in self._current().items():
            self._past[name] += count
        self._sampler = self._memory = self._texts = self._sessions = None


class _StandIn:
    """Passes polls on to a listener while something better does not see the same."""

    def __init__(self, listener: Listener, is_seen: Callable[[], bool]) -> None:
        self._listener = listener
        self._is_seen = is_seen

    def seen(self, poll: Poll) -> None:
        """Take in a poll."""
        if not self._is_seen():
            self._listener.seen(poll)
