"""The uplink with a spool: outages, full disks, ends, and what a receiver fails over."""

from __future__ import annotations

import gzip
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quayscope.profile import PROCESS_CPU, Attributes, Frame, Profile
from quayscope.profile.push import PUSH_PATH, decode_push
from quayscope.relay import outbox
from quayscope.relay import uplink as module
from quayscope.relay.destination import OTLP, Destination
from quayscope.relay.spool import Spool
from quayscope.relay.uplink import Uplink
from receiving_server import Received, ReceivingServer

_NOWHERE = Destination("http://127.0.0.1:1")


@pytest.fixture
def collector() -> Iterator[ReceivingServer]:
    running = ReceivingServer()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 0.02)
    monkeypatch.setattr(module, "_LONGEST_BACKOFF_S", 0.1)


def _profile(value: int = 1) -> Profile:
    profile = Profile(PROCESS_CPU, {"service_name": "s"}, 0, 10)
    profile.add((Frame("f"),), Attributes(), (1, value))
    return profile


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _started(destination: Destination, folder: Path, size: int = 1 << 20) -> Uplink:
    uplink = Uplink(destination, Spool(folder, size))
    uplink.start()
    return uplink


def _bodies(server: ReceivingServer, path: str = "/v1/metrics") -> bytes:
    bodies = []
    for received in list(server.taken):
        if received.path == path:
            packed = received.headers.get("content-encoding") == "gzip"
            bodies.append(gzip.decompress(received.body) if packed else received.body)
    return b"".join(bodies)


def test_what_is_left_at_the_end_goes_with_the_next_process(
    collector: ReceivingServer, tmp_path: Path
) -> None:
    """Closing with the receiver away takes no time; the next process sends all of it, profiles too."""
    first = _started(_NOWHERE, tmp_path)
    first.profiles([_profile(), _profile()])
    first.metrics(b"\x0a\x00")
    retried = 0

    def failed() -> bool:
        nonlocal retried
        retried += first.take_counts()["retried"]
        return retried > 0

    _wait(failed)
    began = time.monotonic()
    assert first.close(30.0) == 0
    assert time.monotonic() - began < 3.0
    assert first.take_counts()["spooled"] == 3
    second = _started(Destination(collector.url), tmp_path)
    _wait(lambda: len(collector.taken) >= 2)
    assert second.close(5.0) == 0
    assert _bodies(collector) == b"\x0a\x00"
    pushes = [decode_push(received.body) for received in collector.taken if received.path == PUSH_PATH]
    assert len({push_id for push in pushes for series in push for push_id, _ in series.samples}) == 2


