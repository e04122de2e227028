"""A real HTTP or HTTPS server in a thread that stands where a collector or a Pyroscope would."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Received", "ReceivingServer"]


class Received(NamedTuple):
    """One POST; `headers` by lower-case name, `certified`: the client showed a certificate."""

    path: str
    headers: dict[str, str]
    body: bytes
    certified: bool


class ReceivingServer:
    """Answers each POST with the status that `answer` says; keeps what it answered 200 in `taken`.

    With `tls` it speaks HTTPS. `content` is the body of every answer. `port` 0 takes a free one.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, content: bytes = b"", port: int = 0) -> None:
        self.taken: list[Received] = []
        self.seen: list[Received] = []
        self.answer: Callable[[Received], int] = lambda received: 200
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                # In the connection's own thread: a client that breaks the handshake off ends only that.
                if tls is not None:
                    self.request.settimeout(10)
                    self.request = tls.wrap_socket(self.request, server_side=True)
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                certified = tls is not None and bool(self.request.getpeercert())
                received = Received(self.path, headers, body, certified)
                outer.seen.append(received)
                status = outer.answer(received)
                if status == 200:
                    outer.taken.append(received)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing: a refused handshake is what some tests are about."""

        self._server = Server(("127.0.0.1", port), Handler)
        scheme = "https" if tls is not None else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
