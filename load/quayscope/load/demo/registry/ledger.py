"""The application's own account of where its CPU went: the truth that profiles are held against.

`Ledger` stands right around Flask's WSGI callable. It reads the whole request body before it starts its
clock, because reading yields to gevent's hub; nothing behind it yields (psycopg2 blocks, blobs are plain
files), so the thread's CPU time between two points belongs to one request.

Figures are cumulative and carry the time they were written at, so a reader subtracts an earlier reading.
Each worker process has a file of its own, `ledger-<pid>.json`, replaced as a whole.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["NO_ROUTE", "RULE", "Account", "Ledger", "ledger_cpu", "read_ledgers"]

RULE = "quayscope.demo.rule"
"""Key of the WSGI environment under which the application notes the matched route's template."""
NO_ROUTE = "(no route)"
WRITE_EVERY_SECONDS = 1.0


@dataclass
class Account:
    """What one endpoint's requests took, since the worker started. Seconds."""

    requests: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def add(self, requests: int, cpu_s: float, wall_s: float) -> None:
        """Add to the account."""
        self.requests += requests
        self.cpu_s += cpu_s
        self.wall_s += wall_s


class Ledger:
    """WSGI middleware that keeps an `Account` for each endpoint (METHOD, space, route template).

    Bodies above `max_body` bytes are answered with 413. Without a call of `write_if_due` from outside
    once a second, what the last second brought is written with the next request or by `write`.
    """

    def __init__(self, application: WSGIApplication, directory: Path, max_body: int) -> None:
        self._application = application
        self._directory = directory
        self._max_body = max_body
        self._accounts: dict[str, Account] = {}
        self._written = 0.0
        self._changed = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        body = environ["wsgi.input"].read(self._max_body + 1)
        if len(body) > self._max_body:
            start_response("413 Content Too Large", [("Content-Type", "text/plain"), ("Content-Length", "0")])
            return [b""]
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        started, cpu = time.monotonic(), time.thread_time()
        try:
            return self._application(environ, start_response)
        finally:
            cpu = time.thread_time() - cpu
            endpoint = f"{environ['REQUEST_METHOD']} {environ.get(RULE, NO_ROUTE)}"
            self._accounts.setdefault(endpoint, Account()).add(1, cpu, time.monotonic() - started)
            self._changed = True
            self.write_if_due()

    def write_if_due(self) -> None:
        """Write the ledger when it changed and was last written a second ago or more."""
        if self._changed and time.monotonic() - self._written >= WRITE_EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        """Replace this process's file by the account as it stands; a full disk is no reason to fail."""
        if not self._accounts:
            return
        self._written = time.monotonic()
        self._changed = False
        content = {
            "pid": os.getpid(),
            "written": time.time(),
            "endpoints": {name: vars(account) for name, account in sorted(self._accounts.items())},
        }
        path = self._directory / f"ledger-{os.getpid()}.json"
        temporary = path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(content))
            temporary.replace(path)


def read_ledgers(directory: Path) -> dict[str, Account]:
    """Return each endpoint's account over all workers that ever wrote one, ended ones too."""
    total: dict[str, Account] = {}
    for path in sorted(directory.glob("ledger-*.json")):
        content: dict[str, Any] = json.loads(path.read_text())
        for name, figures in content["endpoints"].items():
            total.setdefault(name, Account()).add(**figures)
    return total


def ledger_cpu(directory: Path) -> dict[str, float]:
    """Return each endpoint's CPU seconds over all workers."""
    return {name: account.cpu_s for name, account in read_ledgers(directory).items()}
