"""The spool on a real file system: order, bounds, crashes that cut a write off, full disks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from quayscope.relay.spool import Batch, Spool

_LARGE = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path) -> Iterator[Spool]:
    opened = Spool(folder)
    opened.open()
    yield opened
    opened.close()


def _bodies(batch: Batch | None) -> list[bytes]:
    assert batch is not None
    return [entry.body for entry in batch.entries]


def _drain(spool: Spool, lane: str) -> list[bytes]:
    found: list[bytes] = []
    while (batch := spool.take(lane, "spans", _LARGE)) is not None:
        found += _bodies(batch)
        spool.done(batch, len(batch.entries))
    return found


def _reopened(folder: Path) -> Spool:
    opened = Spool(folder)
    opened.open()
    return opened


def test_messages_come_back_in_order_by_kind(spool: Spool) -> None:
    """A batch holds messages of the kind asked for, no more bytes than asked for."""
    for kind, body in (("spans", b"a"), ("spans", b"b"), ("metrics", b"c"), ("spans", b"d" * 50)):
        spool.append(kind, body)
    spool.append("spans", b"e" * 60)
    taken = []
    for kind in ("spans", "metrics", "profiles"):
        while (batch := spool.take("live", kind, 100)) is not None:
            taken.append((batch.entries[0].kind, _bodies(batch)))
            spool.done(batch, len(batch.entries))
    assert taken == [("spans", [b"a", b"b", b"d" * 50]), ("spans", [b"e" * 60]), ("metrics", [b"c"])]
    assert spool.unsent() == 0
    assert spool.take_counts() == (0, 0)


def test_another_process_takes_up_where_one_ended(folder: Path) -> None:
    """What was done is not read again; what was being sent comes as the same group, nothing new in it."""
    first = Spool(folder)
    first.open()
    for body in (b"1", b"2", b"3"):
        first.append("spans", body)
    batch = first.take("live", "spans", _LARGE)
    assert batch is not None
    first.done(batch, 1)
    assert _bodies(first.take("live", "spans", _LARGE)) == [b"2", b"3"]
    first.append("spans", b"4")
    first.close()
    second = _reopened(folder)
    again = second.take("backlog", "spans", _LARGE)
    assert _bodies(again) == [b"2", b"3"]
    assert again is not None
    second.done(again, 2)
    assert _drain(second, "backlog") == [b"4"]
    second.close()
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_what_must_go_alone_goes_alone(spool: Spool) -> None:
    """A group that was sent as one message is neither joined nor split later."""
    spool.append("spans", b"before")
    spool.append("spans", b"group", alone=True)
    spool.append("spans", b"after")
    batches = []
    while (batch := spool.take("live", "spans", _LARGE)) is not None:
        batches.append(_bodies(batch))
        spool.done(batch, len(batch.entries))
    assert batches == [[b"before"], [b"group"], [b"after"]]


def test_fresh_messages_do_not_wait_behind_old_ones(folder: Path) -> None:
    """What comes after the cut is its own lane; a little that lies there is not worth a cut."""
    opened = Spool(folder, 100_000)
    opened.open()
    opened.append("spans", b"little")
    opened.set_aside()
    assert opened.take("backlog", "spans", _LARGE) is None
    opened.append("spans", b"much" * 500)
    opened.set_aside()
    opened.append("spans", b"new")
    assert _drain(opened, "live") == [b"new"]
    assert _drain(opened, "backlog") == [b"little", b"much" * 500]
    opened.close()


@pytest.mark.parametrize("lost", range(1, 14))
def test_a_torn_tail_is_ignored_and_counted(folder: Path, lost: int) -> None:
    """A file that ends anywhere inside its last frame gives the frames before it."""
    first = Spool(folder)
    first.open()
    first.append("spans", b"whole")
    first.append("spans", b"12345")
    first.close()
    (segment,) = folder.glob("*.spool")
    os.truncate(segment, segment.stat().st_size - lost)
    second = _reopened(folder)
    assert _drain(second, "backlog") == [b"whole"]
    assert second.take_counts() == (0, 1)
    second.close()


def test_a_broken_frame_costs_itself_alone(folder: Path) -> None:
    """A byte that the disk changed is noticed; the messages around it are whole."""
    first = Spool(folder)
    first.open()
    for body in (b"first", b"broken", b"last"):
        first.append("spans", body)
    first.close()
    (segment,) = folder.glob("*.spool")
    segment.write_bytes(segment.read_bytes().replace(b"broken", b"brokem"))
    second = _reopened(folder)
    assert _drain(second, "backlog") == [b"first", b"last"]
    assert second.take_counts() == (0, 1)
    second.close()


def test_files_of_others_are_left_alone(folder: Path) -> None:
    """A file that is no segment is not sent, not deleted, and counted; an empty one goes."""
    folder.mkdir()
    (folder / "0000000000000007.spool").write_bytes(b"somebody else's file" * 10)
    (folder / "0000000000000009.spool").touch()
    (folder / "notes.txt").write_text("mine")
    opened = _reopened(folder)
    assert opened.take("backlog", "spans", _LARGE) is None
    assert opened.take_counts() == (0, 2)
    assert opened.append("spans", b"x").segment == 10
    opened.close()
    assert {path.name for path in folder.iterdir()} == {
        "0000000000000007.spool",
        "0000000000000010.spool",
        "notes.txt",
        "lock",
    }


def test_the_oldest_go_first_and_are_counted(folder: Path) -> None:
    """A full spool stays within its bound; dropped and left add up to what was put in."""
    opened = Spool(folder, 100_000)
    opened.open()
    for number in range(1000):
        opened.append("spans", b"%04d" % number * 100)
        assert sum(path.stat().st_size for path in folder.glob("*.spool")) <= 100_000
    left = _drain(opened, "live")
    dropped, torn = opened.take_counts()
    assert dropped + len(left) == 1000
    assert torn == 0
    assert len(left) > 200
    assert left[-1] == b"0999" * 100
    with pytest.raises(OSError, match="more than the spool holds"):
        opened.append("spans", b"x" * 100_000)
    opened.close()


def test_what_is_being_sent_is_not_dropped(folder: Path) -> None:
    """A batch that is under way is counted once: as sent."""
    opened = Spool(folder, 50_000)
    opened.open()
    opened.append("spans", b"first")
    batch = opened.take("live", "spans", _LARGE)
    assert batch is not None
    for _ in range(200):
        opened.append("spans", b"x" * 1000)
    opened.done(batch, 1)
    left = _drain(opened, "live")
    assert opened.take_counts()[0] + len(left) == 200
    opened.close()


def test_two_processes_do_not_share_a_spool(spool: Spool, folder: Path) -> None:
    """The second one is refused while the first lives."""
    program = (
        "import sys, pathlib; from quayscope.relay.spool import Spool\n"
        "try: Spool(pathlib.Path(sys.argv[1])).open()\n"
        "except BlockingIOError: sys.exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(folder)], check=False).returncode == 7


def _fill(spool: Spool) -> int:
    for kept in range(1000):
        try:
            spool.append("spans", b"x" * 10_000)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return kept
            raise
    raise AssertionError("the disk is larger than it was made")


def test_a_full_disk_is_an_error_that_changes_nothing(small_disk: Path) -> None:
    """Where the file system has no room the append raises, and what was there before is whole."""
    opened = Spool(small_disk / "spool")
    opened.open()
    kept = _fill(opened)
    assert kept > 10
    assert len(_drain(opened, "live")) == kept
    opened.append("spans", b"y")
    opened.close()
    again = _reopened(small_disk / "spool")
    assert _drain(again, "backlog") == [b"y"]
    assert again.take_counts() == (0, 0)
    again.close()


def test_many_threads_append_while_one_sends(spool: Spool) -> None:
    """Nothing is lost, doubled or mixed, and each is on disk when its thread goes on."""

    def append(name: int) -> None:
        for number in range(50):
            spool.sync(spool.append("spans", b"%d-%d" % (name, number)))

    threads = [threading.Thread(target=append, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    found: list[bytes] = []
    while any(thread.is_alive() for thread in threads) or spool.unsent():
        found += _drain(spool, "live")
    assert sorted(found) == sorted(b"%d-%d" % (name, number) for name in range(6) for number in range(50))
