"""The Unix socket that workers write to: accepts, reads packets, notices ends."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import stat
from pathlib import Path
from typing import Callable

from quayscope.relay.errors import RelayError

__all__ = ["SOCKET_MODE", "Listener"]

PACKET_BYTES = 65_536
"""Receive buffer: a worker's records have at most 16,000 bytes; a longer packet would be cut silently."""
MAX_CONNECTIONS = 512
BACKLOG = 128
SOCKET_MODE = 0o660
"""Who may connect by default: the relay's own user and group (OpenShift runs all containers of a pod in
group 0). Where workers share neither, the mode must be 0o666, and the folder's mode decides."""


class Listener:
    """Owns the listening socket and its connections; not thread-safe, `poll` is called by one thread.

    `mode` is the socket's, as for chmod. `refused` counts connections beyond `MAX_CONNECTIONS`.
    """

    def __init__(self, path: str, mode: int = SOCKET_MODE) -> None:
        self.path = path
        self.refused = 0
        self._mode = mode
        self._listening: socket.socket | None = None
        self._epoll: select.epoll | None = None
        self._connections: dict[int, socket.socket] = {}

    def open(self) -> None:
        """Listen; raises `RelayError` when somebody else does already or the path cannot be used."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._clear_path()
            listening.bind(self.path)
            Path(self.path).chmod(self._mode)
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            raise RelayError(
                f"cannot listen on {self.path}: {error.strerror or error}",
                next_step="choose a folder that this user may write to, and a path under 100 characters",
            ) from error
        listening.setblocking(False)
        self._listening = listening
        self._epoll = select.epoll()
        self._epoll.register(listening, select.EPOLLIN)

    def _clear_path(self) -> None:
        """Remove a socket that nobody listens on any more, and nothing else."""
        try:
            if not stat.S_ISSOCK(Path(self.path).lstat().st_mode):
                raise RelayError(f"{self.path} exists and is no socket", next_step="choose another path")
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            try:
                probe.connect(self.path)
            except OSError as error:
                if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                    with contextlib.suppress(FileNotFoundError):
                        Path(self.path).unlink()
                    return
                raise
        raise RelayError(f"another relay listens on {self.path}", next_step="stop it, or choose another path")

    def poll(
        self,
        timeout_s: float,
        on_packet: Callable[[int, bytes, bool], bool],
        on_close: Callable[[int], None],
    ) -> int:
        """Handle what is ready; returns the number of packets read.

        `on_packet(connection, packet, truncated)` returns False to end the connection.
        """
        assert self._epoll is not None
        assert self._listening is not None
        packets = 0
        for descriptor, _ in self._epoll.poll(timeout_s):
            if descriptor == self._listening.fileno():
                self._accept()
            else:
                packets += self._read(descriptor, on_packet, on_close)
        return packets

    def _accept(self) -> None:
        assert self._epoll is not None
        assert self._listening is not None
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            if len(self._connections) >= MAX_CONNECTIONS:
                connection.close()
                self.refused += 1
                continue
            connection.setblocking(False)
            self._connections[connection.fileno()] = connection
            self._epoll.register(connection, select.EPOLLIN)

    def _read(
        self, descriptor: int, on_packet: Callable[[int, bytes, bool], bool], on_close: Callable[[int], None]
    ) -> int:
        connection = self._connections.get(descriptor)
        packets = 0
        # Bounded, so that one busy worker does not starve the others.
        while connection is not None and packets < 64:
            try:
                packet, _, flags, _ = connection.recvmsg(PACKET_BYTES)
            except BlockingIOError:
                return packets
            except OSError:
                packet, flags = b"", 0
            if not packet or not on_packet(descriptor, packet, bool(flags & socket.MSG_TRUNC)):
                self._forget(descriptor)
                on_close(descriptor)
                return packets
            packets += 1
        return packets

    def send(self, descriptor: int, packet: bytes) -> bool:
        """Write a packet to a connection without waiting; whether it was taken."""
        connection = self._connections.get(descriptor)
        try:
            return connection is not None and connection.send(packet) == len(packet)
        except OSError:
            # A full queue; or the end of the connection, which the next `poll` sees.
            return False

    def _forget(self, descriptor: int) -> None:
        assert self._epoll is not None
        connection = self._connections.pop(descriptor)
        with contextlib.suppress(OSError):
            self._epoll.unregister(connection)
        connection.close()

    def close(self) -> None:
        """Close everything and remove the socket."""
        for descriptor in list(self._connections):
            self._forget(descriptor)
        if self._listening is not None:
            self._listening.close()
            self._listening = None
            with contextlib.suppress(OSError):
                Path(self.path).unlink()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
