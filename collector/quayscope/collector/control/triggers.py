"""Captures that begin by themselves when a measurement crosses a threshold.

Each rule looks at the last half minute, every 5 s. What crossed, where, and by how much is kept with the
capture, and so is the minute of continuous profiles before it. Rate-limited: one capture a `pause_s`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from quayscope.collector.control.captures import Captures
from quayscope.collector.control.request import CaptureRequest
from quayscope.collector.counters import Counters
from quayscope.collector.errors import BadRequest, CollectorError
from quayscope.collector.query.metrics import deltas, one_metric
from quayscope.collector.query.request import TimeRange
from quayscope.collector.store import Store

__all__ = ["RULES", "Crossing", "Rule", "Triggers", "read_rule"]

log = logging.getLogger(__name__)

PAUSE_S = 600.0
_REFUSED_S = 30.0
_EVERY_S = 5.0
_LOOKED_AT_S = 30
_LEAST_REQUESTS = 20
_REQUESTS = "http.server.request.duration"
_NOT_WAITING = ("cpu", "run queue")
"""Classes of sessions that are shares of the others."""


class Crossing(NamedTuple):
    """The largest value that a rule found, and where."""

    value: float
    where: str


class Rule(NamedTuple):
    """`name` is one of `RULES`; it fires above `threshold`."""

    name: str
    threshold: float


def read_rule(text: str) -> Rule:
    """Read NAME=NUMBER; raises `BadRequest`."""
    name, _, number = text.partition("=")
    try:
        threshold = float(number)
    except ValueError:
        threshold = -1.0
    if name not in RULES or not 0 < threshold < 1e9:
        raise BadRequest(
            f"trigger {text[:60]!r} is not NAME=NUMBER", next_step=f"NAME is one of {', '.join(RULES)}"
        )
    return Rule(name, threshold)


def _p99(store: Store, span: TimeRange) -> Iterable[Crossing]:
    """Yield each endpoint's 99th percentile: the upper bound of its bucket in seconds, may be inf."""
    by_endpoint: dict[str, tuple[list[float], list[int]]] = {}
    for series in one_metric(store, _REQUESTS, (), span)["series"]:
        endpoint = _where(series["attributes"], "endpoint")
        for _, value in series["points"]:
            bounds, counts = by_endpoint.setdefault(endpoint, (value["bounds"], [0] * len(value["buckets"])))
            if bounds == value["bounds"]:
                counts[:] = [a + b for a, b in zip(counts, value["buckets"], strict=True)]
    for endpoint, (bounds, counts) in by_endpoint.items():
        total, seen = sum(counts), 0
        if total < _LEAST_REQUESTS:
            continue
        for bound, count in zip([*bounds, math.inf], counts, strict=True):
            seen += count
            if seen >= 0.99 * total:
                yield Crossing(bound, endpoint)
                break


def _errors(store: Store, span: TimeRange) -> Iterable[Crossing]:
    """Yield the share of each service's requests that were answered with 5xx."""
    every, failed = Counter[str](), Counter[str]()
    for series in one_metric(store, _REQUESTS, (), span)["series"]:
        about = series["attributes"]
        count = sum(value["count"] for _, value in series["points"])
        every[_where(about)] += count
        if str(about.get("http.response.status_code", "")).startswith("5"):
            failed[_where(about)] += count
    for service, count in every.items():
        if count >= _LEAST_REQUESTS:
            yield Crossing(failed[service] / count, service)


def _throttled(store: Store, span: TimeRange) -> Iterable[Crossing]:
    """Yield how many CPUs' time each container was kept from."""
    return _growth(store, "quayscope.container.cpu.throttled_time", span)


def _hub(store: Store, span: TimeRange) -> Iterable[Crossing]:
    """Yield the share of time in which each service's hubs stood still, summed over its workers."""
    return _growth(store, "quayscope.hub.stalled", span)


def _growth(store: Store, name: str, span: TimeRange) -> Iterable[Crossing]:
    by_place: Counter[str] = Counter()
    grown: dict[str, float] = {}
    for row in deltas(store, name, (), span):
        place = _where(row)
        by_place[place] += 1
        grown[place] = grown.get(place, 0.0) + row["value"]
    seconds = (span.end_ns - span.start_ns) / 1e9
    return [Crossing(value / seconds, place) for place, value in grown.items()]


def _sessions(store: Store, span: TimeRange) -> Iterable[Crossing]:
    """Yield the average active sessions of each database."""
    sums: dict[str, float] = {}
    seconds: dict[str, set[float]] = {}
    for series in one_metric(store, "postgresql.sessions.active", (), span)["series"]:
        about = series["attributes"]
        if about.get("class") in _NOT_WAITING:
            continue
        place = f"{_where(about)}, {about.get('source', '')}"
        for at, value in series["points"]:
            sums[place] = sums.get(place, 0.0) + value
            seconds.setdefault(place, set()).add(at)
    return [Crossing(total / len(seconds[place]), place) for place, total in sums.items()]


def _where(about: Mapping[str, Any], *more: str) -> str:
    names = ("namespace", "pod", "service_name", *more)
    return " ".join(str(about[name]) for name in names if about.get(name))


RULES: dict[str, Callable[[Store, TimeRange], Iterable[Crossing]]] = {
    "p99": _p99,
    "errors": _errors,
    "throttled": _throttled,
    "sessions": _sessions,
    "hub": _hub,
}
"""What can be watched, by name."""


class Triggers:
    """Looks on a thread of its own. `rules` may be empty: then nothing is started.

    A capture takes `seconds` of everything that is attached: the cause may lie in any tier.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        store: Store,
        captures: Captures,
        counters: Counters,
        *,
        pause_s: float = PAUSE_S,
        seconds: int = 10,
    ) -> None:
        self._rules = list(rules)
        self._store = store
        self._captures = captures
        self._counters = counters
        self._pause_s = pause_s
        self._request = CaptureRequest({}, seconds=seconds)
        self._quiet_until = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="triggers", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        if self._rules:
            self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(2)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            if time.monotonic() < self._quiet_until:
                continue
            for rule in self._rules:
                # The one border of this thread: a rule that cannot be answered costs the others nothing.
                try:
                    if self._fire(rule):
                        break
                except CollectorError as error:
                    log.warning("trigger", extra={"rule": rule.name, "reason": str(error)})
                except Exception:
                    self._counters.add("faults")
                    log.exception("trigger fault", extra={"rule": rule.name})

    def _fire(self, rule: Rule) -> bool:
        now_ns = time.time_ns()
        span = TimeRange(now_ns - _LOOKED_AT_S * 10**9, now_ns)
        found = max(RULES[rule.name](self._store, span), default=None)
        if found is None or found.value <= rule.threshold:
            return False
        why = f"{rule.name} {found.value:.4g} > {rule.threshold:g}: {found.where}"
        self._quiet_until = time.monotonic() + _REFUSED_S
        self._captures.begin(self._request, f"trigger {rule.name}", why=why)
        self._quiet_until = time.monotonic() + self._pause_s
        self._counters.add("captures_triggered")
        return True
