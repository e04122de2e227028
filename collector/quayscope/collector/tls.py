"""TLS for the HTTP server: a certificate that is taken anew when its files change."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from typing import Any

from cheroot.ssl.builtin import BuiltinSSLAdapter

from quayscope.collector.access import Certificate
from quayscope.collector.errors import BadAccessFile

__all__ = ["RenewingTls"]

log = logging.getLogger(__name__)

_LOOK_S = 1.0


class RenewingTls(BuiltinSSLAdapter):
    """Raises `BadAccessFile` for files that cannot be used; a later change that cannot be used is logged."""

    def __init__(self, certificate: Certificate) -> None:
        certificate.read()
        super().__init__(str(certificate.certificate), str(certificate.key))
        self._certificate = certificate
        self._stamp = certificate.stamp()
        self._looked_at = time.monotonic()
        self._renewing = threading.Lock()

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, Any]]:
        """Return the connection with the newest certificate.

        It shakes hands at its first read, in the thread that serves it: cheroot would do so in the one that
        accepts, and whoever connects and says nothing would keep everybody else out.
        """
        self._renew()
        wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return wrapped, {"wsgi.url_scheme": "https", "HTTPS": "on"}

    def _renew(self) -> None:
        with self._renewing:
            if time.monotonic() - self._looked_at < _LOOK_S:
                return
            self._looked_at = time.monotonic()
            now = self._certificate.stamp()
            if not now or now == self._stamp:
                return
            try:
                self._certificate.read()
            except BadAccessFile as error:
                log.warning("certificate is not read again", extra={"reason": str(error)})
                return
            self._stamp = now
            self.context.load_cert_chain(self._certificate.certificate, self._certificate.key)
            log.info("certificate read again")
