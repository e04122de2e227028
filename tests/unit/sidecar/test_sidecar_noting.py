"""What is noted at a wake: a copy where that will do, else a careful look; and how much is held."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from quayscope.sidecar.native.records import SAMPLE
from quayscope.sidecar.native.ring import HEAD
from quayscope.sidecar.postgres import sampling
from quayscope.sidecar.postgres.routes import Parts
from quayscope.sidecar.postgres.running import Backend, Noted, Ran
from quayscope.sidecar.postgres.sampling import StatementNotes
from quayscope.sidecar.statements import NO_STATEMENT
from quayscope.sidecar.targets import CLIENT_BACKEND

_SIZE = 4096
_RECORD = 32
_FAULTY = 13
_EVEN, _LATER, _ODD = (struct.pack("<II", counter, 9) for counter in (2, 4, 3))


class _FakeRing:
    """Memory that is written as the kernel writes it."""

    def __init__(self) -> None:
        self.cpu, self.size, self.read, self.noted = 0, _SIZE, 0, 0
        self.control = memoryview(bytearray(4096)).cast("B").cast("Q")
        self.data = memoryview(bytearray(_SIZE))
        self.words = self.data.cast("Q")

    def head(self) -> int:
        return self.control[HEAD]

    def write(self, pid: int, kind: int = SAMPLE, length: int = _RECORD) -> int:
        at = self.head()
        struct.pack_into("<IHHQIIQ", self.data, at % _SIZE, kind, 0, length, 1, pid, pid, at)
        self.control[HEAD] = at + _RECORD
        return at


class _FakeRunning:
    """Knows what it is told to, and writes down who had to be looked at carefully."""

    def __init__(self) -> None:
        self.known: dict[int, Backend] = {}
        self.careful: list[int] = []

    def know(self, pid: int, copy: Callable[[], Parts], size: int = 100) -> None:
        self.known[pid] = Backend(copy, size, 64, pid, SimpleNamespace(), 0, 9)  # type: ignore[arg-type]

    def note(self, pid: int) -> Noted:
        self.careful.append(pid)
        if pid == _FAULTY:
            raise RuntimeError
        return Noted(1, Ran(f"SELECT {pid}", CLIENT_BACKEND, False, pid))

    def noted(self, looked_ns: int, backend: Backend, parts: Parts) -> Noted:
        text = parts[3].partition(b"\0")[0].decode()
        return Noted(looked_ns, Ran(text, CLIENT_BACKEND, False, backend.pid))

    def settle(self, noted: Noted, time_ns: int) -> Ran:
        return noted.ran

    def measure(self) -> None: ...


class _Noting:
    def __init__(self) -> None:
        self.ring, self.running = _FakeRing(), _FakeRunning()
        self.filling = 0
        self.readable = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        rings: Any = SimpleNamespace(
            cpus=[0],
            ring=lambda _: self.ring,
            pass_over=lambda: None,
            released=lambda: {0: self.ring.read},
            descriptors=lambda: [self.readable],
        )
        running: Any = self.running
        self.notes = StatementNotes(rings, running, self._fill)

    def wake(self, pid: int) -> int:
        """Write a sample as the kernel does; returns its place once it was looked at."""
        at = self.ring.write(pid)
        os.eventfd_write(self.readable, 1)
        end = time.monotonic() + 10
        while self.ring.noted <= at:
            assert time.monotonic() < end
            time.sleep(0.001)
        os.eventfd_read(self.readable)
        return at

    def _fill(self) -> None:
        self.filling += 1

    def looks(self, steps: Iterator[None]) -> None:
        """Look after each step."""

        def wait(_: int) -> None:
            self.notes._going = next(steps, self) is None

        ring: Any = self.ring
        self.notes._note(ring, wait)
        assert not self.notes.faults

    def look(self) -> None:
        ring: Any = self.ring
        self.notes._note(ring, None)

    def text(self, at: int, pid: int = 5) -> str | None:
        """What a sample's statement is called."""
        note = self.notes.take((0, at), pid, 1)
        frame = note.described.frame
        return None if frame is None else frame.function


def _parts(text: bytes = b"SELECT now()\0 old", before: bytes = _EVEN, after: bytes = _EVEN) -> Parts:
    return before[0], before, b"", text, after, after[0]


def _gone() -> Parts:
    raise ValueError("mmap closed or invalid")


def _refused() -> Parts:
    raise OSError(3, "No such process")


def test_a_backend_that_is_known_is_copied() -> None:
    """Its slot is copied once a look, however many samples of it there are, and no more is done."""
    noting = _Noting()
    copies: list[int] = []

    def copy() -> Parts:
        copies.append(1)
        return _parts()

    noting.running.know(5, copy)
    first, second, other = (noting.ring.write(pid) for pid in (5, 5, 6))
    noting.look()
    assert noting.ring.noted == noting.ring.head() == 3 * _RECORD
    assert len(copies) == 1
    assert noting.running.careful == [6]
    assert noting.text(first) == noting.text(second) == "select now()"
    assert noting.text(other, 6) == "select ?"
    third = noting.ring.write(5)
    noting.look()
    assert len(copies) == 2
    assert noting.text(third) == "select now()"


