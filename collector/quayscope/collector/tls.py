"""TLS for the HTTP server: a certificate that is taken anew when its files change."""

from __future__ import annotations

import logging
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

    def wrap(self, sock: Any) -> Any:
        """Shake hands, with the newest certificate."""
        self._renew()
        return super().wrap(sock)  # type: ignore[no-untyped-call]  # cheroot's stubs leave it out

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
