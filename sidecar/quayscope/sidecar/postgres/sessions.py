"""What sessions spend their time on, seen 99 times a second in shared memory.

Each sweep charges the time since the sweep before to what it shows, as `waits` does with polls: a session
that waits (or idles in a transaction) goes into the `block` profile under its statement, and every active one
into the average active sessions. Only what changed between sweeps costs anything; what stays is charged at
the end of its second. The statement and the wait of one slot are read together, so nothing here is unproven.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from quayscope.profile import BLOCK, Attributes, Frame, Stack
from quayscope.profile.model import Losses
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.postgres.active import ActiveSessions
from quayscope.sidecar.postgres.enums import Wait
from quayscope.sidecar.postgres.naming import Namer
from quayscope.sidecar.postgres.oids import OidNames
from quayscope.sidecar.postgres.shared import MemoryGone, SharedReader, open_reader
from quayscope.sidecar.postgres.slots import Slot
from quayscope.sidecar.postgres.transactions import IDLE_IN_TRANSACTION, Transactions
from quayscope.sidecar.statements import INHERITED, LONGEST_DESCRIBED, Described, StatementSource
from quayscope.sidecar.targets import CLIENT_BACKEND, Postmaster
from quayscope.sidecar.windows import SECOND_NS, Windows

__all__ = ["SOURCE", "SessionTime", "Sessions"]

log = logging.getLogger(__name__)

SOURCE = "shared memory"
_LOCK = "Lock"
_IDLE_ROOT = Frame("idle in transaction", kind="root")
_LONGEST_INTERVAL_NS = SECOND_NS
"""What a sweep charges at most: the rest of a longer gap was seen by nobody."""
_MAX_WHOLE = 1024
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 30.0
_LEAST_REST = 3
"""The thread sleeps at least so many times the CPU that a sweep took: a quarter of a core is its most."""


@dataclass(slots=True)
class _Held:
    """A slot, since when it is to be charged (monotonic), and how many sweeps have seen it since.

    `comment` is that of another statement of its transaction, where it has none of its own.
    """

    slot: Slot
    since_ns: int
    since_sweep: int
    comment: str


@dataclass
class _Sum:
    """What one statement's wait came to in a second; holding `described` keeps its id its own."""

    described: Described
    looks: int
    spent_ns: int


