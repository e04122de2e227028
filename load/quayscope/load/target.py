"""Where requests go: one origin, which a run never leaves."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from quayscope.load.errors import LoadError, TargetUnreachable

__all__ = ["Target", "parse_target"]


@dataclass(frozen=True)
class Target:
    """An origin and a path prefix. `base` is `scheme://host[:port][/prefix]` without a trailing slash."""

    base: str
    host: str
    port: int

    @property
    def origin(self) -> str:
        """`scheme://host[:port]`."""
        return "/".join(self.base.split("/", 3)[:3])

    def locate(self, path: str) -> str | None:
        """Return the URL here of a path, or of an absolute URL's path and query; None: it is neither.

        An absolute URL comes from an answer (`Location`) and has the prefix already. Its host is not
        followed: a server behind a proxy calls itself otherwise, and a redirect may lead to somebody else's.
        """
        if path.startswith("/"):
            return f"{self.base}{path}"
        if path.startswith(("http://", "https://")):
            rest = path.split("/", 3)[3:]
            return f"{self.origin}/{rest[0] if rest else ''}"
        return None

    def probe(self, timeout_s: float = 5.0) -> None:
        """Connect once and hang up; raises `TargetUnreachable` when nobody listens."""
        try:
            socket.create_connection((self.host, self.port), timeout=timeout_s).close()
        except OSError as error:
            raise TargetUnreachable(
                f"nothing answers at {self.base}: {error.strerror or error}",
                next_step="check --url, and that the server is up",
            ) from error


def parse_target(url: str) -> Target:
    """Return the target of an http or https URL; raises `LoadError` (usage)."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise LoadError(f"--url is no URL: {error}", exit_code=2) from error
    if parts.username is not None or parts.password is not None:
        raise LoadError(
            "--url carries a user or password, which other processes could read",
            next_step="use a header of the workload with {env.NAME}",
            exit_code=2,
        )
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise LoadError(
            "--url is not http(s)://HOST[:PORT][/PREFIX]",
            next_step="--url http://127.0.0.1:8080",
            exit_code=2,
        )
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    return Target(base, host, port or (443 if parts.scheme == "https" else 80))
