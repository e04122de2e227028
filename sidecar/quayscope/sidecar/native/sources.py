"""Where a target's samples come from: its cgroup's events on each CPU, or events of each of its tasks.

The cgroup's way catches every process and thread however short its life. The tasks' way needs no privilege
over one's own processes; an inherited event starts a full period, so what lives shorter is hardly seen.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable
from typing import Generic, NamedTuple, Protocol, TypeVar

from quayscope.sidecar.errors import NoCgroup
from quayscope.sidecar.native import cgroups
from quayscope.sidecar.native.events import DUMP_BYTES, Form, open_event, set_period
from quayscope.sidecar.native.records import Ended, Forked, Record
from quayscope.sidecar.native.ring import Rings

__all__ = [
    "RESERVED_DESCRIPTORS",
    "CgroupSource",
    "Demand",
    "Needs",
    "Plan",
    "Source",
    "TaskSource",
    "needs",
    "open_source",
]

log = logging.getLogger(__name__)

RESERVED_DESCRIPTORS = 128
"""Left to the rest of the program: sampling everybody is no use to one that can open nothing else."""
_SECOND_NS = 1_000_000_000
_VERIFY_S = 10.0
_MAX_TASKS = 65_536

Key = TypeVar("Key", bound=Hashable)


class Plan(NamedTuple):
    """How a target is sampled: `chain` asks for the kernel's frame-pointer chains instead of stack dumps."""

    hz: int
    kernel: bool
    chain: bool = False
    cycles: bool = False


class Demand(NamedTuple, Generic[Key]):
    """A target as a source sees it: its root, who belongs to it, and the key its samples carry."""

    key: Key
    root_pid: int
    pids: Callable[[], Collection[int]]


class Source(Protocol):
    """Feeds a target's samples into rings."""

    kind: str
    refused: dict[int, str]
    """Tasks that are not sampled, and why."""
    duplicates: int
    """Samples that were dropped since another event takes those of their task and CPU."""

    def rescan(self) -> None:
        """Cover what is not covered yet; to be called about once a second. Raises `NoCgroup`."""

    def seen(self, record: Record) -> None:
        """Learn from a record of the target's."""

    def accepts(self, event: int, cpu: int, tid: int) -> bool:
        """Whether a sample of a task is to be counted, by the event and CPU that it was taken on."""

    def set_rate(self, hz: int) -> None:
        """Sample `hz` times a second of CPU from now on. Raises OSError."""

    def close(self) -> None:
        """Close all events."""


class Needs(NamedTuple):
    """What sampling takes of the machine's limits: descriptors, and bytes of locked memory."""

    descriptors: int
    locked_bytes: int


def needs(cpus: int, ring_bytes: int, *, cgroups: int = 0, tasks: int = 0) -> Needs:
    """Return what one set of rings takes, with events on so many cgroups and existing tasks.

    Processes and threads that begin later inherit their events and take nothing.
    """
    # A ring and its page of control; an owner a ring, and Python's copy of that for the mapping; an event a
    # cgroup or task and CPU, and the cgroup's directory.
    page = resource.getpagesize()
    return Needs(cpus * (2 + cgroups + tasks) + cgroups, cpus * (ring_bytes + page))


def _form(rings: Rings[Key], plan: Plan, *, per_task: bool = False) -> Form:
    dumped = 0 if plan.chain or not rings.holds_dumps else DUMP_BYTES
    # The count goes on in the kernel: where that part is not sampled, it is not what samples stand for.
    return Form(dumped, counted=plan.kernel and not plan.cycles, per_task=per_task)


