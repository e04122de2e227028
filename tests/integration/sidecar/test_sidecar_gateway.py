"""The gateway before a real uplink and receiver: what it takes, what it refuses, and its bounds."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from integration.sidecar.conftest import wait_until
from integration.sidecar.gateway_client import (
    LABELS,
    PUSH_PATH,
    Said,
    a_push,
    post,
    running_gateway,
    said_raw,
)
from quayscope.profile.push import decode_push
from quayscope.relay import outbox
from quayscope.sidecar.errors import BadOption, SidecarError
from quayscope.sidecar.gateway import Gateway, GatewayOptions, limits
from quayscope.sidecar.gateway.errors import TooMany
from quayscope.sidecar.gateway.limits import Pace
from receiving_server import ReceivingServer

Running = tuple[Gateway, dict[str, int]]


@pytest.fixture
def behind() -> Iterator[ReceivingServer]:
    """What the uplink sends to."""
    server = ReceivingServer()
    yield server
    server.stop()


@pytest.fixture
def gateway(behind: ReceivingServer) -> Iterator[Running]:
    """A running gateway."""
    with running_gateway(behind.url) as (running, ports, _):
        yield running, ports


def _spans(name: str = "a") -> bytes:
    message = ExportTraceServiceRequest()
    resource = message.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "clair"
    resource.scope_spans.add().spans.add(trace_id=b"\x01" * 16, span_id=b"\x01" * 8, name=name)
    return message.SerializeToString()


def _raw(path: str, *lines: str, body: bytes = b"") -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/x-protobuf", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def _reason(said: Said) -> str:
    return str(json.loads(said.body)["message"])


def test_what_is_taken_goes_on(gateway: Running, behind: ReceivingServer) -> None:
    """Spans and pushes, gzipped, chunked or plain, reach the receiver with the pod's labels."""
    running, ports = gateway
    plain = post(ports["otlp"], "/v1/traces", _spans("plain"))
    assert (plain.status, plain.body, plain.headers["content-type"]) == (200, b"", "application/x-protobuf")
    packed = post(
        ports["otlp"], "/v1/traces", gzip.compress(_spans("packed")), headers={"Content-Encoding": "gzip"}
    )
    body = _spans("chunked")
    chunks = b"%x\r\n%s\r\n3\r\n%s\r\n0\r\n\r\n" % (len(body) - 3, body[:-3], body[-3:])
    chunked = said_raw(
        ports["otlp"], _raw("/v1/traces", "Transfer-Encoding: chunked", "Connection: close", body=chunks)
    )
    assert chunked.startswith(b"HTTP/1.1 200 ")
    as_json = post(ports["otlp"], "/v1/metrics", b'{"resourceMetrics": []}', "application/json")
    assert (as_json.status, as_json.body) == (200, b"{}")
    pushed = post(ports["push"], PUSH_PATH, a_push("1"), "application/proto")
    ingested = post(
        ports["push"], "/ingest?name=folded.cpu%7Ba=b%7D&format=folded", b"main;work 3\n", "text/plain"
    )
    assert {said.status for said in (packed, pushed, ingested)} == {200}

    def arrived() -> tuple[set[str], set[str]]:
        names, services = set(), set()
        for received in list(behind.taken):
            content = received.body
            if received.headers.get("content-encoding") == "gzip":
                content = gzip.decompress(content)
            if received.path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                    pairs = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                    assert pairs == {"service.name": "clair", **LABELS}
                    names |= {span.name for scope in resource.scope_spans for span in scope.spans}
            elif received.path == PUSH_PATH:
                for series in decode_push(content):
                    assert LABELS.items() <= series.labels.items()
                    services.add(series.labels["service_name"])
        return names, services

    wait_until(lambda: arrived() == ({"plain", "packed", "chunked"}, {"s", "folded"}))
    assert running.counts() == {"taken": 6}


