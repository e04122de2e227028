"""Runs the captures that the collector asks for: a thread for each target, a part delivered for each."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from quayscope.profile import pprof
from quayscope.profile.control import KINDS, Answer, Part, StartCapture, Target
from quayscope.sidecar.control.capturer import Captured, Capturer, Window, of_endpoint
from quayscope.sidecar.errors import SidecarError

__all__ = ["Captures"]

log = logging.getLogger(__name__)

MAX_PARTS = 32
"""Captures of targets that run at once; what comes beyond is refused by name."""
HIGHEST_HZ = 999
LONGEST_S = 600
LONGEST_WAIT_S = 60
"""How far in the future a capture may begin."""
MAX_PART = 32 << 20
"""Bytes of one part's profiles."""


class _Running(NamedTuple):
    cancelled: threading.Event
    threads: list[threading.Thread]


class Captures:
    """Starts and cancels captures. `send` takes finished parts, from any thread, and must not block.

    `targets` gives what there is now; `offset_ns` the collector's clock less ours; `capturers` are asked in
    their order. `faults` counts errors of our own.
    """

    def __init__(
        self,
        capturers: Sequence[Capturer],
        targets: Callable[[], tuple[Target, ...]],
        send: Callable[[Part], None],
        offset_ns: Callable[[], int],
        clock: Callable[[], int],
    ) -> None:
        self._capturers = list(capturers)
        self._targets = targets
        self._send = send
        self._offset_ns = offset_ns
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}
        self._parts = 0
        self.faults = 0

    def kinds(self) -> tuple[str, ...]:
        """Return the kinds that can be asked for."""
        return tuple(kind for kind in KINDS if any(one.kind == kind for one in self._capturers))

    def start(self, capture: str, asked: StartCapture) -> Answer:
        """Begin one; the answer names its parts."""
        refusal = self._refusal(asked)
        if refusal:
            return Answer(capture, "refused", refusal)
        offset = self._offset_ns()
        window = Window(asked.start_ns - offset, asked.start_ns + asked.duration_ns - offset, self._clock)
        if not 0 <= window.end_ns - self._clock() <= (LONGEST_S + LONGEST_WAIT_S) * 10**9:
            return Answer(capture, "refused", "the time asked for is over, or too far away")
        chosen = [
            (target, capturer)
            for target in self._targets()
            if matches(target, asked.labels, asked.pids)
            and (capturer := self._capturer(target, asked.kinds)) is not None
        ]
        running = _Running(threading.Event(), [])
        parts = []
        with self._lock:
            if capture in self._running:
                return Answer(capture, "refused", "a capture of this id runs")
            self._running[capture] = running
            for number, (target, capturer) in enumerate(chosen):
                part = Part(capture, number, target, capturer.kind)
                parts.append(part)
                if self._parts >= MAX_PARTS:
                    error = f"{MAX_PARTS} captures run in this pod already"
                    self._send(part._replace(error=error))
                    continue
                self._parts += 1
                thread = threading.Thread(
                    target=self._run,
                    args=(part, capturer, window, asked, running.cancelled),
                    name="capture",
                    daemon=True,
                )
                running.threads.append(thread)
            if not running.threads:
                del self._running[capture]
        # A copy: one that is refused at once takes itself out while the others are started.
        for thread in tuple(running.threads):
            thread.start()
        return Answer(capture, "accepted", "" if parts else "no target fits", tuple(parts))

    def cancel(self, capture: str) -> Answer:
        """End one now; its parts are delivered as far as they got."""
        with self._lock:
            running = self._running.get(capture)
        if running is None:
            return Answer(capture, "refused", "no such capture runs here")
        running.cancelled.set()
        return Answer(capture, "accepted")

    def close(self, timeout_s: float) -> None:
        """Cancel everything, and wait about that long for it to be delivered."""
        with self._lock:
            all_running = list(self._running.values())
        for running in all_running:
            running.cancelled.set()
        for running in all_running:
            threads = [thread for thread in tuple(running.threads) if thread.ident is not None]
            for thread in threads:
                thread.join(timeout_s / max(1, len(all_running) * len(threads)))

    def _refusal(self, asked: StartCapture) -> str:
        if not 1 <= asked.hz <= HIGHEST_HZ:
            return f"{asked.hz} Hz is not within 1 to {HIGHEST_HZ}"
        if not 0 < asked.duration_ns <= LONGEST_S * 10**9:
            return f"{asked.duration_ns / 1e9:g} s is not within 0 to {LONGEST_S}"
        unknown = [kind for kind in asked.kinds if kind not in KINDS]
        return f"kind {unknown[0]!r} is not known here" if len(unknown) == len(asked.kinds) > 0 else ""

    def _capturer(self, target: Target, kinds: Sequence[str]) -> Capturer | None:
        for kind in kinds or KINDS:
            for capturer in self._capturers:
                if capturer.kind == kind and capturer.suits(target):
                    return capturer
        return None

    def _run(
        self,
        part: Part,
        capturer: Capturer,
        window: Window,
        asked: StartCapture,
        cancelled: threading.Event,
    ) -> None:
        # The border of this thread: whatever happens, the part is delivered, with what went wrong.
        try:
            captured = capturer.capture(part.target, window, asked.hz, cancelled)
            done = self._filled(part, captured, asked.endpoint, cancelled.is_set())
        except SidecarError as error:
            done = part._replace(error=str(error))
        except Exception as error:
            self.faults += 1
            log.exception("capture fault", extra={"capture": part.capture, "pid": part.target.pid})
            done = part._replace(error=f"internal error: {type(error).__name__}")
        with self._lock:
            self._parts -= 1
            running = self._running.get(part.capture)
            if running is not None:
                running.threads.remove(threading.current_thread())
                if not running.threads:
                    del self._running[part.capture]
        self._send(done._replace(offset_ns=self._offset_ns()))

    @staticmethod
    def _filled(part: Part, captured: Captured, endpoint: str, cancelled: bool) -> Part:
        profiles = of_endpoint(captured.profiles, endpoint)
        encoded = [pprof.encode(profile) for profile in profiles]
        size = sum(map(len, encoded))
        if size > MAX_PART:
            return part._replace(error=f"{size} bytes of profiles, more than {MAX_PART}")
        return part._replace(
            error=captured.note or ("cancelled" if cancelled else ""),
            started_ns=captured.started_ns,
            ended_ns=captured.ended_ns,
            profiles=tuple(encoded),
            types=tuple(profile.type.name for profile in profiles),
            samplers=tuple(profile.labels.get("sampler", "") for profile in profiles),
        )


def matches(target: Target, labels: Mapping[str, str], pids: Sequence[int]) -> bool:
    """Whether a target has all of these labels, and one of these pids where there are any."""
    return (not pids or target.pid in pids) and all(
        target.labels.get(name, "") == value for name, value in labels.items()
    )
