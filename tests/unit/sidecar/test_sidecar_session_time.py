"""What sessions are charged between sweeps whose times are known, and what is made of it each second."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from quayscope.profile import Profile
from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.postgres import naming
from quayscope.sidecar.postgres.active import MAX_APPLICATIONS, ActiveSessions, PolledSessions
from quayscope.sidecar.postgres.activity import Backend, Poll
from quayscope.sidecar.postgres.enums import NO_WAIT, Wait
from quayscope.sidecar.postgres.oids import OidNames
from quayscope.sidecar.postgres.sessions import SessionTime
from quayscope.sidecar.postgres.slots import Session, Slot, Statement
from quayscope.sidecar.windows import SECOND_NS, Windows

_LOCK = Wait("Lock", "transactionid")
_TEN_MS = SECOND_NS // 100
_START = 1000 * SECOND_NS
_UNIX = 1_700_000_000 * SECOND_NS


def _slot(**changes: Any) -> Slot:
    session = Session(0, 7, "client backend", "quay", "quay", "web", "", 1)
    fields: dict[str, Any] = {
        "session": session,
        "state": "active",
        "wait": _LOCK,
        "statement": Statement("UPDATE t SET n = 1", False),
        "query_id": 0,
        "transaction_start_ns": 0,
        "query_start_ns": 0,
        "state_start_ns": 0,
        "leader": 0,
    }
    return Slot(**{**fields, **changes})


class Run:
    """Sweeps that change what is asked for, at times that are asked for."""

    def __init__(self, texts: Any = None) -> None:
        self.profiles: list[Profile] = []
        self.readings: list[Reading] = []
        self.windows = Windows({"service_name": "db"}, 10, self.profiles.extend)
        self.active = ActiveSessions(self.readings.extend, "test")
        self.time = SessionTime(self.windows, "db", self.active, texts)
        self.slots: dict[int, Slot] = {}

    def sweep(self, at_ns: int, **slots: Slot | None) -> None:
        changes = []
        for name, new in slots.items():
            number = int(name[1:])
            old = self.slots.pop(number, None)
            if new is not None:
                self.slots[number] = new
            changes.append((number, old, new))
        reader: Any = SimpleNamespace(changes=changes)
        now_ns, unix_ns = _START + at_ns, _UNIX + at_ns
        if unix_ns // SECOND_NS != self.active.second:
            self.time.report(list(self.slots.values()), unix_ns)
        self.time.seen(reader, now_ns, unix_ns)

    def charged(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        self.time.end()
        self.windows.flush()
        found: dict[tuple[str, ...], tuple[int, ...]] = {}
        for profile in self.profiles:
            for (stack, _), values in profile.samples.items():
                key = tuple(frame.function for frame in stack)
                before = found.get(key, (0, 0))
                found[key] = tuple(a + b for a, b in zip(before, values, strict=True))
        return found


def test_each_interval_is_charged_to_what_ends_it() -> None:
    """A wait seen by n sweeps is charged the n intervals that they end, to the nanosecond."""
    run = Run()
    run.sweep(0)
    run.sweep(_TEN_MS, s1=_slot())
    run.sweep(2 * _TEN_MS)
    run.sweep(5 * _TEN_MS)
    run.sweep(6 * _TEN_MS, s1=_slot(wait=NO_WAIT))
    run.sweep(7 * _TEN_MS, s1=None)
    assert run.charged() == {("db", "update t set n = ?", "Lock:transactionid"): (3, 5 * _TEN_MS)}


def test_idle_transactions_stand_apart_and_idle_is_nothing() -> None:
    """An open transaction's idle time has a root of its own; an idle session has no time."""
    run = Run()
    client = Wait("Client", "ClientRead")
    run.sweep(0)
    run.sweep(
        _TEN_MS,
        s1=_slot(state="idle in transaction", wait=client),
        s2=_slot(state="idle", wait=client),
        s3=_slot(state="", wait=Wait("Activity", "CheckpointerMain")),
    )
    assert run.charged() == {
        ("db", "idle in transaction", "update t set n = ?", "Client:ClientRead"): (1, _TEN_MS)
    }


