"""Waits and CPU from what the server says, on polls with known times."""

from __future__ import annotations

import os
import time

import pytest

from quayscope.profile import Profile
from quayscope.sidecar import procfs
from quayscope.sidecar.postgres.activity import Backend, Poll
from quayscope.sidecar.postgres.cpu import ActivityCpu
from quayscope.sidecar.postgres.waits import Waits
from quayscope.sidecar.windows import SECOND_NS, Windows

_TENTH = SECOND_NS // 10


def _backend(**changes: object) -> Backend:
    fields: dict[str, object] = {
        "pid": 7,
        "kind": "client backend",
        "state": "active",
        "wait_type": "Lock",
        "wait": "transactionid",
        "query": "UPDATE t SET n = 1",
        "age_s": 100.0,
        "local": True,
    }
    return Backend(**{**fields, **changes})  # type: ignore[arg-type] # fields by name, as the test reads best


def _waits(*polls: Poll) -> list[Profile]:
    out: list[Profile] = []
    windows = Windows({"service_name": "db"}, 10, out.extend)
    waits = Waits(windows, "db")
    for poll in polls:
        waits.seen(poll)
    windows.flush()
    return out


def test_wait_weighs_the_time_between_polls() -> None:
    """Each look charges the measured interval before it; the first has none."""
    profiles = _waits(
        Poll(100 * SECOND_NS, 0, [_backend()]),
        Poll(100 * SECOND_NS + _TENTH, _TENTH, [_backend()]),
        Poll(101 * SECOND_NS, 9 * _TENTH, [_backend()]),
    )
    assert [profile.type.name for profile in profiles] == ["block"]
    assert profiles[0].totals() == (2, SECOND_NS)
    names = {tuple((frame.function, frame.kind) for frame in stack) for stack, _ in profiles[0].samples}
    assert names == {(("db", "root"), ("update t set n = ?", "sql"), ("Lock:transactionid", "wait"))}
    assert profiles[0].losses.unproven == 2


def test_a_gap_is_not_filled() -> None:
    """After a long gap only a second is charged: nobody saw the rest."""
    assert _waits(Poll(SECOND_NS, 60 * SECOND_NS, [_backend()]))[0].totals() == (1, SECOND_NS)


@pytest.mark.parametrize(
    "changes",
    [
        {"wait": "", "wait_type": ""},
        {"state": "idle", "wait_type": "Client", "wait": "ClientRead"},
        {"state": "", "kind": "checkpointer", "wait_type": "Activity", "wait": "CheckpointerMain"},
    ],
)
def test_what_does_not_wait(changes: dict[str, object]) -> None:
    """Running, idle and background processes at rest are no blocked time."""
    assert _waits(Poll(SECOND_NS, _TENTH, [_backend(**changes)])) == []


def test_idle_in_transaction_stands_apart() -> None:
    """An open transaction whose client does something else is shown under a root of its own."""
    backend = _backend(state="idle in transaction", wait_type="Client", wait="ClientRead")
    ((stack, _),) = _waits(Poll(SECOND_NS, _TENTH, [backend]))[0].samples
    assert [frame.function for frame in stack] == [
        "db",
        "idle in transaction",
        "update t set n = ?",
        "Client:ClientRead",
    ]


def _burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_cpu_goes_to_the_statement_seen() -> None:
    """The CPU clock's growth between two looks is charged to what the second shows, to the nanosecond."""
    out: list[Profile] = []
    windows = Windows({"service_name": "db"}, 10, out.extend)
    cpu = ActivityCpu(windows, "db")
    cpu.enabled = True
    backend = _backend(pid=os.getpid())
    before = procfs.cpu_ns(os.getpid())
    cpu.seen(Poll(SECOND_NS, 0, [backend]))
    _burn(0.05)
    cpu.seen(Poll(SECOND_NS + _TENTH, _TENTH, [backend]))
    after = procfs.cpu_ns(os.getpid())
    windows.flush()
    assert before is not None
    assert after is not None
    count, charged = out[0].totals()
    assert count == 1
    assert 50_000_000 <= charged <= after - before
    assert out[0].losses.unproven == 1


def test_cpu_of_newcomers_and_strangers() -> None:
    """A backend born since the last look is charged whole; one that is not ours here, never."""
    out: list[Profile] = []
    windows = Windows({"service_name": "db"}, 10, out.extend)
    cpu = ActivityCpu(windows, "db")
    cpu.enabled = True
    cpu.seen(Poll(SECOND_NS, _TENTH, [_backend(pid=os.getpid(), local=False)]))
    windows.flush()
    assert out == []
    cpu.seen(Poll(SECOND_NS, _TENTH, [_backend(pid=os.getpid(), age_s=0.01)]))
    windows.flush()
    assert out[0].totals()[1] > 0
    cpu.enabled = False
    cpu.seen(Poll(SECOND_NS, _TENTH, [_backend(pid=os.getpid(), age_s=0.01)]))
    windows.flush()
    assert len(out) == 1
