"""CPU samples of any program, taken without its help: perf events, unwound in batches, named when sent.

One thread drains the rings and unwinds, every few seconds. A sample is weighed with the CPU time that its
event counted since the sample before, where it counts (a cgroup's), else with the period.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from quayscope.profile import Profile
from quayscope.sidecar.errors import AlreadySampled
from quayscope.sidecar.native.batches import Batches, Notes
from quayscope.sidecar.native.debuginfod import Debuginfod
from quayscope.sidecar.native.gather import Gathered
from quayscope.sidecar.native.inlines import Inlines
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.publish import Publisher
from quayscope.sidecar.native.ring import RingBudget, Rings, online_cpus
from quayscope.sidecar.native.sources import Plan
from quayscope.sidecar.native.stacks import Stacks
from quayscope.sidecar.native.target import SampledTarget
from quayscope.sidecar.native.tracked import Tracked
from quayscope.sidecar.native.unwind import CfiUnwinder

__all__ = ["HIGHEST_HZ", "LOWEST_HZ", "Sampler"]

log = logging.getLogger(__name__)

LOWEST_HZ, HIGHEST_HZ = 19, 999
_BATCH_S = 2.5
"""Between two batches at most: each finds the processor's caches as others left them, which costs more than
half of a small one's samples."""
_TAKEN_S = 1.0
"""What a batch takes at most, where the machine is busy."""
_FULL = 0.4
"""A ring is emptied from here on; its reader is woken for each half that is written."""
_PAUSE_S = 0.05
"""Between two batches at least, however full the rings are: many small batches cost more than few."""
_RESCAN_S = 1.0
_REREAD_S = 10.0
"""Between two times that all maps are read anew at least: each takes up to a millisecond a process."""
_MAX_FAULTS_LOGGED = 3


class _Feed:
    """A set of rings, and the targets that are led into it."""

    def __init__(self, rings: Rings[Tracked], notes: Notes | None) -> None:
        self.rings = rings
        self.notes = notes
        self.tracked: list[Tracked] = []