def test_seconds_end() -> None:
    """What lasts is charged to each second of its own; the second's average is one session."""
    run = Run()
    for tick in range(301):
        run.sweep(tick * _TEN_MS, **({"s1": _slot()} if tick == 50 else {}))
    run.time.end()
    run.windows.flush()
    by_second = {
        attributes.slot_ns - _UNIX: values[1]
        for profile in run.profiles
        for (_, attributes), values in profile.samples.items()
    }
    assert by_second == {0: SECOND_NS // 2, SECOND_NS: SECOND_NS, 2 * SECOND_NS: SECOND_NS + _TEN_MS}
    active = [one.value for one in run.readings if one.attributes.get("class") == "Lock"]
    assert active == pytest.approx([0.5, 1.0, 1.0])


def test_a_gap_is_not_filled() -> None:
    """After sweeps stopped for a minute a second is charged at most: nobody saw the rest."""
    run = Run()
    run.sweep(0)
    run.sweep(_TEN_MS, s1=_slot())
    run.sweep(_TEN_MS + 60 * SECOND_NS)
    ((_, spent),) = run.charged().values()
    assert spent == _TEN_MS + SECOND_NS


def test_new_texts_have_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that there is no time to normalise share one frame and are counted; no time is lost."""
    monkeypatch.setattr(naming, "BUDGET", 3)
    run = Run()
    run.sweep(0)
    run.sweep(
        _TEN_MS, **{f"s{n}": _slot(statement=Statement(f"SELECT {n} FROM t{n}", False)) for n in range(9)}
    )
    charged = run.charged()
    assert sum(spent for _, spent in charged.values()) == 9 * _TEN_MS
    assert charged["db", "statements not named in time", "Lock:transactionid"][1] >= 7 * _TEN_MS
    assert run.time.undescribed >= 7


def test_truncated_statements_are_completed() -> None:
    """A cut text is replaced by the backend's own, if that is the same statement."""
    session = _slot().session._replace(pid=1)
    for whole, expected in (("SELECT 1, 2, a_long_end", "select ?, ?, a_long_end"), ("DELETE", "select ?,")):
        run = Run(SimpleNamespace(statement=lambda pid, whole=whole: whole))
        run.sweep(0)
        run.sweep(_TEN_MS, s1=_slot(session=session, statement=Statement("SELECT 1,", True)))
        ((stack, _),) = run.charged().items()
        assert stack[1] == expected


def test_a_missed_sweep_is_no_new_connection() -> None:
    """A slot that one sweep could not read is the same connection when it is back; seconds later another."""
    run = Run()
    run.sweep(0)
    run.sweep(_TEN_MS, s1=_slot())
    run.sweep(2 * _TEN_MS, s1=None)
    run.sweep(3 * _TEN_MS, s1=_slot())
    run.sweep(SECOND_NS, s1=None)
    run.sweep(2 * SECOND_NS)
    run.sweep(3 * SECOND_NS)
    run.sweep(3 * SECOND_NS + _TEN_MS, s1=_slot())
    run.sweep(4 * SECOND_NS)
    opened = [one.value for one in run.readings if one.name == "postgresql.connections.opened"]
    assert opened[0] == 1
    assert opened[-1] == 2


def _connections(readings: list[Reading]) -> dict[tuple[str, str], float]:
    return {
        (one.attributes["state"], one.attributes["application"]): one.value
        for one in readings
        if one.name == "postgresql.connections"
    }


def test_applications_are_bounded_and_end() -> None:
    """The rarest applications are counted as others; what is no more is nought, once."""
    readings: list[Reading] = []
    active = ActiveSessions(readings.extend, "test")
    active.report(_UNIX, [])
    many = [("idle", f"app {n % 50}") for n in range(100)] + [("idle", "web")] * 5
    active.report(_UNIX + SECOND_NS, many)
    shown = _connections(readings)
    assert len(shown) == MAX_APPLICATIONS + 1
    assert shown["idle", "web"] == 5
    assert sum(shown.values()) == 105
    readings.clear()
    active.report(_UNIX + 2 * SECOND_NS, [])
    assert set(_connections(readings).values()) == {0}
    readings.clear()
    active.report(_UNIX + 3 * SECOND_NS, [])
    assert not _connections(readings)


def test_cpu_and_queue_are_the_schedulers() -> None:
    """A process that was active is charged what its scheduler counted since it was first seen."""
    readings: list[Reading] = []
    active = ActiveSessions(readings.extend, "test")
    active.watch(os.getpid())
    active.report(_UNIX, [])
    active.add("", os.getpid(), SECOND_NS)
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    active.report(_UNIX + SECOND_NS, [])
    by_class = {
        one.attributes["class"]: one.value for one in readings if one.name == "postgresql.sessions.active"
    }
    assert by_class["none"] == 1
    assert by_class["cpu"] >= 0.05
    assert by_class["run queue"] >= 0


def test_polls_give_the_same() -> None:
    """Polls of the view are counted alike, under their own source."""
    readings: list[Reading] = []
    polled = PolledSessions(readings.extend)
    backend = Backend(7, "client backend", "active", "Lock", "tuple", "SELECT 1", 9.0, False, "web")
    for tick in range(21):
        polled.seen(Poll(_UNIX + tick * SECOND_NS // 10, SECOND_NS // 10 if tick else 0, [backend]))
    by_class = {
        one.attributes["class"]: one.value for one in readings if one.name == "postgresql.sessions.active"
    }
    assert by_class["Lock"] == pytest.approx(1.0)
    assert _connections(readings) == {("active", "web"): 1}
    assert {one.attributes["source"] for one in readings} == {"pg_stat_activity"}


def test_oids_are_asked_for_once() -> None:
    """One query learns all names; an oid that has none is not asked for again, and stays its number."""
    asked = []

    def execute(query: str) -> Any:
        asked.append(query)
        rows = [("database", 5, "quay"), ("user", 10, "postgres")]
        return SimpleNamespace(fetchmany=lambda limit: rows[:limit])

    connection: Any = SimpleNamespace(execute=execute)
    names = OidNames()
    names.learn(connection)
    assert not asked
    assert (names.database(0), names.database(5), names.user(10), names.user(77)) == ("", "5", "10", "77")
    version = names.version
    names.learn(connection)
    assert names.version > version
    assert (names.database(5), names.user(10), names.user(77)) == ("quay", "postgres", "77")
    names.learn(connection)
    assert len(asked) == 1
