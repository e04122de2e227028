"""The helper process: relay and uplink of a pod that has no sidecar.

A worker starts it where nobody listens on the socket:

    python -S -E -c "import sys; sys.path[:] = [p for p in sys.path if p] + [ROOT]
    from quayscope.relay.program import main; main()"

It needs the standard library alone, reads its settings from the environment (`settings`), and is nobody's
child: the process that was started ends as soon as it lives (`detach`). It ends 10 s after the last worker.
Its exit code is 0 whatever happens: a gunicorn master that is process 1 of its container reaps it, and halts
on 3 and 4. What went wrong is in `<socket>.log`.

Its memory is bounded: the relay holds at most 192 MB of names (24 MB a worker), 128 MB of samples, 20,000
metric rows and 2,000 spans, the uplink 32 MB that were not sent yet; what goes beyond is counted as lost.
Should all that come together, the system refuses more than `MAX_DATA_BYTES`, and what did not fit is a
counted fault or ends the helper, which the next worker starts anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping

from quayscope.relay.destination import COLLECTOR
from quayscope.relay.detach import detach
from quayscope.relay.errors import BadDestination, RelayError
from quayscope.relay.logfile import LogFile
from quayscope.relay.otlp import Metric, NumberPoint, metric_request
from quayscope.relay.relay import Relay
from quayscope.relay.settings import LOCK_FD, Settings, next_step, read, variable
from quayscope.relay.uplink import Uplink

__all__ = ["main"]

log = logging.getLogger(__name__)

IDLE_S = 10.0
"""How long it waits for a worker, at first and after the last one left."""
MAX_DATA_BYTES = 512 << 20
_TICK_S = 0.5
_REPORT_S = 10.0
_RELAY_CLOSE_S = 1.5
_UPLINK_CLOSE_S = 5.0
"""What is held is sent within this time of the end, or lost."""


def main() -> None:
    """Detach, and serve until no worker is left. Never returns: the process ends with exit code 0."""
    try:
        settings = read(os.environ)
        try:
            lock, problems = _lock(os.environ)
            detach(lock)
            _log_to(settings.socket)
            _serve(settings._replace(problems=(*settings.problems, *problems)))
        except BaseException:
            # The border of the process: whatever it is, it is said.
            if not logging.getLogger().handlers:
                _log_to(settings.socket)
            log.exception("helper fault")
    finally:
        # Nothing of the interpreter's own end, which may fail, or wait for a thread.
        os._exit(0)


def _lock(environment: Mapping[str, str]) -> tuple[int, list[str]]:
    """Return the descriptor to keep, or -1 with why there is none."""
    text = environment.get(LOCK_FD, "")
    if text.isdecimal() and len(text) < 10:
        with contextlib.suppress(OSError):
            os.fstat(int(text))
            return int(text), []
    return -1, [f"{LOCK_FD} is no open descriptor: only the socket keeps a second helper away"]


def _log_to(socket: str) -> None:
    root = logging.getLogger()
    root.addHandler(LogFile(f"{socket}.log"))
    root.setLevel(logging.INFO)
    threading.excepthook = _say_thread_fault


def _say_thread_fault(fault: threading.ExceptHookArgs) -> None:
    if fault.exc_value is not None:
        log.error("thread fault", exc_info=fault.exc_value)


def _serve(settings: Settings) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *_: stop.set())
    _limit_memory()
    for problem in settings.problems:
        log.warning(problem)
    destination = settings.destination
    if destination is None:
        return
    try:
        uplink = Uplink(destination)
    except BadDestination as error:
        log.error(
            "%s: %s; next: %s",
            variable(error.field, destination.kind),
            error,
            next_step(error.field, destination.kind),
        )
        return
    relay = Relay(settings.socket, uplink, labels=settings.labels)
    try:
        relay.start()
    except RelayError as error:
        log.error("%s; next: %s", error, error.next_step)
        return
    log.info("serving", extra={"socket": settings.socket, destination.kind: destination.url})
    uplink.start()
    reporter = _Reporter(uplink, settings.labels, measured=destination.kind == COLLECTOR)
    try:
        log.info(_watch(relay, stop, reporter))
    finally:
        relay.close(_RELAY_CLOSE_S)
        reporter.report()
        uplink.close(_UPLINK_CLOSE_S)
        reporter.report()
        log.info("ended", extra=dict(sorted(reporter.totals.items())))


def _limit_memory() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    for limit in (soft, hard):
        if limit != resource.RLIM_INFINITY and limit < MAX_DATA_BYTES:
            return
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES, hard))


def _watch(relay: Relay, stop: threading.Event, reporter: _Reporter) -> str:
    """Return, with the reason, when it is time to end."""
    needed = reported = time.monotonic()
    while not stop.wait(_TICK_S):
        now = time.monotonic()
        if not relay.alive():
            return "ending: the relay ended"
        if relay.workers():
            needed = now
        elif now - needed >= IDLE_S:
            return f"ending: no worker for {IDLE_S:g} s"
        if now - reported >= _REPORT_S:
            reported = now
            reporter.report()
    return "ending: asked to"


class _Reporter:
    """Tells what became of what was sent: the collector, and the log where something was lost.

    `totals` are the uplink's counts since it began.
    """

    def __init__(self, uplink: Uplink, labels: Mapping[str, str], *, measured: bool) -> None:
        self._uplink = uplink
        self._resource = {**labels, "service_name": "quayscope-relay"}
        self._measured = measured
        self._since_ns = time.time_ns()
        self.totals: Counter[str] = Counter()

    def report(self) -> None:
        counts = {name: count for name, count in self._uplink.take_counts().items() if count}
        self.totals.update(counts)
        since, self._since_ns = self._since_ns, time.time_ns()
        lost = {name: count for name, count in counts.items() if name in ("refused", "dropped")}
        if lost:
            log.warning("lost on the way", extra=lost)
        if counts and self._measured:
            metrics = [
                Metric(f"quayscope.uplink.{name}", "1", "delta", [NumberPoint(count, self._since_ns, since)])
                for name, count in counts.items()
            ]
            self._uplink.metrics(metric_request(self._resource, metrics))