def test_one_connection_carries_many_requests(gateway: Running) -> None:
    """Clients keep their connection, also after an answer that was empty."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway[1]["otlp"], timeout=10)
    sockets = set()
    for _ in range(20):
        connection.request("POST", "/v1/traces", _spans(), {"Content-Type": "application/x-protobuf"})
        assert connection.getresponse().read() == b""
        assert connection.sock is not None
        sockets.add(connection.sock.getsockname())
    connection.close()
    assert len(sockets) == 1


@pytest.mark.parametrize(
    ("path", "body", "media", "status", "count"),
    [
        ("/v1/traces", b"\xff\xff\xff", "application/x-protobuf", 400, "malformed"),
        ("/v1/traces", b"{", "application/json", 400, "malformed"),
        ("/v1/traces", b"x", "text/plain", 415, "unsupported"),
        ("/v1/logs", b"", "application/x-protobuf", 404, "not_found"),
        ("/v2/anything", b"", "application/x-protobuf", 404, "not_found"),
        ("/v1/metrics", b"\x1f\x8bno gzip", "application/x-protobuf", 400, "malformed"),
        ("/v1/traces", b"x" * ((4 << 20) + 1), "application/x-protobuf", 413, "too_large"),
        ("/v1/traces", gzip.compress(b"\0" * (17 << 20)), "application/x-protobuf", 413, "too_large"),
    ],
)
def test_hostile_bodies(
    gateway: Running,
    behind: ReceivingServer,
    path: str,
    body: bytes,
    media: str,
    status: int,
    count: str,
) -> None:
    """Each is refused with its reason and counted; nothing of it goes on, and the next one is taken."""
    running, ports = gateway
    said = post(ports["otlp"], path, body, media)
    assert said.status == status
    assert said.headers["connection"] == "close"
    assert len(said.body) > 10
    if media == "application/json":
        assert "JSON" in _reason(said)
    assert running.counts() == {count: 1}
    assert post(ports["otlp"], "/v1/traces", _spans("good")).status == 200
    wait_until(lambda: behind.taken)
    (received,) = behind.taken
    assert b"good" in received.body


def test_a_bad_push_says_why(gateway: Running) -> None:
    """Connect's form of an error, for each way in."""
    port = gateway[1]["push"]
    said = post(port, PUSH_PATH, b"\x0a\x04abcd", "application/proto")
    assert (said.status, json.loads(said.body)["code"]) == (400, "invalid_argument")
    assert "PushRequest" in _reason(said)
    assert post(port, "/ingest?name=a", b"not folded").status == 400
    assert "nothing is taken" not in _reason(post(port, "/nowhere", b""))
    assert post(port, "/nowhere", b"").status == 404


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10 + b"\r\n\r\n",
        b"POST /v1/traces\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/traces HTTP/1.1\r\n" + b"x" * 70_000 + b"\r\n\r\n",
        b"POST /v1/traces HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        _raw("/v1/traces", "Content-Length: -1"),
        _raw("/v1/traces", "Content-Length: 5", "Content-Length: 6", body=b"123456"),
        _raw("/v1/traces", "Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        _raw("/v1/traces", "Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
        _raw("/v1/traces", "Transfer-Encoding: chunked", body=b"zz\r\n"),
        _raw("/v1/traces", "Transfer-Encoding: chunked", body=b"3\r\nabcdef\r\n"),
        _raw("/v1/traces", "Transfer-Encoding: chunked", body=b"ffffffff\r\nabc"),
        _raw("/v1/traces", "Content-Length: 10", body=b"abc"),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_broken_http_is_answered_and_survived(gateway: Running, request_bytes: bytes) -> None:
    """Whatever comes in, a client error is answered or the connection ends, and the next request is taken."""
    running, ports = gateway
    answer = said_raw(ports["otlp"], request_bytes, half_close=True)
    assert answer == b"" or answer.split(b" ")[1][:1] in (b"4", b"5")
    assert b" 500 " not in answer
    assert post(ports["otlp"], "/v1/traces", _spans()).status == 200
    counts = running.counts()
    assert counts["taken"] == 1
    assert "faults" not in counts


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_pages_of_a_browser_are_refused(gateway: Running, headers: dict[str, str]) -> None:
    """A page that a person on the node opened cannot write here, by a name of its own or blindly."""
    assert post(gateway[1]["otlp"], "/v1/traces", _spans(), headers=headers).status == 403
    assert gateway[0].counts() == {"foreign": 1}


def test_more_than_the_rate_is_told_to_wait(monkeypatch: pytest.MonkeyPatch, behind: ReceivingServer) -> None:
    """The bucket gives twice the rate at once, then says when to come again; the clock fills it."""
    now = [0.0]
    pace = Pace(10, clock=lambda: now[0])
    for _ in range(20):
        pace.enter()
    with pytest.raises(TooMany) as refused:
        pace.enter()
    assert refused.value.retry_s == 1
    now[0] = 0.1
    pace.enter()
    monkeypatch.setattr(Pace, "enter", _too_many)
    with running_gateway(behind.url) as (running, ports, _):
        said = post(ports["otlp"], "/v1/traces", _spans())
        assert (said.status, said.headers["retry-after"]) == (429, "3")
        assert running.counts() == {"throttled": 1}


def _too_many(_: Pace) -> None:
    raise TooMany("too many", retry_s=3)


def test_no_room_is_said_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, behind: ReceivingServer
) -> None:
    """With the receiver away and memory full the client keeps its data, and is told so."""
    monkeypatch.setattr(outbox, "MAX_QUEUE_BYTES", 5_000)
    behind.answer = lambda received: 503
    with running_gateway(behind.url) as (_, ports, uplink):
        taken = 0
        while (said := post(ports["otlp"], "/v1/traces", _spans("x" * 1000))).status == 200:
            taken += 1
            assert taken < 20
        assert (said.status, said.headers["retry-after"]) == (503, "5")
        assert taken >= 3
        assert uplink.take_counts()["dropped"] == 0
        behind.answer = lambda received: 200

        def all_there() -> bool:
            bodies = [gzip.decompress(received.body) for received in behind.taken]
            return sum(body.count(b"x" * 1000) for body in bodies) == taken

        wait_until(all_there)


