"""Pyroscope's push protocol: the message, and a client that speaks Connect over HTTP.

Source: grafana/pyroscope `api/push/v1/push.proto`; `POST /push.v1.PusherService/Push` with
`application/proto`, errors as JSON `{"code", "message"}` (connectrpc.com, protocol reference).
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from quayscope.profile.clock import CLOCK_HEADER, ClockEstimate
from quayscope.profile.errors import MalformedProfile, ProfileError, PushFailed
from quayscope.profile.model import Profile
from quayscope.profile.pprof import encode
from quayscope.profile.protowire import LENGTH, fields, put_bytes, put_text, text

__all__ = ["PUSH_PATH", "PushClient", "PushSeries", "decode_push", "encode_push", "series_of"]

PUSH_PATH = "/push.v1.PusherService/Push"
_COMPRESS_FROM = 1024
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_MAX_ANSWER = 1 << 20
_MAX_MESSAGE = 500
_NEXT_STEPS = {
    401: "check the token, or the user and password",
    403: "check the token and the tenant",
    404: "check the receiver's address and path",
}


class PushSeries(NamedTuple):
    """One series of a push: its labels (`__name__` is the profile type) and (id, pprof bytes) pairs."""

    labels: dict[str, str]
    samples: tuple[tuple[str, bytes], ...]


def series_of(profile: Profile, push_id: str) -> PushSeries:
    """Return `profile` as a series to push; a receiver stores the same `push_id` once."""
    return PushSeries({**profile.labels, "__name__": profile.type.name}, ((push_id, encode(profile)),))


def encode_push(series: Iterable[PushSeries]) -> bytes:
    """Return a push.v1.PushRequest."""
    out = bytearray()
    for one in series:
        body = bytearray()
        for name, value in one.labels.items():
            label = bytearray()
            put_text(label, 1, name)
            put_text(label, 2, value)
            put_bytes(body, 1, label)
        for push_id, data in one.samples:
            sample = bytearray()
            put_bytes(sample, 1, data)
            put_text(sample, 2, push_id)
            put_bytes(body, 2, sample)
        put_bytes(out, 1, body)
    return bytes(out)


def decode_push(data: bytes) -> list[PushSeries]:
    """Read a push.v1.PushRequest; raises `MalformedProfile`."""
    return [_series(view) for view in _messages(data, 1)]


def _messages(data: bytes | memoryview, wanted: int) -> list[memoryview]:
    found: list[memoryview] = []
    for number, wire, value in fields(data):
        if number == wanted:
            if wire != LENGTH or isinstance(value, int):
                raise MalformedProfile(f"field {number} of the push is not a message")
            found.append(value)
    return found


def _series(view: memoryview) -> PushSeries:
    labels: dict[str, str] = {}
    for label in _messages(view, 1):
        pair = {number: text(value) for number, _, value in fields(label)}
        labels[pair.get(1, "")] = pair.get(2, "")
    samples: list[tuple[str, bytes]] = []
    for sample in _messages(view, 2):
        push_id, data = "", b""
        for number, _, value in fields(sample):
            if isinstance(value, int):
                continue
            if number == 1:
                data = bytes(value)
            elif number == 2:
                push_id = text(value)
        samples.append((push_id, data))
    return PushSeries(labels, tuple(samples))


class PushClient:
    """Posts to one receiver over a kept connection; threads take turns.

    `url` is http or https; `token` is sent as a bearer token, or else `basic` as (user, password), and
    neither ever shown; `tenant` as `X-Scope-OrgID`. `tls` holds the CA to believe and the certificate to
    show; without it the system's CAs hold. Redirects are not followed: a token must not travel elsewhere.
    Raises `ProfileError` for an address or a token that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        basic: tuple[str, str] | None = None,
        tenant: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            # The address is not repeated: it may carry a password.
            raise ProfileError("the receiver's address is not http(s)", next_step="use http://HOST:PORT")
        if not all(_VISIBLE.fullmatch(value) for value in (token, tenant) if value):
            raise ProfileError(
                "the token or the tenant has characters that no header may have",
                next_step="check it for a line break at its end",
            )
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._host = parts.hostname
        self._port = port
        self._base = parts.path.rstrip("/")
        self._timeout = timeout_s
        self._headers = {"User-Agent": "quayscope", "Connect-Protocol-Version": "1"}
        self._secrets: list[str] = []
        if token:
            self._secrets = [token]
            self._headers["Authorization"] = f"Bearer {token}"
        elif basic:
            packed = base64.b64encode(":".join(basic).encode()).decode("ascii")
            self._secrets = [packed, basic[1]]
            self._headers["Authorization"] = f"Basic {packed}"
        if tenant:
            self._headers["X-Scope-OrgID"] = tenant
        self._connection: http.client.HTTPConnection | None = None
        self._lock = threading.Lock()

    def push(self, body: bytes, clock: ClockEstimate | None = None) -> None:
        """Send a push.v1.PushRequest; its profiles are gzipped already. Raises `PushFailed`."""
        self.post(PUSH_PATH, body, "application/proto", compress=False, clock=clock)

    def post(
        self,
        path: str,
        body: bytes,
        content_type: str,
        *,
        compress: bool = True,
        clock: ClockEstimate | None = None,
    ) -> bytes:
        """Send `body` and return the answer's body; raises `PushFailed` for anything but a 2xx.

        `clock` says how far the clock of the times in it is from the receiver's.
        """
        headers = {**self._headers, "Content-Type": content_type}
        if clock is not None:
            headers[CLOCK_HEADER] = clock.header()
        if compress and len(body) >= _COMPRESS_FROM:
            body = gzip.compress(body, 1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        with self._lock:
            while True:
                kept = self._connection is not None
                try:
                    return self._exchange(path, body, headers)
                except (http.client.HTTPException, OSError) as error:
                    self._drop()
                    # A kept connection may have been closed while idle: once more on a new one.
                    if not kept or isinstance(error, socket.timeout):
                        why = str(error) or type(error).__name__
                        raise PushFailed(
                            f"{self._host} cannot be reached: {why}", next_step=_tls_step(error)
                        ) from error

    def close(self) -> None:
        """Close the kept connection."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._tls)

    def _exchange(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        connection = self._connection or self._connect()
        self._connection = connection
        connection.request("POST", self._base + path, body, headers)
        answer = connection.getresponse()
        content = answer.read(_MAX_ANSWER)
        if answer.will_close or not answer.isclosed():
            self._drop()
        if not 200 <= answer.status < 300:
            raise _refusal(answer.status, content, self._secrets)
        return content


def _tls_step(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "check the CA file, and that the receiver's certificate has this host's name"
    if isinstance(error, ssl.SSLError):
        return "check that the receiver speaks TLS, and which client certificate it asks for"
    return ""


def _refusal(status: int, content: bytes, secrets: list[str]) -> PushFailed:
    code, message = "", content.decode("utf-8", "replace").strip()
    try:
        parsed = json.loads(content)
        code, message = str(parsed["code"]), str(parsed.get("message", ""))
    except (ValueError, KeyError, TypeError):
        pass
    for secret in filter(None, secrets):
        # A proxy's error page may repeat the headers it was sent.
        code, message = code.replace(secret, "***"), message.replace(secret, "***")
    shown = " ".join(message[:_MAX_MESSAGE].split()) or http.client.responses.get(status, "no reason given")
    return PushFailed(
        f"refused with status {status}: {shown}",
        status=status,
        code=code,
        next_step=_NEXT_STEPS.get(status, ""),
    )
