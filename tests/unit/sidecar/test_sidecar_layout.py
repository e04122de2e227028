"""Entries of shared memory from bytes: their form, what is refused, addresses, texts, mappings."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quayscope.sidecar.postgres.calibrate import calibrate
from quayscope.sidecar.postgres.enums import MAJORS, NO_WAIT, names_of
from quayscope.sidecar.postgres.layout import CLIENT_ADDRESS, ENTRY_SIZES, EPOCH_US, Layout
from quayscope.sidecar.postgres.oids import OidNames
from quayscope.sidecar.postgres.program import Unreadable, is_mapped, program_of, regions
from quayscope.sidecar.postgres.routes import Look
from quayscope.sidecar.postgres.slots import Decoder, Slot
from quayscope.sidecar.targets import Postmaster

_NUMBER = 7


def _layout(major: int) -> Layout:
    return Layout(
        major=major,
        segment=(0x10000, 0x90000),
        inode=1,
        entries=0x20000,
        entry_size=ENTRY_SIZES[major],
        slots=89,
        applications=0x40000,
        activities=0x50000,
        activity_size=1024,
        procs=0x60000,
        proc_size=880,
        proc_count=87,
        proc_pid=64,
        proc_wait=712,
        proc_leader=840,
    )


def _entry(major: int, **changes: int) -> bytes:
    layout = _layout(major)
    fields = {
        "counter": 4,
        "pid": 4242,
        "backend_type": names_of(major).backend_types.index("client backend"),
        "proc_start": 1_000_000,
        "transaction_start": 2_000_000,
        "activity_start": 3_000_000,
        "state_start": 4_000_000,
        "database": 5,
        "user": 10,
        "state": names_of(major).states.index("active"),
        "application": layout.applications + _NUMBER * 64,
        "activity": layout.activities + _NUMBER * 1024,
        "query_id": -3,
    }
    values = {**fields, **changes}
    if major == 13:
        del values["query_id"]
    return layout.entry.pack(*values.values())


def _look(entry: bytes, text: bytes = b"SELECT 1", wait: int = 0) -> Look:
    name = b"quay\0".ljust(64, b"x")
    return Look(entry, entry[:8], wait, name, text, entry[:48], entry[:8], name)


def _slot(major: int, look: Look) -> Slot:
    decoder = Decoder(_layout(major), names_of(major), OidNames())
    entry = decoder.entry(_NUMBER, look)
    assert entry is not None
    return decoder.slot(decoder.session(entry, look, 99, "client backend"), entry, look, 0)


@pytest.mark.parametrize("major", MAJORS)
def test_an_entry_of_each_major(major: int) -> None:
    """All fields are where the major has them, times count from 1970, names stand for numbers."""
    slot = _slot(major, _look(_entry(major), wait=0x03000005))
    assert slot.session[:7] == (99, 4242, "client backend", "5", "10", "quay", "")
    assert slot.session.started_ns == (EPOCH_US + 1_000_000) * 1000
    assert (slot.transaction_start_ns, slot.query_start_ns, slot.state_start_ns) == tuple(
        (EPOCH_US + second * 1_000_000) * 1000 for second in (2, 3, 4)
    )
    assert slot.state == "active"
    assert slot.active
    assert slot.wait == ("Lock", "transactionid")
    assert slot.statement == ("SELECT 1", False)
    assert slot.query_id == (0 if major == 13 else -3)


def test_no_time_is_zero() -> None:
    """A time that Postgres does not have is none, not the year 2000."""
    slot = _slot(15, _look(_entry(15, transaction_start=0)))
    assert slot.transaction_start_ns == 0
    assert slot.wait == NO_WAIT


@pytest.mark.parametrize(
    "changes",
    [{"application": 0x40000}, {"activity": 0x50000}, {"state": 99}, {"state": -1}, {"backend_type": 99}],
)
def test_what_cannot_be_an_entry(changes: dict[str, int]) -> None:
    """An entry that points at another's texts, or whose numbers mean nothing, is none."""
    decoder = Decoder(_layout(15), names_of(15), OidNames())
    assert decoder.entry(_NUMBER, _look(_entry(15, **changes))) is None
    assert decoder.entry(_NUMBER + 1, _look(_entry(15))) is None


