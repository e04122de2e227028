"""Requests by hand, and the gateway over a real uplink."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from quayscope.profile import PROCESS_CPU, Attributes, Frame, Profile
from quayscope.profile.push import PUSH_PATH, encode_push, series_of
from quayscope.relay.destination import Destination
from quayscope.relay.uplink import Uplink
from quayscope.sidecar.gateway import Gateway, GatewayOptions

PROTOBUF = "application/x-protobuf"
LABELS = {"namespace": "quay", "pod": "quay-0"}


class Said(NamedTuple):
    """An answer, its header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def post(
    port: int,
    path: str,
    body: bytes = b"",
    media: str = PROTOBUF,
    headers: Mapping[str, str] | None = None,
) -> Said:
    """Send one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, body, {"Content-Type": media, **(headers or {})})
        answer = connection.getresponse()
        return Said(
            answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        )
    finally:
        connection.close()


def said_raw(port: int, request: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes and return all that is answered until the gateway closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def a_push(push_id: str, service: str = "s") -> bytes:
    """One small profile as a push."""
    profile = Profile(PROCESS_CPU, {"service_name": service}, 1_700_000_000 * 10**9, 10)
    profile.add((Frame("f"),), Attributes(), (1, 1))
    return encode_push([series_of(profile, push_id)])


@contextmanager
def running_gateway(url: str, **options: str) -> Iterator[tuple[Gateway, dict[str, int], Uplink]]:
    """A gateway on ports of its own before an uplink to `url`."""
    uplink = Uplink(Destination(url))
    uplink.start()
    listen = {"otlp_listen": "127.0.0.1:0", "push_listen": "127.0.0.1:0", "labels": LABELS}
    gateway = Gateway(GatewayOptions(**{**listen, **options}), uplink)  # type: ignore[arg-type] # by name
    gateway.start()
    try:
        yield gateway, gateway.ports(), uplink
    finally:
        gateway.close(1.0)
        uplink.close(1.0)


__all__ = ["LABELS", "PROTOBUF", "PUSH_PATH", "Said", "a_push", "post", "running_gateway", "said_raw"]
