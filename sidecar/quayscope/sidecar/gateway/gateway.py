"""The gateway: two ports on loopback where stock clients of the pod send what goes on by the uplink."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl

from quayscope.profile.push import PUSH_PATH
from quayscope.sidecar.gateway import otlp
from quayscope.sidecar.gateway.body import unpack
from quayscope.sidecar.gateway.errors import Malformed, NoRoom, NotHere, Refused, TooLarge, Unsupported
from quayscope.sidecar.gateway.ingest import read_ingest
from quayscope.sidecar.gateway.limits import MAX_BODY, MAX_BODY_BYTES, Room
from quayscope.sidecar.gateway.push import read_push
from quayscope.sidecar.gateway.server import Address, Answer, Listener, Request

__all__ = ["OTLP_LISTEN", "PUSH_LISTEN", "Gateway", "GatewayOptions", "Hold", "Pushes"]

log = logging.getLogger(__name__)

OTLP_LISTEN, PUSH_LISTEN = "127.0.0.1:4318", "127.0.0.1:4041"
_JSON = "application/json"
_PROTOBUF = ("application/x-protobuf", "application/protobuf", "application/proto")
_RETRY_S = 5
_MAX_PARAMETERS = 32


class Hold(Protocol):
    """Takes encoded messages for good; see `quayscope.relay.uplink.Uplink`."""

    def takes(self, kind: str) -> bool:
        """Whether `profiles`, `spans` or `metrics` go anywhere."""

    def hold(self, kind: str, body: bytes) -> bool:
        """Take a message; False where there is no room for it."""


class Pushes(Protocol):
    """Hears of pushes that were held, from the gateway's threads."""

    def take(self, pid: int, message: bytes) -> None:
        """Take an encoded PushRequest, and the process that it says it is of."""


class GatewayOptions(NamedTuple):
    """Where to listen (HOST:PORT, or `off`), the pod's labels, and a service_name for all that comes."""

    otlp_listen: str = OTLP_LISTEN
    push_listen: str = PUSH_LISTEN
    labels: Mapping[str, str] = {}
    service: str = ""


class Gateway:
    """Answers clients until closed; what it acknowledged was held.

    Raises `BadOption` for an address that is none or beyond loopback. Its memory: 32 MB of bodies, one
    message that is worked on (16 MB, unpacked), 128 connections a port.
    """

    def __init__(self, options: GatewayOptions, hold: Hold, pushes: Pushes | None = None) -> None:
        self._hold = hold
        self._pushes = pushes
        own = {name: value for name, value in options.labels.items() if name != "service_name"}
        service = options.service
        self._series_labels = {**own, "service_name": service} if service else own
        self._resource = {**own, "service.name": service} if service else own
        self._addresses = [
            (Address.parse(options.otlp_listen, "--otlp-listen"), "--otlp-listen", self._otlp, _otlp_refusal),
            (Address.parse(options.push_listen, "--push-listen"), "--push-listen", self._push, _refusal),
        ]
        self._listeners: dict[str, Listener] = {}
        self._room = Room()
        self._working = threading.Lock()
        self._counting = threading.Lock()
        self._counts: Counter[str] = Counter()

    def start(self) -> None:
        """Listen; raises `SidecarError` where an address is taken."""
        try:
            for address, flag, respond, refusal in self._addresses:
                if address is not None:
                    listener = Listener(address, respond, refusal, self._count, flag, self._room)
                    self._listeners[flag] = listener
        except Exception:
            self.close(0)
            raise
        for listener in self._listeners.values():
            listener.start()

    def ports(self) -> dict[str, int]:
        """Return the ports listened on, by `otlp` and `push`."""
        return {flag[2:].partition("-")[0]: listener.port for flag, listener in self._listeners.items()}

    def counts(self) -> dict[str, int]:
        """Return what happened so far: requests `taken`, and those refused by why."""
        with self._counting:
            return dict(self._counts)

    def close(self, timeout_s: float) -> None:
        """Stop listening; what is being received has a little time to end."""
        for listener in self._listeners.values():
            listener.close(timeout_s)

    def _count(self, name: str) -> None:
        with self._counting:
            self._counts[name] += 1

    def _otlp(self, request: Request, room: Room) -> Answer:
        kind = otlp.PATHS.get(request.path)
        if kind is None:
            what = "logs are" if request.path == "/v1/logs" else f"{request.path[:80]} is"
            raise NotHere(f"{what} not taken here: send /v1/traces and /v1/metrics")
        self._check_taken(kind)
        is_json = _is_json(request)
        self._pass_on(
            kind,
            request,
            room,
            lambda body: otlp.read_otlp(kind, body, self._resource, is_json=is_json),
        )
        # An empty answer: everything was taken.
        return Answer(200, _JSON, b"{}") if is_json else Answer(200, _PROTOBUF[0], b"")

    def _push(self, request: Request, room: Room) -> Answer:
        self._check_taken("profiles")
        labels = self._series_labels
        if request.path == PUSH_PATH:
            is_json = _is_json(request)
            message = self._pass_on(
                "profiles", request, room, lambda body: read_push(body, labels, is_json=is_json)
            )
            if self._pushes is not None and request.pid:
                self._pushes.take(request.pid, message)
            return Answer(200, _JSON, b"{}") if is_json else Answer(200, "application/proto", b"")
        if request.path == "/ingest":
            query = _query(request.query)
            self._pass_on(
                "profiles", request, room, lambda body: read_ingest(query, request.media, body, labels)
            )
            return Answer(200, "text/plain", b"")
        raise NotHere(f"{request.path[:80]} is not taken here: send {PUSH_PATH} or /ingest")

    def _check_taken(self, kind: str) -> None:
        if not self._hold.takes(kind):
            raise NotHere(f"{kind} go nowhere from this pod: its sidecar was given no address for them")

    def _pass_on(self, kind: str, request: Request, room: Room, read: Callable[[bytes], bytes]) -> bytes:
        # One at a time: so the memory for it is that of one.
        with self._working:
            message = read(unpack(request.body, request.encoding))
        if len(message) > MAX_BODY_BYTES - MAX_BODY:
            raise TooLarge("with the pod's labels in each of its resources the message is too large")
        with room.taken(len(message), requests=0):
            if message and not self._hold.hold(kind, message):
                raise NoRoom("the receiver is away and there is no more room here", retry_s=_RETRY_S)
        return message


def _is_json(request: Request) -> bool:
    media = request.media.partition(";")[0].strip().lower()
    if media == _JSON:
        return True
    if media in _PROTOBUF:
        return False
    raise Unsupported(f"content type {media[:60]!r} is not taken: send application/x-protobuf or JSON")


def _query(text: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS))
    except ValueError as error:
        raise Malformed("the query has too many parameters") from error


def _refusal(refused: Refused, _headers: Mapping[str, str]) -> Answer:
    """Return an error as Connect has it."""
    body = json.dumps({"code": refused.code, "message": str(refused)}).encode()
    return Answer(refused.status, _JSON, body)


def _otlp_refusal(refused: Refused, headers: Mapping[str, str]) -> Answer:
    """Return an error as OTLP has it: a google.rpc.Status, in the form that the request had."""
    media = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    if media.partition(";")[0].strip().lower() in _PROTOBUF:
        return Answer(refused.status, _PROTOBUF[0], otlp.status_message(refused.number, str(refused)))
    body = json.dumps({"code": refused.number, "message": str(refused)}).encode()
    return Answer(refused.status, _JSON, body)
