"""The webhook's server: reviews, health, metrics, over TLS."""

from __future__ import annotations

import ipaddress
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

from cheroot.wsgi import Server as CherootServer
from flask import Flask, Response, request

from quayscope.injector.certificates import ReloadingTls
from quayscope.injector.errors import CannotServe, MalformedReview
from quayscope.injector.review import MAX_BYTES, Answer, admitted, answer, read_request
from quayscope.injector.settings import Settings

__all__ = ["Reviews", "WebhookServer", "create_app"]

log = logging.getLogger(__name__)

_THREADS = 32
_TIMEOUT_S = 10
"""A connection that says nothing is closed after it; an API server waits five seconds for an answer."""
_LOOK_EVERY_S = 1.0
_STOP_S = 5


class Reviews:
    """Answers reviews and counts them by outcome; thread-safe.

    `native` is asked each time whether the server has restartable init containers.
    """

    def __init__(self, settings: Settings, native: Callable[[], bool] | None = None) -> None:
        self._settings = settings
        self._native = native
        self._lock = threading.Lock()
        self._outcomes = Counter[str]()
        self._ns = 0

    def take(self, body: bytes) -> Answer:
        """Answer one review; whatever goes wrong admits the pod as it is."""
        began = time.perf_counter_ns()
        uid = ""
        try:
            request = read_request(body)
            uid = request["uid"]
            found = answer(request, self._current())
        except MalformedReview as error:
            log.warning("malformed review", extra={"error": str(error)})
            found = Answer(admitted(uid), "malformed")
        except Exception:
            # The webhook's border: a fault of ours must not keep a pod from being made.
            log.exception("fault")
            found = Answer(admitted(uid), "fault")
        with self._lock:
            self._outcomes[found.outcome] += 1
            self._ns += time.perf_counter_ns() - began
        return found

    def count(self, outcome: str) -> None:
        """Count what never became a review."""
        with self._lock:
            self._outcomes[outcome] += 1

    def counts(self) -> tuple[dict[str, int], float]:
        """Return reviews by outcome, and the seconds all of them took."""
        with self._lock:
            return dict(self._outcomes), self._ns / 1e9

    def _current(self) -> Settings:
        return replace(self._settings, native=self._native()) if self._native else self._settings


def create_app(reviews: Reviews, tls: ReloadingTls | None = None) -> Flask:
    """Return the WSGI application: `/inject` for the API server, `/healthz`, `/metrics`."""
    app = Flask("quayscope.injector", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES

    @app.post("/inject")
    def inject() -> tuple[dict[str, object], int]:
        return reviews.take(request.get_data(cache=False)).body, 200

    @app.errorhandler(413)
    def too_long(_error: Exception) -> tuple[dict[str, object], int]:
        reviews.count("malformed")
        return admitted(""), 200

    @app.get("/healthz")
    def healthz() -> str:
        return "ok\n"

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(_exposition(reviews, tls), content_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _exposition(reviews: Reviews, tls: ReloadingTls | None) -> str:
    outcomes, seconds = reviews.counts()
    lines = ["# TYPE quayscope_injector_reviews_total counter"]
    lines += [
        f'quayscope_injector_reviews_total{{outcome="{outcome}"}} {count}'
        for outcome, count in sorted(outcomes.items())
    ]
    lines += [
        "# TYPE quayscope_injector_review_seconds summary",
        f"quayscope_injector_review_seconds_sum {seconds:.6f}",
        f"quayscope_injector_review_seconds_count {sum(outcomes.values())}",
    ]
    if tls is not None:
        lines += [
            "# TYPE quayscope_injector_certificate_reloads_total counter",
            f'quayscope_injector_certificate_reloads_total{{result="done"}} {tls.reloads}',
            f'quayscope_injector_certificate_reloads_total{{result="failed"}} {tls.failures}',
        ]
    return "\n".join(lines) + "\n"


class _HttpServer(CherootServer):
    """Cheroot with its own messages in our log."""

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Log instead of printing to stderr; of a client that breaks a connection off, one line."""
        fault = sys.exc_info()[1]
        if isinstance(fault, OSError):  # TLS errors are of this kind
            log.info("connection broken off", extra={"error": str(fault)})
        else:
            log.log(level, "http: %s", msg.strip(), exc_info=traceback)


class WebhookServer:
    """Listens on `address` (HOST:PORT; port 0 takes a free one) and serves until `stop`.

    `tls` may be None on loopback alone. Raises `CannotServe`.
    """

    def __init__(self, address: str, reviews: Reviews, tls: ReloadingTls | None) -> None:
        host, port = _parsed(address)
        if tls is None and not _is_loopback(host):
            raise CannotServe(
                f"{host} can be reached from elsewhere, and there is no certificate",
                next_step="give --certificate and --key",
                exit_code=2,
            )
        self._tls = tls
        self._stopping = threading.Event()
        self._http = _HttpServer(
            (host, port),
            create_app(reviews, tls),
            numthreads=_THREADS,
            server_name="quayscope",
            request_queue_size=128,
            timeout=_TIMEOUT_S,
            shutdown_timeout=_STOP_S,
        )
        self._http.ssl_adapter = tls
        self._http.max_request_body_size = 2 * MAX_BYTES
        try:
            self._http.prepare()
        except OSError as error:
            raise CannotServe(f"cannot listen on {address}: {error}", next_step="check --listen") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if tls else 'http'}://{shown}:{self._http.bind_addr[1]}"
        self._threads = [
            threading.Thread(target=self._http.serve, name="http", daemon=True),
            threading.Thread(target=self._watch_certificate, name="certificate", daemon=True),
        ]

    def start(self) -> None:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()
        log.info("injector serves", extra={"url": self.url})

    def stop(self) -> None:
        """Take no more, and answer what runs."""
        self._stopping.set()
        self._http.stop()

    def _watch_certificate(self) -> None:
        while self._tls is not None and not self._stopping.wait(_LOOK_EVERY_S):
            self._tls.reload()


def _parsed(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.path:
        raise CannotServe(f"{address!r} is not HOST:PORT", next_step="try 0.0.0.0:8443", exit_code=2)
    return host, port


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
