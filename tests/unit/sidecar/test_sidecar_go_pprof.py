"""One answer of a pprof endpoint: fetched within its bounds, and made a profile of ours."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from quayscope.profile import MEMORY, MUTEX, PROCESS_CPU, Attributes, Frame, MalformedProfile, Profile, pprof
from quayscope.sidecar.errors import BadOption, ScrapeFailed
from quayscope.sidecar.golang import Address, parse_address
from quayscope.sidecar.golang.convert import CPU, KINDS, Converter
from quayscope.sidecar.golang.fetch import Fetcher

_HEAP, _GOROUTINE, _MUTEX, _BLOCK = KINDS
_A, _B = (Frame("main.a"),), (Frame("main.b"),)


@contextmanager
def _server(answer: Callable[[socket.socket], None]) -> Iterator[Address]:
    """Whoever connects gets what `answer` sends."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(10)
                try:
                    peer.recv(4096)
                    answer(peer)
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield Address("127.0.0.1", listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def _says(data: bytes) -> Callable[[socket.socket], None]:
    return lambda peer: peer.sendall(data)


def test_a_whole_answer() -> None:
    """The body, no more and no less."""
    with _server(_says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")) as address:
        assert Fetcher().get(address, "heap", timeout_s=5, max_bytes=5) == b"hello"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!", "status 404: no!"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n", "status 302"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", "cut short"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000, "more than"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000, "more than"),
        (b"SSH-2.0-OpenSSH\r\n", "SSH"),
        (b"", "heap"),
    ],
)
def test_what_is_no_answer(data: bytes, said: str) -> None:
    """Each is one failure with what was answered, never more memory than asked for."""
    with _server(_says(data)) as address, pytest.raises(ScrapeFailed, match=said):
        Fetcher().get(address, "heap", timeout_s=5, max_bytes=1000)


def test_a_trickle_ends_at_the_deadline() -> None:
    """Bytes that keep coming do not prolong it."""

    def trickle(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            peer.sendall(b"x")
            time.sleep(0.02)

    with _server(trickle) as address:
        began = time.monotonic()
        with pytest.raises(ScrapeFailed, match="no whole answer"):
            Fetcher().get(address, "heap", timeout_s=0.5, max_bytes=1 << 20)
        assert time.monotonic() - began < 8


def test_abort_ends_what_is_under_way() -> None:
    """A scrape that waits for its answer ends at once, and none begins after."""
    waits = threading.Event()
    over = threading.Event()

    def wait(peer: socket.socket) -> None:
        waits.set()
        over.wait(30)

    fetcher = Fetcher()
    with _server(wait) as address:

        def abort() -> None:
            waits.wait(10)
            fetcher.abort()

        thread = threading.Thread(target=abort)
        thread.start()
        with pytest.raises(ScrapeFailed):
            fetcher.get(address, "profile", timeout_s=60, max_bytes=1)
        thread.join()
        over.set()
        with pytest.raises(ScrapeFailed, match="stopped"):
            fetcher.get(address, "profile", timeout_s=60, max_bytes=1)


def test_nobody_listens() -> None:
    """A closed port is a failure like the others."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ScrapeFailed):
        Fetcher().get(Address("127.0.0.1", port), "heap", timeout_s=5, max_bytes=1)


def test_addresses() -> None:
    """Only what can be scraped is taken."""
    assert parse_address("http://localhost:8089") == Address("localhost", 8089, "/debug/pprof/")
    assert parse_address("http://[::1]:6060/x/pprof") == Address("::1", 6060, "/x/pprof/")
    assert str(Address("::1", 80)) == "http://[::1]:80/debug/pprof/"
    for url in (
        "localhost:8089",
        "https://x:1",
        "http://x",
        "http://u:p@x:1",
        "http://x:y",
        "http://x:1/?a=b",
    ):
        with pytest.raises(BadOption):
            parse_address(url)


def _heap(*rows: tuple[tuple[Frame, ...], tuple[int, int, int, int]]) -> bytes:
    profile = Profile(MEMORY, {}, 5, 0, 512)
    for stack, values in rows:
        profile.add(stack, Attributes(), values)
    return pprof.encode(profile)


def test_allocations_are_differences_and_use_is_a_state() -> None:
    """The first scrape says where to count from; a program that began anew never counts backwards."""
    converter = Converter({"service_name": "s"}, 7)
    first = converter.read(_HEAP, _heap((_A, (10, 100, 1, 10))), is_delta=False, now_ns=1_000_000_000)
    assert first is not None
    assert list(first.samples.values()) == [(0, 0, 1, 10)]
    second = converter.read(
        _HEAP, _heap((_A, (15, 150, 2, 20)), (_B, (1, 8, 0, 0))), is_delta=False, now_ns=4_000_000_000
    )
    assert second is not None
    assert list(second.samples.values()) == [(5, 50, 2, 20), (1, 8, 0, 0)]
    assert (second.start_ns, second.duration_ns) == (1_000_000_000, 3_000_000_000)
    assert {frame.kind for stack, _ in second.samples for frame in stack} == {"go"}
    assert second.labels == {"service_name": "s", "sampler": "go"}
    third = converter.read(_HEAP, _heap((_A, (3, 30, 0, 0))), is_delta=False, now_ns=5_000_000_000)
    assert third is None


def test_deltas_of_the_programs_own() -> None:
    """What the program subtracted is not subtracted again; its first answer covers all the time before."""
    converter = Converter({"service_name": "s"}, 7)
    body = Profile(MUTEX, {}, 5, 0, 1)
    body.add(_A, Attributes(), (3, 300))
    data = pprof.encode(body)
    assert converter.read(_MUTEX, data, is_delta=True) is None
    for _ in range(2):
        found = converter.read(_MUTEX, data, is_delta=True)
        assert found is not None
        assert found.totals() == (3, 300)


def test_a_sample_without_a_stack() -> None:
    """Its CPU counts, and that it could not be walked is said."""
    body = Profile(PROCESS_CPU, {}, 5, 1, 1)
    body.add((), Attributes(), (1, 10))
    body.add(_A, Attributes(), (2, 20))
    found = Converter({"service_name": "s"}, 7).read(CPU, pprof.encode(body), is_delta=False)
    assert found is not None
    assert found.totals() == (3, 30)
    assert found.losses.truncated == 1


def test_cpu_and_what_is_none() -> None:
    """A CPU profile keeps its own time where that can be; bytes that are no profile are refused."""
    converter = Converter({"service_name": "s"}, 7)
    now = time.time_ns()
    for start, kept in ((now - 10_000_000_000, True), (5, False), (now + 10**18, False)):
        body = Profile(PROCESS_CPU, {}, start, 10_000_000_000, 10_000_000)
        body.add(_A, Attributes(), (2, 20_000_000))
        found = converter.read(CPU, pprof.encode(body), is_delta=False, now_ns=now)
        assert found is not None
        assert found.start_ns == (start if kept else now - 10_000_000_000)
        assert found.totals() == (2, 20_000_000)
    for data in (b"", b"nonsense", b"\x1f\x8b123"):
        if data:
            with pytest.raises(MalformedProfile):
                converter.read(_BLOCK, data, is_delta=True)
    assert converter.read(_GOROUTINE, _goroutines(), is_delta=False) is not None


def _goroutines() -> bytes:
    body = Profile(_GOROUTINE.type, {}, 5, 0, 1)
    body.add(_A, Attributes(), (3,))
    return pprof.encode(body)
