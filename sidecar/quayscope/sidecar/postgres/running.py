"""What a process of the server ran when it was sampled: role, statement, for whom, and whether proven.

From its slot in shared memory, see `join`; where that may not be read, from whatever shows a text now, which
proves nothing. A text that the slot cuts is completed from the backend itself while it runs the same
statement still.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from quayscope.sidecar import procfs
from quayscope.sidecar.postgres.join import Clock, Verdict, is_same_transaction, judge
from quayscope.sidecar.postgres.routes import Copy, Parts
from quayscope.sidecar.postgres.shared import Peek, SharedReader, Torn
from quayscope.sidecar.postgres.slots import BACKGROUND_WORKER, Glance, worker_type
from quayscope.sidecar.postgres.transactions import Transactions
from quayscope.sidecar.statements import LONGEST_DESCRIBED, StatementSource
from quayscope.sidecar.targets import CLIENT_BACKEND, Postmaster, backend_type

__all__ = ["Backend", "Backends", "Noted", "Ran", "Running"]

Backends = Callable[[], SharedReader | None]
"""Gives the reader of the server's shared memory, None while there is none."""

_PARALLEL_WORKER = "parallel worker"
_WITH_STATEMENTS = (CLIENT_BACKEND, _PARALLEL_WORKER, BACKGROUND_WORKER)
# Before its slot is made, a backend's title ends so (set_ps_display).
_STARTING = re.compile(r"postgres: .*\b(?:authentication|startup|initializing)$", re.DOTALL)
_MAX_ROLES = 16_384
_MAX_HELD = 1024
_MAX_BACKENDS = 4096
_OBJECTS = 1024
"""Bytes that a note takes without its texts, about."""


class Ran(NamedTuple):
    """What a process ran at a sample.

    `text` is None where it ran no statement, or where it is not known which: then it is `unproven`. `role` is
    None where it has no title yet, or is gone. `pid` is the process itself, or a parallel worker's leader.
    `comment` is that of another statement of the same transaction, where there is none of its own.
    """

    text: str | None
    role: str | None
    unproven: bool
    pid: int
    comment: str = ""


class Noted(NamedTuple):
    """What was seen of a process at a look, to be judged for its samples later.

    `looked_ns` is Unix nanoseconds, `ran` what is certain already. `seen` is what the slot of the process
    showed, or its leader's, where that is to be judged; `whole` is the text where the slot cuts it.
    """

    looked_ns: int
    ran: Ran
    seen: Glance | None = None
    whole: str | None = None

    @property
    def size(self) -> int:
        """About the memory that it holds, in bytes."""
        text = len(self.whole) if self.whole is not None else len(self.ran.text or "")
        return _OBJECTS + text + (len(self.seen.text) if self.seen is not None else 0)


class Backend(NamedTuple):
    """A client backend that was seen before: `copy` reads its slot with `text` bytes, `size` is a copy's."""

    copy: Copy
    size: int
    text: int
    pid: int
    reader: SharedReader
    number: int
    server_pid: int


class _Whole(NamedTuple):
    activity_start_ns: int
    text: str


