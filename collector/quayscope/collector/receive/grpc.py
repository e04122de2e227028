"""The receiving services over gRPC: OTLP traces and metrics, and push.v1, on raw bytes.

Generic handlers take messages as bytes, so that the same code reads them as over HTTP and nothing
is generated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from quayscope.collector.counters import Counters
from quayscope.collector.errors import CannotListen, CollectorError
from quayscope.collector.limits import MAX_DECOMPRESSED
from quayscope.collector.receive.receiver import Receiver

__all__ = ["GrpcServer"]

log = logging.getLogger(__name__)

_THREADS = 16
_MAX_CONCURRENT = 256
_STATUS = {
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
    "resource_exhausted": grpc.StatusCode.RESOURCE_EXHAUSTED,
    # OpenTelemetry's exporters send again on UNAVAILABLE, and on RESOURCE_EXHAUSTED only when told a time.
    "unavailable": grpc.StatusCode.UNAVAILABLE,
}


class GrpcServer:
    """Listens on `address` (host:port, port 0 for any); `port` is the one in use. Raises `CannotListen`."""

    def __init__(self, receiver: Receiver, counters: Counters, host: str, port: int) -> None:
        self._counters = counters
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
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port: int = self._server.add_insecure_port(shown)
        except RuntimeError as error:
            raise CannotListen(
                f"cannot listen on {shown} for gRPC", next_step="choose another with --grpc-listen"
            ) from error

    def _handler(
        self, receiver: Receiver, method: Callable[[bytes], bytes]
    ) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def handle(body: bytes, context: grpc.ServicerContext) -> bytes:
            try:
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