class Sampler:
    """Samples targets from when they are added, and emits windows that are over on a thread of its own.

    Samples lie in the rings for `batch_s` seconds at most, and are all gathered after `late_s`, a second
    later. `cache` is a folder for the unwinder's rules, kept from one start to the next; `cycles` samples by
    the hardware's cycles, where there are any; `debuginfod`, for debug files that are not here, is started
    and closed with the sampler; `inlined` shows calls that were inlined. `faults` counts batches that failed,
    `counts` the rest.
    """

    def __init__(
        self,
        emit: Callable[[list[Profile]], None],
        *,
        hz: int = 99,
        window_s: int = 10,
        kernel: bool = True,
        cycles: bool = False,
        cache: Path | None = None,
        debuginfod: Debuginfod | None = None,
        inlined: bool = True,
        budget: RingBudget | None = None,
        batch_s: float = _BATCH_S,
    ) -> None:
        self._emit = emit
        self._window_s = window_s
        self._plan = Plan(hz, kernel=kernel, cycles=cycles)
        self._budget = budget or RingBudget()
        self._unwinder = CfiUnwinder(Objects(), cache=cache)
        self._gathered = Gathered()
        self._batches = Batches(self._unwinder, self._gathered)
        self._debuginfod = debuginfod
        self._inlines = Inlines() if inlined else None
        self._stacks = Stacks(Objects(), debuginfod, self._inlines)
        self._batch_s = batch_s
        self.late_s = batch_s + _TAKEN_S
        self._publisher = Publisher(self._gathered, self._stacks, window_s, self.late_s)
        self._feeds: list[_Feed] = []
        self._past: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._flushing = threading.Lock()
        self._stop = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="perf", daemon=True)
        self._lost_some = False
        self._reread_at = 0.0
        self.faults = 0

    def start(self) -> None:
        """Begin to take samples out of the rings."""
        if self._inlines is not None:
            self._inlines.start()
        if self._debuginfod is not None:
            self._debuginfod.start()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether samples are being taken."""
        return self._thread.is_alive()

    @property
    def hz(self) -> int:
        """Samples a second of CPU."""
        return self._plan.hz

    def open_rings(self, *, each: bool = False) -> Rings[Tracked]:
        """Return a set of rings out of the budget, for `add`; `each`: readable at each sample.

        Raises OSError when the kernel grants no memory.
        """
        cpus = len(online_cpus())
        asked = self._budget.take(cpus)
        try:
            rings: Rings[Tracked] = Rings(asked, each=each)
        except OSError:
            self._budget.give_back(asked, cpus)
            raise
        self._budget.give_back(asked - rings.size, cpus)
        return rings

    def add(
        self, target: SampledTarget, rings: Rings[Tracked] | None = None, notes: Notes | None = None
    ) -> Tracked:
        """Sample a target from now on; it may have `rings` of its own, with `notes` about their samples.

        Those are closed with it. Whoever adds a target removes it when its root process has ended. Raises
        OSError with the kernel's answer when it may not be sampled at all, `AlreadySampled` when processes of
        it are another target's.
        """
        with self._lock:
            feed = self._feed(rings, notes)
            try:
                plan = self._plan._replace(chain=target.chain)
                tracked = Tracked(target, feed.rings, plan, self._emit, self._window_s)
                self._refuse_shared(tracked)
            except BaseException:
                self._close_if_empty(feed)
                raise
            feed.tracked.append(tracked)
        self.hurry()
        return tracked

    def _refuse_shared(self, tracked: Tracked) -> None:
        for other in self.targets:
            if tracked.shares_with(other):
                tracked.close()
                raise AlreadySampled(
                    f"process {tracked.target.root_pid} is sampled as {other.target.service} already",
                    next_step="make what runs in one container one target",
                )

    def _feed(self, rings: Rings[Tracked] | None, notes: Notes | None) -> _Feed:
        if rings is None:
            for feed in self._feeds:
                if not feed.rings.each:
                    return feed
            rings = self.open_rings()
        feed = _Feed(rings, notes)
        self._feeds.append(feed)
        return feed

    def remove(self, tracked: Tracked) -> None:
        """Sample a target no longer; what its rings hold is taken first, its windows are sent."""
        with self._lock:
            feed = next((feed for feed in self._feeds if tracked in feed.tracked), None)
            if feed is None:
                return
            self._guard(partial(self._batch, feed))
            self._charge_lost(feed)
            tracked.close()
            feed.tracked.remove(tracked)
            self._close_if_empty(feed)
            self._past["samples"] += tracked.samples
            self._past["samples_duplicate"] += tracked.source.duplicates
        with self._flushing:
            self._publisher.publish(None)
            tracked.charge(time.time_ns())
            self._publisher.send(tracked, None)

    def _close_if_empty(self, feed: _Feed) -> None:
        if not feed.tracked:
            for name, count in self._ring_counts(feed).items():
                self._past[name] += count
            feed.rings.close()
            self._budget.give_back(feed.rings.size, len(feed.rings.cpus))
            self._feeds.remove(feed)
            self.hurry()

    @property
    def targets(self) -> list[Tracked]:
        """What is being sampled."""
        with self._lock:
            return [tracked for feed in self._feeds for tracked in feed.tracked]

    def set_rate(self, hz: int) -> None:
        """Sample `hz` (19 to 999) times a second of CPU from now on. Raises ValueError beyond.

        A target whose events cannot be opened anew ends; see `targets`.
        """
        if not LOWEST_HZ <= hz <= HIGHEST_HZ:
            raise ValueError(f"{hz} samples a second: {LOWEST_HZ} to {HIGHEST_HZ} are possible")
        with self._lock:
            self._plan = self._plan._replace(hz=hz)
            for feed in list(self._feeds):
                self._guard(partial(self._batch, feed))
                for tracked in list(feed.tracked):
                    try:
                        tracked.set_rate(hz)
                    except OSError as error:
                        self._end(tracked, error)

    def _end(self, tracked: Tracked, error: OSError) -> None:
        log.warning(
            "target no longer sampled", extra={"service": tracked.target.service, "error": str(error)}
        )
        self._past["targets_ended"] += 1
        self.remove(tracked)

    def hurry(self) -> None:
        """Have the next batch taken at once: a ring fills up."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        now = time.monotonic()
        rescan_at, batch_at = now + _RESCAN_S, now + self._batch_s
        while not self._stop.is_set():
            # Each waking costs, so all is done at once where nothing asks for more.
            until = min(rescan_at, batch_at) if self._task_by_task() else batch_at
            hurried = self._wait(until - time.monotonic())
            now = time.monotonic()
            batch, rescan = hurried or now >= batch_at, now >= rescan_at
            with self._lock:
                if batch:
                    batch_at = now + self._batch_s
                    for feed in list(self._feeds):
                        self._guard(partial(self._batch, feed))
                if rescan:
                    rescan_at = now + _RESCAN_S
                    self._guard(self._rescan)
            if batch:
                self._guard(partial(self.flush, time.time_ns()))

    def _task_by_task(self) -> bool:
        """Whether somebody's tasks are to be looked for."""
        return any(tracked.source.kind == "task" for tracked in self.targets)

    def _wait(self, timeout_s: float) -> bool:
        """Wait until a ring fills up, or somebody hurries: then it returns True."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        with self._lock:
            feeds = [feed for feed in self._feeds if not feed.rings.each]
            for feed in feeds:
                for descriptor in feed.rings.descriptors():
                    poller.register(descriptor, select.POLLIN)
        began = time.monotonic()
        ready = [descriptor for descriptor, _ in poller.poll(max(0.0, timeout_s) * 1000)]
        hurried = self._wake in ready
        if hurried:
            os.eventfd_read(self._wake)
        elif ready:
            # It wakes us when so much was written since it did last, however much of that has been taken.
            with self._lock:
                hurried = any(feed.rings.fullest() >= _FULL for feed in feeds if feed in self._feeds)
        left = began + _PAUSE_S - time.monotonic()
        if ready and left > 0:
            self._stop.wait(left)
        return hurried

    def _guard(self, step: Callable[[], None]) -> None:
        # The one border of this thread: a fault costs the samples at hand, never the sampling.
        try:
            step()
        except Exception:
            self.faults += 1
            if self.faults <= _MAX_FAULTS_LOGGED:
                log.exception("sampling fault", extra={"faults": self.faults})

    def _batch(self, feed: _Feed) -> None:
        if feed.notes is not None:
            feed.notes.look()
        lost = feed.rings.lost
        try:
            self._batches.take(feed.rings.drain(), feed.tracked, feed.notes)
        finally:
            feed.rings.release()
        for tracked in feed.tracked:
            tracked.measure()
        self._lost_some = self._lost_some or feed.rings.lost != lost
        if self._lost_some and time.monotonic() >= self._reread_at:
            # Records of mappings may be among what was lost.
            self._reread_at = time.monotonic() + _REREAD_S
            self._lost_some = False
            self._batches.forget_spaces()

    def _rescan(self) -> None:
        for feed in list(self._feeds):
            for tracked in list(feed.tracked):
                try:
                    tracked.rescan()
                except OSError as error:
                    self._end(tracked, error)

    def flush(self, now_ns: int | None) -> None:
        """Name and send what is over now, sooner than the sampler does it itself (None: all there is)."""
        with self._lock:
            tracked = self.targets
            for feed in self._feeds:
                self._charge_lost(feed)
        at_ns = time.time_ns() if now_ns is None else now_ns
        with self._flushing:
            self._publisher.publish(now_ns)
            for one in tracked:
                one.charge(at_ns)
                self._publisher.send(one, now_ns)

    @staticmethod
    def _charge_lost(feed: _Feed) -> None:
        for tracked, count in feed.rings.take_lost().items():
            charged = tracked or (feed.tracked[0] if feed.tracked else None)
            if charged is not None:
                charged.lost += count

    def counts(self) -> dict[str, int]:
        """Return what was lost or went wrong so far."""
        with self._lock:
            counts = Counter(self._past)
            for feed in self._feeds:
                counts.update(self._ring_counts(feed))
                counts["samples"] += sum(tracked.samples for tracked in feed.tracked)
                counts["samples_duplicate"] += sum(tracked.source.duplicates for tracked in feed.tracked)
            counts["samples_without_maps"] += self._batches.spaceless
            counts["frames_unnamed"] += self._stacks.unnamed
            counts["objects_malformed"] += self._stacks.malformed + self._unwinder.malformed
        return dict(counts)

    @staticmethod
    def _ring_counts(feed: _Feed) -> Counter[str]:
        rings = feed.rings
        return Counter(
            samples_lost=rings.lost, samples_throttled=rings.throttled, records_malformed=rings.malformed
        )

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop, and send everything held."""
        self._stop.set()
        self.hurry()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        for tracked in self.targets:
            self.remove(tracked)
        self.flush(None)
        if not self._thread.is_alive() and self._wake >= 0:
            self._guard(self._unwinder.close)
            if self._inlines is not None:
                self._inlines.close(timeout_s)
            if self._debuginfod is not None:
                self._debuginfod.close(timeout_s)
            os.close(self._wake)
            self._wake = -1
