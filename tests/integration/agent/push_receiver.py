"""A receiver of Pyroscope pushes on loopback: keeps what stock clients send, decoded."""

from __future__ import annotations

import gzip
import http.server
import threading
from types import TracebackType
from typing import NamedTuple

from quayscope.profile import Profile
from quayscope.profile.pprof import decode
from quayscope.profile.protowire import fields, numbers, packed_varints, text
from quayscope.profile.push import PUSH_PATH, decode_push

SPAN_ID = "span_id"


class Pushed(NamedTuple):
    """One profile of a push; `several`: nanoseconds in samples that name more than one span.

    Of those a receiver can keep one; `quayscope.profile` keeps the last.
    """

    profile: Profile
    several: int


class PushReceiver:
    """Listens at `address` while it is entered; `pushed` holds what came, `failures` what was no push."""

    def __init__(self) -> None:
        self.pushed: list[Pushed] = []
        self.failures: list[str] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> PushReceiver:
        """Begin to listen."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, body: bytes) -> None:
        """Keep the profiles of one push.v1.PushRequest."""
        for series in decode_push(body):
            for _, data in series.samples:
                profile = decode(data, series.labels, name=series.labels.get("__name__"))
                self.pushed.append(Pushed(profile, _several(data)))

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                try:
                    if self.path != PUSH_PATH:
                        raise ValueError(f"{self.path} is no push")
                    receiver.take(body)
                except ValueError as error:
                    receiver.failures.append(str(error))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _several(data: bytes) -> int:
    raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    parts = [(number, value) for number, _, value in fields(raw) if not isinstance(value, int)]
    strings = [text(value) for number, value in parts if number == 6]
    found = 0
    for number, value in parts:
        if number == 2:
            labels = [
                numbers(one) for part, _, one in fields(value) if part == 3 and not isinstance(one, int)
            ]
            if sum(strings[label.get(1, 0)] == SPAN_ID for label in labels) > 1:
                found += sum(sum(packed_varints(one)) for part, _, one in fields(value) if part == 2)
    return found
