"""A real HTTP server for the load driver's tests: records each arrival, and misbehaves where asked to.

Run as a program with a file name; writes its port there once it listens.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gevent
from gevent.pywsgi import WSGIServer

ARRIVALS: list[dict[str, Any]] = []
USER = base64.b64encode(b"user:open-sesame").decode()


class NoDelay(WSGIServer):  # type: ignore[misc]  # gevent has no types
    """Sends head and body at once: Nagle's algorithm would hold the body back for 40 ms."""

    def handle(self, client: Any, address: Any) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().handle(client, address)


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a request, and remember when it came and with which headers."""
    now = time.monotonic_ns()
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    query = {name: values[0] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
    body = environ["wsgi.input"].read()
    headers: list[tuple[str, str]] = []
    if path == "/log":
        answer = json.dumps(ARRIVALS).encode()
        ARRIVALS.clear()
        start("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]
    ARRIVALS.append(
        {
            "at_ns": now,
            "method": method,
            "path": path,
            "query": query,
            "size": len(body),
            "body": body.decode(errors="replace")[:300],
            "headers": {
                name[5:].replace("_", "-").lower(): value
                for name, value in environ.items()
                if name.startswith("HTTP_")
            }
            | {"content-type": environ.get("CONTENT_TYPE", "")},
        }
    )
    status, answer = 200, b"x" * 130
    if path == "/slow":
        gevent.sleep(float(query.get("s", "1")))
    elif path.startswith("/status/"):
        status = int(path.rsplit("/", 1)[1])
    elif path == "/cut":
        # Says more than it sends, then hangs up.
        start("200 OK", [("Content-Length", "1000"), ("Connection", "close")])
        return [b"short"]
    elif path == "/uploads" and method == "POST":
        status = 202
        headers.append(("Location", f"http://elsewhere.invalid/uploads/{len(ARRIVALS)}?state=kept"))
    elif path.startswith("/uploads/") and method == "PUT":
        proper = query.get("digest") == f"sha256:{hashlib.sha256(body).hexdigest()}"
        status = 201 if proper and query.get("state") == "kept" else 400
    elif path == "/token":
        proper = environ.get("HTTP_AUTHORIZATION") == f"Basic {USER}"
        status = 200 if proper else 401
        answer = json.dumps({"tokens": [{"value": "tok-s3cret"}]}).encode()
    elif path == "/guarded":
        status = 200 if environ.get("HTTP_AUTHORIZATION") == "Bearer tok-s3cret" else 401
    elif path == "/injecting":
        answer = json.dumps({"value": "x\r\nX-Injected: yes"}).encode()
    headers.append(("Content-Length", str(len(answer))))
    start(f"{status} Said", headers)
    return [] if method == "HEAD" else [answer]


if __name__ == "__main__":
    server = NoDelay(("127.0.0.1", 0), application, log=None, backlog=1024)
    server.start()
    ready = Path(sys.argv[1])
    partial = ready.with_suffix(".partial")
    partial.write_text(str(server.server_port))
    partial.rename(ready)
    server.serve_forever()
