"""Shared memory that is not what it should be, ends, or may not be read: refused, counted, opened anew."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postgres.reading import ROUTES, postmaster_of, reader_of, running, slot_of
from quayscope.sidecar import procfs
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.postgres.calibrate import calibrate
from quayscope.sidecar.postgres.layout import APPLICATION_POINTER, MAX_TEXT, Layout
from quayscope.sidecar.postgres.memory import read_memory
from quayscope.sidecar.postgres.program import Unreadable
from quayscope.sidecar.postgres.routes import ReadMemory
from quayscope.sidecar.postgres.shared import SHARED_MEMORY, MemoryGone, SharedReader, open_reader


@pytest.fixture(scope="module", params=["13", "15", "18"])
def server(request: pytest.FixtureRequest, server_of: Callable[[str], Any]) -> Any:
    """A server of the majors that are laid out most differently."""
    return server_of(request.param)


def _refusal(server: Any, corrupt: Callable[[int, bytes], bytes]) -> str:
    """Return why a layout is refused whose memory reads otherwise than it is."""

    def read(pid: int, address: int, size: int) -> bytes:
        return corrupt(address, read_memory(pid, address, size))

    with pytest.raises(Unreadable) as refused:
        calibrate(postmaster_of(server), read)
    return str(refused.value)


def _with(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :] if 0 <= at <= len(data) - len(value) else data


def test_what_does_not_agree_is_refused(server: Any) -> None:
    """A layout that is not the expected one, or memory full of garbage, is refused with the reason."""
    layout = calibrate(postmaster_of(server))

    for slot in (0, 9, layout.slots - 1):

        def other_entries(address: int, data: bytes, slot: int = slot) -> bytes:
            pointer = layout.entries + slot * layout.entry_size + APPLICATION_POINTER
            return _with(data, pointer - address, bytes(8))

        assert "evenly spaced entries" in _refusal(server, other_entries)

    def other_procs(address: int, data: bytes) -> bytes:
        return _with(data, layout.procs + 3 * layout.proc_size + 24 - address, bytes(8))

    assert "sizes of PGPROC" in _refusal(server, other_procs)

    def other_pids(address: int, data: bytes) -> bytes:
        return bytes(size) if (size := len(data)) == 128 else data

    assert "holds the pid" in _refusal(server, other_pids)

    def garbage_entries(address: int, data: bytes) -> bytes:
        # One entry read alone: its state is none that this major has.
        return _with(data, 232, b"\x77") if len(data) == layout.entry.size else data

    assert "makes no sense" in _refusal(server, garbage_entries)
    assert _refusal(server, lambda address, data: os.urandom(len(data)))
    assert _refusal(server, lambda address, data: data[: len(data) // 2])

    def nothing(pid: int, address: int, size: int) -> bytes:
        raise PermissionError(1, "Operation not permitted")

    with pytest.raises(Unreadable, match=r"process_vm_readv|only 0 processes"):
        calibrate(postmaster_of(server), nothing)


def test_garbage_is_counted(server: Any) -> None:
    """Entries that point elsewhere than theirs, as in memory that is another server's, are never slots."""
    with reader_of(server, "mapped") as reader, server.connect():
        good = len(reader.sweep())
        assert good >= 4
    postmaster = postmaster_of(server)
    layout = calibrate(postmaster)
    shifted = Layout(**{**vars(layout), "applications": layout.applications + 64})
    reader = SharedReader(postmaster, shifted, ReadMemory(postmaster, shifted))
    assert not reader.sweep()
    assert reader.counts["invalid"] >= 4
    reader.close()


@pytest.mark.parametrize("route", ROUTES)
def test_a_killed_backend_is_no_session(
    make_server: Callable[..., Any], route: str, until: Callable[..., Any]
) -> None:
    """Crash recovery: what the dead left in their slots is never shown, and the memory is opened anew."""
    for major in ("13", "18"):
        server = make_server(major)
        postmaster = postmaster_of(server)
        for _ in range(2):
            with reader_of(server, route) as reader, running(server, "SELECT pg_sleep(60)") as pid:
                victim = server.connect()
                pids = {pid, victim.info.backend_pid}
                until(functools.partial(_shows, reader, pids))
                os.kill(victim.info.backend_pid, signal.SIGKILL)
                _sweep_until_gone(reader)
                victim.close()
            assert postmaster.alive()
            until(server._answers, 20.0)
        with reader_of(server, route) as reader, server.connect() as connection:
            assert slot_of(reader, connection.info.backend_pid) is not None
        server.stop()


def _shows(reader: SharedReader, pids: set[int]) -> bool:
    return pids <= {slot.session.server_pid for slot in reader.sweep()}


