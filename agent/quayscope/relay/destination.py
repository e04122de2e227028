"""Where an uplink sends to, and what it shows there: address, credentials, certificates."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from quayscope.profile import ProfileError
from quayscope.profile.push import PushClient
from quayscope.relay.errors import BadDestination

__all__ = ["COLLECTOR", "OTLP", "PYROSCOPE", "Destination"]

COLLECTOR, PYROSCOPE, OTLP = "collector", "pyroscope", "otlp"
_TIMEOUT_S = {COLLECTOR: 3.0, PYROSCOPE: 10.0, OTLP: 10.0}
"""For one request; a Pyroscope acknowledges about a second after a push, whatever its size."""
_MAX_SECRET = 65_536


class Destination(NamedTuple):
    """One receiver. `kind` is `COLLECTOR`, `PYROSCOPE` or `OTLP`, `url` http or https, without a user in it.

    `token_file` holds a bearer token, `basic_auth_file` `user:password` (the token wins); `tenant` is sent
    as X-Scope-OrgID. `ca_file` replaces the system's CAs; `cert_file` and `key_file` (may be one file) are
    PEM, shown to a receiver that asks. `insecure` allows plain http beyond loopback.
    """

    url: str
    kind: str = COLLECTOR
    token_file: Path | None = None
    basic_auth_file: Path | None = None
    tenant: str = ""
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    insecure: bool = False

    @property
    def has_secret(self) -> bool:
        """Whether a file holds what is shown to the receiver."""
        return self.token_file is not None or self.basic_auth_file is not None

    def client(self) -> PushClient:
        """Read the files and return a client; raises `BadDestination`. Nothing is connected yet."""
        secure = self._check_url()
        tls = self._tls() if secure else None
        token = basic = None
        if self.token_file is not None:
            token = _secret(self.token_file, "token_file").strip() or None
        elif self.basic_auth_file is not None:
            user, colon, password = _secret(self.basic_auth_file, "basic_auth_file").partition(":")
            if not colon:
                raise BadDestination(f"{self.basic_auth_file} does not hold user:password", "basic_auth_file")
            basic = (user, password)
        try:
            return PushClient(
                self.url,
                token=token,
                basic=basic,
                tenant=self.tenant or None,
                tls=tls,
                timeout_s=_TIMEOUT_S[self.kind],
            )
        except ProfileError as error:
            field = "token_file" if token and not _plain(token) else "tenant"
            raise BadDestination(str(error), field, next_step=error.next_step) from error

    def _check_url(self) -> bool:
        """Return whether the address asks for TLS; raises `BadDestination`."""
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host, parts = None, urlsplit("")
        if parts.scheme not in ("http", "https") or not host:
            # The address is not repeated: it may carry a password.
            raise BadDestination("the address is no http(s)://HOST:PORT", "url")
        if parts.username is not None or parts.query or parts.fragment:
            raise BadDestination("the address carries a user, a password or a query", "url")
        if parts.scheme == "https":
            return True
        if not self.insecure and not _is_loopback(host):
            raise BadDestination(f"{host} is beyond loopback and would be sent to without TLS", "insecure")
        for field in ("ca_file", "cert_file", "key_file"):
            if getattr(self, field) is not None:
                raise BadDestination("a certificate is given, and the address is plain http", field)
        return False

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ValueError) as error:
            raise BadDestination(f"CA file {self.ca_file} cannot be used: {error}", "ca_file") from error
        if self.cert_file is not None:
            try:
                # Without a password of our own OpenSSL would ask for one on the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
            except (OSError, ValueError) as error:
                files = f"{self.cert_file} and its key {self.key_file or ''}".rstrip()
                raise BadDestination(f"{files} cannot be used: {error}", "cert_file") from error
        elif self.key_file is not None:
            raise BadDestination("a key is given without its certificate", "cert_file")
        return context


def _secret(path: Path, field: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_SECRET).decode("utf-8").strip("\r\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadDestination(f"{path} cannot be read: {why}", field) from error


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
