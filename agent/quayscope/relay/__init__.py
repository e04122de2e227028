"""Reads workers' records, builds profiles, spans and request metrics. Standard library only."""

from quayscope.relay.backchannel import WorkerSettings
from quayscope.relay.errors import BadDestination, RelayError
from quayscope.relay.relay import ConnectedWorker, Emit, Relay

__all__ = ["BadDestination", "ConnectedWorker", "Emit", "Relay", "RelayError", "WorkerSettings"]
