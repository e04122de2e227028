"""What a backend's slot proves about an earlier moment, and when the clocks prove nothing."""

from __future__ import annotations

import time

import pytest

from quayscope.sidecar.postgres.join import Clock, Verdict, judge
from quayscope.sidecar.postgres.running import Noted, Ran, Running
from quayscope.sidecar.postgres.slots import BACKGROUND_WORKER, Glance
from quayscope.sidecar.targets import CLIENT_BACKEND, Postmaster

_US = 1000
_AT = 1_700_000_000_000_000_000
_NOW = _AT + 100 * _US
_ERROR = 200


def _glance(state: str, activity_us: int | None, state_us: int | None, kind: str = CLIENT_BACKEND) -> Glance:
    """A slot; times are microseconds from the sample, None: none."""

    def when(us: int | None) -> int:
        return 0 if us is None else _AT + us * _US

    return Glance(kind, state, when(activity_us), when(state_us), b"SELECT 1", False)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (_glance("active", -50, -49), Verdict.STATEMENT),
        (_glance("active", -50, 3), Verdict.STATEMENT),  # the message had come, it was not said yet
        (_glance("active", 10, 11), Verdict.UNKNOWN),
        (_glance("active", -1, 0), Verdict.UNKNOWN),  # within the microsecond and the clocks' error
        (_glance("active", -2, 0), Verdict.STATEMENT),
        (_glance("idle", -50, -5), Verdict.NOTHING),
        (_glance("idle", -50, 5), Verdict.STATEMENT),  # it ended after the sample
        (_glance("idle", -50, 0), Verdict.UNKNOWN),
        (_glance("idle", -50, 1), Verdict.STATEMENT),
        (_glance("idle", 10, 20), Verdict.UNKNOWN),  # another began and ended meanwhile
        (_glance("idle in transaction", -50, 5), Verdict.STATEMENT),
        (_glance("idle in transaction (aborted)", -50, 5), Verdict.STATEMENT),
        (_glance("idle in transaction", -50, -5), Verdict.NOTHING),
        (_glance("fastpath function call", -50, -5), Verdict.NOTHING),
        (_glance("fastpath function call", -50, 5), Verdict.UNKNOWN),
        (_glance("disabled", None, -5), Verdict.UNKNOWN),
        (_glance("starting", None, -5), Verdict.NOTHING),
        (_glance("", None, None), Verdict.NOTHING),
        (_glance("active", None, -5), Verdict.UNKNOWN),
        (_glance("active", -50, -49, BACKGROUND_WORKER), Verdict.STATEMENT),
        (_glance("active", -50, 3, BACKGROUND_WORKER), Verdict.UNKNOWN),
    ],
)
def test_what_a_slot_proves(seen: Glance, verdict: Verdict) -> None:
    """A statement that began before the sample and has not ended before it; nothing is guessed."""
    assert judge(seen, _AT, _NOW, _ERROR) is verdict


@pytest.mark.parametrize(("activity_us", "state_us"), [(-50, 10_000_000), (10_000_000, 10_000_000)])
def test_times_to_come_prove_nothing(activity_us: int, state_us: int) -> None:
    """After the clock was set back, what the server noted before is later than now."""
    for state in ("active", "idle"):
        assert judge(_glance(state, activity_us, state_us), _AT, _NOW, _ERROR) is Verdict.UNKNOWN


def test_clock() -> None:
    """Two readings agree unless the time was set in between."""
    one, other = Clock.read(), Clock.read()
    assert not other.was_set_since(one)
    assert other._replace(offset_ns=other.offset_ns - 50_000_000).was_set_since(one)
    assert other._replace(offset_ns=other.offset_ns + 50_000_000).was_set_since(one)
    assert one.error_ns >= 0


def _settled(running: Running, seen: Glance, text: str | None = None) -> Ran:
    """What a sample taken a millisecond before a look gets, whose slot showed this."""
    now_ns, unix_ns = time.monotonic_ns(), time.time_ns()
    noted = Noted(unix_ns, Ran(None, CLIENT_BACKEND, False, 7), seen, text)
    return running.settle(noted, now_ns - 1_000_000)


def _begun(ago_ns: int) -> Glance:
    start_ns = time.time_ns() - ago_ns
    return Glance(CLIENT_BACKEND, "active", start_ns, start_ns, b"SELECT 1", False)


def test_what_a_sample_gets() -> None:
    """A proven statement's text, whole where it was read whole; nothing, and unproven, what began since."""
    running = Running(Postmaster(1, 0, ""), None)
    assert _settled(running, _begun(5_000_000)) == Ran("SELECT 1", CLIENT_BACKEND, False, 7)
    assert _settled(running, _begun(5_000_000), "SELECT 12") == Ran("SELECT 12", CLIENT_BACKEND, False, 7)
    assert _settled(running, _begun(10_000)) == Ran(None, CLIENT_BACKEND, True, 7)


def test_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was noted while the clock was set is unproven; what comes after is judged by the new time."""
    running = Running(Postmaster(1, 0, ""), None)
    running.measure()
    assert not _settled(running, _begun(5_000_000)).unproven
    clock = Clock.read()
    monkeypatch.setattr(Clock, "read", lambda: clock._replace(offset_ns=clock.offset_ns + 3_600_000_000_000))
    running.measure()
    assert _settled(running, _begun(5_000_000)).unproven
    monkeypatch.setattr(Clock, "read", lambda: clock)
    running.measure()
    assert _settled(running, _begun(5_000_000)).unproven
    running.measure()
    assert not _settled(running, _begun(5_000_000)).unproven
