"""One GET of a pprof endpoint, bounded in size and in time from the first byte sent to the last one read."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from typing import NamedTuple
from urllib.parse import urlsplit

from quayscope.sidecar.errors import BadOption, ScrapeFailed

__all__ = ["Address", "Fetcher", "parse_address"]

PATH = "/debug/pprof/"
_CHUNK = 65_536
_CONNECT_S = 2.0
_SHOWN = 120


class Address(NamedTuple):
    """Where a program serves its profiles: plain http, and the path of the index."""

    host: str
    port: int
    path: str = PATH

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.path}"


def parse_address(url: str) -> Address:
    """Return the address in `http://HOST:PORT[/debug/pprof/]`; raises `BadOption`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme != "http" or not parts.hostname or port is None or parts.query or "@" in parts.netloc:
        raise BadOption(
            "an address of pprof endpoints cannot be used", next_step="use --go-pprof http://127.0.0.1:8089"
        )
    path = parts.path if parts.path.strip("/") else PATH
    return Address(parts.hostname, port, path if path.endswith("/") else f"{path}/")


class Fetcher:
    """Fetches, one at a time; `abort` ends the one under way and all later ones. Follows no redirect."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted = self._timed_out = False

    def get(self, address: Address, name: str, *, timeout_s: float, max_bytes: int) -> bytes:
        """Return the body of `name` below the address; raises `ScrapeFailed` where there is none."""
        connection = http.client.HTTPConnection(
            address.host, address.port, timeout=min(_CONNECT_S, timeout_s)
        )
        # Each read has its timeout anew: an answer that trickles in is ended from beside.
        watchdog = threading.Timer(timeout_s, self._end)
        watchdog.daemon = True
        response = None
        try:
            connection.connect()
            self._hold(connection.sock)
            connection.sock.settimeout(timeout_s)
            watchdog.start()
            connection.request("GET", address.path + name, headers={"Accept-Encoding": "identity"})
            response = connection.getresponse()
            body = _read(response, max_bytes)
            if self._timed_out:
                # A body of no stated length ends wherever the connection does.
                raise TimeoutError(f"no whole answer within {timeout_s:g} s")
        except (OSError, http.client.HTTPException, ValueError) as error:
            said = str(error) or type(error).__name__
            raise ScrapeFailed(f"{address}{name}: {said[:_SHOWN]}") from error
        finally:
            watchdog.cancel()
            self._hold(None)
            if response is not None:
                response.close()
            connection.close()
        if response.status != http.HTTPStatus.OK:
            said = body[:_SHOWN].decode(errors="replace").strip()
            raise ScrapeFailed(f"{address}{name}: status {response.status}: {said}")
        return body

    def abort(self) -> None:
        """End what is under way."""
        with self._lock:
            self._aborted = True
        self._end()

    def _end(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                self._timed_out = True
                self._socket.shutdown(socket.SHUT_RDWR)

    def _hold(self, held: socket.socket | None) -> None:
        with self._lock:
            if held is not None and self._aborted:
                raise OSError("stopped")
            self._socket = held
            if held is not None:
                self._timed_out = False


def _read(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := response.read1(_CHUNK):
        size += len(part)
        if size > max_bytes:
            raise ValueError(f"the answer has more than {max_bytes} bytes")
        parts.append(part)
    if response.length:
        raise ValueError("the answer was cut short")
    return b"".join(parts)
