"""A second's records on a real socket: within a packet's size, in order, and counted where they are lost."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quayscope.agent import faults
from quayscope.agent.context import Request
from quayscope.agent.cpu import CpuSampler
from quayscope.agent.frames import MAX_DEPTH, Stacker
from quayscope.agent.records import MAX_PACKET, RecordWriter
from quayscope.agent.requests import RequestCounter
from quayscope.agent.slots import SlotLength
from quayscope.agent.stalls import StallTimer
from quayscope.agent.turns import Turns
from quayscope.agent.writing import RecordStream


class Gathered:
    """What a worker gathers, and the stream that writes it."""

    def __init__(self, path: Path) -> None:
        self.stacker = Stacker()
        length = SlotLength()
        self.turns = Turns(self.stacker, length, 50_000_000)
        self.cpu = CpuSampler(self.stacker, self.turns, length, 100)
        self.stalls = StallTimer(self.stacker, self.turns, length, comment=False)
        self.requests = RequestCounter(slow_ns=10**9)
        self.writer = RecordWriter(str(path), lambda: {"k": "hello", "pid": os.getpid()})
        self.stream = RecordStream(
            self.stacker, self.cpu, self.stalls, self.turns, self.requests, self.writer
        )

    def sample(self, depth: int, about: Request | None = None, spent: int = 7) -> None:
        """Gather one sample of a stack with at least this many frames."""
        if depth > 0:
            return self.sample(depth - 1, about, spent)
        self.cpu.samples.now()[about, self.stacker.take(sys._getframe())] = [spent, 1]
        return None

    def write(self) -> list[bool]:
        """Write everything; return for each packet whether it was accepted."""
        return list(self.stream.write(everything=True))


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.settimeout(5)
        yield listener


@pytest.fixture
def gathered(tmp_path: Path) -> Iterator[Gathered]:
    faults.take()
    gathered = Gathered(tmp_path / "socket")
    yield gathered
    gathered.writer.close()
    faults.take()


def read(connection: socket.socket) -> list[dict[str, Any]]:
    """Return the records that lie in the socket."""
    connection.setblocking(False)
    records: list[dict[str, Any]] = []
    while True:
        try:
            packet = connection.recv(65_536)
        except BlockingIOError:
            return records
        if not packet:
            return records
        assert len(packet) <= MAX_PACKET
        assert b'": ' not in packet
        records.append(json.loads(packet))


def accept(listener: socket.socket) -> socket.socket:
    return listener.accept()[0]


def test_definitions_come_before_their_use(listener: socket.socket, gathered: Gathered) -> None:
    """After the hello each stack's frames are defined once, root first, ours left out."""
    about = Request()
    about.method, about.rule, about.run = "GET", "/a/<b>", "r1"
    for whose in (about, None):
        gathered.sample(3, whose)
        gathered.write()
    with accept(listener) as connection:
        records = read(connection)
    assert [record["k"] for record in records] == ["hello", "frame", "stacks", "counts", "stacks", "counts"]
    frames = {number: (function, file) for number, function, file, _ in records[1]["f"]}
    ((spent, count, described, ids),) = records[2]["s"]
    assert (spent, count, described) == (7, 1, ["GET /a/<b>", "", "", "r1", ""])
    assert [frames[number] for number in ids][-4:] == [("Gathered.sample", __file__)] * 4
    assert records[4]["s"][0][2] is None
    assert records[2]["t"] % 10**9 == 0


def test_a_new_reader_is_told_everything_again(listener: socket.socket, gathered: Gathered) -> None:
    """After a reconnect frames are defined anew, and what the break cost is counted."""
    gathered.sample(1)
    gathered.write()
    accept(listener).close()
    gathered.sample(1)
    gathered.write()
    gathered.sample(1)
    gathered.write()
    with accept(listener) as connection:
        records = read(connection)
    assert [record["k"] for record in records] == ["hello", "frame", "stacks", "counts"]
    assert records[3]["c"]["packets_dropped"] == 1
    assert records[3]["c"]["records_dropped"] == 1


def test_a_full_queue_drops_and_counts(listener: socket.socket, gathered: Gathered) -> None:
    """Nobody reads: packets are refused at once, and the reader learns how many once it reads."""
    with_reader: list[dict[str, Any]] = []
    for _ in range(40):
        for depth in range(40):
            gathered.sample(depth, Request())
        gathered.write()
    with accept(listener) as connection:
        with_reader += read(connection)
        gathered.write()
        with_reader += read(connection)
    kinds = Counter(record["k"] for record in with_reader)
    dropped = sum(record["c"].get("packets_dropped", 0) for record in with_reader if record["k"] == "counts")
    assert dropped > 10
    assert kinds["stacks"] < 80
    # No stack names a frame that its reader was not told.
    known = {row[0] for record in with_reader if record["k"] == "frame" for row in record["f"]}
    used = {n for record in with_reader if record["k"] == "stacks" for row in record["s"] for n in row[3]}
    assert used <= known


def test_without_a_reader_records_are_counted(gathered: Gathered) -> None:
    """No socket: each record that cannot be written is counted, and nothing is raised."""
    for depth in range(5):
        gathered.sample(depth)
    assert gathered.write() == []
    assert faults.take() == {"records_dropped": 5}


def test_deep_stacks_are_cut_and_marked(listener: socket.socket, gathered: Gathered) -> None:
    """A stack deeper than the limit keeps its leaf and says that its root is missing."""
    gathered.sample(MAX_DEPTH + 10)
    gathered.write()
    with accept(listener) as connection:
        records = read(connection)
    frames = {row[0]: row[1:] for record in records if record["k"] == "frame" for row in record["f"]}
    (ids,) = [row[3] for record in records if record["k"] == "stacks" for row in record["s"]]
    assert frames[ids[0]] == ["[truncated]", "[root]", 0]
    assert len(ids) == MAX_DEPTH + 1


def test_requests_fall_into_their_buckets(listener: socket.socket, gathered: Gathered) -> None:
    """A finished request is one row with its duration in one bucket."""
    request = Request()
    request.method, request.rule, request.status = "PUT", "/x", 201
    gathered.requests.finished(request)
    gathered.write()
    with accept(listener) as connection:
        (row,) = next(record for record in read(connection) if record["k"] == "requests")["r"]
    assert row[:5] == ["PUT /x", 201, "", "", 1]
    assert row[8:] == [[1] + [0] * 14] * 3
    assert 0 < row[5] < 5e6


def test_the_telling_requests_are_kept_one_by_one(listener: socket.socket, gathered: Gathered) -> None:
    """Failed, slow and sampled requests travel alone too, each with a trace id; the others do not."""
    for status, span, slow in (
        (503, "", False),
        (200, "", True),
        (200, "b7ad6b7169203331", False),
        (200, "", False),
    ):
        request = Request()
        request.method, request.rule, request.status, request.span_id = "GET", "/x", status, span
        request.started_ns -= 2 * 10**9 if slow else 0
        gathered.requests.finished(request)
    gathered.write()
    with accept(listener) as connection:
        rows = next(record for record in read(connection) if record["k"] == "kept")["r"]
    assert [row[10] for row in rows] == ["failed", "slow", "sampled"]
    assert all(len(row[8]) == 32 and row[:4] == ["GET /x", row[1], "", ""] for row in rows)
    assert rows[2][9] == "b7ad6b7169203331"
