"""The running collector: HTTP and gRPC over one store, started and stopped in order."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from cheroot.wsgi import Server as CherootServer
from flask import Blueprint, Flask, Response, g, request

from quayscope.collector.access import CAPTURE, Access, Certificate, scope_of
from quayscope.collector.control.door import ControlDoor
from quayscope.collector.control.triggers import Rule
from quayscope.collector.counters import Counters
from quayscope.collector.errors import CannotListen, Forbidden, ForeignRequest, Unauthenticated
from quayscope.collector.forward import Forwarder
from quayscope.collector.identity import TokenReviews
from quayscope.collector.limits import MAX_DECOMPRESSED
from quayscope.collector.query.http import query_blueprint
from quayscope.collector.receive import Receiver
from quayscope.collector.receive.body import discard
from quayscope.collector.receive.grpc import GrpcServer
from quayscope.collector.receive.http import receive_blueprint
from quayscope.collector.store import Store
from quayscope.collector.tls import RenewingTls
from quayscope.collector.web import page_blueprint

__all__ = ["Address", "CollectorServer", "create_app"]

log = logging.getLogger(__name__)

_THREADS = 32
_KEPT_CONNECTIONS = 512
_MAX_HEADER_BYTES = 64 << 10
_STOP_S = 5
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class Address:
    """A HOST:PORT to listen on; port 0 means any. Raises `CannotListen`."""

    def __init__(self, text: str) -> None:
        try:
            parts = urlsplit(f"//{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or port is None or parts.path or parts.username is not None:
            raise CannotListen(f"{text!r} is not HOST:PORT", next_step="try 127.0.0.1:4040", exit_code=2)
        self.host, self.port = host, port

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def shown(self, port: int) -> str:
        """Return host and `port` as a URL has them."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


def own_version() -> str:
    """Return the distribution's version, or `0` where it runs uninstalled."""
    try:
        return version("quayscope")
    except PackageNotFoundError:
        return "0"


def _host_name(host: str) -> str:
    """Return the name in a Host header, the port left out; empty where it makes no sense."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class _HttpServer(CherootServer):
    """Cheroot with its own messages in our log."""

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Log instead of printing to stderr."""
        log.log(level, "http: %s", msg.strip(), exc_info=traceback)


