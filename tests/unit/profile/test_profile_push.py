"""The push message and its client, against a real HTTP server."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quayscope.profile import (
    PROCESS_CPU,
    Attributes,
    Frame,
    MalformedProfile,
    Profile,
    ProfileError,
    PushFailed,
)
from quayscope.profile.pprof import decode
from quayscope.profile.push import PUSH_PATH, PushClient, PushSeries, decode_push, encode_push, series_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


class Received(NamedTuple):
    """One request as the server saw it."""

    path: str
    headers: dict[str, str]
    body: bytes
    port: int


class Receiver(ThreadingHTTPServer):
    """Answers POSTs with the next of `answers` (then with 200 `{}`) and keeps what came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[Received] = []
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.hang_up = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        received = Received(self.path, dict(self.headers.items()), body, self.client_address[1])
        self.server.received.append(received)
        status, headers, content = self.server.answers.pop(0) if self.server.answers else (200, {}, b"{}")
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        if self.server.hang_up:
            # Without saying so, as an idle timeout does.
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server on loopback that ends with the test."""
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(receiver: Receiver) -> Iterator[PushClient]:
    """A client of the receiver."""
    made = PushClient(receiver.url, timeout_s=5)
    yield made
    made.close()


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            PushSeries,
            st.dictionaries(TEXT, TEXT, max_size=3),
            st.lists(st.tuples(TEXT, st.binary(max_size=20)), max_size=3).map(tuple),
        ),
        max_size=3,
    )
)
def test_pushes_survive_the_round_trip(series: list[PushSeries]) -> None:
    """Labels, ids and profiles of every series come back."""
    assert decode_push(encode_push(series)) == series


@settings(deadline=None)
@given(st.binary(max_size=50))
def test_any_bytes_are_a_push_or_malformed(data: bytes) -> None:
    """No input raises anything but `MalformedProfile`."""
    with contextlib.suppress(MalformedProfile):
        decode_push(data)


def test_a_cut_push_is_malformed_or_shorter() -> None:
    """Truncation at every byte raises nothing but `MalformedProfile`."""
    data = encode_push([PushSeries({"a": "b"}, (("id", b"pprof"),)), PushSeries({}, ())])
    for end in range(len(data)):
        with contextlib.suppress(MalformedProfile):
            assert len(decode_push(data[:end])) <= 2


def test_a_pushed_profile_arrives(receiver: Receiver, client: PushClient) -> None:
    """The receiver gets labels, type name, id and pprof under the Connect path."""
    profile = Profile(PROCESS_CPU, {"service_name": "quay-app"}, 10**18, 10**10)
    profile.add((Frame("main"),), Attributes(pid=4), (1, 5))
    client.push(encode_push([series_of(profile, "push-1")]))
    (got,) = receiver.received
    assert (got.path, got.headers["Content-Type"]) == (PUSH_PATH, "application/proto")
    assert "Content-Encoding" not in got.headers  # the pprof in it is packed already
    ((labels, ((push_id, data),)),) = decode_push(got.body)
    assert (labels, push_id) == ({"service_name": "quay-app", "__name__": "process_cpu"}, "push-1")
    assert decode(data, {"service_name": "quay-app"}, name=labels["__name__"]) == profile


def test_large_bodies_are_packed(receiver: Receiver, client: PushClient) -> None:
    """Other messages are gzipped once that pays; the answer's body is returned."""
    receiver.answers.append((200, {}, b"answer"))
    assert client.post("/v1/traces", b"x" * 5000, "application/x-protobuf") == b"answer"
    client.post("/v1/traces", b"small", "application/x-protobuf")
    packed, small = receiver.received
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == b"x" * 5000
    assert (small.headers.get("Content-Encoding"), small.body) == (None, b"small")


def test_the_connection_is_kept(receiver: Receiver, client: PushClient) -> None:
    """Pushes share one connection, after a refusal too."""
    receiver.answers = [(200, {}, b"{}"), (400, {}, b"no"), (200, {}, b"")]
    client.push(b"1")
    with pytest.raises(PushFailed):
        client.push(b"2")
    client.push(b"3")
    client.push(b"4")
    assert len({got.port for got in receiver.received}) == 1
    assert [got.body for got in receiver.received] == [b"1", b"2", b"3", b"4"]


def test_a_stale_connection_is_replaced(receiver: Receiver, client: PushClient) -> None:
    """A connection that the receiver closed while idle costs no push."""
    receiver.hang_up = True
    client.push(b"1")
    client.push(b"2")
    assert [got.body for got in receiver.received] == [b"1", b"2"]
    assert len({got.port for got in receiver.received}) == 2