@pytest.mark.parametrize(
    "copy",
    [
        lambda: _parts(after=_LATER),
        lambda: _parts(before=_ODD, after=_ODD),
        lambda: _parts(text=b"SELECT now(), 'cut h"),
        _gone,
        _refused,
    ],
    ids=["written meanwhile", "being written", "cut", "unmapped", "ended"],
)
def test_what_a_copy_does_not_tell_is_looked_at(copy: Callable[[], Parts]) -> None:
    """Parts that may not belong together, a text that goes on, memory that is gone: looked at at once."""
    noting = _Noting()
    noting.running.know(5, copy)
    at = noting.ring.write(5)
    noting.look()
    assert noting.running.careful == [5]
    assert noting.text(at) == "select ?"


def test_other_records_are_passed_over() -> None:
    """Records that are no samples, and one without a length, note nothing and do not stop the noting."""
    noting = _Noting()
    noting.ring.write(5, kind=3)
    at = noting.ring.write(7)
    noting.ring.write(8, kind=3, length=0)
    noting.ring.write(9)
    noting.look()
    assert noting.running.careful == [7]
    assert noting.ring.noted == noting.ring.head()
    assert noting.text(at, 7) == "select ?"


def test_around_the_end_of_the_ring() -> None:
    """Positions grow for ever, the memory begins again."""
    noting = _Noting()

    def steps() -> Iterator[None]:
        for _ in range(5 * _SIZE // _RECORD):
            at = noting.ring.write(7)
            yield
            noting.ring.read = noting.ring.head()
            assert noting.text(at, 7) == "select ?"

    noting.looks(steps())
    assert noting.filling == 0


def test_samples_that_nobody_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their notes go with the next that is taken, or when they are gone from the ring; room comes back."""
    noting = _Noting()
    places = [noting.ring.write(pid) for pid in (6, 7, 8, 6, 7)]
    noting.look()
    full = sampling._MAX_HELD
    noting.notes._prune()
    assert noting.text(places[2], 8) is not None
    assert noting.text(places[1], 7) is None
    assert len(noting.notes._notes[0]) == 2
    monkeypatch.setattr(StatementNotes, "alive", True)
    noting.ring.read = places[4]
    noting.notes.look()
    assert len(noting.notes._notes[0]) == 1
    assert 0 < full - noting.notes._room < 2000
    assert noting.text(places[4], 7) is not None
    assert noting.notes._room == full


def test_room_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is no room for is counted, and unproven; a batch is asked for when half of it is used."""
    monkeypatch.setattr(sampling, "_MAX_HELD", 1000)
    monkeypatch.setattr(sampling, "_ROOM_AT_ONCE", 1)
    noting = _Noting()
    noting.running.know(5, _parts, 300)
    places = []

    def steps() -> Iterator[None]:
        for expected in (0, 1, 2, 3):
            places.append(noting.ring.write(5))
            yield
            assert noting.filling == expected

    noting.looks(steps())
    assert noting.notes.unnoted == 1
    assert noting.text(places[2]) == "select now()"
    unnoted = noting.notes.take((0, places[3]), 5, 1)
    assert (unnoted.described, unnoted.role, unnoted.unproven) == (NO_STATEMENT, None, True)


def test_room_is_taken_at_once() -> None:
    """So much that it is seldom asked for; what is not used counts as free at the next batch."""
    noting = _Noting()
    noting.running.know(5, _parts, 300)

    def steps() -> Iterator[None]:
        noting.ring.write(5)
        yield
        assert noting.notes._room == sampling._MAX_HELD - sampling._ROOM_AT_ONCE
        noting.ring.write(5)
        yield
        assert noting.notes._room == sampling._MAX_HELD - sampling._ROOM_AT_ONCE

    noting.looks(steps())
    noting.notes._prune()
    assert noting.notes._room == sampling._MAX_HELD - 2 * 300


def test_a_ring_that_fills_up_is_told() -> None:
    """At half, and again with each further part, not with each sample."""
    noting = _Noting()
    told: list[float] = []

    def steps() -> Iterator[None]:
        for number in range(3 * _SIZE // _RECORD // 4):
            noting.ring.write(7)
            before = noting.filling
            yield
            if noting.filling > before:
                told.append(number * _RECORD / _SIZE)

    noting.looks(steps())
    assert told[0] == 0.5
    assert 4 < len(told) < 9


def test_looks_without_a_thread() -> None:
    """Where the noting thread has ended, the batch notes what is there, unproven as it may be by then."""
    noting = _Noting()
    at = noting.ring.write(7)
    noting.notes.look()
    assert noting.text(at, 7) == "select ?"


def test_a_fault_costs_the_notes_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted, its samples are unproven, and those after it are noted as before."""
    monkeypatch.setattr(sampling, "_may_hurry", lambda: OSError())
    monkeypatch.setattr(sampling, "_PAUSE_S", 0.01)
    noting = _Noting()
    noting.notes.start()
    before, faulty, after = (noting.wake(pid) for pid in (7, _FAULTY, 7))
    noting.notes.close(10)
    os.close(noting.readable)
    assert not noting.notes.alive
    assert noting.notes.faults == 1
    assert noting.text(before, 7) == "select ?"
    unnoted = noting.notes.take((0, faulty), _FAULTY, 1)
    assert unnoted.unproven
    assert noting.text(after, 7) == "select ?"
