"""The thread that pushes stored profiles to a Pyroscope: bounded queue, batches, back-off, counted ends."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

from quayscope.collector.counters import Counters
from quayscope.profile import Profile, PushFailed
from quayscope.profile.push import PushClient, PushSeries, encode_push
from quayscope.profile.pyroscope import pyroscope_series

__all__ = ["Forwarder"]

log = logging.getLogger(__name__)

_QUEUE_PROFILES = 512
# A Pyroscope acknowledges about a second after a push, whatever its size, and takes 4 MB/s by default.
_BATCH_PROFILES = 64
_BATCH_BYTES = 2 << 20
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class Forwarder:
    """Pushes to `url`. A full queue drops the newest and counts them; refusals for good are counted.

    Raises `ProfileError` for an address that is none.
    """

    def __init__(self, url: str, counters: Counters, first_pause_s: float = _FIRST_PAUSE_S) -> None:
        self._client = PushClient(url)
        self._counters = counters
        self._first_pause = first_pause_s
        self._waiting: deque[Profile] = deque()
        self._in_hand = 0
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)
        self._thread.start()

    def offer(self, profiles: Sequence[Profile]) -> None:
        """Queue profiles without waiting; what does not fit is dropped and counted."""
        with self._changed:
            room = max(0, _QUEUE_PROFILES - len(self._waiting))
            self._waiting.extend(profiles[:room])
            self._changed.notify()
        if len(profiles) > room:
            self._counters.add("forward_dropped", len(profiles) - room)

    def depth(self) -> int:
        """Return how many profiles wait or are on their way."""
        return len(self._waiting) + self._in_hand

    def close(self, timeout_s: float) -> None:
        """Push what waits for at most `timeout_s` seconds; count the rest as dropped."""
        deadline = time.monotonic() + timeout_s
        while self.depth() and time.monotonic() < deadline:
            time.sleep(0.02)
        self._closing.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(max(0.1, deadline - time.monotonic()))
        self._counters.add("forward_dropped", self.depth())
        self._client.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing.is_set():
                    self._changed.wait()
                if self._closing.is_set():
                    return
                taken = [self._waiting.popleft() for _ in range(min(_BATCH_PROFILES, len(self._waiting)))]
                self._in_hand = len(taken)
            try:
                self._forward(taken)
            except Exception:  # forwarding's border: a profile it cannot map must not end it
                self._counters.add("faults")
                self._counters.add("forward_refused", self._in_hand)
                log.exception("forward fault")
                self._in_hand = 0

    def _forward(self, profiles: Sequence[Profile]) -> None:
        batch: list[list[PushSeries]] = []
        size = 0
        for profile in profiles:
            series = pyroscope_series(profile)
            batch.append(series)
            size += sum(len(data) for one in series for _, data in one.samples)
            if size >= _BATCH_BYTES:
                self._push(batch)
                batch, size = [], 0
        if batch:
            self._push(batch)

    def _push(self, batch: list[list[PushSeries]]) -> None:
        """Push profiles, each one or more series, until accepted or refused for good."""
        body = encode_push(one for series in batch for one in series)
        pause = self._first_pause
        while True:
            try:
                self._client.push(body)
            except PushFailed as failure:
                if failure.retryable:
                    self._counters.add("forward_retries")
                    log.warning("forward delayed", extra={"status": failure.status, "pause_s": pause})
                    if self._closing.wait(pause):
                        return
                    pause = min(pause * 2, _LONGEST_PAUSE_S)
                    continue
                self._refused(batch, failure)
                return
            self._in_hand -= len(batch)
            self._counters.add("forwarded", len(batch))
            return

    def _refused(self, batch: list[list[PushSeries]], failure: PushFailed) -> None:
        if len(batch) > 1:
            # One bad profile refuses a whole push: halves find it, and its neighbours go through.
            middle = len(batch) // 2
            self._push(batch[:middle])
            self._push(batch[middle:])
            return
        self._in_hand -= 1
        self._counters.add("forward_refused")
        log.warning("forward refused", extra={"status": failure.status, "reason": str(failure)[:200]})