def test_token_and_tenant_travel_as_headers(receiver: Receiver) -> None:
    """The bearer token and the tenant are sent, below the address's own path."""
    client = PushClient(receiver.url + "/below/", token="s3cret", tenant="team")
    client.push(b"")
    client.close()
    (got,) = receiver.received
    assert got.path == "/below" + PUSH_PATH
    assert (got.headers["Authorization"], got.headers["X-Scope-OrgID"]) == ("Bearer s3cret", "team")


def test_user_and_password_travel_as_basic_auth(receiver: Receiver) -> None:
    """They are sent in UTF-8, a colon in the password included."""
    client = PushClient(receiver.url, basic=("quay", "pä:ss"))
    client.push(b"")
    client.close()
    (got,) = receiver.received
    scheme, _, packed = got.headers["Authorization"].partition(" ")
    assert (scheme, base64.b64decode(packed).decode()) == ("Basic", "quay:pä:ss")


def test_a_secret_in_the_answer_is_not_shown(receiver: Receiver) -> None:
    """A receiver that repeats what it was sent does not bring it into an error's text, cut or whole."""
    token = "s3cret" * 300
    client = PushClient(receiver.url, token=token)
    receiver.answers.append((400, {}, b"x" * 400 + token.encode()))
    receiver.answers.append((400, {}, json.dumps({"code": token, "message": f"no {token}"}).encode()))
    for _ in range(2):
        with pytest.raises(PushFailed) as refused:
            client.push(b"")
        assert "s3cret" not in str(refused.value) + refused.value.code
        assert "***" in str(refused.value)
    client.close()


@pytest.mark.parametrize(
    ("status", "content", "code", "shown", "retryable"),
    [
        (400, b'{"code":"invalid_argument","message":"too old"}', "invalid_argument", "too old", False),
        (
            429,
            b'{"code":"resource_exhausted","message":"slow\\ndown"}',
            "resource_exhausted",
            "slow down",
            True,
        ),
        (500, b"<html>", "", "<html>", True),
        (503, b"", "", "Service Unavailable", True),
        (401, b"[1]", "", "[1]", False),
        (404, b'{"message":"x"}', "", '{"message":"x"}', False),
    ],
)
def test_refusals_carry_code_and_reason(
    receiver: Receiver,
    client: PushClient,
    status: int,
    content: bytes,
    code: str,
    shown: str,
    retryable: bool,
) -> None:
    """Connect's error becomes `PushFailed`; other answers are shown as they are."""
    receiver.answers.append((status, {}, content))
    with pytest.raises(PushFailed) as refused:
        client.push(b"x")
    failure = refused.value
    assert (failure.status, failure.code, failure.retryable) == (status, code, retryable)
    assert str(failure) == f"refused with status {status}: {shown}"


def test_redirects_are_not_followed(receiver: Receiver) -> None:
    """A token never travels to where an answer points."""
    client = PushClient(receiver.url, token="s3cret")
    receiver.answers.append((307, {"Location": receiver.url + "/elsewhere"}, b""))
    with pytest.raises(PushFailed) as refused:
        client.push(b"x")
    client.close()
    assert (refused.value.status, len(receiver.received)) == (307, 1)


def test_an_unreachable_receiver_is_a_push_failure() -> None:
    """No listener: status 0, worth another try, and the token is not in the text."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        client = PushClient(f"http://127.0.0.1:{held.getsockname()[1]}", token="s3cret")
        with pytest.raises(PushFailed, match="cannot be reached") as refused:
            client.push(b"x")
    assert (refused.value.status, refused.value.retryable) == (0, True)
    assert "s3cret" not in f"{refused.value!r} {refused.value.next_step}"


def test_a_silent_receiver_times_out_once() -> None:
    """A receiver that takes and never answers costs one timeout, not two."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = PushClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)
        with pytest.raises(PushFailed, match="timed out"):
            client.push(b"x")
        client.close()


def test_an_endless_answer_is_bounded(receiver: Receiver, client: PushClient) -> None:
    """Of an answer no more than a mebibyte is read, and the next push is not confused by the rest."""
    receiver.answers.append((200, {}, b"y" * (3 << 20)))
    assert len(client.post("/v1/traces", b"1", "text/plain")) == 1 << 20
    client.push(b"2")
    assert [got.body for got in receiver.received] == [b"1", b"2"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: PushClient("ftp://user:s3cret@host"),
        lambda: PushClient("user:s3cret@host:4040"),
        lambda: PushClient("http://host:s3cret"),
        lambda: PushClient("http://"),
        lambda: PushClient("http://host", token="s3cret\n"),
        lambda: PushClient("http://host", tenant="s3cret\r\nX: y"),
    ],
)
def test_unusable_addresses_and_tokens_are_refused(make: Callable[[], PushClient]) -> None:
    """They are refused at once, and never repeated."""
    with pytest.raises(ProfileError) as refused:
        make()
    assert "s3cret" not in f"{refused.value!r} {refused.value.next_step}"
