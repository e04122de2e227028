"""Sends a workload on schedule. Open loop: an arrival is sent when it is due, whatever the server does.

Latency counts from the *intended* start, so the time that a request waited for a stalled driver or behind a
stalled server is in it. What cannot be sent is counted, never put off silently.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any
from urllib.parse import quote

from quayscope.load.client import REASONS, Channel, Client, Outcome
from quayscope.load.errors import SetupFailed
from quayscope.load.record import CAPTURE_MISSING, NOT_ON_TARGET, Record
from quayscope.load.schedule import Schedule
from quayscope.load.target import Target
from quayscope.load.template import JsonTemplate, Scalar, Template
from quayscope.load.variables import Draw, Moment
from quayscope.load.workload import Body, Capture, ContentBody, Flow, Step, Workload

__all__ = ["Engine", "Settings", "Tick"]

BURST = 64
"""Arrivals sent in one go when several are due, before answers are looked at."""
MISSED_AFTER_NS = 2_000_000_000
"""An arrival that the driver is later for than this is not sent: the schedule is lost by then."""
STOP_NS = 2_000_000_000
"""How long an interrupted run waits for what is in flight."""
SECOND_NS = 1_000_000_000
QUIET_NS = 2_000_000
"""A tick (0.2 ms with a progress line) waits for so long a gap before the next arrival ..."""
OVERDUE_NS = 400_000_000
"""... but not longer than this."""
_NOWHERE = -1


@dataclass(frozen=True)
class Settings:
    """What a person chooses about a run. `trace_ratio` is the share of requests marked to be traced."""

    run: str
    seed: int = 1
    trace_ratio: float = 0.25
    max_in_flight: int = 2000
    ca_file: str | None = None


@dataclass(frozen=True)
class Tick:
    """How a run stands, once a second. `p99_ms` is of the requests that ended in the last second."""

    elapsed_s: float
    phase: str
    sent: int
    ok: int
    errors: int
    in_flight: int
    p99_ms: float | None


class _Prepared:
    """A step with all that does not change between its requests."""

    __slots__ = ("channel", "endpoint", "headers", "step")

    def __init__(self, step: Step, endpoint: int, channel: Channel) -> None:
        self.step = step
        self.endpoint = endpoint
        self.channel = channel
        headers = list(step.headers)
        given = {name.lower() for name, _ in headers}
        if channel.body:
            # Otherwise libcurl calls every body a web form, and holds back large ones for "100 Continue".
            if "content-type" not in given:
                headers.append(("Content-Type", Template(_content_type(step.body))))
            headers.append(("Expect", Template("")))
        self.headers = tuple(headers)


class _Visit:
    """One arrival on its way through its flow."""

    __slots__ = ("draw", "failure", "intended_ns", "position", "stage", "steps")

    def __init__(self, steps: tuple[_Prepared, ...], stage: int, draw: Draw, intended_ns: int) -> None:
        self.steps = steps
        self.stage = stage
        self.draw = draw
        self.intended_ns = intended_ns
        self.position = 0
        self.failure: str | None = None


class Engine:
    """Runs one workload once: `set_up`, then `run`, then `close`; `stop` ends it early."""

    def __init__(
        self,
        workload: Workload,
        schedule: Schedule,
        target: Target,
        settings: Settings,
        on_second: Callable[[Tick], None],
    ) -> None:
        self.record = Record()
        self.started = 0.0
        """Unix seconds of the first moment of the first phase."""
        self.base_ns = 0
        """The same moment on the clock of the record."""
        self.ended_ns = 0
        """When the last arrival was due, or the run was stopped."""
        self.interrupted = False
        self._workload = workload
        self._schedule = schedule
        self._target = target
        self._settings = settings
        self._on_second = on_second
        self._client = Client(self._on_end, settings.max_in_flight, settings.ca_file)
        self._channels: dict[tuple[str, bool, bool, bool], Channel] = {}
        self._endpoints = {name: index for index, name in enumerate(workload.endpoints())}
        self._flows = [
            [self._prepare(choice.flow) for choice in stage.phase.mix] for stage in schedule.stages
        ]
        self._given: dict[str, Scalar] = {**workload.environment, "run": settings.run}
        self._given_in_stage: list[dict[str, Scalar]] = []
        self._baggage = [self._baggage_of(stage.phase.name) for stage in schedule.stages]
        self._setup_baggage = self._baggage_of("setup")
        self._first_index = max((entry.repeat for entry in workload.setup), default=0)
        # Identifiers must differ between runs of one seed; which requests are traced must not.
        self._identifiers = random.Random()  # noqa: S311 - identifiers, nothing secret
        self._sampler = random.Random(settings.seed)  # noqa: S311 - repeatable on purpose
        self._phase = "setup"
        self._next_tick_ns = 0
        self._ticked = 0

    def stop(self) -> None:
        """End the run: nothing more is sent. May be called from a signal handler."""
        self.interrupted = True
        self._client.wake()

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    # Setup

    def set_up(self) -> None:
        """Send the workload's setup, one request after the other; raises `SetupFailed`."""
        self.base_ns = monotonic_ns()
        self._next_tick_ns = self.base_ns + SECOND_NS
        for position, entry in enumerate(self._workload.setup):
            steps = self._prepare(entry.flow)
            for index in range(entry.repeat):
                if self.interrupted:
                    return
                moment = Moment(self._settings.seed, index, in_setup=True)
                visit = _Visit(steps, _NOWHERE, self._draw(moment, {**self._given, "phase": "setup"}), 0)
                self._send(visit)
                while self._client.in_flight and not self.interrupted:
                    self._wait(monotonic_ns() + SECOND_NS)
                if visit.failure is not None:
                    raise SetupFailed(
                        f"setup[{position}], {visit.steps[visit.position].step.endpoint}: {visit.failure}",
                        next_step="the workload's setup must succeed before load is fired",
                    )
                captured = (capture.name for step in entry.flow.steps for capture in step.captures)
                self._given.update({name: visit.draw[name] for name in captured if name in visit.draw})

    # The run

    def run(self) -> None:
        """Send every arrival when it is due and wait for the last answer."""
        self._given_in_stage = [{**self._given, "phase": stage.phase.name} for stage in self._schedule.stages]
        # Python integers out of an array are cheaper than numpy's, one at a time.
        due, stages, choices = (
            self._schedule.due_ns.tolist(),
            self._schedule.stage.tolist(),
            self._schedule.choice.tolist(),
        )
        ends = [int(stage.end_s * 1e9) for stage in self._schedule.stages]
        self.base_ns = base = monotonic_ns() + 20_000_000
        self.started = time.time() + (base - monotonic_ns()) / 1e9
        self._next_tick_ns = base + SECOND_NS
        position, count, stage, end = 0, len(due), 0, base + ends[-1]
        self._phase = self._schedule.stages[0].phase.name
        while not self.interrupted:
            now = monotonic_ns()
            burst = min(position + BURST, count)
            while position < burst and base + due[position] <= now:
                self._arrive(base + due[position], position, stages[position], choices[position], now)
                position += 1
            while stage < len(ends) - 1 and now >= base + ends[stage]:
                stage += 1
                self._phase = self._schedule.stages[stage].phase.name
            if position == count and now >= end:
                break
            self._wait(base + due[position] if position < count else end)
        self.ended_ns = min(monotonic_ns(), end)
        self._drain()

    def _drain(self) -> None:
        """Wait for what is in flight: to its own end, or for 2 s once interrupted."""
        self._phase = "draining"
        deadline = None
        while self._client.in_flight:
            now = monotonic_ns()
            if self.interrupted and deadline is None:
                deadline = now + STOP_NS
            if deadline is not None and now >= deadline:
                break
            self._wait(min(now + SECOND_NS, deadline or now + SECOND_NS))
        for visit in self._client.contexts():
            self.record.unanswered[visit.stage, visit.steps[visit.position].endpoint] += 1
        self._tick(monotonic_ns())

    def _arrive(self, due_ns: int, number: int, stage: int, choice: int, now_ns: int) -> None:
        steps = self._flows[stage][choice]
        if now_ns - due_ns > MISSED_AFTER_NS:
            self.record.missed[stage, steps[0].endpoint] += 1
        elif self._client.in_flight >= self._settings.max_in_flight:
            self.record.dropped[stage, steps[0].endpoint] += 1
        else:
            moment = Moment(self._settings.seed, self._first_index + number)
            self._send(_Visit(steps, stage, self._draw(moment, self._given_in_stage[stage]), due_ns))

    def _wait(self, until_ns: int) -> None:
        """Let the client work until `until_ns`, and report once a second when no arrival is near."""
        now = monotonic_ns()
        late = now - self._next_tick_ns
        if late >= 0 and (until_ns - now >= QUIET_NS or late >= OVERDUE_NS):
            self._tick(now)
            self._next_tick_ns += (1 + late // SECOND_NS) * SECOND_NS
        self._client.wait(until_ns if late >= 0 else min(until_ns, self._next_tick_ns))

    def _tick(self, now_ns: int) -> None:
        record = self.record
        lost = record.dropped.total() + record.missed.total()
        self._on_second(
            Tick(
                elapsed_s=(now_ns - self.base_ns) / 1e9,
                phase=self._phase,
                sent=len(record) + self._client.in_flight,
                ok=record.ok_count,
                errors=len(record) - record.ok_count + lost,
                in_flight=self._client.in_flight,
                p99_ms=record.recent_p99_ms(self._ticked),
            )
        )
        self._ticked = len(record)

    # One request

    def _send(self, visit: _Visit) -> None:
        prepared = visit.steps[visit.position]
        step, draw = prepared.step, visit.draw
        url = self._target.locate(step.path.render(draw))
        headers = [f"{name}: {value.render(draw)}" for name, value in prepared.headers]
        if url is None or not all(line.isprintable() for line in headers):
            # A captured value that would leave the target, or write headers of its own.
            now = monotonic_ns()
            self._on_end(visit, Outcome(now, 0, now, 0, 0, NOT_ON_TARGET, {}, b""))
            return
        if step.query:
            pairs = (f"{name}={quote(str(value.render(draw)), safe='')}" for name, value in step.query)
            url += ("&" if "?" in url else "?") + "&".join(pairs)
        headers += self._joining(visit.stage)
        self._client.start(prepared.channel, url, headers, self._body(step, draw), visit)

    def _joining(self, stage: int) -> tuple[str, str]:
        """Return the headers that join a request to its run: docs/wire.md."""
        identifier = self._identifiers.getrandbits(192) | 1 << 64 | 1  # neither part may be zero
        sampled = "01" if self._sampler.random() < self._settings.trace_ratio else "00"
        trace, span = identifier >> 64, identifier & 0xFFFFFFFFFFFFFFFF
        baggage = self._setup_baggage if stage == _NOWHERE else self._baggage[stage]
        return f"traceparent: 00-{trace:032x}-{span:016x}-{sampled}", baggage

    def _baggage_of(self, phase: str) -> str:
        return f"baggage: run={quote(self._settings.run, safe='')},phase={quote(phase, safe='')}"

    @staticmethod
    def _body(step: Step, draw: Draw) -> bytes:
        if step.body is None:
            return b""
        if isinstance(step.body, ContentBody):
            return draw.content(step.body.variable)
        if isinstance(step.body, Template):
            return step.body.render(draw).encode()
        return step.body.encode(draw)

    def _on_end(self, visit: _Visit, outcome: Outcome) -> None:
        prepared = visit.steps[visit.position]
        ok = outcome.error == 0 and prepared.step.accepts(outcome.status)
        if ok and prepared.step.captures:
            ok = all(_capture(capture, outcome, visit.draw) for capture in prepared.step.captures)
            if not ok:
                outcome.error = CAPTURE_MISSING
        if visit.stage != _NOWHERE:
            self.record.add(
                intended=visit.intended_ns,
                sent=outcome.sent_ns,
                first=outcome.first_ns,
                ended=outcome.ended_ns,
                status=outcome.status,
                error=outcome.error,
                size=outcome.size,
                endpoint=prepared.endpoint,
                stage=visit.stage,
                step=visit.position,
                ok=ok,
            )
        rest = visit.steps[visit.position + 1 :]
        if ok and rest and not self.interrupted:
            visit.position += 1
            visit.intended_ns = outcome.ended_ns
            self._send(visit)
            return
        if not ok:
            visit.failure = _in_words(outcome)
        if visit.stage != _NOWHERE:
            for skipped in rest:
                self.record.skipped[visit.stage, skipped.endpoint] += 1

    # Preparation

    def _draw(self, moment: Moment, given: dict[str, Scalar]) -> Draw:
        return Draw(self._workload.variables, moment, given)

    def _prepare(self, flow: Flow) -> tuple[_Prepared, ...]:
        return tuple(
            _Prepared(step, self._endpoints.get(step.endpoint, _NOWHERE), self._channel(step))
            for step in flow.steps
        )

    def _channel(self, step: Step) -> Channel:
        body = step.body is not None or step.method in ("POST", "PUT", "PATCH")
        keep_headers = any(capture.header for capture in step.captures)
        keep_body = any(capture.json for capture in step.captures)
        key = (step.method, body, keep_headers, keep_body)
        if key not in self._channels:
            self._channels[key] = Channel(
                step.method, body=body, keep_headers=keep_headers, keep_body=keep_body
            )
        return self._channels[key]


def _content_type(body: Body | None) -> str:
    if isinstance(body, ContentBody):
        return "application/octet-stream"
    if isinstance(body, JsonTemplate):
        return "application/json"
    return "text/plain; charset=utf-8" if body is not None else ""


def _capture(capture: Capture, outcome: Outcome, draw: Draw) -> bool:
    """Take a value out of an answer; returns whether it was there and can stand in a request."""
    value: Any
    if capture.header:
        value = outcome.headers.get(capture.header)
    else:
        try:
            value = json.loads(outcome.body)
            for key in capture.json:
                value = value[int(key)] if isinstance(value, list) else value[key]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            value = None
    if not isinstance(value, str | int | float) or (isinstance(value, str) and not value.isprintable()):
        return False
    draw[capture.name] = value
    return True


def _in_words(outcome: Outcome) -> str:
    if outcome.error > 0:
        return REASONS.get(outcome.error, f"libcurl error {outcome.error}")
    if outcome.error == CAPTURE_MISSING:
        return f"answered {outcome.status}, but without a value that is to be captured"
    if outcome.error == NOT_ON_TARGET:
        return "a captured value makes no path or header"
    return f"answered {outcome.status}, which the workload does not expect"
