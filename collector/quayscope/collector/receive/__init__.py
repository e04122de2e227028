"""From bytes of any client to entries of the store: push.v1, the older ingest, OTLP; over HTTP and gRPC."""

from __future__ import annotations

from quayscope.collector.receive.receiver import Receiver

__all__ = ["Receiver"]
