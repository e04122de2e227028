"""The relay on a real socket: who may listen, hostile packets, and what it emits."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from quayscope.profile import Profile
from quayscope.relay import Relay, RelayError
from quayscope.relay.relay import MAX_MALFORMED

HELLO = {"k": "hello", "v": 1, "pid": 9, "role": "web", "service": "quay-app", "start": 1, "labels": {}}


class Kept:
    """An `Emit` that keeps everything, and can refuse."""

    def __init__(self) -> None:
        self.made: list[Profile] = []
        self.traces: list[bytes] = []
        self.measured: list[bytes] = []
        self.refuse = False

    def profiles(self, profiles: list[Profile]) -> None:
        if self.refuse:
            raise OSError("refused")
        self.made += profiles

    def spans(self, request: bytes) -> None:
        self.traces.append(request)

    def metrics(self, request: bytes) -> None:
        self.measured.append(request)

    def counts(self) -> dict[str, int]:
        """Return the relay's own counters."""
        found: dict[str, int] = {}
        for encoded in self.measured:
            for resource in ExportMetricsServiceRequest.FromString(encoded).resource_metrics:
                for metric in resource.scope_metrics[0].metrics:
                    for point in metric.sum.data_points:
                        found[metric.name] = found.get(metric.name, 0) + point.as_int
        return {name.rpartition(".")[2]: count for name, count in found.items() if ".relay." in name}


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def relay(tmp_path: Path, kept: Kept) -> Iterator[Relay]:
    relay = Relay(str(tmp_path / "s"), kept, labels={"pod": "p1"})
    relay.start()
    yield relay
    relay.close(5)


@pytest.fixture
def connect(tmp_path: Path, relay: Relay) -> Iterator[Callable[[], socket.socket]]:
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        opened.append(connection)
        connection.settimeout(5)
        connection.connect(str(tmp_path / "s"))
        return connection

    yield connect
    for connection in opened:
        connection.close()


def send(connection: socket.socket, *records: Any) -> None:
    for record in records:
        connection.send(record if isinstance(record, bytes) else json.dumps(record).encode())


def now() -> int:
    return int(time.time()) * 10**9


def test_samples_become_profiles(relay: Relay, kept: Kept, connect: Callable[[], socket.socket]) -> None:
    """Stacks and stalls leave as profiles of one window each, with the pod's labels and the sampler."""
    slot = now()
    about = ["GET /a", "", "", "r", "p"]
    send(
        connect(),
        HELLO,
        {"k": "frame", "f": [[0, "main", "m.py", 1], [1, "work", "m.py", 2]]},
        {"k": "stacks", "t": slot, "s": [[10_000, 1, about, [0, 1]], [5_000, 1, None, [0]]]},
        {"k": "stalls", "t": slot, "s": [[70_000, 3, about, "select ?", [0, 1]]]},
    )
    relay.close(5)
    cpu, block = sorted(kept.made, key=lambda profile: profile.type.name, reverse=True)
    assert cpu.labels == {"pod": "p1", "role": "web", "sampler": "agent", "service_name": "quay-app"}
    assert cpu.totals() == (2, 15_000)
    assert cpu.losses.unattributed == 1
    ((stack, attributes), values), *_ = block.samples.items()
    assert [(frame.function, frame.kind) for frame in stack] == [
        ("main", "python"),
        ("work", "python"),
        ("select ?", "sql"),
    ]
    assert attributes == (slot, "GET /a", "r", "p", 9, "", "")
    assert values == (3, 70_000)
    assert cpu.start_ns % (10 * 10**9) == 0


def test_a_held_up_hub_is_blocked_time(
    relay: Relay, kept: Kept, connect: Callable[[], socket.socket]
) -> None:
    """It joins the block profile under its wait, with no statement, in slots of any length."""
    slot = now() + 250_000_000
    send(
        connect(),
        HELLO,
        {"k": "frame", "f": [[0, "main", "m.py", 1], [1, "json.dumps", "[native]", 0]]},
        {"k": "frame", "f": [[2, "Hub:cpu", "[wait]", 0]]},
        {"k": "hub", "t": slot, "s": [[60_000_000, 1, ["GET /a", "", "", "r", "p"], 120_000_000, [0, 1, 2]]]},
        {"k": "hub", "t": slot, "s": [[50_000_000, 1, None, 0, [0, 1]]]},
    )
    relay.close(5)
    (block,) = kept.made
    ((stack, attributes), values), *_ = block.samples.items()
    assert [(frame.function, frame.kind) for frame in stack] == [
        ("main", "python"),
        ("json.dumps", "native"),
        ("Hub:cpu", "wait"),
    ]
    assert (attributes.slot_ns, attributes.endpoint, values) == (slot, "GET /a", (1, 60_000_000))
    assert kept.counts()["malformed"] == 1