class CgroupSource(Generic[Key]):
    """One event a CPU on the target's cgroup.

    Raises `NoCgroup` when it has none of its own, OSError with what the kernel answered.
    """

    kind = "cgroup"
    duplicates = 0

    def __init__(self, rings: Rings[Key], demand: Demand[Key], plan: Plan) -> None:
        self.refused: dict[int, str] = {}
        self._rings = rings
        self._demand = demand
        self._plan = plan
        self._events: dict[int, int] = {}
        self._form = _form(rings, plan)
        self.cgroup = cgroups.find(demand.root_pid)
        self._directory = os.open(self.cgroup.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._verify()
            self._open()
        except BaseException:
            self.close()
            raise

    def _verify(self) -> None:
        cgroups.refuse_foreign(self.cgroup.directory, self._demand.root_pid, self._demand.pids)
        self._verify_at = time.monotonic() + _VERIFY_S

    def _open(self) -> None:
        for cpu in self._rings.cpus:
            descriptor = open_event(
                self._directory,
                cpu,
                self._plan.hz,
                kernel=self._plan.kernel,
                cgroup=True,
                form=self._form,
                watermark=self._rings.watermark,
                cycles=self._plan.cycles,
            )
            try:
                number = self._rings.lead(descriptor, cpu, self._form, self._demand.key)
            except BaseException:
                os.close(descriptor)
                raise
            self._events[number] = descriptor

    def rescan(self) -> None:
        """See that nobody else has moved into the cgroup. Raises `NoCgroup` when somebody has."""
        if time.monotonic() >= self._verify_at:
            with contextlib.suppress(OSError):  # gone with its last process
                self._verify()

    def seen(self, record: Record) -> None:
        """Nothing to learn: the kernel keeps the cgroup's members."""

    def accepts(self, event: int, cpu: int, tid: int) -> bool:  # noqa: ARG002 the interface's
        """All are the target's."""
        return True

    def set_rate(self, hz: int) -> None:
        """Sample `hz` times a second of CPU from now on."""
        self._plan = self._plan._replace(hz=hz)
        for descriptor in self._events.values():
            set_period(descriptor, hz if self._plan.cycles else _SECOND_NS // hz)

    def close(self) -> None:
        """Close all events."""
        for number, descriptor in self._events.items():
            os.close(descriptor)
            self._rings.forget(number)
        self._events.clear()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1


class _Attached:
    """The events of one task, by number and CPU, and the tasks that are sampled through it."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self.events: dict[int, tuple[int, int]] = {}  # number -> (cpu, descriptor)
        self.members: set[int] = {tid}
        self.last = 0
        """The event opened last: who inherited that has inherited all."""
        self.complete_ns = 0
        """When that was open."""
        self.has_forked = False
        """Whether a task has been born of it since then."""
        self.threads_checked = False


class TaskSource(Generic[Key]):
    """An event a CPU on each task that already runs; what those fork inherits them.

    That a task inherited all events is known from its birth's record or from a sample. The record is written
    long after events are inherited: it tells nothing of the first task that is born after its parent was
    attached, whose fork may have begun before. A later one's began when the fork before it was over.

    One that may have inherited some CPUs' events alone gets its own as well. So that nothing counts twice,
    one event is chosen for each task and CPU, the first that takes a sample: the others' samples are dropped
    and counted in `duplicates` for as long as the chosen one is open. An own event is closed where an
    inherited one is met; what it counted since its last sample, less than a period, is not sampled.

    Raises OSError with the kernel's answer for the root; of others it stands in `refused`.
    """

    kind = "task"

    def __init__(self, rings: Rings[Key], demand: Demand[Key], plan: Plan) -> None:
        self.refused: dict[int, str] = {}
        self.duplicates = 0
        self._rings = rings
        self._demand = demand
        self._plan = plan
        self._form = _form(rings, plan, per_task=True)
        self._attached: dict[int, _Attached] = {}  # by task
        self._through: dict[int, _Attached] = {}  # task -> the one by whose events it is covered
        self._others: dict[int, set[_Attached]] = {}  # task -> of whom else it has inherited, or may have
        self._owners: dict[int, _Attached] = {}  # by event
        self._chosen: dict[int, dict[int, int]] = {}  # the event that counts, by task and CPU
        self._doubtful: set[int] = set()  # tasks born, of which it is not certain that they are covered
        try:
            self._attach_root()
            self.rescan()
        except BaseException:
            self.close()
            raise

    def _attach_root(self) -> None:
        root = self._demand.root_pid
        try:
            self._attach(root)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._form.counted:
                raise
            # An older kernel cannot tell an heir's count.
            self._form = self._form._replace(counted=False)
            self._attach(root)

    def _attach(self, tid: int) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if (len(self._owners) + len(self._rings.cpus) * 2) > limit - RESERVED_DESCRIPTORS:
            raise OSError(errno.EMFILE, f"Too many open files ({limit})")
        attached = _Attached(tid)
        try:
            for cpu in self._rings.cpus:
                descriptor = open_event(
                    tid,
                    cpu,
                    self._plan.hz,
                    kernel=self._plan.kernel,
                    form=self._form,
                    watermark=self._rings.watermark,
                    cycles=self._plan.cycles,
                )
                try:
                    number = self._rings.lead(descriptor, cpu, self._form, self._demand.key)
                except BaseException:
                    os.close(descriptor)
                    raise
                attached.events[number] = (cpu, descriptor)
                attached.last = number
                self._owners[number] = attached
        except OSError:
            self._close(attached)
            raise
        attached.complete_ns = time.monotonic_ns()
        self._attached[tid] = self._through[tid] = attached

    def rescan(self) -> None:
        """Attach what nobody's events cover, and let go of what ended."""
        doubtful, self._doubtful = self._doubtful, set()
        for tid in doubtful:
            if tid not in self._through and self._cover(tid):
                self._cover_threads(tid)
        alive = {self._demand.root_pid, *self._demand.pids()}
        self._forget_dead(alive)
        for pid in alive:
            attached = self._attached.get(pid)
            if attached is not None:
                # Twice: a thread may have begun while the list was read.
                if not attached.threads_checked:
                    attached.threads_checked = True
                    self._cover_threads(pid)
            elif pid not in self._through and self._cover(pid):
                self._cover_threads(pid)
        self.refused = {tid: why for tid, why in self.refused.items() if os.path.exists(f"/proc/{tid}")}  # noqa: PTH110 cheap

    def _cover_threads(self, pid: int) -> None:
        try:
            tasks = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 hundreds of processes
        except OSError:
            return
        for task in tasks:
            tid = int(task)
            if tid not in self._through:
                self._cover(tid)

    def _cover(self, tid: int) -> bool:
        try:
            self._attach(tid)
        except OSError as error:
            if error.errno != errno.ESRCH:
                self.refused[tid] = error.strerror or str(error)
            return False
        self.refused.pop(tid, None)
        return True

    def _forget_dead(self, alive: set[int]) -> None:
        # Births and ends whose records were lost.
        for attached in {*self._owners.values()}:
            gone = {tid for tid in attached.members if tid not in alive and not _runs(tid)}
            for tid in gone:
                self._leave(tid)

    def seen(self, record: Record) -> None:
        """Learn who inherited events, and who ended."""
        if isinstance(record, Forked):
            self._born(record)
        elif isinstance(record, Ended):
            self._leave(record.tid)

    def _born(self, record: Forked) -> None:
        tid = record.tid
        if tid in self._through or len(self._through) >= _MAX_TASKS:
            return
        parent = self._through.get(record.parent_tid)
        certain = False
        if parent is not None and record.time_ns > parent.complete_ns:
            # Who has inherited events has had them all its life.
            certain = parent.tid != record.parent_tid or parent.has_forked
            parent.has_forked |= parent.tid == record.parent_tid
        if not certain:
            self._doubtful.add(tid)
        if parent is not None:
            self._depend(tid, parent, covered=certain)

    def _depend(self, tid: int, owner: _Attached, *, covered: bool) -> None:
        """Have another one's events stay open for a task, which may be all that it needs."""
        owner.members.add(tid)
        if covered:
            self._doubtful.discard(tid)
            self._through.setdefault(tid, owner)
        if self._through.get(tid) is not owner:
            self._others.setdefault(tid, set()).add(owner)

    def _leave(self, tid: int) -> None:
        self._chosen.pop(tid, None)
        self._doubtful.discard(tid)
        self._attached.pop(tid, None)
        owners = self._others.pop(tid, set())
        if tid in self._through:
            owners.add(self._through.pop(tid))
        for owner in owners:
            owner.members.discard(tid)
            # Closing an event closes what was inherited from it: it stays for its last heir.
            if not owner.members and owner.tid != self._demand.root_pid:
                self._close(owner)

    def accepts(self, event: int, cpu: int, tid: int) -> bool:
        """Whether the event is the one that counts for this task and CPU."""
        owner = self._owners.get(event)
        if owner is None:
            return False
        by_cpu = self._chosen.get(tid)
        if by_cpu is None:
            if len(self._chosen) >= _MAX_TASKS:
                self._chosen.clear()
            by_cpu = self._chosen[tid] = {}
        chosen = by_cpu.setdefault(cpu, event)
        if chosen == event:
            if tid != owner.tid and self._through.get(tid) is not owner:
                self._inherited(event, tid, owner)
            return True
        if chosen not in self._owners:
            by_cpu[cpu] = event
            return self.accepts(event, cpu, tid)
        self.duplicates += 1
        self._close_own(tid, event, chosen)
        return False

    def _inherited(self, event: int, tid: int, owner: _Attached) -> None:
        """Learn from a sample that a task has inherited an event."""
        # Not the last one: it may have been born while its parent was being attached.
        if tid in self._through or len(self._through) < _MAX_TASKS:
            self._depend(tid, owner, covered=event == owner.last)

    def _close_own(self, tid: int, *events: int) -> None:
        """Close a task's own event where it has inherited one of the same CPU."""
        own = self._attached.get(tid)
        for event in events:
            if own is not None and event in own.events:
                (other,) = {*events} - {event}
                self._depend(tid, self._owners[other], covered=False)
                self._close_event(own, event, own.events[event][1])

    def set_rate(self, hz: int) -> None:
        """Sample `hz` times a second of CPU from now on: by new events, as heirs keep the old period."""
        self._plan = self._plan._replace(hz=hz)
        for attached in {id(held): held for held in self._owners.values()}.values():
            self._close(attached)
        self._forget_all()
        self._attach_root()
        self.rescan()

    def _close(self, attached: _Attached) -> None:
        for number, (_, descriptor) in list(attached.events.items()):
            self._close_event(attached, number, descriptor)
        if self._attached.get(attached.tid) is attached:
            del self._attached[attached.tid]

    def _close_event(self, attached: _Attached, number: int, descriptor: int) -> None:
        os.close(descriptor)
        del attached.events[number]
        self._owners.pop(number, None)
        self._rings.forget(number)

    def close(self) -> None:
        """Close all events."""
        for attached in {id(held): held for held in self._owners.values()}.values():
            self._close(attached)
        self._forget_all()

    def _forget_all(self) -> None:
        for held in (self._attached, self._through, self._others, self._chosen, self._doubtful):
            held.clear()

    def counts(self) -> Counter[str]:
        """Return how many tasks have events of their own, and how many inherited theirs."""
        return Counter(attached=len(self._attached), inherited=len(self._through) - len(self._attached))


def _runs(tid: int) -> bool:
    return os.path.exists(f"/proc/{tid}")  # noqa: PTH110 many of them, each second


def open_source(
    rings: Rings[Key], demand: Demand[Key], plan: Plan, *, cgroup: bool = True
) -> tuple[CgroupSource[Key] | TaskSource[Key], str]:
    """Open the best source that is permitted; returns it and why it is not the cgroup (empty: it is).

    The kernel's part is left out where it is refused. Raises OSError with the last answer when nothing works.
    """
    why = "its cgroup is not to be used"
    if cgroup:
        try:
            return CgroupSource(rings, demand, plan), ""
        except NoCgroup as error:
            why = str(error)
        except OSError as error:
            why = f"perf events on its cgroup: {error.strerror}"
    if plan.kernel:
        try:
            return TaskSource(rings, demand, plan), why
        except PermissionError as error:
            log.debug("no kernel part", extra={"pid": demand.root_pid, "error": error.strerror})
    return TaskSource(rings, demand, plan._replace(kernel=False)), why