class SessionTime:
    """Charges the time between sweeps to what slots show. Times given are monotonic and Unix nanoseconds."""

    def __init__(
        self,
        windows: Windows,
        service: str,
        active: ActiveSessions,
        texts: StatementSource | None = None,
        held_by: Callable[[int], str] | None = None,
    ) -> None:
        self._windows = windows
        self._held_by = held_by or (lambda _: "")
        self.lock_waiters: frozenset[int] = frozenset()
        """The server's pids of those that waited for a lock when the last second ended."""
        self._root = Frame(service, kind="root")
        self._active = active
        self._texts = texts
        self._whole: dict[int, str] = {}
        self._held: dict[int, _Held] = {}
        self._known: dict[tuple[int, int], int] = {}
        self._absent: set[tuple[int, int]] = set()
        self._namer = Namer()
        self._transactions = Transactions()
        self.inherited = 0
        """Looks at sessions whose request is that of their transaction."""
        self._sums: dict[tuple[int, Wait, bool, int, str, int, str], _Sum] = {}
        self._sweeps = 0
        self._last_ns = 0
        self._unix_offset_ns = 0

    @property
    def undescribed(self) -> int:
        """How often a statement had to go without its name."""
        return self._namer.undescribed

    def seen(self, reader: SharedReader, now_ns: int, unix_ns: int) -> None:
        """Take in the last sweep of `reader`."""
        before_ns = self._last_ns or now_ns
        if now_ns - before_ns > _LONGEST_INTERVAL_NS:
            self._charge_all(before_ns, now_ns - _LONGEST_INTERVAL_NS)
            before_ns = now_ns - _LONGEST_INTERVAL_NS
        self._unix_offset_ns = unix_ns - now_ns
        if reader.changes:
            self._change(reader.changes, before_ns)
        self._sweeps += 1
        self._last_ns = now_ns

    def _change(self, changes: Iterable[tuple[int, Slot | None, Slot | None]], before_ns: int) -> None:
        """Charge what was held of slots up to a time, and hold what they show from then on."""
        for number, old, new in changes:
            held = self._held.pop(number, None)
            if held is not None:
                self._charge(number, held, before_ns)
            if new is None:
                self._whole.pop(number, None)
                self._transactions.forget(number)
                continue
            if old is None:
                self._meet(new)
            runs = new.active or new.state in IDLE_IN_TRANSACTION
            if runs:
                comment = self._transactions.comment(
                    number, new.transaction_start_ns, new.statement.text, new.rest
                )
                self._held[number] = _Held(new, before_ns, self._sweeps, comment)
            if held is None or not _same_statement(held.slot, new):
                self._whole.pop(number, None)
                if runs and new.statement.truncated and self._texts is not None:
                    self._complete(number, new, self._texts)

    def report(self, slots: Collection[Slot], unix_ns: int) -> None:
        """End a second, before the sweep that begins the next is taken in: charge what is held, and emit."""
        self._charge_all(self._last_ns, self._last_ns)
        self.lock_waiters = frozenset(
            held.slot.session.server_pid for held in self._held.values() if held.slot.wait.kind == _LOCK
        )
        self._write()
        self._namer.next_second()
        self._part({_key(slot) for slot in slots})
        self._active.report(
            unix_ns,
            (
                (slot.state, slot.session.application)
                for slot in slots
                if slot.session.backend_type == CLIENT_BACKEND
            ),
        )

    def end(self) -> None:
        """Charge what was seen up to its last sweep, and hold nothing: the memory is gone."""
        self._charge_all(self._last_ns, self._last_ns)
        self._write()
        self._held.clear()
        self._whole.clear()
        self._last_ns = 0

    def _meet(self, slot: Slot) -> None:
        """Count a connection once, and watch its process from its first sight."""
        key = _key(slot)
        if key not in self._known:
            self._known[key] = slot.session.pid
            if slot.session.backend_type == CLIENT_BACKEND:
                self._active.opened(slot.session.pid)
            else:
                self._active.watch(slot.session.pid)

    def _part(self, present: set[tuple[int, int]]) -> None:
        """Forget those that two reports did not see: one sweep may miss a slot that is being written."""
        absent = self._known.keys() - present
        for key in absent & self._absent:
            self._active.closed(self._known.pop(key))
        self._absent = absent & self._known.keys()

    def _complete(self, number: int, slot: Slot, texts: StatementSource) -> None:
        """Read a truncated statement whole from its backend, if it runs it still."""
        if slot.active and slot.session.pid and len(self._whole) < _MAX_WHOLE:
            text = texts.statement(slot.session.pid)
            if text is not None and text.startswith(slot.statement.text):
                self._whole[number] = text[:LONGEST_DESCRIBED]

    def _charge_all(self, until_ns: int, since_ns: int) -> None:
        """Charge all that is held up to a time, and hold it from another on."""
        for number, held in self._held.items():
            self._charge(number, held, until_ns)
            held.since_ns, held.since_sweep = since_ns, self._sweeps

    def _charge(self, number: int, held: _Held, until_ns: int) -> None:
        spent_ns = until_ns - held.since_ns
        if spent_ns <= 0:
            return
        slot = held.slot
        if slot.active:
            self._active.add(slot.wait.kind, slot.session.pid, spent_ns)
        if not slot.wait.event:
            return
        looks = max(1, self._sweeps - held.since_sweep)
        described = self._describe(number, held)
        self.inherited += looks * described.inherited
        # The second in which the time ended: it began there, or at the last sweep of the one before.
        unix_ns = until_ns - 1 + self._unix_offset_ns
        session = slot.session
        key = (
            id(described),
            slot.wait,
            slot.active,
            session.pid or session.server_pid,
            session.backend_type,
            unix_ns - unix_ns % SECOND_NS,
            self._held_by(session.server_pid) if slot.wait.kind == _LOCK else "",
        )
        held_sum = self._sums.get(key)
        if held_sum is None:
            self._sums[key] = _Sum(described, looks, spent_ns)
        else:
            held_sum.looks += looks
            held_sum.spent_ns += spent_ns

    def _describe(self, number: int, held: _Held) -> Described:
        described = self._namer.describe(self._whole.get(number, held.slot.statement.text))
        return self._namer.inherit(described, held.comment) if held.comment else described

    def _write(self) -> None:
        """Add what was summed to the profile: once a second, as an addition costs more than a charge."""
        unattributed: Counter[tuple[str, int]] = Counter()
        for (_, _, _, _, role, slot_ns, _), one in self._sums.items():
            if not one.described.has_request:
                unattributed[role, slot_ns] += one.looks
        stacks: dict[tuple[int, Wait, bool, str], Stack] = {}
        for (which, wait, active, pid, role, slot_ns, held_by), one in self._sums.items():
            described = one.described
            stack = stacks.get((which, wait, active, held_by))
            if stack is None:
                stack = self._stack(described, wait, active, held_by)
                stacks[which, wait, active, held_by] = stack
            attributes = Attributes(
                slot_ns,
                described.endpoint,
                described.run,
                described.phase,
                pid,
                trace_id=described.trace_id,
                span_id=described.span_id,
            )
            lost = unattributed.pop((role, slot_ns), 0)
            losses = Losses(unattributed=lost) if lost else None
            self._windows.add(BLOCK, role, stack, attributes, (one.looks, one.spent_ns), losses)
        self._sums.clear()

    def _stack(self, described: Described, wait: Wait, active: bool, held_by: str) -> Stack:
        frames = [self._root]
        if not active:
            frames.append(_IDLE_ROOT)
        if described.frame is not None:
            frames.append(described.frame)
        if described.inherited:
            frames.append(INHERITED)
        frames.append(Frame(f"{wait.kind}:{wait.event}", kind="wait"))
        if held_by:
            frames.append(Frame(held_by, kind="root"))
        return tuple(frames)


