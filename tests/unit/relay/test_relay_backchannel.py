"""Settings on their way back to workers, over real sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quayscope.profile import Profile
from quayscope.relay import Relay, WorkerSettings
from quayscope.relay.backchannel import OWN, BackChannel


class Nobody:
    """An `Emit` that keeps nothing."""

    def profiles(self, profiles: list[Profile]) -> None:
        pass

    def spans(self, request: bytes) -> None:
        pass

    def metrics(self, request: bytes) -> None:
        pass


class Worker:
    """The worker's end of a connection."""

    def __init__(self, path: Path, pid: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(5)
        self.socket.connect(str(path))
        self.hello(pid)

    def hello(self, pid: int) -> None:
        record = {"k": "hello", "v": 1, "pid": pid, "role": "web", "service": "quay-app", "start": 1}
        self.socket.send(json.dumps({**record, "labels": {}}).encode())

    def hear(self) -> dict[str, Any]:
        packet = self.socket.recv(4096)
        assert len(packet) <= 1000
        record: dict[str, Any] = json.loads(packet)
        assert record.pop("k") == "settings"
        return record


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    relay = Relay(str(tmp_path / "s"), Nobody())
    relay.start()
    yield relay
    relay.close(5)


@pytest.fixture
def join(tmp_path: Path, relay: Relay) -> Iterator[Callable[[int], Worker]]:
    joined: list[Worker] = []

    def join(pid: int) -> Worker:
        joined.append(Worker(tmp_path / "s", pid))
        return joined[-1]

    yield join
    for worker in joined:
        worker.socket.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_all_workers_hear_each_change(relay: Relay, join: Callable[[int], Worker]) -> None:
    """Those that are there hear it, those that come later hear what holds then, none hears it twice."""
    first = join(7)
    until(lambda: len(relay.workers()) == 1)
    relay.tell(WorkerSettings(hz=49))
    assert first.hear() == {"hz": 49}
    later = time.time_ns() + 60 * 10**9
    relay.tell(WorkerSettings(on=False, slot_ms=250, until_ns=later))
    assert first.hear() == {"on": False, "slot_ms": 250, "until": later}
    second = join(8)
    assert second.hear() == {"on": False, "slot_ms": 250, "until": later}
    relay.tell(OWN)
    # An empty one means: back to the worker's own.
    assert first.hear() == second.hear() == {}


def test_one_worker_can_be_told_apart(relay: Relay, join: Callable[[int], Worker]) -> None:
    """Only the worker of that pid hears it; what all are told afterwards holds for it too."""
    first, second = join(7), join(8)
    until(lambda: len(relay.workers()) == 2)
    relay.tell(WorkerSettings(hz=200), pid=8)
    assert second.hear() == {"hz": 200}
    again = join(8)
    assert again.hear() == {"hz": 200}
    relay.tell(WorkerSettings(hz=50))
    assert [worker.hear() for worker in (first, second, again)] == [{"hz": 50}] * 3


def test_who_has_nothing_to_hear_hears_nothing(relay: Relay, join: Callable[[int], Worker]) -> None:
    """While the defaults hold a worker is told nothing, and a connection before its hello neither."""
    worker = join(7)
    until(lambda: len(relay.workers()) == 1)
    relay.tell(WorkerSettings(hz=10), pid=99)
    worker.hello(9)
    until(lambda: relay.workers()[0].pid == 9)
    relay.tell(WorkerSettings(hz=20))
    assert worker.hear() == {"hz": 20}


def test_a_new_hello_is_a_new_worker(relay: Relay, join: Callable[[int], Worker]) -> None:
    """Who says hello again knows nothing, and is told again."""
    worker = join(7)
    relay.tell(WorkerSettings(hz=20))
    assert worker.hear() == {"hz": 20}
    worker.hello(8)
    assert worker.hear() == {"hz": 20}


def test_a_worker_that_does_not_read_holds_up_nobody(relay: Relay, join: Callable[[int], Worker]) -> None:
    """Its queue fills up, the others hear on, and when it reads again the last word is the newest."""
    deaf, other = join(7), join(8)
    until(lambda: len(relay.workers()) == 2)
    words = 600  # a queue of the default size takes about 280
    for word in range(1, words + 1):
        relay.tell(WorkerSettings(hz=word))
        assert other.hear() == {"hz": word}
        # A record wakes the relay: without it each word would take a tick.
        other.socket.send(b'{"k":"counts","t":%d,"c":{}}' % time.time_ns())
    heard = [deaf.hear()["hz"]]
    while heard[-1] != words:
        heard.append(deaf.hear()["hz"])
    assert heard == sorted(set(heard))
    assert len(heard) < words


def test_what_has_run_out_is_told_no_more() -> None:
    """After its time one worker's settings give way to all workers', and those to the worker's own."""
    channel = BackChannel()
    channel.tell(WorkerSettings(hz=10, until_ns=200), None)
    channel.tell(WorkerSettings(hz=20, until_ns=100), 7)
    assert channel.wanted(7, 99).hz == 20
    assert channel.wanted(7, 100).hz == 10
    assert channel.wanted(7, 200) == OWN


def test_a_bounded_number_of_workers_is_told_apart() -> None:
    """The first told is forgotten first; one told again counts as new."""
    channel = BackChannel()
    for pid in [*range(512), 0, 1000]:
        channel.tell(WorkerSettings(hz=99), pid)
    assert channel.wanted(0, 1).hz == 99
    assert channel.wanted(1, 1) == OWN
    assert channel.wanted(1000, 1).hz == 99


@pytest.mark.parametrize(
    "bad",
    [
        WorkerSettings(hz=0),
        WorkerSettings(hz=1000),
        WorkerSettings(slot_ms=500),
        WorkerSettings(until_ns=-1),
        WorkerSettings(until_ns=1 << 63),
    ],
)
def test_senseless_settings_are_refused(relay: Relay, bad: WorkerSettings) -> None:
    """Whoever asks for them hears it at once; no worker ever does."""
    with pytest.raises(ValueError, match=r"."):
        relay.tell(bad)
    with pytest.raises(ValueError, match=r"."):
        relay.tell(bad, pid=7)


def test_workers_are_those_that_said_hello(
    relay: Relay, join: Callable[[int], Worker], tmp_path: Path
) -> None:
    """A connection counts from its hello to its end."""
    assert relay.alive()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(str(tmp_path / "s"))
        worker = join(7)
        until(lambda: relay.workers() == [(7, "web", "quay-app")])
        worker.socket.close()
        until(lambda: relay.workers() == [])
    relay.close(5)
    assert not relay.alive()
