"""Captures of all pods that match: asked of their sidecars at once, gathered, merged and kept.

A capture begins on a whole second: workers' slots do too, so that its first second is a whole one.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from quayscope.collector.control.capture import Capture, CapturedPart, Share
from quayscope.collector.control.hub import Hub, Session
from quayscope.collector.control.kept import KeptCaptures
from quayscope.collector.control.merging import merge_all, read_part
from quayscope.collector.control.request import CaptureRequest
from quayscope.collector.counters import Counters
from quayscope.collector.errors import CollectorError, NoTarget, TooManyCaptures
from quayscope.collector.query.request import TimeRange
from quayscope.profile import Profile, pprof
from quayscope.profile.control import Answer, CancelCapture, Command, Part, SetRate, StartCapture

__all__ = ["Captures"]

log = logging.getLogger(__name__)

MOST_AT_ONCE = 8
_LEAD_NS = 200_000_000
"""A command reaches its sidecar, and the sidecar its workers, within this."""
_SECOND_NS = 10**9
GRACE_S = 15.0
"""How long after its end the parts of a capture may take: names of native code, py-spy's last words."""
_GONE_GRACE_S = 3.0
"""The same for a sidecar whose stream is cut: it may come back with what it has."""
_CANCEL_GRACE_S = 5.0
_BEFORE_NS = 60 * _SECOND_NS
_MOST_PARTS = 1_024
_MOST_SAMPLES = 2_000_000
"""Held in memory until a capture is over: some 500 bytes each, stacks shared."""
_LOOK_S = 0.2


