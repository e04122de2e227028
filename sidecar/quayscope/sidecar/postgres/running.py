"""What a process of the server ran when it was sampled: role, statement, for whom, and whether proven.

From its slot in shared memory, see `join`; where that may not be read, from whatever shows a text now, which
proves nothing. A text that the slot cuts is completed from the backend itself while it runs the same
statement still.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from quayscope.sidecar import procfs
from quayscope.sidecar.postgres.join import Clock, Verdict, judge
from quayscope.sidecar.postgres.shared import SharedReader, Torn
from quayscope.sidecar.postgres.slots import BACKGROUND_WORKER, Glance, worker_type
from quayscope.sidecar.statements import LONGEST_DESCRIBED, StatementSource
from quayscope.sidecar.targets import CLIENT_BACKEND, Postmaster, backend_type

__all__ = ["Backends", "Ran", "Running"]

Backends = Callable[[], SharedReader | None]
"""Gives the reader of the server's shared memory, None while there is none."""

_PARALLEL_WORKER = "parallel worker"
_WITH_STATEMENTS = (CLIENT_BACKEND, _PARALLEL_WORKER, BACKGROUND_WORKER)
# Before its slot is made, a backend's title ends so (set_ps_display).
_STARTING = re.compile(r"postgres: .*\b(?:authentication|startup|initializing)$", re.DOTALL)
_MAX_ROLES = 16_384
_MAX_HELD = 1024


class Ran(NamedTuple):
    """What a process ran at a sample.

    `text` is None where it ran no statement, or where it is not known which: then it is `unproven`. `role` is
    None where it has no title yet, or is gone. `pid` is the process itself, or a parallel worker's leader.
    """

    text: str | None
    role: str | None
    unproven: bool
    pid: int


class _Whole(NamedTuple):
    activity_start_ns: int
    text: str


class Running:
    """Tells what the processes of one server ran; for one thread, apart from `forget`.

    Holds up to 1,024 long texts of 16,384 characters, and as many parallel workers' statements.
    """

    def __init__(
        self, server: Postmaster, texts: StatementSource | None, backends: Backends | None = None
    ) -> None:
        self._server = server
        self._texts = texts
        self._backends = backends
        self._roles: dict[int, str] = {}
        self._whole: dict[int, _Whole] = {}
        self._workers: dict[int, tuple[str, int]] = {}
        self._clock = Clock.read()
        self._trusted = True

    def begin(self) -> None:
        """Begin a look: measure the clocks."""
        clock = Clock.read()
        # Times from before and after the clock was set do not compare.
        self._trusted = not clock.was_set_since(self._clock)
        self._clock = clock

    def at(self, pid: int, times: Sequence[int]) -> list[Ran]:
        """Return what a process ran at each of some samples' times (CLOCK_MONOTONIC, ns), all before now."""
        if pid == self._server.pid:
            return [Ran(None, "postmaster", False, pid)] * len(times)
        reader = self._backends() if self._backends is not None else None
        if reader is None:
            text = self._texts.statement(pid) if self._texts is not None else None
            return [Ran(text, self.role(pid), text is not None, pid)] * len(times)
        try:
            seen = reader.glance(pid)
        except Torn:
            return [self._unknown(pid)] * len(times)
        if seen is None:
            return [self._without_slot(pid)] * len(times)
        role = self._role_of(pid, seen)
        if role == _PARALLEL_WORKER:
            return self._worker(reader, pid, seen, times)
        if role not in _WITH_STATEMENTS:
            return [Ran(None, role, False, pid)] * len(times)
        return self._judged(reader, pid, seen, times, Ran(None, role, False, pid))

    def _judged(
        self, reader: SharedReader, shown: int, seen: Glance, times: Sequence[int], ran: Ran
    ) -> list[Ran]:
        """Judge by the slot of the process `shown`; `ran` is what is certain already."""
        found: list[Ran] = []
        text: str | None = None
        clock, now_ns = self._clock, time.time_ns()
        for time_ns in times:
            verdict = Verdict.UNKNOWN
            if self._trusted:
                verdict = judge(seen, time_ns + clock.offset_ns, now_ns, clock.error_ns)
            if verdict is Verdict.STATEMENT:
                text = text or self._text(reader, shown, seen)
                found.append(ran._replace(text=text))
            else:
                found.append(ran._replace(unproven=verdict is Verdict.UNKNOWN))
        return found

    def _worker(self, reader: SharedReader, pid: int, seen: Glance, times: Sequence[int]) -> list[Ran]:
        """Answer for a parallel worker: it lives for one statement, its leader's, and shows it in time."""
        held = self._workers.get(pid)
        if held is not None:
            return [Ran(held[0], _PARALLEL_WORKER, False, held[1])] * len(times)
        leader = reader.leader(pid)
        ran = Ran(None, _PARALLEL_WORKER, False, leader or pid)
        if seen.text:
            text = self._text(reader, pid, seen)
            if leader:
                _keep(self._workers, pid, (text, leader))
            return [ran._replace(text=text)] * len(times)
        try:
            shown = reader.glance(leader) if leader else None
        except Torn:
            shown = None
        if shown is None:
            return [ran._replace(unproven=True)] * len(times)
        return self._judged(reader, leader, shown, times, ran)

    def _text(self, reader: SharedReader, pid: int, seen: Glance) -> str:
        """Return a slot's text, completed from the process itself if it runs the same statement still."""
        if not seen.truncated:
            return seen.text.decode(errors="replace")
        cut = seen.text.decode(errors="ignore")
        held = self._whole.get(pid)
        if (
            held is not None
            and held.activity_start_ns == seen.activity_start_ns
            and held.text.startswith(cut)
        ):
            return held.text
        whole = (
            self._texts.statement(pid)
            if self._texts is not None and len(seen.text) < LONGEST_DESCRIBED
            else None
        )
        if whole is None or not whole.startswith(cut):
            return cut[:LONGEST_DESCRIBED]
        try:
            again = reader.glance(pid)
        except Torn:
            again = None
        # Another statement may begin alike: the text is this one's if nothing has begun since.
        if again is None or again.activity_start_ns != seen.activity_start_ns:
            return cut
        whole = whole[:LONGEST_DESCRIBED]
        _keep(self._whole, pid, _Whole(seen.activity_start_ns, whole))
        return whole

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
        role = self._roles.get(pid)
        if role is None:
            role = "postmaster" if pid == self._server.pid else backend_type(pid)
            if role is not None:
                _keep(self._roles, pid, role, _MAX_ROLES)
        return role

    def forget(self, pid: int) -> None:
        """Drop what is known of a process that ended."""
        for held in (self._roles, self._whole, self._workers):
            held.pop(pid, None)


Value = TypeVar("Value")


def _keep(held: dict[int, Value], pid: int, value: Value, most: int = _MAX_HELD) -> None:
    if len(held) >= most:
        held.clear()
    held[pid] = value
