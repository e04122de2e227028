"""Many HTTP requests at once from one thread: libcurl's multi interface on epoll, with an exact alarm.

libcurl tells which sockets to watch. It forgets a socket after every answer and wants it watched again for
the next request; telling the kernel each time costs a quarter of the driver's CPU. So a forgotten socket
stays in epoll as *idle* until it is used again or closes (which removes it there by itself).
"""

from __future__ import annotations

import contextlib
import os
import select
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

import pycurl

from quayscope.load.timer import Timer

__all__ = ["REASONS", "Channel", "Client", "Outcome"]

TIMEOUT_MS = 30_000
"""A request that has not ended after this is an error."""
MAX_KEPT_BYTES = 1_000_000
"""Most of an answer's body that is kept for a capture; of a longer one the end is missing."""
EVENTS = 64
"""Socket events handled before the caller may send again: a burst of answers must not make arrivals late."""

# The older names give floats, and warn of it with each request in pycurl 7.49; pycurl 7.45 has no others.
_SIZE = getattr(pycurl, "SIZE_DOWNLOAD_T", pycurl.SIZE_DOWNLOAD)

REASONS = {
    pycurl.E_URL_MALFORMAT: "not a URL",
    pycurl.E_COULDNT_RESOLVE_HOST: "host name not resolved",
    pycurl.E_COULDNT_CONNECT: "could not connect",
    pycurl.E_PARTIAL_FILE: "answer cut short",
    pycurl.E_OPERATION_TIMEDOUT: "timed out",
    pycurl.E_SSL_CONNECT_ERROR: "TLS handshake failed",
    pycurl.E_PEER_FAILED_VERIFICATION: "certificate not trusted",
    pycurl.E_GOT_NOTHING: "connection closed without an answer",
    pycurl.E_SEND_ERROR: "connection broke while sending",
    pycurl.E_RECV_ERROR: "connection broke while receiving",
    1: "not an HTTP answer",  # CURLE_UNSUPPORTED_PROTOCOL
    8: "not an HTTP answer",  # CURLE_WEIRD_SERVER_REPLY
}
"""libcurl's error numbers in words. Its own messages hold ports and times: one reason would be many."""


@dataclass(slots=True)
class Outcome:
    """How a request ended: `time.monotonic_ns` of each step, status (0: no whole answer), libcurl's error.

    `first_ns` is when the first byte of the answer came, 0 where none did. `headers` (names in lower case)
    and `body` are empty unless its channel keeps them.
    """

    sent_ns: int
    first_ns: int
    ended_ns: int
    status: int
    size: int
    error: int
    headers: dict[str, str]
    body: bytes


class Channel:
    """Requests of one shape, which share their libcurl handles."""

    def __init__(self, method: str, *, body: bool, keep_headers: bool, keep_body: bool) -> None:
        self.method = method
        self.body = body
        self.keep_headers = keep_headers
        self.keep_body = keep_body
        self.free: list[_Slot] = []


class _Slot:
    """A libcurl handle and the request it carries now."""

    __slots__ = ("body", "channel", "context", "curl", "headers", "kept", "sent_ns")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.curl = pycurl.Curl()
        self.context: Any = None
        self.sent_ns = 0
        self.headers: dict[str, str] = {}
        self.body: list[bytes] = []
        self.kept = 0

    def on_header(self, line: bytes) -> None:
        """Keep one header line of the answer; the ones of an interim answer (1xx) are forgotten."""
        if line.startswith(b"HTTP/"):
            self.headers = {}
            return
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            self.headers[name.strip().lower()] = value.strip()

    def on_body(self, piece: bytes) -> None:
        """Keep one piece of the answer's body."""
        if self.kept < MAX_KEPT_BYTES:
            self.body.append(piece)
            self.kept += len(piece)


def _discard(piece: bytes) -> None:
    """Take a piece of a body that nobody reads."""