def _sweep_until_gone(reader: SharedReader) -> None:
    """Sweep until the memory is gone; whoever was dead before a sweep began must not be in it."""
    deadline = time.monotonic() + 20
    shown = [slot.session.pid for slot in reader.sweep()]
    while time.monotonic() < deadline:
        dead = {pid for pid in shown if _is_dead(pid)}
        try:
            shown = [slot.session.pid for slot in reader.sweep()]
        except MemoryGone:
            return
        assert not dead & set(shown)
    raise AssertionError("the old memory is held")


@pytest.mark.parametrize("route", ROUTES)
def test_a_wait_that_ended_for_a_moment(server: Any, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that only the look at a slot did not show is shown again by the sweep after it."""
    with reader_of(server, route) as reader, running(server, "SELECT pg_sleep(60)") as pid:
        deadline = time.monotonic() + 10
        while (slot := slot_of(reader, pid)) is None or slot.wait.event != "PgSleep":
            assert time.monotonic() < deadline
        look = reader._memory.look
        with monkeypatch.context() as patched:
            patched.setattr(
                reader._memory, "look", lambda wanted: [one._replace(wait=0) for one in look(wanted)]
            )
            reader._forget(reader._slots)
            shown = slot_of(reader, pid)
            assert shown is not None
            assert shown.wait.event == ""
        again = slot_of(reader, pid)
        assert again is not None
        assert again.wait.event == "PgSleep"


def _is_dead(pid: int) -> bool:
    facts = procfs.stat(pid)
    return facts is None or facts.state in "ZX"


def test_restart_is_noticed(make_server: Callable[..., Any]) -> None:
    """When the server ends, the next sweep lets go of its memory; its successor's is another one."""
    server = make_server("17")
    with reader_of(server, "mapped") as reader:
        assert reader.sweep()
        server.stop()
        with pytest.raises(MemoryGone, match="has ended"):
            reader.sweep()
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/zero" in line]
    server.start()
    with reader_of(server, "mapped") as reader:
        assert reader.sweep()
    server.stop()


def test_an_upgrade_in_place_is_survived(make_server: Callable[..., Any], binaries: dict[str, Path]) -> None:
    """A server whose program was replaced on disk is still read by the one that it runs."""
    server = make_server("16")
    program = binaries["16"] / "bin" / "postgres"
    newer = program.with_name("postgres.new")
    shutil.copy2(program, newer)
    newer.replace(program)
    assert str(Path(f"/proc/{server.pid}/exe").readlink()).endswith(" (deleted)")
    with reader_of(server, "mapped") as reader, server.connect() as connection:
        assert slot_of(reader, connection.info.backend_pid) is not None
    server.stop()


def test_a_late_listed_process_is_found(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend whose process was not found at first sight gets its pid with the next check."""
    with reader_of(server, "mapped") as reader, server.connect() as connection:
        own = connection.info.backend_pid
        with monkeypatch.context() as patched:
            patched.setattr(reader._pids, "resolve", lambda pid: None)
            first = slot_of(reader, own)
            assert first is not None
            assert first.session.pid == 0
        reader._check_at = 0
        reader.sweep()
        found = slot_of(reader, own)
        assert found is not None
        assert found.session.pid == own


def test_routes_by_permission(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is mapped where that is permitted, else read; the capability says which, and why."""
    capabilities = Capabilities()
    postmaster = postmaster_of(server)
    mapped = open_reader(postmaster, capabilities)
    assert isinstance(mapped, SharedReader)
    mapped.close()

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("quayscope.sidecar.postgres.shared.MappedMemory", refused)
    reading = open_reader(postmaster, capabilities)
    assert isinstance(reading, SharedReader)
    assert "process_vm_readv" in reading.route
    reading.close()
    (held,) = capabilities.all()
    assert held.name == SHARED_MEMORY
    assert held.permitted
    assert "Operation not permitted" in held.detail
    assert "CHECKPOINT_RESTORE" in held.remedy


@pytest.mark.parametrize("route", ROUTES)
def test_very_long_texts_are_bounded(
    make_server: Callable[..., Any], route: str, until: Callable[..., Any]
) -> None:
    """Of a server that keeps long texts so much is read as is described, and said to be cut."""
    server = make_server("16", "-c", "track_activity_query_size=100000")
    for length in (12_000, 40_000):
        statement = "SELECT pg_sleep(20) /* " + "x" * length + " */"
        with reader_of(server, route) as reader, running(server, statement) as pid:
            until(functools.partial(_sleeps, reader, pid))
            slot = slot_of(reader, pid)
            assert slot is not None
            assert slot.statement.text == statement[:MAX_TEXT]
            assert slot.statement.truncated == (length > MAX_TEXT)
    server.stop()


def _sleeps(reader: SharedReader, pid: int) -> bool:
    slot = slot_of(reader, pid)
    return slot is not None and slot.wait.event == "PgSleep"
