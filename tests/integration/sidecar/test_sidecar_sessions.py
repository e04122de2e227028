"""What sessions spend their time on, from shared memory, on real servers: charged, counted, survived."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from postgres.reading import postmaster_of, reader_of, running
from quayscope.profile import Profile
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.database import Database, DatabaseOptions
from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.postgres.memory import BackendMemory
from quayscope.sidecar.postgres.sessions import Sessions
from quayscope.sidecar.postgres.shared import SHARED_MEMORY, open_reader
from quayscope.sidecar.windows import Windows


@pytest.fixture(scope="module", params=["13", "18"])
def server(request: pytest.FixtureRequest, server_of: Callable[[str], Any]) -> Any:
    """A server of the oldest major and of the newest."""
    return server_of(request.param)


class Swept:
    """Sessions of one server, and what they gave."""

    def __init__(self, server: Any) -> None:
        self.profiles: list[Profile] = []
        self.readings: list[Reading] = []
        self.windows = Windows({"service_name": "db", "sampler": "sessions"}, 10, self.profiles.extend)
        postmaster = postmaster_of(server)
        self.sessions = Sessions(
            postmaster,
            Capabilities(),
            self.windows,
            self.readings.extend,
            service="db",
            texts=BackendMemory(postmaster),
        )

    def waits(self) -> Counter[tuple[str, ...]]:
        """Nanoseconds by the frames below the root."""
        found: Counter[tuple[str, ...]] = Counter()
        for profile in self.profiles:
            for (stack, _), (_, delay) in profile.samples.items():
                found[tuple(frame.function for frame in stack[1:])] += delay
        return found

    def series(self, name: str, attribute: str) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        for reading in list(self.readings):
            if reading.name == name:
                found[reading.attributes[attribute]].append(reading.value)
        return found


@contextlib.contextmanager
def _swept(server: Any) -> Iterator[Swept]:
    swept = Swept(server)
    assert swept.sessions.start()
    try:
        yield swept
    finally:
        swept.sessions.close(5)
        swept.windows.flush()
        assert swept.sessions.faults == 0


def test_waits_are_charged(server: Any, until: Callable[..., Any]) -> None:
    """A lock's wait and the holder's idle transaction are charged the time they took, under statements."""
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS hot")
        connection.execute("CREATE TABLE hot (id int PRIMARY KEY, n int)")
        connection.execute("INSERT INTO hot VALUES (1, 0)")
    with _swept(server) as swept:
        reader = swept.sessions.reader
        assert reader is not None
        holder = psycopg.connect(server.dsn, application_name="holder")
        holder.execute("UPDATE hot SET n = n + 1 WHERE id = 1")
        idle_from = time.monotonic()
        with running(server, "UPDATE hot SET n = 5 WHERE id = 1") as pid:
            until(lambda: (slot := reader.look(pid)) and slot.wait.kind == "Lock")
            locked_from = time.monotonic()
            until(lambda: len(swept.series("postgresql.sessions.active", "class")["Lock"]) >= 1)
            locked_s = time.monotonic() - locked_from
            holder.rollback()
            idle_s = time.monotonic() - idle_from
        holder.close()
    waits = swept.waits()
    statement = "update hot set n = ? where id = ?"
    locked = waits[statement, "Lock:transactionid"] / 1e9
    held = waits["idle in transaction", "update hot set n = n + ? where id = ?", "Client:ClientRead"] / 1e9
    # A machine that is busy lets sweeps be late; what they charge is the time that passed.
    assert locked == pytest.approx(locked_s, abs=0.3)
    assert held == pytest.approx(idle_s, abs=0.3)
    assert {profile.labels["role"] for profile in swept.profiles} == {"client backend"}
    assert all(profile.losses.unproven == 0 for profile in swept.profiles)


def test_active_sessions_and_connections(server: Any, until: Callable[..., Any]) -> None:
    """Each second says how many sessions waited for what or ran, and who is connected in which state."""
    with _swept(server) as swept:
        spin = "DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$"
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(running(server, "SELECT pg_sleep(60)"))
            stack.enter_context(running(server, spin))
            idle = stack.enter_context(server.connect(application_name="idler"))
            idle.execute("SELECT 1")
            until(
                lambda: (
                    len(swept.series("postgresql.sessions.active", "class")["cpu"]) >= 2
                    and swept.series("postgresql.connections", "application")["idler"][-1:] == [1]
                )
            )
            by_class = swept.series("postgresql.sessions.active", "class")
    assert by_class["Timeout"][-1] == pytest.approx(2, abs=0.05)
    assert by_class["none"][-1] == pytest.approx(1, abs=0.1)
    # What it does not get of a CPU, it queues for.
    assert by_class["cpu"][-1] + by_class["run queue"][-1] == pytest.approx(1, abs=0.25)
    assert by_class["cpu"][-1] > 0.02
    states = {
        (reading.attributes["state"], reading.attributes["application"]): reading.value
        for reading in swept.readings
        if reading.name == "postgresql.connections"
    }
    assert states["idle", "idler"] in (0, 1)
    opened = [one.value for one in swept.readings if one.name == "postgresql.connections.opened"]
    assert opened[-1] >= 4
    assert opened == sorted(opened)
    assert {one.attributes["source"] for one in swept.readings} == {"shared memory"}


def test_whole_statements(server: Any, until: Callable[..., Any]) -> None:
    """A statement longer than the server keeps is read whole from its backend: its end is in the profile."""
    statement = (
        "SELECT pg_sleep(30), " + ", ".join(f"{n} AS column_{n}" for n in range(200)) + ", 1 AS the_end"
    )
    with _swept(server) as swept, running(server, statement):
        until(lambda: swept.series("postgresql.sessions.active", "class")["Timeout"])
    ((text, wait),) = {frames for frames in swept.waits() if frames[-1] == "Timeout:PgSleep"}
    assert text.endswith("as the_end")
    assert wait == "Timeout:PgSleep"


def test_crashes_are_survived(make_server: Callable[..., Any], until: Callable[..., Any], full: bool) -> None:
    """After kill -9 of a backend nothing is charged to the dead, and the new memory is read."""
    server = make_server("15")
    postmaster = postmaster_of(server)
    with _swept(server) as swept:
        for number in range(100 if full else 2):
            reader = until(lambda: swept.sessions.reader)
            with running(server, f"SELECT pg_sleep(60), {number} AS round_{number}") as pid:
                until(lambda: (slot := reader.look(pid)) and slot.wait.event == "PgSleep")  # noqa: B023 - at once
                victim = server.connect()
                os.kill(victim.info.backend_pid, signal.SIGKILL)
                until(lambda: swept.sessions.reader not in (None, reader), 30.0)  # noqa: B023 - at once
                until(server._answers, 20.0)
                died = time.monotonic()
                until(lambda: time.monotonic() - died > 0.2)  # noqa: B023 - at once
                charged = swept.sessions.reader
                assert charged is not None
                assert charged.look(pid) is None
                victim.close()
        assert postmaster.alive()
        assert swept.sessions.counts()["slots_dead"] >= 1
    server.stop()


def _sources(readings: list[Reading]) -> set[str]:
    """Who said how sessions are."""
    ours = ("postgresql.sessions.active", "postgresql.connections", "postgresql.connections.opened")
    return {one.attributes["source"] for one in readings if one.name in ours}


def test_names_are_learned_once_there_is_a_connection(server: Any, until: Callable[..., Any]) -> None:
    """Without a connection databases are numbers; with one they have names. The view stands by, unused."""
    profiles: list[Profile] = []
    readings: list[Reading] = []
    capabilities = Capabilities()
    options = DatabaseOptions(str(server.pid), server.dsn, "db", {}, 99, 10)
    database = Database(options, capabilities, profiles.extend, readings.extend)
    database.start()
    try:
        assert capabilities.permitted(SHARED_MEMORY)
        sessions = database._sessions
        assert sessions is not None
        with running(server, "SELECT pg_sleep(60)") as pid:

            def named() -> bool:
                reader = sessions.reader
                slot = reader.look(pid) if reader is not None else None
                return slot is not None and (slot.session.database, slot.session.user) == (
                    "postgres",
                    "postgres",
                )

            until(named)
            until(lambda: any(one.name == "postgresql.sessions.active" for one in readings))
    finally:
        database.close()
    assert _sources(readings) == {"shared memory"}
    assert {p.labels["sampler"] for p in profiles if p.type.name == "block"} == {"sessions"}


def test_the_view_stands_in(server: Any, until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory may not be read, polls of the view give the same metrics and profile, marked as theirs."""
    monkeypatch.setattr(
        "quayscope.sidecar.postgres.shared.calibrate",
        lambda _: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")),
    )
    profiles: list[Profile] = []
    readings: list[Reading] = []
    capabilities = Capabilities()
    options = DatabaseOptions(str(server.pid), server.dsn, "db", {}, 99, 10)
    database = Database(options, capabilities, profiles.extend, readings.extend)
    database.start()
    held = {one.name: one for one in capabilities.all()}[SHARED_MEMORY]
    with running(server, "SELECT pg_sleep(60)"):
        until(
            lambda: [
                one
                for one in list(readings)
                if one.name == "postgresql.sessions.active" and one.attributes["class"] == "Timeout"
            ]
        )
    database.close()
    assert not held.permitted
    assert "Operation not permitted" in held.detail
    assert _sources(readings) == {"pg_stat_activity"}
    assert {"postgresql.connections", "postgresql.connections.opened"} <= {one.name for one in readings}
    assert {p.labels["sampler"] for p in profiles if p.type.name == "block"} == {"activity"}


