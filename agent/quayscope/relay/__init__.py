"""Reads workers' records, builds profiles, spans and request metrics. Standard library only."""

from quayscope.relay.errors import BadDestination, RelayError
from quayscope.relay.relay import Emit, Relay

__all__ = ["BadDestination", "Emit", "Relay", "RelayError"]
