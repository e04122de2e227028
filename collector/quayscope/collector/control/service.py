"""`quayscope.control.v1.Control/Attach` over gRPC, on raw messages."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from quayscope.collector.control.hub import MAX_SIDECARS, Hub, Session
from quayscope.collector.counters import Counters
from quayscope.collector.errors import CollectorError
from quayscope.collector.receive.grpc import authorization
from quayscope.profile import MalformedProfile
from quayscope.profile.control import ATTACH_METHOD, SERVICE

__all__ = ["control_handler"]

log = logging.getLogger(__name__)

Authorise = Callable[[str], object]
"""Takes the value of the `authorization` header; raises `CollectorError` where it does not let attach."""


def control_handler(hub: Hub, counters: Counters, authorise: Authorise) -> grpc.GenericRpcHandler:
    """Return the service for a gRPC server. It has threads of its own: a stream holds one for its life."""

    def attach(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            authorise(authorization(context))
            session = hub.attach(next(requests, b""))
        except MalformedProfile as error:
            counters.add("control_malformed")
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise AssertionError("abort raises") from error
        except CollectorError as error:
            code = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}
            context.abort(code.get(error.status, grpc.StatusCode.RESOURCE_EXHAUSTED), str(error))
            raise AssertionError("abort raises") from error
        reader = threading.Thread(
            target=_read, args=(hub, counters, session, requests), name="control-read", daemon=True
        )
        if not context.add_callback(session.end):
            session.end()  # it is cut already
        reader.start()
        try:
            yield from session.outgoing()
        finally:
            hub.detach(session)

    # What gRPC calls experimental: without it 16 sidecars would take all threads, and nobody could push.
    attach.experimental_thread_pool = ThreadPoolExecutor(  # type: ignore[attr-defined]  # read by grpc._server
        MAX_SIDECARS, thread_name_prefix="control"
    )
    return grpc.method_handlers_generic_handler(
        SERVICE, {ATTACH_METHOD: grpc.stream_stream_rpc_method_handler(attach)}
    )


def _read(hub: Hub, counters: Counters, session: Session, requests: Iterator[bytes]) -> None:
    # The border of this thread: what a sidecar says may cost it its own stream, never another's.
    try:
        with contextlib.suppress(grpc.RpcError):
            for data in requests:
                hub.heard(session, data)
    except CollectorError as error:
        log.warning("sidecar dropped", extra={"sidecar": session.name, "reason": str(error)})
    except Exception:
        counters.add("faults")
        log.exception("control fault", extra={"sidecar": session.name})
    finally:
        session.end()