class Running:
    """Tells what the processes of one server ran: `note` at once, on any thread, `settle` at leisure, on one.

    Holds up to 1,024 long texts of 16,384 characters, and as many parallel workers' statements. `known` are
    4,096 client backends that a copy may be made of instead: where its parts belong together and its text is
    whole, `noted` makes of it what `note` would have.
    """

    def __init__(
        self, server: Postmaster, texts: StatementSource | None, backends: Backends | None = None
    ) -> None:
        self._server = server
        self._texts = texts
        self._backends = backends
        self.known: dict[int, Backend] = {}
        self._roles: dict[int, str] = {}
        self._whole: dict[int, _Whole] = {}
        self._workers: dict[int, tuple[str, int]] = {}
        self._transactions = Transactions()
        self._clock = Clock.read()
        self._trusted = True

    def note(self, pid: int) -> Noted:
        """Look at a process: what takes time or thought comes later."""
        reader = self._backends() if self._backends is not None else None
        if reader is None or pid == self._server.pid:
            return self._note_text(pid)
        try:
            peek = reader.peek(pid)
            now_ns = time.time_ns()
            if peek is None:
                return Noted(now_ns, self._without_slot(pid))
            seen = reader.glance(peek)
            if seen is None:
                return Noted(now_ns, self._unknown(pid))
            if seen.backend_type == CLIENT_BACKEND and not seen.truncated:
                self._know(reader, pid, peek)
                return Noted(now_ns, Ran(None, CLIENT_BACKEND, False, pid), seen)
            return self._note_special(reader, pid, seen, now_ns)
        except Torn:
            return Noted(time.time_ns(), self._unknown(pid))

    def _know(self, reader: SharedReader, pid: int, peek: Peek) -> None:
        """Have a client backend's slot copied from its next sample on."""
        held = self.known.get(pid)
        if (
            held is not None
            and (held.reader, held.number, held.server_pid) == (reader, peek.number, peek.server_pid)
            and len(peek.seen.activity) < held.text
        ):
            return
        copy, text = reader.copier(peek)
        backend = Backend(copy, text + _OBJECTS, text, pid, reader, peek.number, peek.server_pid)
        _keep(self.known, pid, backend, _MAX_BACKENDS)

    def noted(self, looked_ns: int, backend: Backend, parts: Parts) -> Noted:
        """Return the note that a copy is, which was made before a moment (Unix nanoseconds)."""
        seen = backend.reader.copied(backend.number, backend.server_pid, parts)
        if seen is None and self.known.get(backend.pid) is backend:
            # Its end may have been among what was lost: the next of its pid is looked at.
            del self.known[backend.pid]
        return Noted(looked_ns, Ran(None, CLIENT_BACKEND, seen is None, backend.pid), seen)

    def _note_text(self, pid: int) -> Noted:
        """Note the text that a process shows, where its slot may not be read."""
        self.known.pop(pid, None)
        text = None
        if self._texts is not None and pid != self._server.pid:
            text = self._texts.statement(pid)
        return Noted(time.time_ns(), Ran(text, self.role(pid), text is not None, pid))

    def _note_special(self, reader: SharedReader, pid: int, seen: Glance, now_ns: int) -> Noted:
        """Note what is no client backend, or shows a text that is cut."""
        role = self._role_of(pid, seen)
        if role == _PARALLEL_WORKER:
            return self._note_worker(reader, pid, seen, now_ns)
        ran = Ran(None, role, False, pid)
        if role not in _WITH_STATEMENTS:
            return Noted(now_ns, ran)
        return Noted(now_ns, ran, seen, self._complete(reader, pid, seen))

    def _note_worker(self, reader: SharedReader, pid: int, seen: Glance, now_ns: int) -> Noted:
        """Note a parallel worker: it lives for one statement, its leader's, and shows it once it runs."""
        held = self._workers.get(pid)
        if held is not None:
            return Noted(now_ns, Ran(held[0], _PARALLEL_WORKER, False, held[1]))
        leader = reader.leader(pid)
        ran = Ran(None, _PARALLEL_WORKER, False, leader or pid)
        if seen.text:
            text = self._complete(reader, pid, seen) or seen.decoded
            if leader:
                _keep(self._workers, pid, (text, leader))
            return Noted(now_ns, ran._replace(text=text))
        peek = reader.peek(leader) if leader else None
        looked_ns = time.time_ns()
        shown = None if peek is None else reader.glance(peek)
        if shown is None:
            return Noted(now_ns, ran._replace(unproven=True))
        return Noted(looked_ns, ran, shown)

    def _complete(self, reader: SharedReader, pid: int, seen: Glance) -> str | None:
        """Read a text whole that the slot cuts, if the process runs the same statement still."""
        if not seen.truncated or self._texts is None or len(seen.text) >= LONGEST_DESCRIBED:
            return None
        cut = seen.decoded
        held = self._whole.get(pid)
        if held is not None and held.activity_start_ns == seen.activity_start_ns:
            return held.text if held.text.startswith(cut) else None
        whole = self._texts.statement(pid)
        if whole is None or not whole.startswith(cut):
            return None
        peek = reader.peek(pid)
        again = None if peek is None else reader.glance(peek)
        # Another statement may begin alike: the text is this one's if nothing has begun since.
        if again is None or again.activity_start_ns != seen.activity_start_ns:
            return None
        _keep(self._whole, pid, _Whole(seen.activity_start_ns, whole[:LONGEST_DESCRIBED]))
        return whole[:LONGEST_DESCRIBED]

    def measure(self) -> None:
        """Measure the clocks; to be called before what was noted since the last time is settled."""
        clock = Clock.read()
        # Times from before and after the clock was set do not compare.
        self._trusted = not clock.was_set_since(self._clock)
        self._clock = clock

    def settle(self, noted: Noted, time_ns: int) -> Ran:
        """Return what a process ran at a sample's time (CLOCK_MONOTONIC, ns), before it was looked at."""
        looked_ns, ran, seen, whole = noted
        if seen is None:
            return ran
        _, role, _, pid, _ = ran
        if not self._trusted:
            return Ran(None, role, True, pid)
        clock = self._clock
        at_ns = time_ns + clock.offset_ns
        verdict = judge(seen, at_ns, looked_ns, clock.error_ns)
        shown = seen.decoded
        comment = self._transactions.comment(pid, seen.transaction_start_ns, shown, seen.rest)
        if verdict is Verdict.STATEMENT:
            return Ran(shown[:LONGEST_DESCRIBED] if whole is None else whole, role, False, pid, comment)
        # Between two statements of one transaction, or in one of them that is not known.
        same = is_same_transaction(seen, at_ns, looked_ns, clock.error_ns)
        return Ran(None, role, verdict is Verdict.UNKNOWN, pid, (comment or shown) if same else "")

    def _without_slot(self, pid: int) -> Ran:
        """Answer for a process that has no slot: it begins, it has ended, or it is none with statements."""
        held = self._workers.get(pid)
        if held is not None:
            return Ran(held[0], _PARALLEL_WORKER, False, held[1])
        if _STARTING.match(procfs.command_line(pid)):
            return Ran(None, CLIENT_BACKEND, False, pid)
        return self._unknown(pid)

    def _unknown(self, pid: int) -> Ran:
        role = self.role(pid)
        return Ran(None, role, role is None or role in _WITH_STATEMENTS, pid)

    def _role_of(self, pid: int, seen: Glance) -> str:
        role = self._roles.get(pid)
        if role is None:
            role = seen.backend_type
            if role == BACKGROUND_WORKER:
                role = worker_type(pid)
                if role == BACKGROUND_WORKER:
                    return role  # it may not have its title yet
            _keep(self._roles, pid, role, _MAX_ROLES)
        return role

    def role(self, pid: int) -> str | None:
        """Return what a process of the server is; None while it has no title yet, or when it is gone."""
        if pid in self.known:
            return CLIENT_BACKEND
        role = self._roles.get(pid)
        if role is None:
            role = "postmaster" if pid == self._server.pid else backend_type(pid)
            if role is not None:
                _keep(self._roles, pid, role, _MAX_ROLES)
        return role

    def forget(self, pid: int) -> None:
        """Drop what is known of a process that ended."""
        for held in (self.known, self._roles, self._whole, self._workers):
            held.pop(pid, None)
        self._transactions.forget(pid)


Value = TypeVar("Value")


def _keep(held: dict[int, Value], pid: int, value: Value, most: int = _MAX_HELD) -> None:
    if len(held) >= most:
        held.clear()
    held[pid] = value