@given(st.sampled_from(MAJORS), st.binary(min_size=432, max_size=432), st.binary(max_size=1024))
def test_garbage_is_refused_or_read(major: int, data: bytes, text: bytes) -> None:
    """No bytes raise: what is no entry is refused, and any text of an entry is a text."""
    layout = _layout(major)
    decoder = Decoder(layout, names_of(major), OidNames())
    look = _look(data[: layout.entry.size], text)
    assert isinstance(look.steady(), bool)
    decoder.entry(_NUMBER, look)
    assert isinstance(_slot(major, _look(_entry(major), text)).statement.text, str)


def test_a_text_is_cut_at_a_whole_character() -> None:
    """A full buffer ends in the middle of a character: that half is left out, and the text marked."""
    statement = _slot(15, _look(_entry(15), b"a" * 1022 + "é".encode()[:1])).statement
    assert statement == ("a" * 1022, True)
    assert _slot(15, _look(_entry(15), b"ok \xff")).statement == ("ok \ufffd", False)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (struct.pack("<H2x4s", 2, bytes([10, 0, 0, 7])), "10.0.0.7"),
        (struct.pack("<H6x16s", 10, bytes(15) + b"\1"), "::1"),
        (struct.pack("<H", 1), ""),
        (b"\xff\xff", ""),
    ],
)
def test_client_addresses(address: bytes, text: str) -> None:
    """Addresses of both families are shown, a Unix socket has none."""
    entry = bytearray(_entry(16))
    entry[CLIENT_ADDRESS : CLIENT_ADDRESS + len(address)] = address
    assert _slot(16, _look(bytes(entry))).session.client == text


def test_what_was_written_meanwhile() -> None:
    """Parts belong together when nobody wrote, or wrote only what is not read here; else they do not."""
    entry = _entry(15)
    quiet = _look(entry)
    assert quiet.steady()
    moved = struct.pack("<i", 6) + entry[4:8]
    same = quiet._replace(times=moved + entry[8:48], counter=moved)
    assert same.steady()
    later = struct.pack("<q", 9_000_000)
    assert not same._replace(times=moved + entry[8:32] + later + entry[40:48]).steady()
    assert not same._replace(application_again=b"other".ljust(64, b"\0")).steady()
    assert not same._replace(entry_counter=moved).steady()
    odd = struct.pack("<i", 5) + entry[4:8]
    assert not quiet._replace(counter=odd).steady()
    assert not quiet._replace(entry=odd + entry[8:], counter=odd).steady()
    assert not quiet._replace(counter=moved).steady()


def test_mappings_of_a_process() -> None:
    """A process's mappings are read with permissions, inode and path; the gone have none."""
    mine = regions(os.getpid())
    assert any(one.path == "[stack]" and one.permissions.startswith("rw") for one in mine)
    assert all(one.start < one.end for one in mine)
    with pytest.raises(OSError, match="No such"):
        regions(2**22 + 1)


@pytest.mark.parametrize("shown", [True, False])
def test_one_mapping_of_a_process(shown: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mapping is known by its addresses and its file, with and without leave to look behind it."""
    if not shown:

        def refused(path: str) -> None:
            raise PermissionError(path)

        monkeypatch.setattr("quayscope.sidecar.postgres.program.os.stat", refused)
    path = tmp_path / "mapped"
    path.write_bytes(bytes(2 * mmap.PAGESIZE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        (one,) = (one for one in regions(os.getpid()) if one.path == str(path))
        assert is_mapped(os.getpid(), one.start, one.end, one.inode)
        assert not is_mapped(os.getpid(), one.start, one.end, one.inode + 1)
        assert not is_mapped(os.getpid(), one.start, one.end - mmap.PAGESIZE, one.inode)
    assert not is_mapped(os.getpid(), one.start, one.end, one.inode)
    with pytest.raises(OSError, match="No such"):
        is_mapped(2**22 + 1, one.start, one.end, one.inode)


@pytest.mark.parametrize("version", ["12", "19", "fifteen", ""])
def test_other_majors_are_refused(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of another major, or none at all, is refused by what PG_VERSION says."""
    (tmp_path / "PG_VERSION").write_text(f"{version}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unreadable, match="is not one of 13 to 18"):
        program_of(Postmaster(os.getpid(), 0, str(tmp_path)))


def test_a_program_that_is_no_postgres_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose program does not export what a server's does is refused by what is missing."""
    (tmp_path / "PG_VERSION").write_text("15\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unreadable, match="does not export MaxBackends"):
        calibrate(Postmaster(os.getpid(), 0, str(tmp_path)))
