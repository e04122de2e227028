"""What the readings of resources share: names, sums that go back, missing files, answers of sock_diag."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics_table import PAGE, with_table
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.measurements import Meter, Reading
from quayscope.sidecar.resources.busiest import Busiest
from quayscope.sidecar.resources.counters import Counters, boot_ns
from quayscope.sidecar.resources.disks import Disks
from quayscope.sidecar.resources.names import (
    ACCEPT_QUEUE,
    CONTAINER_CPU,
    INSTRUMENTS,
    PROCESS_DISK_IO,
    PROCESS_PID,
    SYSTEM_CPU,
)
from quayscope.sidecar.resources.network import parse_snmp
from quayscope.sidecar.resources.node import node_readings
from quayscope.sidecar.resources.processes import Process, Used
from quayscope.sidecar.resources.sockets import (
    MOST_SOCKETS,
    Address,
    Listener,
    SocketDiagnosis,
    parse_inet,
    parse_unix,
    queue_readings,
    split_messages,
)
from quayscope.sidecar.resources.tried import DISKS, NODE, SOCKETS, Tried, read_text


def test_every_metric_stands_in_the_docs() -> None:
    """With kind, unit, attributes and source; else run `python tests/metrics_table.py`."""
    page = PAGE.read_text()
    assert with_table(page) == page
    assert all(f"| `{name}` |" in page for name in INSTRUMENTS)


def test_a_sum_that_went_back_began_anew_after_it_was_last_read() -> None:
    """Until then it began where its counters did; others are not touched by it."""
    counters = Counters(1000)
    user, system = {"cpu.mode": "user"}, {"cpu.mode": "system"}
    assert counters.at(CONTAINER_CPU, 5.0, user).start_ns == 1000
    counters.at(CONTAINER_CPU, 9.0, system)
    before = time.time_ns()
    assert counters.at(CONTAINER_CPU, 6.0, user).start_ns == 1000
    read_at = time.time_ns()
    again = counters.at(CONTAINER_CPU, 0.5, user)
    assert before <= again.start_ns <= read_at
    assert again.value == 0.5
    assert counters.at(CONTAINER_CPU, 0.7, user).start_ns == again.start_ns
    assert counters.at(CONTAINER_CPU, 9.0, system).start_ns == 1000


def test_a_sum_that_may_fall_by_a_rounding_is_held() -> None:
    """iowait does not begin anew for a tick: it stays where it was."""
    counters = Counters(1000)
    iowait = {"cpu.mode": "iowait"}
    readings = [counters.highest(SYSTEM_CPU, value, iowait) for value in (4.0, 3.99, 4.2)]
    assert [(reading.value, reading.start_ns) for reading in readings] == [
        (4.0, 1000),
        (4.0, 1000),
        (4.2, 1000),
    ]


def test_counters_know_a_bounded_number_of_sums() -> None:
    """More than 4,096 are forgotten, not kept."""
    counters = Counters(1000)
    for number in range(10_000):
        counters.at(CONTAINER_CPU, number, {"cpu.mode": str(number)})
    assert len(counters._last) <= 4096


def test_boot_is_when_the_kernel_says() -> None:
    """Within a second of btime."""
    (line,) = [line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime ")]
    assert abs(boot_ns() / 1e9 - int(line.split()[1])) < 1.5


def test_a_reading_of_its_own_start_keeps_it() -> None:
    """The meter's start stands for those that have none."""
    sent: list[bytes] = []
    meter = Meter({}, sent.append)
    own, none = (Reading("a", "cumulative", 1, "1", {}, start) for start in (12345, 0))
    meter.emit([own])
    meter.emit([none])
    assert struct.pack("<Q", 12345) in sent[0]
    assert struct.pack("<Q", 12345) not in sent[1]


def test_what_is_missing_is_said_once_and_what_comes_back_too(tmp_path: Path) -> None:
    """The same refusal, second by second, is one change; no other capability is touched."""
    capabilities = Capabilities()
    tried = Tried()
    path = tmp_path / "diskstats"
    for _ in range(5):
        assert tried.read(DISKS, str(path), "/proc/diskstats") is None
        tried.report(capabilities)
    (missing,) = capabilities.all()
    assert (missing.name, missing.permitted, capabilities.changes) == (DISKS, False, 1)
    assert missing.detail == "/proc/diskstats: No such file or directory (ENOENT)"
    assert missing.remedy
    path.write_text("8 0 sda\n")
    assert tried.read(DISKS, str(path)) == "8 0 sda\n"
    tried.report(capabilities)
    assert capabilities.permitted(DISKS)
    assert capabilities.changes == 2