class Captures:
    """Runs captures; thread-safe. `close` ends the thread that finishes them.

    `continuous` gives the stored profiles of a time, by type.
    """

    def __init__(
        self,
        hub: Hub,
        kept: KeptCaptures,
        counters: Counters,
        continuous: Callable[[TimeRange], dict[str, Profile]] | None = None,
    ) -> None:
        self._continuous = continuous
        self._hub = hub
        self._kept = kept
        self._counters = counters
        self._lock = threading.Lock()
        self._active: dict[str, Capture] = {}
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="captures", daemon=True)
        hub.listener = self

    def start_thread(self) -> None:
        """Begin to finish captures."""
        self._thread.start()

    def close(self) -> None:
        """Stop; captures under way are lost, and whoever waits for them hears it."""
        self._stop.set()
        self._changed.set()
        if self._thread.ident is not None:
            self._thread.join(5)
        with self._lock:
            captures = list(self._active.values())
        for capture in captures:
            self._end(capture, "failed", "the collector stopped")

    def begin(self, request: CaptureRequest, by: str, why: str = "") -> Capture:
        """Begin a capture, asked for `by` somebody; raises `NoTarget` and `TooManyCaptures`.

        One with a reason `why` gets the minute before it.
        """
        sessions = self._matching(request)
        now_ns = self._hub.now_ns()
        start_ns = -(-(now_ns + _LEAD_NS) // _SECOND_NS) * _SECOND_NS
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ns // _SECOND_NS))
        capture = Capture(f"{stamp}-{secrets.token_hex(4)}", request, by, start_ns, why)
        # Before it can be seen: a capture that nothing is expected of is over.
        capture.shares = {session.register.instance: Share(session) for session in sessions}
        with self._lock:
            if len(self._active) >= MOST_AT_ONCE:
                first = min(one.end_ns for one in self._active.values())
                raise TooManyCaptures(MOST_AT_ONCE, max(1, -(-(first - now_ns) // _SECOND_NS) + 1))
            self._active[capture.name] = capture
        self._counters.add("captures")
        log.info("capture", extra={"capture": capture.name, "by": by, "why": why, **request.shown()})
        asked = StartCapture(
            start_ns,
            request.seconds * _SECOND_NS,
            request.hz,
            request.kinds,
            request.labels,
            request.pids,
            request.endpoint,
        )
        with capture.lock:
            for share in capture.shares.values():
                try:
                    share.session.send(Command(capture.name, asked))
                except CollectorError as error:
                    share.error = str(error)
        self._changed.set()
        return capture

    def set_rate(self, request: CaptureRequest, rate: SetRate, by: str) -> list[str]:
        """Have the workers of all pods that match sample at a rate; returns the pods. Raises `NoTarget`."""
        sessions = self._matching(request)
        log.info("rate", extra={"by": by, "pods": len(sessions), **rate._asdict()})
        for session in sessions:
            session.send(Command(f"rate-{secrets.token_hex(4)}", rate))
        return [session.name for session in sessions]

    def _matching(self, request: CaptureRequest) -> list[Session]:
        all_sessions = self._hub.sessions()
        found = [one for one in all_sessions if any(request.selects(target) for target in one.targets)]
        if not found:
            attached = ", ".join(session.name for session in all_sessions[:5])
            raise NoTarget(
                "no process of an attached pod matches the selector",
                next_step=f"GET /api/v1/targets lists them (attached: {attached or 'no pod'})",
            )
        return found

    def cancel(self, name: str, by: str) -> bool:
        """End a capture early: its parts come as far as they got. False where none of that id runs."""
        with self._lock:
            capture = self._active.get(name)
        if capture is None:
            return False
        log.info("capture cancelled", extra={"capture": name, "by": by})
        with capture.lock:
            capture.cancelled_by = by
            capture.end_ns = min(capture.end_ns, self._hub.now_ns())
            for share in capture.shares.values():
                try:
                    share.session.send(Command(f"{name}-cancel", CancelCapture(name)))
                except CollectorError as error:
                    share.error = share.error or str(error)
        self._changed.set()
        return True

    def active(self, name: str) -> Capture | None:
        """Return a capture that is under way."""
        with self._lock:
            return self._active.get(name)

    def shown(self, name: str) -> dict[str, Any] | None:
        """Return a capture as JSON has it, under way or kept; None where there is none."""
        capture = self.active(name)
        return capture.shown() if capture is not None else self._kept.about(name)

    def all(self) -> list[dict[str, Any]]:
        """Return all captures without their parts, the newest first."""
        with self._lock:
            found = [capture.shown() for capture in self._active.values()]
        found += [about for name in self._kept.ids() if (about := self._kept.about(name)) is not None]
        return [
            {name: value for name, value in one.items() if name != "parts"}
            for one in sorted(found, key=lambda one: str(one.get("id")), reverse=True)
        ]

    # What sidecars say.

    def answered(self, session: Session, answer: Answer) -> None:
        """See `hub.Listener`."""
        capture = self.active(answer.command)
        share = capture.shares.get(session.register.instance) if capture is not None else None
        if capture is None or share is None:
            return
        with capture.lock:
            share.answered = True
            if answer.status != "accepted":
                share.error = f"{answer.status}: {answer.text}"
            elif not answer.parts:
                share.error = answer.text or "no target fits"
            for part in answer.parts[:_MOST_PARTS]:
                share.parts.setdefault(part.number, CapturedPart(part))
        self._changed.set()

    def delivered(self, session: Session, part: Part) -> None:
        """See `hub.Listener`."""
        capture = self.active(part.capture)
        share = capture.shares.get(session.register.instance) if capture is not None else None
        if capture is None or share is None or part.number >= _MOST_PARTS:
            self._counters.add("capture_parts_late")
            return
        profiles, wrong = read_part(session.name, part)
        with capture.lock:
            capture.samples += sum(len(one.profile.samples) for one in profiles)
            if capture.samples > _MOST_SAMPLES:
                profiles, wrong = [], f"the capture has more than {_MOST_SAMPLES} distinct samples already"
            error = part.error or wrong
            state = "done" if not error else "partial" if profiles else "failed"
            share.parts[part.number] = CapturedPart(part._replace(profiles=()), state, error, profiles)
        self._counters.add("capture_parts")
        self._changed.set()

    def gone(self, session: Session) -> None:
        """See `hub.Listener`."""
        with self._lock:
            captures = list(self._active.values())
        for capture in captures:
            share = capture.shares.get(session.register.instance)
            if share is not None:
                share.gone = True
        self._changed.set()

    # Finishing.

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                captures = list(self._active.values())
            self._changed.wait(_LOOK_S if captures else None)
            self._changed.clear()
            self._hub.end_silent()
            for capture in captures:
                # The one border of this thread: a capture that cannot be finished fails, by name.
                try:
                    if self._is_over(capture):
                        self._finish(capture)
                except Exception as error:
                    self._counters.add("faults")
                    log.exception("capture fault", extra={"capture": capture.name})
                    self._end(capture, "failed", f"internal error: {type(error).__name__}")

    def _is_over(self, capture: Capture) -> bool:
        late_s = (self._hub.now_ns() - capture.end_ns) / 1e9
        attached = {session.register.instance for session in self._hub.sessions()}
        with capture.lock:
            for instance, share in capture.shares.items():
                if share.over:
                    continue
                grace_s = _CANCEL_GRACE_S if capture.cancelled_by else GRACE_S
                cut = instance not in attached
                if late_s < (_GONE_GRACE_S if cut else grace_s):
                    return False
                why = "the sidecar is gone" if cut else f"no answer within {grace_s:g} s of the end"
                if not share.answered:
                    share.error = why
                for one in share.parts.values():
                    if one.state == "running":
                        one.state, one.error = "failed", why
        return True

    def _finish(self, capture: Capture) -> None:
        with capture.lock:
            capture.state = "running"
            parts = [one for share in capture.shares.values() for one in share.parts.values()]
            profiles = [held for one in parts for held in one.profiles]
        merged = merge_all(one.profile for one in profiles)
        files = {f"{kind}.pprof": pprof.encode(profile) for kind, profile in merged.items()}
        pods: dict[str, list[Profile]] = {}
        for held in profiles:
            pods.setdefault(held.pod, []).append(held.profile)
        for number, (_, ours) in enumerate(sorted(pods.items())):
            for kind, profile in merge_all(ours).items():
                files[f"pod{number}-{kind}.pprof"] = pprof.encode(profile)
        before = self._before(capture)
        files |= {f"before-{kind}.pprof": pprof.encode(profile) for kind, profile in before.items()}
        with capture.lock:
            capture.before = {kind: list(profile.totals()) for kind, profile in before.items()}
            capture.types = {kind: list(profile.totals()) for kind, profile in merged.items()}
            state = "cancelled" if capture.cancelled_by else "done"
            if not any(one.state in ("done", "partial") for one in parts):
                state = "cancelled" if capture.cancelled_by else "failed"
                capture.error = "nothing was captured; see failed"
            about = {**capture.shown(), "state": state, "progress": 1.0, "pods_with_profiles": sorted(pods)}
        try:
            self._kept.write(capture.name, about, files)
        except OSError as error:
            self._end(capture, "failed", f"the result cannot be kept: {error.strerror or error}")
            return
        self._end(capture, state, capture.error)

    def _before(self, capture: Capture) -> dict[str, Profile]:
        if not capture.why or self._continuous is None:
            return {}
        try:
            return self._continuous(TimeRange(capture.start_ns - _BEFORE_NS, capture.start_ns))
        except CollectorError as error:
            log.warning("the time before is missing", extra={"capture": capture.name, "reason": str(error)})
            return {}

    def _end(self, capture: Capture, state: str, error: str) -> None:
        with self._lock:
            self._active.pop(capture.name, None)
        with capture.lock:
            capture.state, capture.error = state, error
            capture.lock.notify_all()
        if state == "failed":
            self._counters.add("captures_failed")
        log.info("capture over", extra={"capture": capture.name, "state": state, "error": error})