def create_app(
    store: Store,
    receiver: Receiver,
    counters: Counters,
    *,
    loopback: bool,
    forward_queue: Callable[[], int],
    access: Access,
    others: Sequence[Blueprint] = (),
) -> Flask:
    """Return the WSGI application. With `loopback` only loopback names are taken as Host.

    `others` are blueprints beside those of receiving, querying and the page.
    """
    app = Flask("quayscope.collector", static_folder=None)
    app.register_blueprint(receive_blueprint(receiver))
    app.register_blueprint(query_blueprint(store, counters, own_version(), forward_queue))
    for blueprint in others:
        app.register_blueprint(blueprint)
    app.register_blueprint(page_blueprint())

    @app.errorhandler(Unauthenticated)
    @app.errorhandler(Forbidden)
    def not_let(
        error: Unauthenticated | Forbidden,
    ) -> tuple[dict[str, str], int, dict[str, str]]:
        # A browser asks its user for name and password, `go tool pprof` is told what is missing.
        headers = {"WWW-Authenticate": 'Basic realm="quayscope"'} if error.status == 401 else {}
        text = str(error)
        body = {"error": text, "next_step": error.next_step, "code": error.code, "message": text}
        return body, error.status, headers

    @app.errorhandler(ForeignRequest)
    def foreign(error: ForeignRequest) -> tuple[dict[str, str], int]:
        return {"error": str(error), "next_step": error.next_step}, error.status

    @app.errorhandler(Exception)
    def fault(error: Exception) -> tuple[dict[str, str], int]:
        code = getattr(error, "code", None)
        if isinstance(code, int):  # a path that no blueprint has
            return {"error": getattr(error, "description", ""), "next_step": "see docs/api.md"}, code
        # HTTP's border: a fault of one request must not reach the others.
        counters.add("faults")
        log.error("request fault", exc_info=error, extra={"path": request.path})
        text = "internal error"
        return {
            "error": text,
            "next_step": "see the collector's log",
            "code": "internal",
            "message": text,
        }, 500

    @app.before_request
    def refuse_foreign() -> None:
        """Refuse pages of other sites: by Host (DNS rebinding), by Origin (blind posts)."""
        if loopback and _host_name(request.host) not in _LOOPBACK_NAMES:
            counters.add("foreign")
            raise ForeignRequest(
                "this collector listens on loopback and has no such name", next_step="use 127.0.0.1"
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            counters.add("foreign")
            raise ForeignRequest("requests from pages of another site are not taken")

    @app.before_request
    def refuse_strangers() -> None:
        """Refuse who shows no token with the scope that is needed."""
        scope = scope_of(request.method, request.path)
        if scope == CAPTURE and request.headers.get("Sec-Fetch-Site") == "cross-site":
            # Go's paths begin a capture by a GET, which any page can make a browser send.
            counters.add("foreign")
            raise ForeignRequest("captures from pages of another site are not taken")
        if not scope:
            return
        try:
            g.who = access.require(request.headers.get("Authorization", ""), scope).name
        except Unauthenticated:
            counters.add("unauthenticated")
            raise
        except Forbidden:
            counters.add("forbidden")
            raise

    @app.after_request
    def harden(answer: Response) -> Response:
        if request.method == "POST":
            discard(request.environ["wsgi.input"], MAX_DECOMPRESSED)
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers.setdefault("Cache-Control", "no-store")
        answer.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        return answer

    return app


class CollectorServer:
    """Opens the store, listens, and serves from threads of its own until `stop`.

    `tokens` is a file as `access` describes it, `reviews` knows service accounts' beside it, `certificate`
    makes both doors speak TLS.
    Raises `CannotOpenStore`, `CannotListen`, `BadAccessFile`, and `ProfileError` for a forward address that
    is none.
    """

    def __init__(
        self,
        http: Address,
        grpc: Address,
        data: Path,
        pyroscope: str = "",
        *,
        tokens: Path | None = None,
        reviews: TokenReviews | None = None,
        certificate: Certificate | None = None,
        triggers: Sequence[Rule] = (),
    ) -> None:
        self.counters = Counters()
        access = Access(tokens, reviews)
        self._forwarder = Forwarder(pyroscope, self.counters) if pyroscope else None
        with contextlib.ExitStack() as undo:
            if self._forwarder:
                undo.callback(self._forwarder.close, 0)
            forward = self._forwarder.offer if self._forwarder else None
            self.store = Store(data, self.counters, forward) if forward else Store(data, self.counters)
            undo.callback(self.store.close)
            receiver = Receiver(self.store, self.counters)
            self._control = ControlDoor(
                data / "captures", self.store, self.counters, access, own_version(), pyroscope, triggers
            )
            undo.callback(self._control.close)
            self._grpc = GrpcServer(
                receiver,
                self.counters,
                grpc.host,
                grpc.port,
                access=access,
                certificate=certificate,
                others=[self._control.handler],
            )
            undo.callback(self._grpc.stop, 0)
            app = create_app(
                self.store,
                receiver,
                self.counters,
                loopback=http.is_loopback,
                forward_queue=self._forwarder.depth if self._forwarder else lambda: 0,
                access=access,
                others=self._control.blueprints,
            )
            self._http = _HttpServer(
                (http.host, http.port),
                app,
                numthreads=_THREADS,
                server_name="quayscope",
                request_queue_size=128,
                shutdown_timeout=_STOP_S,
            )
            self._http.max_request_header_size = _MAX_HEADER_BYTES
            # Above the limit on bodies, so that most refusals say why; one chunk is held in memory whole.
            self._http.max_request_body_size = MAX_DECOMPRESSED
            self._http.keep_alive_conn_limit = _KEPT_CONNECTIONS
            if certificate is not None:
                self._http.ssl_adapter = RenewingTls(certificate)
            try:
                self._http.prepare()
            except OSError as error:
                raise CannotListen(
                    f"cannot listen on {http.shown(http.port)}: {error}",
                    next_step="choose another with --listen",
                ) from error
            undo.pop_all()
        scheme = "http" if certificate is None else "https"
        self.http_url = f"{scheme}://{http.shown(self._http.bind_addr[1])}"
        self.grpc_address = grpc.shown(self._grpc.port)
        self._thread = threading.Thread(target=self._http.serve, name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._control.start()
        self._grpc.start()
        self._thread.start()
        log.info("collector serves", extra={"http": self.http_url, "grpc": self.grpc_address})

    def stop(self) -> bool:
        """Take no more, answer what runs, write what waits, close; whether everything was written."""
        self._control.close()
        self._http.stop()
        self._grpc.stop(_STOP_S)
        done = self.store.close()
        if self._forwarder:
            self._forwarder.close(2.0)
        counts = self.counters.snapshot()
        log.info(
            "collector stopped", extra={name: counts[name] for name in ("received", "stored", "refused")}
        )
        return done