def test_many_refusals_are_one_bounded_detail() -> None:
    """Three by name, the others by number; one that worked does not hide them."""
    capabilities, tried = Capabilities(), Tried()
    tried.worked(NODE)
    for number in range(9):
        tried.refused(NODE, f"file {number}", OSError(errno.EACCES, "Permission denied"))
        tried.refused(NODE, f"file {number}", OSError(errno.EACCES, "Permission denied"))
    tried.report(capabilities)
    (held,) = capabilities.all()
    assert not held.permitted
    assert held.detail.count("EACCES") == 3
    assert held.detail.endswith("6 more")
    assert held.name != SOCKETS


def test_what_a_container_put_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe is empty, a link is refused, and a file without end is cut."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/proc/self/environ")
    assert read_text(str(tmp_path / "pipe")) == ""
    with pytest.raises(OSError, match="symbolic links"):
        read_text(str(tmp_path / "link"))
    assert len(read_text("/dev/zero")) == 1 << 20


class Recorded(Tried):
    """Files as a kernel wrote them."""

    def __init__(self, **files: str) -> None:
        super().__init__()
        self.files = files

    def read(self, capability: str, path: str, called: str = "") -> str | None:
        return self.files.get(path.rsplit("/", 1)[1])


def test_the_nodes_run_queue_delay() -> None:
    """The eighth number of each CPU, in nanoseconds; lines of scheduling domains are others."""
    schedstat = """version 15
timestamp 4295217358
cpu0 0 0 2719 801 1312 640 2500000000 1500000000 1918
domain0 3 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36
cpu1 0 0 2719 801 1312 640 2500000000 500000000 1918
"""
    readings = list(node_readings(Recorded(schedstat=schedstat), Counters(1)))
    assert [(reading.name, reading.value) for reading in readings] == [("quayscope.system.cpu.delay", 2.0)]


def test_a_disk_whose_counter_is_full_begins_anew() -> None:
    """32 bits of milliseconds are 50 days: the second in which they run over has no latency, the next has."""
    line = "   8       0 sdz {} 0 {} {} 5 0 40 10 0 {} 0 0 0 0 0 0 0\n"
    loop = "   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
    tried = Recorded()
    disks = Disks(Counters(1))
    values = []
    for numbers in ((100, 800, 4294967290, 4294967200), (110, 880, 50, 100), (120, 960, 150, 200)):
        tried.files["diskstats"] = loop + line.format(*numbers)
        values.append({(r.name, r.attributes.get("disk.io.direction")): r for r in disks.readings(tried)})
    latency = ("quayscope.system.disk.latency", "read")
    assert [latency in found for found in values] == [False, False, True]
    assert values[2][latency].value == pytest.approx(0.01)
    sums = [found["system.disk.operation_time", "read"] for found in values]
    assert sums[0].start_ns == 1 < sums[1].start_ns == sums[2].start_ns
    assert values[2]["system.disk.io", "read"].value == 960 * 512
    assert {r.attributes["system.device"] for found in values for r in found.values()} == {"sdz"}


def test_a_group_of_counters_by_name() -> None:
    """Names above, numbers below; another group's, or a name that is not there, is none."""
    text = "IpExt: InOctets\nIpExt: 7\nTcpExt: ListenOverflows ListenDrops Odd\nTcpExt: 3 -1 x\n"
    assert parse_snmp(text, "TcpExt", ("ListenOverflows", "ListenDrops", "Odd", "Gone")) == {
        "ListenOverflows": 3
    }
    assert parse_snmp("TcpExt: ListenOverflows\n", "TcpExt", ("ListenOverflows",)) == {}


def _unix(*attributes: tuple[int, bytes]) -> bytes:
    body = struct.pack("=BBBBI8s", 1, 1, 10, 0, 4242, b"")
    for kind, value in attributes:
        body += struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
    return body