class Client:
    """Sends requests and calls `on_end(context, outcome)` for each that ended, from `wait` alone.

    `connections` is how many sockets are kept open between requests. Not thread-safe, but for `wake`.
    """

    def __init__(
        self, on_end: Callable[[Any, Outcome], None], connections: int, ca_file: str | None = None
    ) -> None:
        self._on_end = on_end
        # The wheels of pycurl bring their own OpenSSL, which looks elsewhere for authorities.
        self._ca_file = ca_file or ssl.get_default_verify_paths().cafile
        self._timer = Timer()
        self._armed_ns = 0
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._timer.descriptor, select.EPOLLIN)
        self._epoll.register(self._waker, select.EPOLLIN)
        self._active: dict[int, int] = {}
        self._idle: dict[int, int] = {}
        self._curl_due_ns: int | None = None
        self._running = 0
        self._flying: dict[Any, _Slot] = {}
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)

    @property
    def in_flight(self) -> int:
        """Requests sent and not ended."""
        return len(self._flying)

    def contexts(self) -> list[Any]:
        """Return the contexts of the requests in flight."""
        return [slot.context for slot in self._flying.values()]

    def start(self, channel: Channel, url: str, headers: Sequence[str], body: bytes, context: object) -> None:
        """Send a request now. Headers are `Name: value` lines."""
        slot = channel.free.pop() if channel.free else self._slot(channel)
        slot.context = context
        curl = slot.curl
        try:
            curl.setopt(pycurl.URL, url)
            curl.setopt(pycurl.HTTPHEADER, headers)
        except (UnicodeEncodeError, TypeError):
            # Bytes that no HTTP request line can carry: libcurl refuses an empty URL in its own time.
            curl.setopt(pycurl.URL, "")
        if channel.body:
            curl.setopt(pycurl.POSTFIELDS, body)
        self._flying[curl] = slot
        slot.sent_ns = monotonic_ns()
        self._multi.add_handle(curl)
        self._running += 1
        self._act(pycurl.SOCKET_TIMEOUT, 0)

    def wait(self, until_ns: int) -> None:
        """Handle what happens until `until_ns` or the first event, whichever is earlier."""
        if self._running < len(self._flying):
            self._collect()
        now = monotonic_ns()
        timeout = 0.0
        if until_ns > now:
            if until_ns != self._armed_ns:
                self._timer.arm(until_ns)
                self._armed_ns = until_ns
            timeout = -1.0 if self._curl_due_ns is None else max(0.0, (self._curl_due_ns - now) / 1e9)
        for descriptor, event in self._epoll.poll(timeout, EVENTS):
            if descriptor in self._active:
                self._act(
                    descriptor,
                    (pycurl.CSELECT_IN if event & select.EPOLLIN else 0)
                    | (pycurl.CSELECT_OUT if event & select.EPOLLOUT else 0)
                    | (pycurl.CSELECT_ERR if event & (select.EPOLLERR | select.EPOLLHUP) else 0),
                )
            elif descriptor in self._idle:
                # The server closed a connection between requests: libcurl finds out when it next needs one.
                del self._idle[descriptor]
                with contextlib.suppress(OSError):
                    self._epoll.unregister(descriptor)
            elif descriptor == self._waker:
                os.eventfd_read(self._waker)
        if self._curl_due_ns is not None and self._curl_due_ns <= monotonic_ns():
            self._act(pycurl.SOCKET_TIMEOUT, 0)
        if self._running < len(self._flying):
            self._collect()

    def wake(self) -> None:
        """Make a `wait` in progress return. May be called from a signal handler or another thread."""
        os.eventfd_write(self._waker, 1)

    def close(self) -> None:
        """Drop what is in flight and close every connection."""
        slots = list(self._flying.values())
        for slot in slots:
            self._multi.remove_handle(slot.curl)
        self._flying.clear()
        self._multi.close()
        for slot in slots:
            slot.curl.close()
        self._epoll.close()
        self._timer.close()
        os.close(self._waker)

    def _slot(self, channel: Channel) -> _Slot:
        slot = _Slot(channel)
        curl = slot.curl
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.TIMEOUT_MS, TIMEOUT_MS)
        curl.setopt(pycurl.CONNECTTIMEOUT_MS, TIMEOUT_MS)
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        curl.setopt(pycurl.PATH_AS_IS, 1)
        # What a proxy of the environment does to a request is not what is to be measured.
        curl.setopt(pycurl.PROXY, "")
        curl.setopt(pycurl.USERAGENT, "quayscope-load")
        if self._ca_file:
            curl.setopt(pycurl.CAINFO, self._ca_file)
        if channel.method == "HEAD":
            curl.setopt(pycurl.NOBODY, 1)
        elif channel.method != "GET" or channel.body:
            curl.setopt(pycurl.CUSTOMREQUEST, channel.method)
        curl.setopt(pycurl.WRITEFUNCTION, slot.on_body if channel.keep_body else _discard)
        if channel.keep_headers:
            curl.setopt(pycurl.HEADERFUNCTION, slot.on_header)
        return slot

    def _act(self, descriptor: int, events: int) -> None:
        if descriptor == pycurl.SOCKET_TIMEOUT:
            self._curl_due_ns = None
        _, self._running = self._multi.socket_action(descriptor, events)

    def _on_timer(self, milliseconds: int) -> None:
        self._curl_due_ns = None if milliseconds < 0 else monotonic_ns() + milliseconds * 1_000_000

    def _on_socket(self, what: int, descriptor: int, multi: object, data: object) -> None:  # noqa: ARG002 - pycurl's signature
        if what == pycurl.POLL_REMOVE:
            mask = self._active.pop(descriptor, None)
            if mask is not None:
                self._idle[descriptor] = mask
            return
        mask = (select.EPOLLIN if what & pycurl.POLL_IN else 0) | (
            select.EPOLLOUT if what & pycurl.POLL_OUT else 0
        )
        if descriptor in self._active:
            if self._active[descriptor] != mask:
                self._epoll.modify(descriptor, mask)
        elif self._idle.pop(descriptor, None) is None:
            self._epoll.register(descriptor, mask)
        else:
            # An idle socket may have been closed and its number given to a new one, which the kernel does
            # not watch yet: only asking it tells.
            try:
                self._epoll.modify(descriptor, mask)
            except FileNotFoundError:
                self._epoll.register(descriptor, mask)
        self._active[descriptor] = mask

    def _collect(self) -> None:
        """Take what has ended out of libcurl and report it."""
        queued = 1
        while queued:
            queued, done, failed = self._multi.info_read()
            now = monotonic_ns()
            for curl in done:
                self._end(curl, now, 0)
            for curl, error, _ in failed:
                self._end(curl, now, error)

    def _end(self, curl: Any, now_ns: int, error: int) -> None:
        slot = self._flying.pop(curl)
        first = curl.getinfo(pycurl.STARTTRANSFER_TIME)
        outcome = Outcome(
            sent_ns=slot.sent_ns,
            first_ns=slot.sent_ns + int(first * 1e9) if first else 0,
            ended_ns=now_ns,
            status=0 if error else curl.getinfo(pycurl.RESPONSE_CODE),
            size=int(curl.getinfo(_SIZE)),
            error=error,
            headers=slot.headers,
            body=b"".join(slot.body) if slot.body else b"",
        )
        self._multi.remove_handle(curl)
        context, slot.context = slot.context, None
        if slot.channel.keep_headers or slot.channel.keep_body:
            slot.headers, slot.body, slot.kept = {}, [], 0
        slot.channel.free.append(slot)
        self._on_end(context, outcome)