def test_a_refusal_is_tried_again(
    server: Any, until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that cannot be read yet, as while it starts, is read once it can be."""
    refusals = ["not yet", "not yet"]

    def late(*arguments: Any) -> Any:
        return refusals.pop() if refusals else open_reader(*arguments)

    monkeypatch.setattr("quayscope.sidecar.postgres.sessions.open_reader", late)
    swept = Swept(server)
    assert not swept.sessions.start()
    until(lambda: swept.sessions.reading)
    swept.sessions.close(5)
    assert not refusals
    assert not swept.sessions.reading


@pytest.mark.alone
def test_cost_of_two_hundred(make_server: Callable[..., Any]) -> None:
    """Sweeps of 200 active backends 99 times a second take less than a hundredth of a core by either route.

    Asserted is the CPU of sweeps one after another; what a thread takes that wakes 99 times a second, its
    waking included, depends on what else evicts its memory from the caches, and is printed.
    """
    server = make_server("15", "-c", "max_connections=2000")
    with contextlib.ExitStack() as stack:
        backends = [stack.enter_context(running(server, "SELECT pg_sleep(120)")) for _ in range(200)]
        for route, most in (("mapped", 0.01), ("read", 0.02)):
            with reader_of(server, route) as reader:
                reader.sweep()
                deadline = time.monotonic() + 20
                while sum(slot.wait.event == "PgSleep" for slot in reader.sweep()) < len(backends):
                    assert time.monotonic() < deadline
                began = time.thread_time()
                for _ in range(500):
                    reader.sweep()
                share = (time.thread_time() - began) / 500 * 99
                began = time.thread_time()
                for _ in range(99):
                    reader.sweep()
                    time.sleep(1 / 99)
                paced = time.thread_time() - began
                slots = reader.layout.slots
                print(f"{route}: 200 of {slots} slots, {share:.2%} of a core, {paced:.2%} with its waking")
                assert share <= most
        swept = stack.enter_context(_swept(server))
        before, began = swept.sessions.cpu_ns, time.monotonic()
        threading.Event().wait(3)
        spent = swept.sessions.cpu_ns - before
        print(f"the whole thread: {spent / 1e9 / (time.monotonic() - began):.2%}")
    server.stop()
