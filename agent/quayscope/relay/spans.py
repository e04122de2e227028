"""Spans of the workers, held until they leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from quayscope.relay.otlp import AttributeValue, Span
from quayscope.relay.records import Spans

__all__ = ["HeldSpans", "ScopeSpans"]


class ScopeSpans(NamedTuple):
    """Spans of one worker and one instrumentation scope."""

    resource: dict[str, AttributeValue]
    scope: str
    spans: list[Span]


class HeldSpans:
    """Gathers spans by worker and scope; `count` is how many are held."""

    def __init__(self) -> None:
        self.count = 0
        self._held: dict[tuple[tuple[tuple[str, AttributeValue], ...], str], list[Span]] = {}

    def add(self, labels: Mapping[str, str], pid: int, record: Spans) -> None:
        """Add finished spans of the worker `pid` with these series labels."""
        resource: dict[str, AttributeValue] = {"service.name": labels["service_name"], "process.pid": pid}
        resource.update((f"quayscope.{name}", labels[name]) for name in labels if name != "service_name")
        self._held.setdefault((tuple(resource.items()), record.scope), []).extend(record.spans)
        self.count += len(record.spans)

    def take(self) -> list[ScopeSpans]:
        """Return what is held and forget it."""
        held, self._held, self.count = self._held, {}, 0
        return [ScopeSpans(dict(resource), scope, spans) for (resource, scope), spans in held.items()]
