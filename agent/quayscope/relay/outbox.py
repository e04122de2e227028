"""What waits to be sent: in memory, bounded in bytes, and on disk where there is a spool.

Each kind has three lanes, and all are served in turn: what lies in memory, what came to the spool lately, and
what an outage or a process before this one left there. So old data is sent in order, fresh data does not wait
behind it, and many small messages of a kind go in one request.
A group that was sent and not acknowledged comes again as the same group: a receiver knows spans and metrics
that come twice by their bytes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Callable

from quayscope.profile import Profile
from quayscope.relay.spool import Batch, Spool

__all__ = ["Group", "Item", "Outbox"]

log = logging.getLogger(__name__)

MAX_QUEUE_BYTES = 32 << 20
MAX_BATCH_BYTES = 1 << 20
_KINDS = ("profiles", "spans", "metrics")
_LANES = tuple((lane, kind) for lane in ("memory", "live", "backlog") for kind in _KINDS)


@dataclass(eq=False)
class Item:
    """One message: `body` once it is encoded, `profile` until then; `size` in bytes, at first estimated.

    `number` is its place among all that came.
    """

    kind: str
    size: int
    profile: Profile | None = None
    body: bytes = b""
    number: int = 0


@dataclass(eq=False)
class Group:
    """Items of one kind to send together; `batch` where they lie in the spool."""

    items: list[Item] = field(default_factory=list)
    batch: Batch | None = None


class Outbox:
    """Holds items until they are done; thread-safe. `encode` gives an item its body, or returns False.

    `counts`: messages `dropped` for want of room, and with a spool `spooled` (written to it), `torn` (lost
    to a crash or the disk) and `spool_failed` (kept in memory, for the disk did not take them).
    """

    def __init__(self, spool: Spool | None, encode: Callable[[Item], bool]) -> None:
        self._spool = spool
        self._encode = encode
        self._queues: dict[str, deque[Item]] = {kind: deque() for kind in _KINDS}
        self._again: dict[str, Group] = {}
        self._number = 0
        self._inflight: Group | None = None
        self._bytes = 0
        self._turn = 0
        self._changed = threading.Condition()
        self._closing_at: float | None = None
        self._away = False
        self._spool_fails = False
        self._counts: Counter[str] = Counter()

    def open(self) -> None:
        """Take up what the spool holds; where it cannot be used all stays in memory, which is said."""
        if self._spool is None:
            return
        try:
            self._spool.open()
        except OSError as error:
            self._spool = None
            self._note_spool(error)

    def put(self, item: Item) -> None:
        """Add an item in memory; the oldest go where there is no room."""
        with self._changed:
            self._add(item)
            self._changed.notify_all()

    def hold(self, kind: str, body: bytes) -> bool:
        """Add a message that somebody relies on: on disk when this returns, where there is a spool.

        False where it cannot be kept: the sender should send it again.
        """
        with self._changed:
            if self._closing_at is not None:
                return False
        if self._spool is not None:
            try:
                position = self._spool.append(kind, body)
            except OSError as error:
                self._note_spool(error)
            else:
                self._synced(position)
                with self._changed:
                    self._counts["spooled"] += 1
                    self._changed.notify_all()
                return True
        with self._changed:
            if self._closing_at is not None or self._held() + len(body) > MAX_QUEUE_BYTES:
                return False
            self._add(Item(kind, len(body), body=body))
            self._changed.notify_all()
        return True

    def next(self) -> Group | None:
        """Wait for items and return those to send together; None when closing and done."""
        self._spill(MAX_QUEUE_BYTES // 2)
        with self._changed:
            while True:
                if self._closing_at is not None and self._is_over(self._closing_at):
                    return None
                group = self._pick()
                if group is not None:
                    self._inflight = group
                    return group
                if self._closing_at is not None:
                    return None
                self._changed.wait()

    def done(self, group: Group, left: list[Item], *, regroup: bool = False) -> None:
        """Take back the last ones of a group, which were not sent; the others are done.

        They stay one group, unless it is known that the receiver has none of them: `regroup`.
        """
        with self._changed:
            if self._inflight is not group:
                return  # closing did not wait for it
            self._inflight = None
            if group.batch is not None:
                assert self._spool is not None
                self._spool.done(group.batch, len(group.items) - len(left), regroup=regroup)
            elif left:
                if regroup:
                    self._queues[left[0].kind].extendleft(reversed(left))
                else:
                    self._again[left[0].kind] = Group(left)
                self._bytes += sum(item.size for item in left)
                self._shrink()

    def note_away(self, away: bool) -> None:
        """Say whether the receiver answers; what the spool held meanwhile is sent beside what comes now."""
        with self._changed:
            returned = self._away and not away
            self._away = away
        if returned and self._spool is not None:
            self._spool.set_aside()

    def pause(self, seconds: float) -> bool:
        """Wait before the next attempt, and make room on disk meanwhile; False where none is to be made."""
        until = time.monotonic() + seconds
        while True:
            self._spill(MAX_QUEUE_BYTES // 2)
            with self._changed:
                now = time.monotonic()
                if self._closing_at is not None:
                    if self._is_over(self._closing_at):
                        return False
                    # One more attempt soon, then none: closing must end in time.
                    until = min(until, self._closing_at, now + 0.2)
                if now >= until:
                    return True
                self._changed.wait(until - now)

    def ask_close(self, timeout_s: float) -> float:
        """Send what there is within the time, then nothing; returns how long to wait for that.

        Where the receiver is away and a spool is there it is no time at all.
        """
        with self._changed:
            self._closing_at = time.monotonic() + timeout_s
            self._changed.notify_all()
            return min(timeout_s, 0.3) if self._away and self._spool is not None else timeout_s

    def leave(self) -> int:
        """Put what is still in memory on disk, and end; returns how many messages are left behind."""
        with self._changed:
            sending, self._inflight = self._inflight, None
            groups = [sending] if sending is not None and sending.batch is None else []
            while (group := self._oldest()) is not None:
                groups.append(group)
        left = 0
        for group in groups:
            if self._spool is None or not self._write(group, self._spool):
                left += len(group.items)
        if self._spool is not None:
            self._spool.close()
        return left

    def take_counts(self) -> dict[str, int]:
        """Return what happened since the last call."""
        with self._changed:
            counts, self._counts = self._counts, Counter()
        if self._spool is not None:
            dropped, counts["torn"] = self._spool.take_counts()
            counts["dropped"] += dropped
        return dict(counts)

    def _is_over(self, closing_at: float) -> bool:
        return time.monotonic() >= closing_at or (self._away and self._spool is not None)

    def _held(self) -> int:
        """Return the bytes in memory, what is being sent among them: it may come back."""
        group = self._inflight
        sending = group.items if group is not None and group.batch is None else []
        return self._bytes + sum(item.size for item in sending)

    def _add(self, item: Item) -> None:
        self._number += 1
        item.number = self._number
        self._queues[item.kind].append(item)
        self._bytes += item.size
        self._shrink()

    def _shrink(self) -> None:
        while self._bytes > MAX_QUEUE_BYTES and (group := self._oldest()) is not None:
            self._counts["dropped"] += len(group.items)

    def _oldest(self) -> Group | None:
        """Take the oldest out of memory: a group to send again as a whole."""
        heads = [group.items[0] for group in self._again.values()]
        heads += [queue[0] for kind, queue in self._queues.items() if queue and kind not in self._again]
        if not heads:
            return None
        kind = min(heads, key=lambda item: item.number).kind
        group = self._again.pop(kind, None) or Group([self._queues[kind].popleft()])
        self._bytes -= sum(item.size for item in group.items)
        return group

    def _pick(self) -> Group | None:
        for step in range(len(_LANES)):
            turn = (self._turn + step) % len(_LANES)
            lane, kind = _LANES[turn]
            group = self._from_memory(kind) if lane == "memory" else self._from_spool(lane, kind)
            if group is not None:
                self._turn = turn + 1
                return group
        return None

    def _from_memory(self, kind: str) -> Group | None:
        group = self._again.pop(kind, None)
        if group is None:
            group, size, queue = Group(), 0, self._queues[kind]
            while queue and size < MAX_BATCH_BYTES:
                item = queue.popleft()
                size += item.size
                group.items.append(item)
        self._bytes -= sum(item.size for item in group.items)
        return group if group.items else None

    def _from_spool(self, lane: str, kind: str) -> Group | None:
        batch = None if self._spool is None else self._spool.take(lane, kind, MAX_BATCH_BYTES)
        if batch is None:
            return None
        return Group([Item(kind, len(entry.body), body=entry.body) for entry in batch.entries], batch)

    def _spill(self, most: int) -> None:
        """Write the oldest in memory to the spool until half of `most` bytes are left."""
        spool = self._spool
        if spool is None or self._bytes <= most:
            return
        while True:
            with self._changed:
                group = self._oldest() if self._bytes > most // 2 else None
                self._inflight = group
            if group is None:
                return
            written = self._write(group, spool)
            self.done(group, [] if written else group.items)
            if not written:
                return

    def _write(self, group: Group, spool: Spool) -> bool:
        """Write a group to the spool; False where the disk does not take it."""
        items = [item for item in group.items if item.body or self._encode(item)]
        bodies = [item.body for item in items]
        # Profiles have an ID each; other messages that may be there already must come as they came.
        alone = len(bodies) > 1 and items[0].kind != "profiles"
        for body in [b"".join(bodies)] if alone else bodies:
            try:
                spool.append(items[0].kind, body, alone=alone)
            except OSError as error:
                self._note_spool(error, 0)  # they stay where they are
                return False
        with self._changed:
            self._counts["spooled"] += len(items)
            self._spool_fails = False
        return True

    def _synced(self, position: tuple[int, int]) -> None:
        assert self._spool is not None
        try:
            self._spool.sync(position)
        except OSError as error:
            self._note_spool(error)
        else:
            self._spool_fails = False

    def _note_spool(self, error: OSError, count: int = 1) -> None:
        with self._changed:
            self._counts["spool_failed"] += count
            said, self._spool_fails = self._spool_fails, True
        if not said:
            why = error.strerror or str(error)
            log.warning("the spool cannot be written, keeping what fits in memory", extra={"error": why})
