"""The receiving services over gRPC: OTLP traces and metrics, and push.v1, on raw bytes.

Generic handlers take messages as bytes, so that the same code reads them as over HTTP and nothing
is generated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from quayscope.collector.access import WRITE, Access, Certificate
from quayscope.collector.counters import Counters
from quayscope.collector.errors import CannotListen, CollectorError
from quayscope.collector.limits import MAX_DECOMPRESSED
from quayscope.collector.receive.receiver import Receiver

__all__ = ["GrpcServer", "authorization"]

log = logging.getLogger(__name__)

_THREADS = 16
_MAX_CONCURRENT = 256 + 256
"""Requests, and the streams of sidecars, which are open for as long as they live."""
_STATUS = {
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
    "resource_exhausted": grpc.StatusCode.RESOURCE_EXHAUSTED,
    # OpenTelemetry's exporters send again on UNAVAILABLE, and on RESOURCE_EXHAUSTED only when told a time.
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "permission_denied": grpc.StatusCode.PERMISSION_DENIED,
}


class GrpcServer:
    """Listens on `address` (host:port, port 0 for any); `port` is the one in use. Raises `CannotListen`.

    With a certificate it speaks TLS, and takes a new one when the files change. `others` are served beside,
    with threads and checks of their own.
    """

    def __init__(
        self,
        receiver: Receiver,
        counters: Counters,
        host: str,
        port: int,
        *,
        access: Access,
        certificate: Certificate | None = None,
        others: Sequence[grpc.GenericRpcHandler] = (),
    ) -> None:
        self._counters = counters
        self._access = access
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", MAX_DECOMPRESSED),
                # Without this a second server on the port starts and takes half of the connections.
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=_MAX_CONCURRENT,
        )
        services: dict[str, dict[str, Callable[[bytes], bytes]]] = {
            "opentelemetry.proto.collector.trace.v1.TraceService": {"Export": receiver.traces},
            "opentelemetry.proto.collector.metrics.v1.MetricsService": {"Export": receiver.metrics},
            "push.v1.PusherService": {"Push": lambda body: receiver.push(body, is_json=False)},
        }
        for service, methods in services.items():
            handlers = {
                name: grpc.unary_unary_rpc_method_handler(self._handler(receiver, method))
                for name, method in methods.items()
            }
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self._server.add_generic_rpc_handlers(tuple(others))
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if certificate is None:
                self.port: int = self._server.add_insecure_port(shown)
            else:
                self.port = self._server.add_secure_port(shown, _credentials(certificate))
        except RuntimeError as error:
            raise CannotListen(
                f"cannot listen on {shown} for gRPC", next_step="choose another with --grpc-listen"
            ) from error

    def _handler(
        self, receiver: Receiver, method: Callable[[bytes], bytes]
    ) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def handle(body: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                self._access.require(authorization(context), WRITE)
                return method(receiver.unpacked(body))
            except CollectorError as error:
                context.abort(_STATUS.get(error.code, grpc.StatusCode.INTERNAL), str(error))
            except Exception:  # gRPC's border: a fault of one request must not reach the others
                self._counters.add("faults")
                log.exception("request fault")
                context.abort(grpc.StatusCode.INTERNAL, "internal error")
            raise AssertionError("abort raises")

        return handle

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Take no new requests, give running ones `grace_s` seconds, and wait for them."""
        self._server.stop(grace_s).wait(grace_s + 1)


def authorization(context: grpc.ServicerContext) -> str:
    """Return the value of a call's `authorization` header, empty where it has none."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            return value if isinstance(value, str) else str(value, "utf-8", "replace")
    return ""


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    stamp = [certificate.stamp()]

    def configuration(pair: tuple[bytes, bytes]) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pair[1], pair[0])])

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """Return the new certificate, None while it is the old one or cannot be used."""
        now = certificate.stamp()
        if not now or now == stamp[0]:
            return None
        try:
            pair = certificate.read()
        except CollectorError as error:
            log.warning("certificate is not read again", extra={"reason": str(error)})
            return None
        stamp[0] = now
        return configuration(pair)

    return grpc.dynamic_ssl_server_credentials(configuration(certificate.read()), changed)
