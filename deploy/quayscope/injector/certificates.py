"""TLS whose certificate is changed while serving, and whose handshakes keep nobody waiting."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from socket import socket
from typing import Any

from cheroot.makefile import MakeFile
from cheroot.ssl import Adapter

from quayscope.injector.errors import CannotServe

__all__ = ["ReloadingTls"]

log = logging.getLogger(__name__)

_Seen = tuple[tuple[int, int, int], ...]


class ReloadingTls(Adapter):
    """Cheroot's TLS with the certificate and key of two PEM files, which `reload` reads again.

    A connection keeps the certificate it began with. The handshake happens in the thread that answers, so
    that a client that connects and says nothing holds one thread, for cheroot's timeout, and not the
    listener.
    Raises `CannotServe` when the first certificate cannot be used.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self.reloads = 0
        self.failures = 0
        """Reloads that were tried and failed: the one before serves on."""
        try:
            self._seen = self._look()
            self._context = self._load()
        except (OSError, ValueError) as error:
            raise CannotServe(
                f"{certificate} and its key {key} cannot be used: {error}",
                next_step="check --certificate and --key",
            ) from error

    def reload(self) -> None:
        """Take up what the files hold when they changed; what cannot be used is counted and tried again."""
        try:
            seen = self._look()
            if seen == self._seen:
                return
            # A new context, whole or not at all: the two may be read from before and after a change.
            context = self._load()
        except (OSError, ValueError) as error:
            self.failures += 1
            log.warning("certificate not reloaded", extra={"error": str(error)})
            return
        self._seen, self._context = seen, context
        self.reloads += 1
        log.info("certificate reloaded", extra={"certificate": str(self._files[0])})

    def _look(self) -> _Seen:
        found = [path.stat() for path in self._files]
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # Without a password of our own OpenSSL would ask for one on the terminal.
        context.load_cert_chain(*self._files, password="")
        return context

    def bind(self, sock: socket) -> socket:
        """Return the listening socket as it is: each connection is wrapped by itself."""
        return sock

    def wrap(self, sock: socket) -> tuple[ssl.SSLSocket, dict[str, str]]:
        """Return a connection's socket in TLS, its handshake still to come, and its WSGI variables."""
        wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return wrapped, self.get_environ()

    def get_environ(self) -> dict[str, str]:
        """Return what WSGI is told of a connection."""
        return {"wsgi.url_scheme": "https", "HTTPS": "on"}

    def makefile(self, sock: socket, mode: str = "r", bufsize: int = -1) -> Any:
        """Return the file that cheroot reads or writes a connection by."""
        return MakeFile(sock, mode, bufsize)
