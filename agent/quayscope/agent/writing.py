"""What one second of a worker becomes on the wire: records in paced slices, losses counted (docs/wire.md)."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from quayscope.agent import faults
from quayscope.agent.context import About, Endpoint
from quayscope.agent.cpu import CpuSampler
from quayscope.agent.frames import FrameTable, Stack, Stacker
from quayscope.agent.records import RecordWriter, encode, packets
from quayscope.agent.requests import SUMS, RequestCounter, RequestKey
from quayscope.agent.stalls import StallTimer
from quayscope.agent.tracing import SpanKeeper, span_rows
from quayscope.agent.turns import Turns

__all__ = ["RecordStream"]

MAX_TEXTS = 2_048
"""Endpoints, runs, phases and statements that are kept as they are written."""
STACKS_A_PACKET = 25
SLICE_NS = 1_000_000
"""How long stacks are named in one go: other greenlets wait meanwhile."""
REFUSED_TRIES = 5
"""How often a packet is offered to a full queue, with the caller's pauses between."""


class RecordStream:
    """Takes what was gathered and writes it. `spans` may be set once there are any."""

    def __init__(
        self,
        stacker: Stacker,
        cpu: CpuSampler,
        stalls: StallTimer,
        turns: Turns,
        requests: RequestCounter,
        writer: RecordWriter,
    ) -> None:
        self._stacker = stacker
        self._frames = FrameTable()
        self._cpu = cpu
        self._stalls = stalls
        self._turns = turns
        self._requests = requests
        self._writer = writer
        self._known_connections = 0
        self._fault_said = False
        self._texts: dict[str, bytes] = {}
        self.spans: SpanKeeper | None = None
        self.levels: dict[str, int] = {}
        """What goes out with the counts as it stands: rates, and the longest of something since last time."""

    def write(self, *, everything: bool) -> Iterator[bool]:
        """Write what is over, or all, one packet a step; yields whether the packet was accepted.

        The caller may do something else between two steps.
        """
        writer = self._writer
        if not everything:
            self._cpu.flush(everything=False)
        self._stalls.flush(everything=everything)
        statements, self._stalls.statements = self._stalls.statements, 0
        faults.add("statements", statements)
        slots = self._cpu.samples.take(everything=everything)
        stalls = self._stalls.stalls.take(everything=everything)
        turns = self._turns.stalls.take(everything=everything)
        spans = self.spans.take() if self.spans is not None else {}
        for _ in self._requests.count():
            yield True
        rows = self._requests.take(everything=everything)
        kept = self._requests.take_kept()
        steps = [
            *((len(t), self._write_stacks("stacks", s, self._cpu_rows(t))) for s, t in slots),
            *((len(t), self._write_stacks("stalls", s, self._stall_rows(t))) for s, t in stalls),
            *((len(t), self._write_stacks("hub", s, self._turn_rows(t))) for s, t in turns),
            *(
                (len(t), self._write_rows({"k": "requests", "t": s}, "r", map(encode, _request_rows(t))))
                for s, t in rows
            ),
            (len(kept), self._write_rows({"k": "kept"}, "r", map(encode, kept))),
            *(
                (
                    len(ended),
                    self._write_rows({"k": "spans", "scope": scope}, "s", map(encode, span_rows(ended))),
                )
                for scope, ended in spans.items()
            ),
        ]
        left = sum(count for count, _ in steps)
        if not writer.connect():
            faults.add("records_dropped", left)
            return
        if writer.connections != self._known_connections:
            self._known_connections = writer.connections
            self._frames.forget_reader()
        try:
            for count, step in steps:
                yield from step
                left -= count
            yield self._write_counts()
        except OSError:
            # The reader went away in the middle: what was taken is lost, and said.
            faults.add("packets_dropped")
            faults.add("records_dropped", left)
        if not everything and self._frames.large():
            self._stacker.forget()
            self._frames.forget()

    def _cpu_rows(self, samples: Mapping[tuple[About, Stack], list[int]]) -> Iterator[bytes]:
        encoded = self._frames.encoded
        for (about, stack), (spent, count) in samples.items():
            yield b"[%d,%d,%b,%b]" % (spent, count, self._about(about), encoded(stack))

    def _stall_rows(self, blocked: Mapping[tuple[About, str, Stack], list[int]]) -> Iterator[bytes]:
        for (request, statement, stack), (spent, count) in blocked.items():
            yield b"[%d,%d,%b,%b,%b]" % (
                spent,
                count,
                self._about(request),
                self._text(statement),
                self._frames.encoded(stack),
            )

    def _turn_rows(self, long: Mapping[tuple[About, Stack], list[int]]) -> Iterator[bytes]:
        for (request, stack), (spent, count, waited) in long.items():
            yield b"[%d,%d,%b,%d,%b]" % (
                spent,
                count,
                self._about(request),
                waited,
                self._frames.encoded(stack),
            )

    def _about(self, about: About) -> bytes:
        """Return what a row is about, as JSON; what requests share is encoded once."""
        if about is None:
            return b"null"
        if isinstance(about, Endpoint):
            endpoint, ids = about, b'"",""'
        else:
            endpoint = about.about()
            ids = f'"{about.span_id}","{about.trace_id}"'.encode()
        return b"[%b,%b,%b,%b]" % (
            self._text(endpoint.endpoint),
            ids,
            self._text(endpoint.run),
            self._text(endpoint.phase),
        )

    def _text(self, text: str) -> bytes:
        found = self._texts.get(text)
        if found is None:
            if len(self._texts) >= MAX_TEXTS:
                self._texts.clear()
            found = self._texts[text] = encode(text)
        return found

    def _write_stacks(self, kind: str, slot_ns: int, rows: Iterator[bytes]) -> Iterator[bool]:
        """Write stacks in small groups, each behind the definitions of its new frames."""
        head = {"k": kind, "t": slot_ns}
        group: list[bytes] = []
        began = time.perf_counter_ns()
        for row in rows:
            group.append(row)
            # New functions take time to name: a group of many ends early.
            if len(group) >= STACKS_A_PACKET or time.perf_counter_ns() - began > SLICE_NS:
                yield from self._write_group(head, group)
                group = []
                began = time.perf_counter_ns()
        if group:
            yield from self._write_group(head, group)

    def _write_group(self, head: dict[str, Any], group: list[bytes]) -> Iterator[bool]:
        for packet, count in packets({"k": "frame"}, "f", map(encode, self._frames.undefined())):
            accepted = yield from self._deliver(packet)
            if not accepted:
                # Without their frames these stacks mean nothing.
                faults.add("records_dropped", len(group))
                return
            self._frames.defined(count)
        yield from self._write_rows(head, "s", iter(group))

    def _write_rows(self, head: dict[str, Any], name: str, rows: Iterator[bytes]) -> Iterator[bool]:
        for packet, _ in packets(head, name, rows):
            yield from self._deliver(packet)

    def _deliver(self, packet: bytes) -> Generator[bool, None, bool]:
        """Try a packet a few times with pauses between, then drop and count it; returns whether it went."""
        for _ in range(REFUSED_TRIES):
            if self._writer.send(packet):
                yield True
                return True
            yield False
        faults.add("packets_dropped")
        return False

    def _write_counts(self) -> bool:
        record: dict[str, Any] = {"k": "counts", "t": time.time_ns(), "c": faults.take()}
        if self.levels:
            record["m"] = dict(self.levels)
        if faults.first_fault() and not self._fault_said:
            self._fault_said = True
            record["fault"] = faults.first_fault()
        accepted = False
        try:
            accepted = self._writer.send(encode(record))
        finally:
            if not accepted:
                for name, count in record["c"].items():
                    faults.add(name, count)
        return accepted


def _request_rows(table: Mapping[RequestKey, list[int]]) -> Iterator[list[Any]]:
    for key, row in table.items():
        sums, buckets = row[:SUMS], row[SUMS:]
        third = len(buckets) // 3
        yield [*key, *sums, *(buckets[at : at + third] for at in range(0, len(buckets), third))]