def test_slow_clients_lose_their_place(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that drip in do not hold a connection beyond the whole request's time."""
    monkeypatch.setattr(limits, "REQUEST_S", 0.5)
    monkeypatch.setattr(limits, "HEADERS_S", 0.5)
    running, ports = gateway
    for head in (b"POST /v1/traces HTTP/1.1\r\nX: ", _raw("/v1/traces", "Content-Length: 1000000")):
        with socket.create_connection(("127.0.0.1", ports["otlp"]), timeout=10) as connection:
            connection.sendall(head)
            stop = threading.Event()

            def drip(connection: socket.socket = connection, stop: threading.Event = stop) -> None:
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

            thread = threading.Thread(target=drip)
            thread.start()
            try:
                answer = connection.recv(1000)
            except ConnectionResetError:
                answer = b""
            stop.set()
            thread.join()
        assert answer == b"" or b" 408 " in answer
    assert running.counts().get("too_slow") == 1


def test_connections_are_bounded(behind: ReceivingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is told so at once; when another one ends there is room again."""
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 3)
    with running_gateway(behind.url) as (running, ports, _):
        held = [http.client.HTTPConnection("127.0.0.1", ports["otlp"], timeout=10) for _ in range(3)]
        for connection in held:
            connection.request("POST", "/v1/traces", _spans(), {"Content-Type": "application/x-protobuf"})
            assert connection.getresponse().read() == b""
        assert b" 503 " in said_raw(ports["otlp"], b"")
        assert running.counts()["no_room"] == 1
        held[0].close()

        def taken() -> bool:
            try:
                return post(ports["otlp"], "/v1/traces", _spans()).status == 200
            except (OSError, http.client.HTTPException):
                return False

        wait_until(taken)
        for connection in held:
            connection.close()


def test_requests_at_once_are_bounded(behind: ReceivingServer) -> None:
    """As many as there are places are read at the same time; the next one is told to come again."""
    with running_gateway(behind.url) as (_, ports, _uplink):
        slow = []
        for _ in range(limits.MAX_REQUESTS):
            connection = socket.create_connection(("127.0.0.1", ports["otlp"]), timeout=10)
            connection.sendall(_raw("/v1/traces", f"Content-Length: {len(_spans())}"))
            slow.append(connection)
        said = wait_until(lambda: (one := post(ports["otlp"], "/v1/traces", _spans())).status == 503 and one)
        assert said.headers["retry-after"] == "1"
        for connection in slow:
            connection.sendall(_spans())
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
            connection.close()
        assert post(ports["otlp"], "/v1/traces", _spans()).status == 200


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionError:
        return False
    return True


def test_closing_waits_for_what_is_being_read(behind: ReceivingServer) -> None:
    """A request under way is answered, an idle connection ends, and the port is free at once."""
    with running_gateway(behind.url) as (running, ports, _):
        idle = socket.create_connection(("127.0.0.1", ports["otlp"]), timeout=10)
        busy = socket.create_connection(("127.0.0.1", ports["otlp"]), timeout=10)
        busy.sendall(_raw("/v1/traces", f"Content-Length: {len(_spans())}", "Expect: 100-continue"))
        assert b" 100 " in busy.recv(1000)
        closing = threading.Thread(target=running.close, args=(5.0,))
        closing.start()
        wait_until(lambda: not _listens(ports["otlp"]))
        busy.sendall(_spans())
        assert busy.recv(1000).startswith(b"HTTP/1.1 200 ")
        closing.join(5)
        assert not closing.is_alive()
        assert idle.recv(10) == b""
        for connection in (idle, busy):
            connection.close()
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", ports["otlp"]))


@pytest.mark.parametrize("address", ["0.0.0.0:4318", "10.1.2.3:4318", "[::]:1", "pod:4318", "x", "127.0.0.1"])
def test_beyond_loopback_it_does_not_listen(behind: ReceivingServer, address: str) -> None:
    """Nobody is asked who they are here, so nobody from outside may come; the next step names the flag."""
    with pytest.raises(BadOption) as refused, running_gateway(behind.url, push_listen=address):
        pass
    assert "--push-listen" in refused.value.next_step


def test_off_and_a_port_in_use(behind: ReceivingServer) -> None:
    """Each port can be off; one that is somebody else's is an error that names it."""
    with running_gateway(behind.url, push_listen="off") as (_, ports, uplink):
        assert set(ports) == {"otlp"}
        taken = Gateway(GatewayOptions(f"127.0.0.1:{ports['otlp']}", "off"), uplink)
        with pytest.raises(SidecarError, match=str(ports["otlp"])):
            taken.start()


def test_a_name_for_all_services(behind: ReceivingServer) -> None:
    """Where one is configured it replaces the clients' own."""
    with running_gateway(behind.url, service="clair-app") as (_, ports, _uplink):
        post(ports["push"], PUSH_PATH, a_push("1", "their-own"), "application/proto")
        post(ports["otlp"], "/v1/traces", _spans())
        wait_until(lambda: len(behind.taken) == 2)
    for received in behind.taken:
        if received.path == PUSH_PATH:
            assert decode_push(received.body)[0].labels["service_name"] == "clair-app"
        else:
            (resource,) = ExportTraceServiceRequest.FromString(received.body).resource_spans
            names = [pair.value.string_value for pair in resource.resource.attributes]
            assert "clair-app" in names
            assert "clair" not in names
