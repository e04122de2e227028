"""Who may do what: bearer tokens with scopes, read from a file, and TLS for what listens.

A line of the file is `NAME SCOPES TOKEN`: SCOPES are read, write, capture and admin, with commas; TOKEN is
the token itself or `sha256:` and its digest in hexadecimal. Lines that begin with `#` are comments. The file
is read again when it changed; one that cannot be read any more leaves what was read last.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import ssl
import threading
import time
from pathlib import Path
from typing import NamedTuple

from quayscope.collector.errors import BadAccessFile, Forbidden, Unauthenticated
from quayscope.collector.identity import TokenReviews

__all__ = ["ADMIN", "ANYBODY", "CAPTURE", "READ", "WRITE", "Access", "Certificate", "Identity", "scope_of"]

log = logging.getLogger(__name__)

READ, WRITE, CAPTURE, ADMIN = "read", "write", "capture", "admin"
_SCOPES = (READ, WRITE, CAPTURE, ADMIN)
_DIGEST = "sha256:"
_LOOK_S = 1.0
_MOST_TOKENS = 10_000
_MAX_BYTES = 4 << 20
_WRITING = ("/push.v1.", "/ingest", "/v1/", "/opentelemetry.")
_OPEN = ("/api/v1/health",)


class Identity(NamedTuple):
    """Who somebody is, and what they may do. `admin` may do everything."""

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether the scope is theirs."""
        return scope in self.scopes or ADMIN in self.scopes


ANYBODY = Identity("anybody", frozenset(_SCOPES))
"""Where there is no file of tokens: whoever reaches the port."""


class Certificate(NamedTuple):
    """PEM files of the certificate (with its chain) and its key."""

    certificate: Path
    key: Path

    def read(self) -> tuple[bytes, bytes]:
        """Return both; raises `BadAccessFile` where they cannot be used together."""
        try:
            # Without a password of our own OpenSSL would ask for one on the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password="")
            return self.certificate.read_bytes(), self.key.read_bytes()
        except (OSError, ValueError) as error:
            raise BadAccessFile(
                f"{self.certificate} and its key cannot be used: {error}",
                next_step="check --tls-certificate and --tls-key",
            ) from error

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Return what changes when one of the files does; empty while one is missing."""
        try:
            return tuple(_stamp(path) for path in self)
        except OSError:
            return ()


class Access:
    """Knows the tokens of one file; without a file everybody may everything. Thread-safe.

    A token that the file does not have is shown to `reviews`, where there are: a pod's may write.
    Raises `BadAccessFile` when the file makes no sense at the start.
    """

    def __init__(self, path: Path | None = None, reviews: TokenReviews | None = None) -> None:
        self._path = path
        self._reviews = reviews
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._stamp: tuple[int, int, int] | None = None
        self._known: dict[bytes, Identity] = {}
        if path is not None:
            self._stamp, self._known = _read(path)

    @property
    def is_open(self) -> bool:
        """Whether there are no tokens at all."""
        return self._path is None

    def identify(self, authorization: str) -> Identity:
        """Return who shows this header (Bearer, or Basic with the token as password).

        Raises `Unauthenticated`.
        """
        if self._path is None:
            return ANYBODY
        token = _token(authorization)
        if not token:
            raise Unauthenticated(
                "a token is needed", next_step="send it as bearer token, or as the password of basic auth"
            )
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        found = None
        for known, identity in self._current(self._path).items():
            # All of them, each in constant time: how long it takes tells nothing about any.
            if hmac.compare_digest(known, digest):
                found = identity
        if found is None and self._reviews is not None:
            pod = self._reviews.who(token)
            if pod is not None:
                found = Identity(f"{pod.namespace}/{pod.pod or pod.account}", frozenset((WRITE,)))
        if found is None:
            raise Unauthenticated("the token is not known", next_step="check it for spaces and line breaks")
        return found

    def require(self, authorization: str, scope: str) -> Identity:
        """Return who shows this header; raises `Unauthenticated`, and `Forbidden` without the scope."""
        identity = self.identify(authorization)
        if not identity.may(scope):
            raise Forbidden(f"the token of {identity.name!r} lacks the scope {scope!r}")
        return identity

    def _current(self, path: Path) -> dict[bytes, Identity]:
        with self._lock:
            if time.monotonic() - self._looked_at >= _LOOK_S:
                self._looked_at = time.monotonic()
                try:
                    if _stamp(path) != self._stamp:
                        self._stamp, self._known = _read(path)
                        log.info("tokens read again", extra={"tokens": len(self._known)})
                except (BadAccessFile, OSError) as error:
                    log.warning("tokens are not read again", extra={"reason": str(error)})
            return self._known


def scope_of(method: str, path: str) -> str:
    """Return the scope that a request needs; empty: none."""
    if path in _OPEN or not path.startswith(("/api/", "/targets", *_WRITING)):
        return ""  # the page and its files hold no data
    if path.startswith(_WRITING):
        return WRITE
    if path.startswith("/targets"):
        return CAPTURE if path.rstrip("/").rpartition("/")[2] not in ("targets", "pprof") else READ
    if path == "/api/v1/sampling":
        return ADMIN
    return READ if method in ("GET", "HEAD") else CAPTURE


def _stamp(path: Path) -> tuple[int, int, int]:
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def _read(path: Path) -> tuple[tuple[int, int, int], dict[bytes, Identity]]:
    try:
        stamp = _stamp(path)
        with path.open(encoding="utf-8") as file:
            lines = file.read(_MAX_BYTES).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadAccessFile(f"{path} cannot be read: {why}", next_step="check --tokens") from error
    known: dict[bytes, Identity] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        known.update([_entry(f"{path}, line {number}", fields)])
        if len(known) > _MOST_TOKENS:
            raise BadAccessFile(f"{path} has more than {_MOST_TOKENS} tokens")
    if not known:
        raise BadAccessFile(f"{path} has no token", next_step="a line is NAME SCOPES TOKEN")
    return stamp, known


def _entry(where: str, fields: list[str]) -> tuple[bytes, Identity]:
    # The line itself is not repeated: it holds a secret.
    if len(fields) != 3:
        raise BadAccessFile(f"{where} has {len(fields)} words", next_step="a line is NAME SCOPES TOKEN")
    name, scopes, token = fields
    unknown = [scope for scope in scopes.split(",") if scope not in _SCOPES]
    if unknown:
        raise BadAccessFile(f"{where}: scope {unknown[0][:20]!r}", next_step=f"use {', '.join(_SCOPES)}")
    identity = Identity(name, frozenset(scopes.split(",")))
    if not token.startswith(_DIGEST):
        return hashlib.sha256(token.encode()).digest(), identity
    try:
        digest = bytes.fromhex(token.removeprefix(_DIGEST))
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise BadAccessFile(f"{where}: the digest is not 64 hexadecimal digits")
    return digest, identity


def _token(authorization: str) -> str:
    kind, _, rest = authorization.strip().partition(" ")
    if kind.lower() == "bearer":
        return rest.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""
