"""A collector's HTTP interface as the command line asks it: JSON, a stream of events, files."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quayscope.cli.errors import NotCaptured

__all__ = ["Collector"]

_TIMEOUT_S = 30.0
_MAX_FILE = 512 << 20
_MAX_LINE = 16 << 20


class Collector:
    """One collector. `token_file` holds a bearer token; `ca_file` replaces the system's CAs.

    Everything raises `NotCaptured` with the collector's own reason and next step.
    """

    def __init__(self, url: str, token_file: Path | None = None, ca_file: Path | None = None) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            self._host = ""
        if not self._host or parts.scheme not in ("http", "https") or parts.username is not None:
            # The address is not repeated: it may carry a password.
            raise NotCaptured(
                "the collector's address is not http(s)://HOST:PORT",
                next_step="check --collector",
                exit_code=2,
            )
        self._base = parts.path.rstrip("/")
        try:
            self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
            self._headers = {"User-Agent": "quayscope now"}
            if token_file is not None:
                self._headers["Authorization"] = f"Bearer {token_file.read_text('utf-8').strip()}"
        except (OSError, ValueError) as error:
            raise NotCaptured(
                f"a file cannot be used: {error}", next_step="check --token-file and --ca-file", exit_code=2
            ) from error

    def json(self, method: str, path: str, document: Any = None) -> dict[str, Any]:
        """Ask, and return the answer's object; an empty one where there is no body."""
        with self._ask(method, path, document) as answer:
            body = answer.read(_MAX_FILE)
        found = json.loads(body) if body else {}
        return found if isinstance(found, dict) else {}

    def file(self, path: str) -> bytes:
        """Return the body of a file."""
        with self._ask("GET", path) as answer:
            return answer.read(_MAX_FILE)

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the data of each event of a stream (server-sent events, JSON)."""
        with self._ask("GET", path) as answer:
            try:
                while line := answer.readline(_MAX_LINE):
                    if line.startswith(b"data: "):
                        yield json.loads(line[6:])
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise NotCaptured(f"the collector went away: {error}") from error

    def _ask(self, method: str, path: str, document: Any = None) -> http.client.HTTPResponse:
        headers = dict(self._headers)
        body = None
        if document is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(document).encode()
        try:
            connection = self._connect()
            connection.request(method, self._base + path, body, headers)
            answer = connection.getresponse()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise NotCaptured(
                f"the collector at {self._host} cannot be asked: {error}",
                next_step="check --collector, and that it runs",
            ) from error
        if answer.status >= 400:
            raise _refusal(answer)
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        return http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_S, context=self._tls)


def _refusal(answer: http.client.HTTPResponse) -> NotCaptured:
    body = answer.read(65_536)
    try:
        said = json.loads(body)
        text, step = str(said["error"]), str(said.get("next_step", ""))
    except (ValueError, KeyError, TypeError):
        text, step = f"status {answer.status}", ""
    return NotCaptured(text, next_step=step)