def test_answers_of_sock_diag() -> None:
    """Names are paths or abstract; one without a name, or cut short, is nobody's."""
    queue = (4, struct.pack("=II", 9, 8))
    assert parse_unix(_unix((0, b"/run/a.sock"), queue)) == Listener("unix", "/run/a.sock", None, 9, 8)
    assert parse_unix(_unix(queue, (0, b"/run/a.sock\0"))) == Listener("unix", "/run/a.sock", None, 9, 8)
    assert parse_unix(_unix((0, b"\0abstract"), queue)) == Listener("unix", "@abstract", None, 9, 8)
    assert parse_unix(_unix(queue)) is None
    assert parse_unix(_unix((0, b"/run/a.sock"))) is None
    assert parse_inet(b"\x02" * 71) is None


@given(st.binary(max_size=200))
def test_any_answer_is_taken(body: bytes) -> None:
    """No bytes of an answer raise."""
    parse_unix(body)
    parse_inet(body)
    assert len(list(split_messages(body))) <= 1 + len(body) // 16


def _process(pid: int, name: str) -> Process:
    return Process(pid, name, 1, 1, 1, 0, 0, 0, 1, 0)


def test_series_by_process_are_bounded_whoever_comes() -> None:
    """Ten thousand processes, a thousand names: 20 slots, 64 names, and the pids are the true ones."""
    busiest = Busiest()
    seen = set()
    for second in range(500):
        first = 1 + 20 * second
        busy = [(_process(pid, f"name{pid % 1000}"), Used(0, pid)) for pid in range(first, first + 25)]
        readings = list(busiest.readings(busy))
        seen |= {(reading.name, *reading.attributes.items()) for reading in readings}
        pids = {
            r.attributes["quayscope.process.slot"]: r.value for r in readings if r.name == PROCESS_PID.name
        }
        written = {
            r.attributes.get("quayscope.process.slot"): r.value
            for r in readings
            if r.name == PROCESS_DISK_IO.name and r.attributes["disk.io.direction"] == "write"
        }
        assert sorted(pids.values()) == list(range(first + 5, first + 25))
        assert written.pop(None) == sum(range(first, first + 5))
        assert written == pids
    assert len(seen) <= 20 + 2 * (20 * 65 + 1)


def test_a_process_keeps_its_slot_while_it_is_among_the_busiest() -> None:
    """Whoever comes or goes beside it; one that comes back may get another."""
    busiest = Busiest()

    def slots(*pids: int) -> dict[float, str]:
        readings = busiest.readings([(_process(pid, "postgres"), Used(1, 0)) for pid in pids])
        return {
            r.value: r.attributes["quayscope.process.slot"] for r in readings if r.name == PROCESS_PID.name
        }

    first = slots(5, 6, 7)
    assert len(set(first.values())) == 3
    second = slots(7, 8, 5)
    assert (second[5], second[7]) == (first[5], first[7])
    assert second[8] == first[6]


class _Answers:
    """What sock_diag would say."""

    def __init__(self, listeners: list[Listener]) -> None:
        self._listeners = listeners

    def listeners(self, family: int) -> list[Listener]:
        if family == socket.AF_INET6:
            raise OSError(errno.ENOENT, "No such file or directory")  # a kernel without it
        return [one for one in self._listeners if (one.transport == "unix") == (family == socket.AF_UNIX)]


def test_addresses_are_bounded_and_the_fullest_are_told() -> None:
    """Idle sockets of ever new names fill half of the room; one with a queue is told all the same."""
    known: set[Address] = set()
    for second in range(10):
        idle = [Listener("unix", f"/tmp/{second}-{number}", None, 0, 8) for number in range(100)]
        full = Listener("unix", "/run/gunicorn_web.sock", None, 9, 8)
        reused = [Listener("tcp", "0.0.0.0", 8443, queue, 128) for queue in (0, 7, 3)]
        answers = cast(SocketDiagnosis, _Answers([*idle, *reused, full] if second else idle))
        readings, left_out = queue_readings(answers, known, Tried())
        values = {
            (r.attributes["server.address"], r.attributes.get("server.port")): r.value
            for r in readings
            if r.name == ACCEPT_QUEUE.name
        }
        if second:
            assert values["/run/gunicorn_web.sock", None] == 9
            assert values["0.0.0.0", "8443"] == 7
        assert len(values) + left_out == 100 + 2 * bool(second)
    assert len(known) <= MOST_SOCKETS // 2 + 2