def test_memory_first_then_disk(
    collector: ReceivingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an outage gathers beyond the memory's bound is on disk, in order, and none of it is dropped."""
    monkeypatch.setattr(outbox, "MAX_QUEUE_BYTES", 20_000)
    collector.answer = lambda received: 503
    uplink = _started(Destination(collector.url), tmp_path)
    sent: list[bytes] = []
    spooled = 0

    def within() -> bool:
        """What is over half of the memory's bound was written."""
        nonlocal spooled
        spooled += uplink.take_counts()["spooled"]
        return spooled >= len(sent) - 10_000 // 300

    for number in range(100):
        sent.append(b"%03d" % number * 100)
        uplink.metrics(sent[-1])
        if number % 20 == 19:
            _wait(within)
    collector.answer = lambda received: 200
    assert spooled > 50
    _wait(lambda: len(_bodies(collector)) >= 30_000)
    uplink.close(5.0)
    assert uplink.take_counts()["dropped"] == 0
    body = _bodies(collector)
    found = [body[at : at + 300] for at in range(0, len(body), 300)]
    assert sorted(found) == sent


def test_a_group_comes_again_as_it_was(collector: ReceivingServer, tmp_path: Path) -> None:
    """Spans whose acknowledgement was lost come again byte by byte, though a kill came in between."""
    lost: list[bytes] = []

    def answer(received: Received) -> int:
        lost.append(received.body)
        return 503

    collector.answer = answer
    uplink = _started(Destination(collector.url, OTLP), tmp_path)
    for number in range(5):
        assert uplink.hold("spans", b"\x0a\x02\x08%c" % number)
    _wait(lambda: len(lost) > 5)
    # No close: the process that ended just now had no time for it.
    uplink._outbox._spool.close()  # type: ignore[union-attr] # stands for the kernel, which frees the lock
    collector.answer = lambda received: 200
    lost_group = lost[-1]
    again = _started(Destination(collector.url, OTLP), tmp_path)
    assert again.hold("spans", b"\x0a\x02\x08\x09")
    _wait(lambda: len(_bodies(collector, "/v1/traces")) >= 24)
    again.close(5.0)
    uplink.close(0.1)
    assert lost_group in [received.body for received in collector.taken]


def test_what_is_fresh_does_not_wait_behind_what_is_old(
    collector: ReceivingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog is sent in its order, and what comes meanwhile, in memory or on disk, goes between it."""
    monkeypatch.setattr(outbox, "MAX_BATCH_BYTES", 1000)
    before = Spool(tmp_path)
    before.open()
    for number in range(100):
        before.append("metrics", b"old%03d" % number * 160)
    before.close()
    queued = threading.Event()

    def answer(received: Received) -> int:
        assert queued.wait(10)
        return 200

    collector.answer = answer
    uplink = _started(Destination(collector.url), tmp_path)
    _wait(lambda: bool(collector.seen))
    uplink.metrics(b"fresh!" * 160)
    assert uplink.hold("metrics", b"stored" * 160)
    queued.set()
    _wait(lambda: len(_bodies(collector)) >= 102 * 960)
    uplink.close(5.0)
    body = _bodies(collector)
    order = [body[at : at + 6] for at in range(0, len(body), 960)]
    assert order.index(b"fresh!") < 5
    assert order.index(b"stored") < 5
    assert [one for one in order if one.startswith(b"old")] == [b"old%03d" % number for number in range(100)]


def test_held_is_on_disk(tmp_path: Path) -> None:
    """When `hold` returns true the message is in the spool; without one it is refused once memory is full."""
    uplink = _started(_NOWHERE, tmp_path)
    assert uplink.hold("spans", b"kept on disk")
    assert any(b"kept on disk" in path.read_bytes() for path in tmp_path.glob("*.spool"))
    uplink.close(0.1)
    assert not uplink.hold("spans", b"too late")


def test_without_a_spool_a_full_memory_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be kept is not acknowledged, and nothing acknowledged makes room for it."""
    monkeypatch.setattr(outbox, "MAX_QUEUE_BYTES", 1000)
    uplink = Uplink(_NOWHERE)
    assert uplink.hold("spans", b"x" * 900)
    assert not uplink.hold("spans", b"x" * 200)
    assert uplink.take_counts()["dropped"] == 0


@pytest.mark.parametrize("place", ["full", "unwritable"])
def test_a_disk_that_takes_nothing_is_said_once(
    collector: ReceivingServer, small_disk: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory stands in, each message is counted, one line is logged, and everything arrives."""
    if place == "full":
        (small_disk / "other").write_bytes(b"x" * 450_000)
        uplink = _started(Destination(collector.url), small_disk / "spool")
    else:
        (small_disk / "file").touch()
        uplink = _started(Destination(collector.url), small_disk / "file" / "spool")
    collector.answer = lambda received: 503
    for _ in range(20):
        assert uplink.hold("metrics", b"x" * 10_000)
    collector.answer = lambda received: 200
    _wait(lambda: len(_bodies(collector)) >= 200_000)
    uplink.close(5.0)
    counts = uplink.take_counts()
    assert counts["spool_failed"] >= 1
    assert counts["dropped"] == 0
    assert len(_bodies(collector)) == 200_000
    said = [record for record in caplog.records if "spool cannot be written" in record.message]
    assert len(said) == 1
    assert said[0].levelno == logging.WARNING


def test_a_message_that_breaks_the_receiver_does_not_stop_the_others(
    collector: ReceivingServer, tmp_path: Path
) -> None:
    """Where a receiver answers 500 to one and takes its neighbours, that one is refused, counted, alone."""
    collector.answer = lambda received: 500 if b"poison" in received.body else 200
    uplink = _started(Destination(collector.url), tmp_path)
    for body in (b"first ", b"poison ", b"last "):
        assert uplink.hold("metrics", body)
    refused = 0

    def gave_up() -> bool:
        nonlocal refused
        refused += uplink.take_counts()["refused"]
        return refused > 0

    _wait(gave_up)
    _wait(lambda: b"last" in _bodies(collector))
    uplink.close(5.0)
    assert refused == 1
    assert _bodies(collector) == b"first last "


def test_a_broken_receiver_loses_nothing(collector: ReceivingServer, tmp_path: Path) -> None:
    """One that answers 500 to everything, however often, gets everything once it is well again."""
    collector.answer = lambda received: 500
    uplink = _started(Destination(collector.url), tmp_path)
    for body in (b"one ", b"two ", b"three "):
        uplink.hold("metrics", body)
    _wait(lambda: len(collector.seen) > 30)
    collector.answer = lambda received: 200
    # Each was tried alone by then: in which order they come is not said.
    _wait(lambda: sorted(_bodies(collector).split()) == [b"one", b"three", b"two"])
    uplink.close(5.0)
    assert uplink.take_counts()["refused"] == 0


def test_a_receiver_that_recovers_between_two_messages_loses_nothing(
    collector: ReceivingServer, tmp_path: Path
) -> None:
    """Well again after it failed over the first of two: that one is not taken for the cause."""
    alone = 0

    def answer(received: Received) -> int:
        nonlocal alone
        alone += received.body == b"one "
        return 200 if received.body == b"two " or alone > 6 else 500

    collector.answer = answer
    uplink = _started(Destination(collector.url), tmp_path)
    for body in (b"one ", b"two "):
        uplink.hold("metrics", body)
    _wait(lambda: sorted(_bodies(collector).split()) == [b"one", b"two"])
    uplink.close(5.0)
    assert uplink.take_counts()["refused"] == 0