def _same_statement(one: Slot, other: Slot) -> bool:
    return (one.query_start_ns, one.statement) == (other.query_start_ns, other.statement)


def _key(slot: Slot) -> tuple[int, int]:
    return slot.session.server_pid, slot.session.started_ns


class Sessions:
    """Sweeps one server's shared memory on a thread of its own, until the server ends or it is closed.

    After a crash of the server it opens the memory anew. `reading` says whether it is seen right now: where
    it is not, the view stands in.
    """

    def __init__(
        self,
        server: Postmaster,
        capabilities: Capabilities,
        windows: Windows,
        emit: Callable[[list[Reading]], None],
        *,
        service: str,
        hz: int = 99,
        names: OidNames | None = None,
        texts: StatementSource | None = None,
        held_by: Callable[[int], str] | None = None,
    ) -> None:
        self._server = server
        self._capabilities = capabilities
        self._period_ns = SECOND_NS // hz
        self._names = names or OidNames()
        self._active = ActiveSessions(emit, SOURCE)
        self._time = SessionTime(windows, service, self._active, texts, held_by)
        self._ending = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sessions", daemon=True)
        self._past: Counter[str] = Counter()
        self._first: SharedReader | None = None
        self.reader: SharedReader | None = None
        """The reader that is swept now; its `look` may be called by others."""
        self.faults = 0
        self.sweeps = 0
        self.cpu_ns = 0
        """CPU time of the thread."""

    @property
    def reading(self) -> bool:
        """Whether the shared memory is being read."""
        return self.reader is not None

    @property
    def lock_waiters(self) -> frozenset[int]:
        """The server's pids of those that waited for a lock when the last second ended."""
        return self._time.lock_waiters

    def start(self) -> bool:
        """Open the memory and begin to sweep; False where that is refused.

        It is tried again from time to time: a server that has just started has no processes to ask yet.
        """
        opened = open_reader(self._server, self._capabilities, self._names)
        if isinstance(opened, SharedReader):
            self._first = self.reader = opened
        self._thread.start()
        return self.reading

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop sweeping; what was seen is charged."""
        self._ending = True
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def counts(self) -> dict[str, int]:
        """Return what could not be read so far, by reason."""
        counts = Counter(self._past)
        reader = self.reader
        if reader is not None:
            counts.update(dict(reader.counts))
        return {
            **{f"slots_{name}": counts[name] for name in ("torn", "invalid", "dead")},
            "sessions_undescribed": self._time.undescribed,
            "requests_inherited": self._time.inherited,
        }

    def _run(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        opened: SharedReader | str | None = self._first
        if opened is None:
            self._stop.wait(backoff_s)
        while not self._stop.is_set():
            # The one border of this thread: whatever the server does, the memory is opened anew.
            try:
                if opened is None:
                    opened = open_reader(self._server, self._capabilities, self._names)
                if isinstance(opened, SharedReader):
                    backoff_s = _FIRST_BACKOFF_S
                    self._sweep_until_gone(opened)
            except MemoryGone as error:
                log.info("shared memory is gone", extra={"error": str(error)})
            except Exception:
                self.faults += 1
                log.exception("sessions fault", extra={"faults": self.faults})
            opened = None
            if not self._server.alive():
                return
            self._stop.wait(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)

    def _sweep_until_gone(self, reader: SharedReader) -> None:
        self.reader = reader
        self.cpu_ns = time.thread_time_ns()
        due_ns = time.monotonic_ns()
        try:
            while not self._ending:
                slots = reader.sweep()
                now_ns, unix_ns = time.monotonic_ns(), time.time_ns()
                if unix_ns // SECOND_NS != self._active.second:
                    self._time.report(slots, unix_ns)
                self._time.seen(reader, now_ns, unix_ns)
                self.sweeps += 1
                ended_ns, cpu_ns = time.monotonic_ns(), time.thread_time_ns()
                due_ns = max(due_ns + self._period_ns, ended_ns + (cpu_ns - self.cpu_ns) * _LEAST_REST)
                self.cpu_ns = cpu_ns
                time.sleep((due_ns - ended_ns) / SECOND_NS)
        finally:
            self.reader = None
            self._time.end()
            self._past.update(dict(reader.counts))
            reader.close()
