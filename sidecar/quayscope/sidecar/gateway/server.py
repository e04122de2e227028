"""HTTP on loopback for the pod's clients: bounded in connections, time, bytes and rate.

`http.server` rather than cheroot: the sidecar needs no more packages for it, its handler reads from a file
object of ours, so that a whole request has a deadline (not each `recv` one of its own), and a few dozen
requests a second are far below what it can do.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from quayscope.profile.headers import PID_HEADER
from quayscope.sidecar.errors import BadOption, SidecarError
from quayscope.sidecar.gateway import limits
from quayscope.sidecar.gateway.body import length_of, read
from quayscope.sidecar.gateway.errors import Foreign, NotHere, Refused, TooLarge, TooSlow
from quayscope.sidecar.gateway.limits import Pace, Room

__all__ = ["Address", "Answer", "Listener", "Request"]

log = logging.getLogger(__name__)

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 22\r\n\r\ntoo many connections\r\n"
)
_ACCEPT_PAUSE_S = 0.1


class Address(NamedTuple):
    """Where to listen; port 0 means any."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, flag: str) -> Address | None:
        """Read HOST:PORT, or None for `off`; raises `BadOption`, for addresses beyond loopback too."""
        if text == "off":
            return None
        try:
            parts = urlsplit(f"//{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or port is None or parts.path or parts.username is not None or parts.query:
            raise BadOption(f"{text!r} is not HOST:PORT", next_step=f"try {flag} 127.0.0.1:4318, or off")
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = host == "localhost"
        if not loopback:
            raise BadOption(
                f"{host} is beyond loopback, and the gateway asks nobody who they are",
                next_step=f"use {flag} 127.0.0.1:{port}; clients of other pods send to the collector",
            )
        # A name is looked up by nobody: it could mean anything by then.
        return cls("127.0.0.1" if host == "localhost" else host, port)


class Request(NamedTuple):
    """One POST, its body read whole; `query` is what follows the path's question mark.

    `pid` is the process that it says it is of; 0: it says none.
    """

    path: str
    query: str
    media: str
    encoding: str
    body: bytes
    pid: int = 0


class Answer(NamedTuple):
    """What is sent back."""

    status: int
    media: str
    body: bytes


class _Deadline(io.RawIOBase):
    """Reads from a socket until a point in time, however slowly the bytes drip."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self.until = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._socket.settimeout(left)
        return self._socket.recv_into(buffer)


class Listener:
    """One port: answers POSTs by `respond` (which may raise `Refused`), refusals by `refusal`.

    `count` is told of each: `taken`, or why not. `flag` is named where the address cannot be listened on,
    which raises `SidecarError`. `room` may be shared with other listeners; the rate is this one's own.
    """

    def __init__(
        self,
        address: Address,
        respond: Callable[[Request, Room], Answer],
        refusal: Callable[[Refused, Mapping[str, str]], Answer],
        count: Callable[[str], None],
        flag: str,
        room: Room,
    ) -> None:
        self.respond = respond
        self.refusal = refusal
        self.count = count
        self.pace = Pace()
        self.room = room
        try:
            self._server = _Server(address, self)
        except OSError as error:
            raise SidecarError(
                f"cannot listen on {address.host}:{address.port}: {error.strerror}",
                next_step=f"choose another with {flag}, or {flag} off",
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.accept_until_closed, name=f"gateway {self.port}", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Take no more; requests that are being read have a little time to end."""
        self._server.stop_accepting()
        if self._thread.ident is not None:
            self._thread.join(1.0)
        self._server.server_close()
        self._server.end(timeout_s)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    allow_reuse_address = True

    def __init__(self, address: Address, listener: Listener) -> None:
        self.listener = listener
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._free = threading.Semaphore(limits.MAX_CONNECTIONS)
        self._open: dict[socket.socket, bool] = {}
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        # http.server would ask the resolver for the address's name here, which may take its time.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def accept_until_closed(self) -> None:
        """Answer without looking ten times a second whether to stop, as `serve_forever` does."""
        while not self._stopping.is_set():
            self.handle_request()

    def stop_accepting(self) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:
            # No descriptor left, say: not again at once.
            self._stopping.wait(_ACCEPT_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            with self._changed:
                self._open[request] = False
            super().process_request(request, client_address)
            return
        self.listener.count("no_room")
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.send(_FULL)
            request.shutdown(socket.SHUT_WR)
        request.close()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changed:
                self._open.pop(request, None)
                self._changed.notify_all()
            self._free.release()

    def busy(self, request: socket.socket, busy: bool) -> None:
        with self._changed:
            if request in self._open:
                self._open[request] = busy
            self._changed.notify_all()

    def end(self, timeout_s: float) -> None:
        """Wait for the requests under way, then end every connection."""
        with self._changed:
            self._changed.wait_for(lambda: not any(self._open.values()), timeout_s)
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        self.listener.count("faults")
        log.error("gateway fault", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "quayscope", ""
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._deadline = _Deadline(self.connection)
        self._reader = io.BufferedReader(self._deadline, 65536)
        self.rfile = self._reader

    def handle_one_request(self) -> None:
        self.close_connection = True
        try:
            self._deadline.until = time.monotonic() + limits.IDLE_S
            if not self._reader.peek(1):
                return
            self.server.busy(self.connection, True)
            self._deadline.until = time.monotonic() + limits.HEADERS_S
            super().handle_one_request()
        except (OSError, ValueError):
            # The client went away, or said nothing for too long: nobody reads an answer.
            self.close_connection = True
        finally:
            self.server.busy(self.connection, False)

    def do_POST(self) -> None:
        listener = self.server.listener
        try:
            answer = self._answer(listener)
        except Refused as refused:
            listener.count(refused.count)
            # What is still on the way would be taken for the next request.
            self.close_connection = True
            self._send(listener.refusal(refused, dict(self.headers.items())), refused.retry_s)
        except Exception:
            # HTTP's border: a fault of one request must not reach the others.
            listener.count("faults")
            log.exception("gateway fault", extra={"path": self.path[:200]})
            self.close_connection = True
            self._send(listener.refusal(Refused("internal error"), dict(self.headers.items())), 0)
        else:
            listener.count("taken")
            self._send(answer, 0)

    def do_GET(self) -> None:
        self.server.listener.count("not_found")
        self.close_connection = True
        refused = NotHere("nothing is shown here: the gateway takes POSTs")
        self._send(self.server.listener.refusal(refused, dict(self.headers.items())), 0)

    def _answer(self, listener: Listener) -> Answer:
        if len(self.headers) > limits.MAX_HEADERS:
            raise TooLarge("too many header lines")
        self._refuse_foreign()
        listener.pace.enter()
        length = length_of(self.headers)
        with listener.room.taken(limits.MAX_BODY if length is None else length):
            self._deadline.until = time.monotonic() + limits.REQUEST_S
            try:
                body = read(self._reader, length)
            except TimeoutError as error:
                raise TooSlow("the body took too long") from error
            path, _, query = self.path.partition("?")
            media = self.headers.get("Content-Type", "")
            encoding = self.headers.get("Content-Encoding", "")
            said = self.headers.get(PID_HEADER, "")
            pid = int(said) if said.isascii() and said.isdecimal() and len(said) <= 10 else 0
            return listener.respond(Request(path, query, media, encoding, body, pid), listener.room)

    def _refuse_foreign(self) -> None:
        """Refuse pages of other sites: by Host (DNS rebinding), by Origin (blind posts)."""
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            name = None
        if name not in _LOOPBACK_NAMES:
            raise Foreign("the gateway listens on loopback and has no such name: use 127.0.0.1")
        if self.headers.get("Origin") is not None:
            raise Foreign("requests from pages of a browser are not taken")

    def _send(self, answer: Answer, retry_s: int) -> None:
        self.connection.settimeout(limits.HEADERS_S)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.media)
        self.send_header("Content-Length", str(len(answer.body)))
        if retry_s:
            self.send_header("Retry-After", str(retry_s))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer.body)
        if self.close_connection:
            self._discard()

    def _discard(self) -> None:
        """Read a little of what is still on the way, or the client sees a reset instead of the answer."""
        self.wfile.flush()
        with contextlib.suppress(OSError, ValueError):
            self.connection.shutdown(socket.SHUT_WR)
            self._deadline.until = time.monotonic() + 1.0
            left = limits.MAX_BODY
            while left > 0 and (piece := self._reader.read1(65536)):
                left -= len(piece)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        # What http.server itself refuses: request lines and headers that are none.
        self.server.listener.count("malformed")
        self.close_connection = True
        # To what looks like HTTP/0.9 it would answer without a status.
        self.request_version = self.protocol_version
        super().send_error(code, message, explain)

    def log_message(self, *_: object) -> None:
        pass
