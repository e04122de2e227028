"""Sending the stored profiles on to a Pyroscope, without ever delaying an acknowledgement."""

from __future__ import annotations

from quayscope.collector.forward.pyroscope import Forwarder

__all__ = ["Forwarder"]
