"""What every transport does with a body: read, count, store, and answer only when it is on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from quayscope.collector.counters import Counters
from quayscope.collector.errors import BadRequest, CollectorError
from quayscope.collector.receive.body import unpack
from quayscope.collector.receive.ingest import read_ingest
from quayscope.collector.receive.otlp import read_metrics, read_traces
from quayscope.collector.receive.push import Refused, read_json, read_profiles, read_protobuf
from quayscope.collector.store import ProfileEntry, Store, Work
from quayscope.collector.store.tries import DictionaryFull
from quayscope.profile import ProfileError
from quayscope.profile.clock import ClockEstimate, read_clock

__all__ = ["Receiver"]

log = logging.getLogger(__name__)


class Receiver:
    """Takes bodies, unpacked by `unpacked`. Each method returns the answer once everything is on disk.

    All raise `BadRequest` for what cannot be kept, and `Overloaded` or `StoreUnavailable` for what
    is worth sending again.
    """

    def __init__(self, store: Store, counters: Counters) -> None:
        self._store = store
        self._counters = counters

    def unpacked(self, data: bytes, encoding: str = "") -> bytes:
        """Return a body without its compression; count it where that fails."""
        try:
            return unpack(data, encoding)
        except CollectorError:
            self.unreadable()
            raise

    def unreadable(self) -> None:
        """Count a request whose body could not even be read."""
        self._counters.add("malformed")

    def clock(self, text: str) -> ClockEstimate | None:
        """Read what a sender says of its clock; None where it says nothing, or nothing that can be read."""
        found = read_clock(text) if text else None
        self._counters.add("clock_malformed", int(bool(text) and found is None))
        return found

    def push(self, body: bytes, *, is_json: bool, clock: ClockEstimate | None = None) -> bytes:
        """Store a push.v1 request. Malformed profiles are refused by name, their neighbours stored."""
        try:
            series = read_json(body) if is_json else read_protobuf(body)
            found = list(read_profiles(series, clock))
        except CollectorError:
            self._counters.add("malformed")
            raise
        refusals = [one for one in found if isinstance(one, Refused)]
        self._counters.add("malformed", len(refusals))
        self._counters.add("received", len(refusals))
        kept = [one for one in found if not isinstance(one, Refused)]
        full = self._keep_profiles(kept, len(body))
        if refusals or full:
            raise self._refusal([str(refusal) for refusal in refusals], full, len(found))
        return b"{}" if is_json else b""

    def ingest(self, query: Mapping[str, str], body: bytes, *, pprof: bool) -> None:
        """Store one profile of the older push; `body` is a pprof message or folded text."""
        try:
            read = read_ingest(query, body, pprof=pprof)
        except (ProfileError, CollectorError) as error:
            self._counters.add("received")
            self._counters.add("malformed")
            raise BadRequest(str(error), next_step=error.next_step) from error
        full = self._keep_profiles([read], len(body))
        if full:
            raise self._refusal([], full, 1)

    def traces(self, body: bytes, clock: ClockEstimate | None = None) -> bytes:
        """Store an OTLP trace message; the answer is an ExportTraceServiceResponse."""
        try:
            entry, rejected = read_traces(body)
        except CollectorError:
            self._counters.add("malformed")
            raise
        self._counters.add("spans_received", rejected + (entry.spans if entry else 0))
        self._counters.add("spans_refused", rejected)
        if entry:
            self._store.keep(Work(len(body), spans=[entry._replace(clock=clock)]))
        answer = ExportTraceServiceResponse()
        if rejected:
            answer.partial_success.rejected_spans = rejected
            answer.partial_success.error_message = "spans without valid ids or times"
        return answer.SerializeToString()

    def metrics(self, body: bytes, clock: ClockEstimate | None = None) -> bytes:
        """Store an OTLP metrics message; the answer is an ExportMetricsServiceResponse."""
        try:
            entry, rejected, exemplars, reason = read_metrics(body)
        except CollectorError:
            self._counters.add("malformed")
            raise
        self._counters.add("points_received", rejected + (len(entry.points) if entry else 0))
        self._counters.add("points_refused", rejected)
        self._counters.add("exemplars_refused", exemplars)
        if entry:
            if clock is not None:
                entry = entry.moved(clock)
            for text in self._store.keep(Work(len(body), metrics=[entry])):
                reason = reason or text
        answer = ExportMetricsServiceResponse()
        if rejected or reason:
            answer.partial_success.rejected_data_points = rejected
            answer.partial_success.error_message = reason
        return answer.SerializeToString()

    def _keep_profiles(self, read: Iterable[tuple[ProfileEntry, int]], size: int) -> list[str]:
        entries = []
        cut = 0
        for entry, stacks in read:
            entries.append(entry)
            cut += stacks
        self._counters.add("received", len(entries))
        self._counters.add("truncated", cut)
        return self._store.keep(Work(size, profiles=entries)) if entries else []

    def _refusal(self, malformed: list[str], full: list[str], total: int) -> CollectorError:
        first = (malformed or full)[0]
        count = len(malformed) + len(full)
        log.warning("profiles refused", extra={"refused": count, "of": total, "first": first[:200]})
        stored = f"; the other {total - count} are stored" if total > count else ""
        text = f"{count} of {total} profiles refused{stored}: {first}"
        return BadRequest(text) if malformed else DictionaryFull(text)