def test_hostile_packets_cost_only_themselves(
    relay: Relay, kept: Kept, connect: Callable[[], socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """Malformed, unknown, cut, early and untimely packets are counted; their neighbours are taken."""
    caplog.set_level(logging.ERROR)
    good, bad = connect(), connect()
    send(bad, {"k": "stacks", "t": now(), "s": []}, HELLO, b"\xff", {"k": "news"}, b"x" * 70_000)
    send(bad, {"k": "stacks", "t": now(), "s": [[1, 1, None, [77]]]})
    for slot in (0, now() + 10**15):
        send(bad, {"k": "stacks", "t": slot, "s": []})
    send(
        good,
        HELLO,
        {"k": "frame", "f": [[0, "main", "m.py", 1]]},
        {"k": "stacks", "t": now(), "s": [[10, 1, None, [0]]]},
    )
    relay.close(5)
    counts = kept.counts()
    assert counts["malformed"] == 6
    assert counts["truncated"] == 1
    assert counts["packets"] == 11
    assert [profile.totals() for profile in kept.made] == [(1, 10)]


def test_who_speaks_something_else_is_shown_out(
    relay: Relay, kept: Kept, connect: Callable[[], socket.socket]
) -> None:
    """A connection with nothing but malformed records is ended."""
    stranger = connect()
    with contextlib.suppress(ConnectionError):
        for _ in range(100_000):
            stranger.send(b"GET / HTTP/1.1")
        pytest.fail("the connection stays")
    relay.close(5)
    assert kept.counts()["malformed"] == MAX_MALFORMED


def test_a_receiver_that_fails_stops_nothing(
    relay: Relay, kept: Kept, connect: Callable[[], socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """What the receiver raises is counted and logged, and the rest is emitted."""
    kept.refuse = True
    send(
        connect(),
        HELLO,
        {"k": "frame", "f": [[0, "main", "m.py", 1]]},
        {"k": "stacks", "t": now(), "s": [[10, 1, None, [0]]]},
    )
    relay.close(5)
    assert kept.made == []
    assert kept.counts()["faults"] == 1


def test_a_workers_fault_is_said(
    relay: Relay, connect: Callable[[], socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """The first fault of an agent, which it reports once, is logged here."""
    send(connect(), HELLO, {"k": "counts", "t": now(), "c": {"faults": 1}, "fault": "KeyError in f:3"})
    relay.close(5)
    (record,) = [record for record in caplog.records if record.message == "agent fault"]
    assert vars(record)["fault"] == "KeyError in f:3"


def test_two_relays_do_not_share_a_socket(relay: Relay, tmp_path: Path, kept: Kept) -> None:
    """A path on which somebody listens is refused; a left-over socket is replaced; a file is not."""
    with pytest.raises(RelayError, match="another relay"):
        Relay(str(tmp_path / "s"), kept).start()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RelayError, match="no socket"):
        Relay(str(tmp_path / "file"), kept).start()
    assert (tmp_path / "file").read_text() == "precious"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as crashed:
        crashed.bind(str(tmp_path / "stale"))
    successor = Relay(str(tmp_path / "stale"), kept)
    successor.start()
    successor.close(5)
    assert not (tmp_path / "stale").exists()
    with pytest.raises(RelayError, match="cannot listen"):
        Relay(str(tmp_path / "nowhere" / "s"), kept).start()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_who_may_connect_is_a_choice(tmp_path: Path, kept: Kept, mode: int) -> None:
    """The socket has the mode that was asked for, by default the user's and the group's."""
    relay = Relay(str(tmp_path / "s"), kept) if mode == 0o660 else Relay(str(tmp_path / "s"), kept, mode=mode)
    relay.start()
    try:
        assert (tmp_path / "s").stat().st_mode & 0o777 == mode
    finally:
        relay.close(5)
